"""The files of a service that authenticates its callers: certificates and the callers file."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.certificates import Authority
from tests.support.inprocess import serving

from catraca_server import callers_file
from catraca_server.domain.call import Caller, Role
from catraca_server.domain.callers import Entry, new_key

CA = Authority()


class Door:
    """The files of a service that authenticates its callers."""

    def __init__(self, directory: Path) -> None:
        self.callers, self.ca = directory / "callers", directory / "ca.crt"
        self.certificate, self.key = directory / "tls.crt", directory / "tls.key"
        self.ca.write_bytes(CA.pem)
        CA.server().write(self.certificate, self.key)
        self.callers.write_text(callers_file.HEADER)

    def new_key(self, *roles: Role, name: str = "web") -> str:
        """Adds a key and returns it."""
        key, record = new_key(secrets.token_bytes)
        callers_file.add(self.callers, Entry(Caller(name, frozenset(roles)), record))
        return key

    def revoke(self, key: str) -> None:
        """Removes a key."""
        assert callers_file.remove_key(self.callers, key[5:27])

    @asynccontextmanager
    async def serving(self, *, mutual: bool = False) -> AsyncIterator[str]:
        """Runs a service over TLS in this process."""
        authority = {"tls_client_ca": str(self.ca)} if mutual else {}
        tls = {"tls_cert": str(self.certificate), "tls_key": str(self.key), **authority}
        async with serving(store_url="memory:", store_timeout="5s", callers_file=str(self.callers), **tls) as target:
            yield target
