"""A store behind TLS: a real Valkey whose port speaks TLS, with and without certificates for clients."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from tests.support.certificates import Authority
from tests.support.inprocess import serving
from tests.support.proxy import Proxy
from tests.support.service import ServeProcess
from tests.support.valkey import Valkey
from tests.support.waiting import eventually_async

from catraca import AsyncSessionClient, Validation
from catraca.errors import Unavailable
from catraca_server.app import StartError

CA = Authority()
BIG = {f"key {at}": "x" * 4000 for at in range(4)}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory with an authority, a certificate for the store, and one for us."""
    (tmp_path / "ca.crt").write_bytes(CA.pem)
    CA.server().write(tmp_path / "store.crt", tmp_path / "store.key")
    CA.client(dns="catraca.test").write(tmp_path / "own.crt", tmp_path / "own.key")
    return tmp_path


def context(files: Path, *, mutual: bool = False) -> ssl.SSLContext:
    """Returns how the store speaks TLS."""
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.load_cert_chain(files / "store.crt", files / "store.key")
    if mutual:
        made.load_verify_locations(files / "ca.crt")
        made.verify_mode = ssl.CERT_REQUIRED
    return made


@pytest.fixture
async def store(valkey: Valkey, files: Path) -> AsyncIterator[Proxy]:
    """The Valkey of the run behind TLS."""
    async with Proxy(valkey.socket, tls=context(files)) as proxy:
        yield proxy


async def lives(target: str) -> None:
    """Has many sessions live at a time, with records larger than a piece of TLS."""
    async with AsyncSessionClient(target, timeout=10) as sessions:

        async def live(user: str) -> None:
            login = await sessions.create(user, attributes=BIG)
            check = await sessions.validate(login.token)
            assert check.session is not None
            assert (check.session.user_id, check.session.attributes) == (user, BIG)
            rotated = await sessions.rotate(login.token)
            assert await sessions.revoke(token=rotated.token)
            assert not await sessions.validate(rotated.token)

        await asyncio.gather(*(live(f"tls-{at}") for at in range(50)))


Serving = Callable[[dict[str, str]], AbstractAsyncContextManager[str | ServeProcess]]


@pytest.mark.parametrize("serve", [lambda s: serving(**s), lambda s: ServeProcess(**s)], ids=["asyncio", "uvloop"])
async def test_a_store_over_tls(store: Proxy, files: Path, serve: Serving) -> None:
    """Sessions live there as anywhere, on either event loop."""
    settings = {"store_url": store.url, "store_tls_ca": str(files / "ca.crt"), "store_timeout": "5s"}
    async with serve(settings) as served:
        await lives(served if isinstance(served, str) else served.target)


async def test_a_store_that_wants_a_certificate(valkey: Valkey, files: Path) -> None:
    """It is shown the one of the settings, or of the URL; without one there is no connection."""
    own = {"store_tls_cert": str(files / "own.crt"), "store_tls_key": str(files / "own.key")}
    in_url = f"?ssl_ca_certs={files}/ca.crt&ssl_certfile={files}/own.crt&ssl_keyfile={files}/own.key"
    async with Proxy(valkey.socket, tls=context(files, mutual=True)) as store:
        ca = {"store_tls_ca": str(files / "ca.crt"), "store_timeout": "5s"}
        async with serving(store_url=store.url, **ca, **own) as target:
            await lives(target)
        async with serving(store_url=store.url + in_url, store_timeout="5s") as target:
            await lives(target)
        with pytest.raises(StartError, match="no answer at rediss://"):
            async with serving(store_url=store.url, **ca):
                pass


async def test_a_store_that_is_not_whom_it_should_be(valkey: Valkey, store: Proxy, files: Path) -> None:
    """Its certificate has to be one of the authority, for the name in the URL."""
    with pytest.raises(StartError, match="certificate verify failed"):
        async with serving(store_url=store.url):
            pass
    (files / "another.crt").write_bytes(Authority("another").pem)
    with pytest.raises(StartError, match="certificate verify failed"):
        async with serving(store_url=store.url, store_tls_ca=str(files / "another.crt")):
            pass
    CA.server("another.test", ()).write(files / "store.crt", files / "store.key")
    async with Proxy(valkey.socket, tls=context(files)) as other:
        with pytest.raises(StartError, match="IP address mismatch"):
            async with serving(store_url=other.url, store_tls_ca=str(files / "ca.crt")):
                pass


async def test_a_file_that_is_missing(store: Proxy, files: Path) -> None:
    """The error names the store and what is wrong, and the service ends."""
    with pytest.raises(StartError, match="No such file"):
        async with serving(store_url=store.url, store_tls_ca=str(files / "none.crt")):
            pass


@pytest.mark.parametrize("fault", ["reset", "half_close"])
async def test_a_connection_that_breaks(store: Proxy, files: Path, fault: str) -> None:
    """It is made again, over TLS, as one in clear is."""
    settings = {"store_tls_ca": str(files / "ca.crt"), "store_timeout": "5s"}
    async with serving(store_url=store.url, **settings) as target, AsyncSessionClient(target, timeout=10) as sessions:
        token = (await sessions.create("12345")).token
        accepted = store.accepted
        if fault == "reset":
            store.reset()
        else:
            # TLS has no half that could be closed: an orderly end is for both directions.
            for writer in store._clients:
                writer.close()

        async def valid() -> bool:
            try:
                answer: Validation = await sessions.validate(token)
            except Unavailable:
                return False
            assert answer, "a live session was denied"
            return store.accepted > accepted

        await eventually_async(valid, "connected again")
