"""When certificates expire, compared with what the cryptography package says."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from tests.support.certificates import Authority

from catraca_server.api.certificates import valid_until

CA = Authority("an authority whose name is as long as it may be")
LONG_NAME = f"spiffe://example.org/{'x' * 3000}"


@pytest.mark.parametrize("lives", [timedelta(seconds=5), timedelta(days=1), timedelta(days=-1), timedelta(days=20_000)])
@pytest.mark.parametrize("uri", ["spiffe://example.org/web", LONG_NAME])
def test_when_a_certificate_ends(lives: timedelta, uri: str) -> None:
    """Whichever way its time and its lengths are written; 20,000 days are past 2050, where the form changes."""
    pem = CA.client(uri=uri, lives=lives).certificate
    assert valid_until(pem) == x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()


def test_years_of_two_digits() -> None:
    """They are of this century up to 49, says RFC 5280."""
    pem = CA.client(dns="web.test", lives=datetime(2049, 12, 31, tzinfo=UTC) - datetime.now(UTC)).certificate
    assert datetime.fromtimestamp(valid_until(pem), UTC).year in (2049, 2050)


def test_what_is_not_a_certificate() -> None:
    """It has no end that could be told."""
    pem = CA.client(dns="web.test")
    lines = pem.certificate.splitlines(keepends=True)
    for other in (b"", b"nonsense", pem.key, b"\xff", b"".join((*lines[:2], lines[-1])), lines[0] + lines[-1]):
        with pytest.raises(ValueError):  # noqa: PT011  each says it in its own words
            valid_until(other)
