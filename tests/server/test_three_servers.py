"""Three servers with mutual TLS on a primary under Sentinel, and what operators do and what goes wrong, under load."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest
from tests.support.certificates import Authority, Issued
from tests.support.door import CA, Door
from tests.support.metrics import free_port, scrape
from tests.support.repeating import Repeated, repeating
from tests.support.sentinel import Sentinels
from tests.support.service import ServeProcess
from tests.support.waiting import eventually_async

from catraca import AsyncSessionClient, _core
from catraca.errors import Unavailable
from catraca_server.domain.call import Role

NEW_CA = Authority("the next authority")
VALID = 'catraca_validations_total{outcome="valid"}'
EXPIRY = "catraca_tls_certificate_expiry_timestamp_seconds"
STORE_UNAVAILABLE = 'catraca_errors_total{reason="store_unavailable"}'
RECONNECTS = "catraca_store_reconnects_total"


class Site:
    """The servers, each with a page of metrics, behind one door."""

    def __init__(self, door: Door, store_url: str, ports: tuple[int, ...]) -> None:
        self.door = door
        self.key = door.new_key(Role.VALIDATE, Role.ISSUE)
        self.target = f"ipv4:{','.join(f'127.0.0.1:{port}' for port in ports)}"
        self.pages = [free_port() for _ in ports]
        self.servers = [
            ServeProcess(
                store_url=store_url,
                replica_acks="1",
                # Only for what a slow machine may do; a primary that is gone is known at once.
                store_timeout="5s",
                port=str(port),
                metrics_port=str(page),
                callers_file=str(door.callers),
                tls_cert=str(door.certificate),
                tls_key=str(door.key),
                tls_client_ca=str(door.ca),
            )
            for port, page in zip(ports, self.pages, strict=True)
        ]

    async def each(self, sample: str) -> list[float]:
        """Returns a sample from the page of each server that runs."""
        pages = [page for page, server in zip(self.pages, self.servers, strict=True) if server.process.poll() is None]
        return [(await asyncio.to_thread(scrape, page)).get(sample, 0.0) for page in pages]

    def client(self, issued: Issued, key_file: Path) -> AsyncSessionClient:
        """Returns a client that trusts both authorities, and takes the servers in turn."""
        credentials = grpc.ssl_channel_credentials(CA.pem + NEW_CA.pem, issued.key, issued.certificate)
        return AsyncSessionClient(self.target, credentials=credentials, api_key_file=key_file, timeout=10)


@pytest.fixture
async def site(valkey_sentinel: Sentinels, door: Door, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """Three servers that run."""
    await asyncio.to_thread(valkey_sentinel.renew)
    # A name that resolves to all of them would do without: see "Balancing" in docs/operations.md.
    options = (("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1))
    monkeypatch.setattr(_core, "CHANNEL_OPTIONS", (*_core.CHANNEL_OPTIONS, *options))
    found = Site(door, valkey_sentinel.url, (free_port(), free_port(), free_port()))
    async with AsyncExitStack() as stack:
        await asyncio.gather(*(stack.enter_async_context(server) for server in found.servers))
        yield found


@asynccontextmanager
async def load(client: AsyncSessionClient, tokens: list[str]) -> AsyncIterator[Repeated]:
    """Validates all the time, by a caller for each token, and logs in now and then."""
    turn = iter(range(10**9))

    async def call() -> None:
        number = next(turn)
        # An acknowledged session that is not valid is no failure that may be counted: it ends the test.
        assert await client.validate(tokens[number % len(tokens)])
        if number % 20 == 0:
            tokens.append((await client.create("ana")).token)

    async with repeating(call) as calls:
        yield calls


async def becomes(what: str, site: Site, sample: str, least: float) -> None:
    """Waits until a sample is at least so much on the page of each server."""

    async def is_so() -> bool:
        return min(await site.each(sample)) >= least

    await eventually_async(is_so, what)


async def test_a_day_of_operations(site: Site, valkey_sentinel: Sentinels, tmp_path: Path) -> None:
    """Keys, certificates and authorities are replaced and a server is killed: no call fails.

    A primary is killed: calls fail until the next one is there, for that reason only, and the pages of metrics say so.
    """
    key_file = tmp_path / "web.key"
    key_file.write_text(site.key)
    async with site.client(CA.client(uri="spiffe://test/web"), key_file) as client:
        tokens = [(await client.create("ana")).token for _ in range(4)]
        async with load(client, tokens) as calls:
            await becomes("every server validates", site, VALID, 5)
            assert await site.each("catraca_store_connected") == [1.0] * 3
            assert await site.each(RECONNECTS) == [0.0] * 3

            await replace_key(site, key_file, client, calls)
            await replace_certificates(site, calls)
            async with site.client(NEW_CA.client(uri="spiffe://test/web"), key_file) as renewed:
                assert await renewed.validate(tokens[0])

            killed = site.servers[1]
            killed.signal(signal.SIGKILL)
            await asyncio.to_thread(killed.wait)
            await calls.go_on(50)
            assert calls.failures == []
            await asyncio.to_thread(killed.start)
            await becomes("the server is used again", site, VALID, 5)
            assert calls.failures == []

            assert await site.each(RECONNECTS) == [0.0] * 3
            lost = valkey_sentinel.primary
            await asyncio.to_thread(lost.kill)
            await becomes("every server has another connection", site, RECONNECTS, 1)
            await asyncio.to_thread(valkey_sentinel.wait_for_takeover, lost)
            await becomes("every server is connected", site, "catraca_store_connected", 1)
            await calls.go_on(50)
        assert all(isinstance(each, Unavailable) for each in calls.failures), calls.failures
        assert {each.reason for each in calls.failures} <= {"STORE_UNAVAILABLE", "NOT_DURABLE"}
        assert sum(await site.each(STORE_UNAVAILABLE)) > 0
        # What was acknowledged before, while and after the primary was lost.
        assert all(await client.validate_batch(tokens))
    for server in site.servers:
        assert "store disconnected: " in server.log
        assert "CRITICAL" not in server.log


async def replace_key(site: Site, key_file: Path, client: AsyncSessionClient, calls: Repeated) -> None:
    """Makes a key, gives it to the client, and revokes the one before once the client uses the new one."""
    second = site.door.new_key(Role.VALIDATE, Role.ISSUE)

    async def is_known() -> bool:
        return all("callers file reloaded: 2 entries" in server.log for server in site.servers)

    # Before that, a client that has it already would be refused.
    await eventually_async(is_known, "every server knows the new key")
    new = key_file.with_suffix(".new")
    new.write_text(second)
    new.replace(key_file)

    async def uses_new() -> bool:
        metadata = client._channel._access.metadata()
        return metadata is not None and metadata[0][1] == f"Bearer {second}"

    async def is_revoked() -> bool:
        return all("callers file reloaded: 1 entries" in server.log for server in site.servers)

    await eventually_async(uses_new, "the client uses the new key")
    site.door.revoke(site.key)
    await eventually_async(is_revoked, "no server knows the key of before")
    await calls.go_on(50)
    assert calls.failures == []


async def replace_certificates(site: Site, calls: Repeated) -> None:
    """Lets in clients of a new authority, too, and shows a certificate that it has signed."""
    door = site.door
    before = await site.each(EXPIRY)
    door.ca.write_bytes(CA.pem + NEW_CA.pem)
    NEW_CA.server().write(door.certificate, door.key)

    async def is_shown() -> bool:
        return all(now > then for now, then in zip(await site.each(EXPIRY), before, strict=True))

    await eventually_async(is_shown, "the page tells when the new certificate ends")
    await calls.go_on(50)
    assert calls.failures == []
