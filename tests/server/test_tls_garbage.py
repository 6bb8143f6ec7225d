"""Handshakes and records that no honest client sends: they disturb no other client, and their cost is bounded."""

import asyncio
import os
import random
import shutil
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import psutil
import pytest
from tests.support.door import CA, Door
from tests.support.service import ServeProcess
from tests.support.strangers import GROWTH_MAX_BYTES, PREFACE, client_hello, connect, is_served
from tests.support.waiting import TIMEOUT_SECONDS, eventually, eventually_async

from catraca_server import core_options

LONG = bool(os.environ.get("CATRACA_TEST_LONG"))
SEEDS = range(3_000 if LONG else 150)
HALF_OPEN = 1_000 if LONG else 300
CHANGE_CIPHER, ALERT, HANDSHAKE, DATA = 20, 21, 22, 23


class Tls:
    """A connection whose records pass through our hands."""

    def __init__(self, port: int, *, alpn: tuple[str, ...] = ("h2",), newest: ssl.TLSVersion | None = None) -> None:
        context = ssl.create_default_context(cadata=CA.pem.decode())
        if newest:
            context.maximum_version = newest
        if alpn:
            context.set_alpn_protocols(alpn)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS)

    def shake_hands(self, spoil: Callable[[bytes], bytes] = bytes) -> None:
        """Does the handshake, with each flight of ours spoilt. Raises SSLError or OSError."""
        while True:
            try:
                self.session.do_handshake()
            except ssl.SSLWantReadError:
                self.socket.sendall(spoil(self.outgoing.read()))
                received = self.socket.recv(1 << 16)
                if not received:
                    raise ConnectionError("the server hung up") from None
                self.incoming.write(received)
            else:
                self.socket.sendall(spoil(self.outgoing.read()))
                return

    def send(self, data: bytes, spoil: Callable[[bytes], bytes] = bytes) -> None:
        """Encrypts data, and sends the records spoilt."""
        self.session.write(data)
        self.socket.sendall(spoil(self.outgoing.read()))

    def is_hung_up_on(self) -> bool:
        """Whether the server closes the connection before it has been silent for too long."""
        with suppress(ConnectionError):
            while self.socket.recv(1 << 16):
                pass
        return True


def spoilt(records: bytes, chance: random.Random) -> bytes:
    """Returns records with one thing wrong: bytes changed, cut off, doubled, put in, of another kind or length."""
    at = chance.randrange(len(records) + 1)
    match chance.randrange(5):
        case 0:
            return records[:at] + chance.randbytes(chance.randrange(1, 20)) + records[at + 1 :]
        case 1:
            return records[:at]
        case 2:
            return records * 2
        case 3:
            kind = chance.choice((CHANGE_CIPHER, ALERT, HANDSHAKE, DATA, 24, 255))
            return (
                struct.pack(">BHH", kind, 0x0303, size := chance.choice((0, 2, 300))) + chance.randbytes(size) + records
            )
        case _:
            return records[:3] + struct.pack(">H", chance.getrandbits(16)) + records[5:]


def misbehave(port: int, seed: int) -> None:
    """Opens a connection and goes wrong: in the handshake, in a record, or in what is within it."""
    chance = random.Random(seed)  # noqa: S311  it is to be the same in every run
    tls = Tls(port, newest=chance.choice((ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)))
    # One that says nothing any more would be waited for.
    tls.socket.settimeout(0.2)
    try:
        with suppress(OSError):  # among them SSLError
            wrong = seed % 3
            tls.shake_hands((lambda flight: spoilt(flight, chance)) if wrong == 0 else bytes)
            tls.send(PREFACE)
            for _ in range(chance.randrange(1, 10)):
                tls.send(
                    chance.randbytes(chance.choice((1, 9, 1_000))),
                    lambda each: spoilt(each, chance) if wrong == 1 else each,
                )
    finally:
        tls.socket.close()


