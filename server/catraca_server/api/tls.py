"""The certificate that the server shows: read from files, and read again when they have changed.

gRPC asks at each handshake whether there is a new one, so a changed file takes effect with the next connection. Open
connections go on. Unusable files change nothing: the certificate that was read before stays in force.
"""

import logging
import ssl
import threading
from pathlib import Path
from typing import TypeAlias

import grpc

logger = logging.getLogger(__name__)

_Stamp: TypeAlias = tuple[tuple[int, int, int], ...]
"""A value that changes whenever one of the files does."""


class CertificateError(Exception):
    """The certificate cannot be used: why, with the names of the files and nothing of what is in them."""


class Certificate:
    """A certificate with its key, and the authorities of clients' certificates if clients must have one.

    All are paths of PEM files.
    """

    def __init__(self, certificate: Path, key: Path, client_authorities: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_authorities = client_authorities
        self._stamp: _Stamp | None = None
        # Handshakes call this from threads of the core.
        self._lock = threading.Lock()

    def credentials(self) -> grpc.ServerCredentials:
        """Returns the credentials to listen with. Raises CertificateError."""
        self._stamp = self._stamp_now()
        configuration = self._read(self._stamp)
        return grpc.dynamic_ssl_server_credentials(
            configuration,
            self._read_if_changed,  # type: ignore[arg-type]  # it may return None, says the documentation
            require_client_authentication=self._client_authorities is not None,
        )

    def _read_if_changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns what to serve with from now on; None if nothing has changed."""
        with self._lock:
            stamp = self._stamp_now()
            if stamp == self._stamp:
                return None
            # Also for unusable files, so that they are logged once and not at every handshake.
            self._stamp = stamp
            try:
                configuration = self._read(stamp)
            except CertificateError as error:
                logger.error("certificate not reloaded, the old one stays in force: %s", error)  # noqa: TRY400
                return None
            logger.info("certificate reloaded: %s", self._certificate)
            return configuration

    @property
    def _paths(self) -> tuple[Path, ...]:
        paths = (self._certificate, self._key)
        return paths if self._client_authorities is None else (*paths, self._client_authorities)

    def _stamp_now(self) -> _Stamp:
        return tuple(_stamp(path) for path in self._paths)

    def _read(self, stamp: _Stamp) -> grpc.ServerCertificateConfiguration:
        contents = [_content(path) for path in self._paths]
        check_pair(self._certificate, self._key)
        if self._client_authorities is not None:
            check_authorities(self._client_authorities)
        # The checks have read the files again. If the files have changed, what was checked is not what would be served.
        if self._stamp_now() != stamp:
            raise CertificateError(f"{self._certificate} or a file beside it is just being written")
        certificate, key, *authorities = contents
        return grpc.ssl_server_certificate_configuration([(key, certificate)], *authorities)


def check_pair(certificate: Path, key: Path) -> None:
    """Refuses a certificate and a key that gRPC would refuse without saying why. Raises CertificateError."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        why = "the key is not that of the certificate" if error.reason == "KEY_VALUES_MISMATCH" else "not valid PEM"
        raise CertificateError(f"{certificate} and {key} cannot be used: {why}") from None
    except ValueError:
        raise CertificateError(f"{key} is encrypted: store it without a passphrase") from None
    except OSError as error:
        raise CertificateError(f"{certificate} or {key} cannot be read: {error.strerror}") from None


def check_authorities(authorities: Path) -> None:
    """Refuses a file without certificates of authorities. Raises CertificateError."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(authorities)
    except OSError:  # among them SSLError
        raise CertificateError(f"{authorities} has no certificates in PEM") from None


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0, 0
    return status.st_ino, status.st_mtime_ns, status.st_size


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"{path} cannot be read: {error.strerror}") from None


def _no_password() -> str:
    # Without this, OpenSSL would ask for a password on the terminal.
    raise ValueError
