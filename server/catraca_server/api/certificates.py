"""When a certificate expires. The standard library reads that only for a connection's peer, and gRPC never does."""

import ssl
from datetime import UTC, datetime
from pathlib import Path

_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18

_PEM_BEGIN, _PEM_END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"


def valid_until(pem: bytes) -> float:
    """Returns when a certificate ends, in seconds since 1970. Raises ValueError for what is not a certificate."""
    der = ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))
    # Certificate > TBSCertificate > [version], serial number, algorithm, issuer, validity > from, until. RFC 5280, 4.1.
    content = _only(der, _SEQUENCE)
    content, _ = _value(content, _SEQUENCE)
    if content[:1] == bytes((_VERSION,)):
        content = _after(content)
    for _ in ("serial number", "algorithm", "issuer"):
        content = _after(content)
    validity, _ = _value(content, _SEQUENCE)
    until = _after(validity)
    tag = until[0] if until else 0
    text = _only(until, tag).decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("not a time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def file_valid_until(path: Path) -> float | None:
    """Returns when the first certificate in a file ends, in seconds since 1970; None if that cannot be read."""
    try:
        begin, marker, rest = path.read_bytes().partition(_PEM_END)
        del rest
        return valid_until(begin[begin.index(_PEM_BEGIN) :] + marker)
    except (OSError, ValueError):
        return None


def _only(data: bytes, tag: int) -> bytes:
    value, rest = _value(data, tag)
    if rest:
        raise ValueError("more than one value")
    return value


def _after(data: bytes) -> bytes:
    """Returns what comes after the first value."""
    return _value(data, data[0] if data else 0)[1]


def _value(data: bytes, tag: int) -> tuple[bytes, bytes]:
    """Returns the first value, which must have this tag, and what comes after it."""
    if len(data) < 2 or data[0] != tag:
        raise ValueError("not a value of this kind")
    length, at = data[1], 2
    if length >= 0x80:
        at += length - 0x80
        length = int.from_bytes(data[2:at])
    if at + length > len(data):
        raise ValueError("cut off")
    return data[at : at + length], data[at + length :]