@pytest.fixture
async def secured(door: Door, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """The port of a service over TLS whose handshakes have half a second."""
    monkeypatch.setattr(core_options, "HANDSHAKE_TIMEOUT_MS", 500)
    async with door.serving() as target:
        assert await is_served(target, CA.channel_credentials())
        yield int(target.rpartition(":")[2])


async def still_serves(port: int) -> bool:
    """Whether an honest caller is answered."""
    return await is_served(f"localhost:{port}", CA.channel_credentials())


async def test_spoilt_handshakes_and_records(secured: int, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it is, others are served, nothing is a defect, and memory and sockets are given back."""
    process = psutil.Process()
    before, files = process.memory_info().rss, process.num_fds()
    for start in range(0, len(SEEDS), 10):
        await asyncio.gather(*(asyncio.to_thread(misbehave, secured, seed) for seed in SEEDS[start : start + 10]))
        assert await still_serves(secured), start
    assert process.memory_info().rss - before < GROWTH_MAX_BYTES

    async def are_given_back() -> bool:
        return process.num_fds() <= files + 5

    await eventually_async(are_given_back, "the sockets are closed")
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


async def test_handshakes_by_the_hundred_that_are_never_finished(secured: int) -> None:
    """All are hung up on, and others are served meanwhile."""
    before = psutil.Process().memory_info().rss
    hello = client_hello()

    async def begin(number: int) -> None:
        reader, writer = await connect(f"127.0.0.1:{secured}")
        writer.write(hello if number % 2 else hello[: len(hello) // 2])
        with suppress(ConnectionError):
            await asyncio.wait_for(reader.read(-1), TIMEOUT_SECONDS)
        writer.close()

    waiting = [asyncio.create_task(begin(number)) for number in range(HALF_OPEN)]
    assert await still_serves(secured)
    assert psutil.Process().memory_info().rss - before < GROWTH_MAX_BYTES
    await asyncio.gather(*waiting)
    assert await still_serves(secured)


@pytest.mark.parametrize("alpn", [("http/1.1",), ("h3", "spdy/3"), ()], ids=str)
async def test_other_protocols_are_hung_up_on(alpn: tuple[str, ...], secured: int) -> None:
    """Who does not ask for HTTP/2 gets none."""

    def ask() -> bool:
        tls = Tls(secured, alpn=alpn)
        with tls.socket:
            with suppress(OSError):
                tls.shake_hands()
                tls.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return tls.is_hung_up_on()

    assert await asyncio.to_thread(ask)
    assert await still_serves(secured)


@pytest.mark.parametrize("version", [0x0300, 0x0301, 0x0302], ids=["SSL 3.0", "TLS 1.0", "TLS 1.1"])
async def test_hellos_of_old_versions_are_hung_up_on(version: int, secured: int) -> None:
    """The oldest that is spoken is TLS 1.2."""
    suites = b"\xc0\x13\xc0\x14\x00\x2f\x00\x35"
    body = struct.pack(">H", version) + bytes(32) + b"\0" + struct.pack(">H", len(suites)) + suites + b"\1\0"
    message = b"\1" + len(body).to_bytes(3) + body
    reader, writer = await connect(f"127.0.0.1:{secured}")
    writer.write(struct.pack(">BHH", HANDSHAKE, version, len(message)) + message)
    answer = await asyncio.wait_for(reader.read(-1), TIMEOUT_SECONDS)
    writer.close()
    assert HANDSHAKE not in answer[:1]
    assert await still_serves(secured)


async def test_a_client_that_renegotiates(secured: int) -> None:
    """It is hung up on: handshakes would be work for nothing, as often as the client likes."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl on this machine")

    # A line with an R begins another handshake, within the first one.
    process = await asyncio.create_subprocess_exec(
        openssl, "s_client", "-connect", f"127.0.0.1:{secured}", "-tls1_2", "-alpn", "h2",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(b"R\n")
    # Its input stays open, so that nothing but the server ends it.
    told = await asyncio.wait_for(process.stderr.read(), TIMEOUT_SECONDS)
    assert b"RENEGOTIATING" in told
    assert await asyncio.wait_for(process.wait(), TIMEOUT_SECONDS) != 0
    assert await still_serves(secured)


@pytest.mark.parametrize(("verbosity", "lines"), [(None, 0), ("INFO", 30)], ids=["ours", "the operator's"])
def test_what_is_logged_of_it(verbosity: str | None, lines: int, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing, so that nobody who merely reaches the port can fill the log; unless the operator wants to see it."""
    monkeypatch.delenv("GRPC_VERBOSITY", raising=False)
    environment = {
        "CATRACA_STORE_URL": "memory:",
        "CATRACA_CALLERS_FILE": str(door.callers),
        "CATRACA_TLS_CERT": str(door.certificate),
        "CATRACA_TLS_KEY": str(door.key),
        **({"GRPC_VERBOSITY": verbosity} if verbosity else {}),
    }
    with ServeProcess(environment) as process:
        before = process.log.count("\n")
        for seed in range(40):
            misbehave(int(process.target.rpartition(":")[2]), seed)
        eventually(lambda: process.log.count("\n") - before >= lines, "the log has lines about it")
        assert process.stop() == 0
        told = process.log.splitlines()[before:]
    assert lines or all("drain" in each or "stopp" in each for each in told), told
