"""Certificates for tests: an authority of their own, and the certificates that it signs."""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

_SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key, in PEM."""

    certificate: bytes
    key: bytes

    def write(self, certificate: Path, key: Path) -> None:
        """Writes both files, each in one step."""
        for path, content in ((key, self.key), (certificate, self.certificate)):
            new = path.with_suffix(".new")
            new.write_bytes(content)
            new.rename(path)


class Authority:
    """Signs certificates, which end in a day unless asked otherwise."""

    def __init__(self, name: str = "test authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        now = datetime.now(UTC)
        builder = _builder(self._name, self._name, self._key, now - timedelta(days=3), now + timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        # From Python 3.13 on its `ssl` asks for what RFC 5280 asks for: what a key is for (4.2.1.3), and whose it is.
        builder = builder.add_extension(_SIGNS_CERTIFICATES, critical=True)
        own = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        builder = builder.add_extension(own, critical=False)
        self._signed_by = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
        self.pem = builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def server(self, dns: str = "localhost", ips: tuple[str, ...] = ("127.0.0.1", "::1")) -> Issued:
        """Issues a certificate for a server, by default on loopback."""
        addresses = [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips]
        return self._issue("server", [x509.DNSName(dns), *addresses])

    def client(
        self,
        *,
        uri: str = "",
        dns: str = "",
        email: str = "",
        name: str = "client",
        lives: timedelta = timedelta(days=1),
    ) -> Issued:
        """Issues a certificate for a caller, with these names in it; it expires after this time."""
        names: list[x509.GeneralName] = []
        if uri:
            names.append(x509.UniformResourceIdentifier(uri))
        if dns:
            names.append(x509.DNSName(dns))
        if email:
            names.append(x509.RFC822Name(email))
        return self._issue(name, names, lives=lives)

    def channel_credentials(self, client: Issued | None = None) -> grpc.ChannelCredentials:
        """Returns the credentials to connect with: this authority, and a client's certificate if there is one."""
        if client is None:
            return grpc.ssl_channel_credentials(self.pem)
        return grpc.ssl_channel_credentials(self.pem, client.key, client.certificate)

    def _issue(self, name: str, names: list[x509.GeneralName], *, lives: timedelta = timedelta(days=1)) -> Issued:
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        builder = _builder(_name(name), self._name, key, now - timedelta(days=2), now + lives)
        builder = builder.add_extension(self._signed_by, critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return Issued(certificate.public_bytes(Encoding.PEM), _pem(key))


def encrypted_key() -> bytes:
    """Returns a private key that needs a passphrase, in PEM."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number(), begin, end)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
