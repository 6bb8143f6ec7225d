"""Connections: TLS and the identity that it gives a caller, age, streams at a time, shared ports."""

import asyncio
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from tests.support.engine import OPTIONS, Desk, Pile, echo, echo_all, end_of, serving, unary
from tests.support.raw_http2 import RawConnection
from tests.support.waiting import eventually_async

from catraca_server.api.engine import (
    Arrival,
    BatchMethod,
    Method,
    Server,
    Status,
    StatusError,
    Stream,
    StreamMethod,
    UnaryCall,
    UnaryMethod,
)

OPENSSL = shutil.which("openssl")


def make_certificates(directory: Path) -> None:
    """Makes an authority, a server's certificate for localhost and a client's, all for a day."""
    (directory / "server.ext").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    (directory / "client.ext").write_text("subjectAltName=URI:spiffe://test/shop,DNS:shop.test\n")

    def openssl(*words: str) -> None:
        subprocess.run([str(OPENSSL), *words], cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "1", "-subj", "/CN=test authority")
    for name in ("server", "client"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed_by = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed_by, "-days", "1", "-extfile", f"{name}.ext",
                "-out", f"{name}.pem")  # fmt: skip


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """Certificates and keys by the names of their files."""
    if OPENSSL is None:
        pytest.skip("no openssl, which makes certificates")
    directory = tmp_path_factory.mktemp("certificates")
    make_certificates(directory)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


async def test_tls_and_the_callers_certificate(certificates: Mapping[str, bytes]) -> None:
    """A handler is told the names in the certificate of a caller that has shown one."""
    seen: list[tuple[Sequence[bytes] | None, Mapping[str, Sequence[bytes]]]] = []

    async def who(call: UnaryCall) -> bytes:
        seen.append((call.peer_identities(), call.auth_context()))
        return b""

    server = grpc.ssl_server_credentials(
        [(certificates["server.key"], certificates["server.pem"])], certificates["ca.pem"], require_client_auth=True
    )
    client = grpc.ssl_channel_credentials(
        certificates["ca.pem"], certificates["client.key"], certificates["client.pem"]
    )
    methods = {"Who": UnaryMethod(who)}
    override = [("grpc.ssl_target_name_override", "localhost")]
    async with serving(methods, credentials=server, channel_credentials=client, channel_options=override) as served:
        await served.unary("Who")
        stranger = grpc.ssl_channel_credentials(certificates["ca.pem"])
        async with grpc.aio.secure_channel(served.target, stranger, override) as channel:
            refused = unary(channel, "/test.Service/Who", b"", timeout=1)
            assert (await end_of(refused)).code in {
                grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED
            }  # fmt: skip
    ((identities, context),) = seen
    assert identities is not None
    assert {b"spiffe://test/shop", b"shop.test"} <= set(identities)
    assert context["transport_security_type"] == [b"ssl"]
    assert context["x509_common_name"] == [b"client"]


async def test_connections_that_come_of_age() -> None:
    """Callers move on to new connections, and no call is any the worse for it, nor one that outlasts its own."""
    desk, peers = Desk(), set[str]()

    async def note(call: UnaryCall) -> bytes:
        peers.add(call.peer())
        return call.request

    options = (("grpc.max_connection_age_ms", 100), ("grpc.max_connection_age_grace_ms", 60_000))
    methods = {"Note": UnaryMethod(note), "Stay": UnaryMethod(desk.stay), "Watch": StreamMethod(desk.watch)}
    async with serving(methods, options) as served:
        staying, watching = served.unary("Stay", b"done"), served.server_stream("Watch")
        await watching.read()
        await desk.has_inside(1)

        async def moved_on() -> bool:
            assert await served.unary("Note", b"x") == b"x"
            return len(peers) >= 3

        await eventually_async(moved_on, "three connections")
        assert desk.inside == 1
        desk.open.set()
        assert await staying == b"done"
        assert (await end_of(watching)).code is grpc.StatusCode.OK


async def test_streams_at_a_time() -> None:
    """What is over the connection's limit is refused at once, by the core; what is not is answered."""
    pile = Pile()
    async with serving({"Ask": pile.method}, [("grpc.max_concurrent_streams", 20)], slots=5) as served:
        with closing(await asyncio.to_thread(RawConnection, served.port)) as raw:
            assert raw.most_streams == 20
            streams = [raw.begin("Ask", b"x") for _ in range(100)]

            async def are_refused() -> bool:
                await asyncio.to_thread(raw.turn)
                # The core lets one in on top.
                return len(raw.refused) >= 79

            await eventually_async(are_refused, "the rest is refused")
            while len(raw.ended) < len(streams):
                for call in pile.calls:
                    call.reply(b"")
                pile.calls.clear()
                await asyncio.to_thread(raw.turn)
            assert 79 <= len(raw.refused) <= 80


async def test_keepalive_pings_are_answered() -> None:
    """A client that pings without calls keeps its connection, if the options allow it."""
    options = (("grpc.http2.min_ping_interval_without_data_ms", 5), ("grpc.keepalive_permit_without_calls", 1))
    pings = (
        ("grpc.keepalive_time_ms", 10),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    )
    desk = Desk()
    methods = {"Watch": StreamMethod(desk.watch), "Echo": UnaryMethod(echo)}
    async with serving(methods, options, channel_options=pings) as served:
        watching = served.server_stream("Watch")
        await watching.read()
        for _ in range(50):
            assert await served.unary("Echo", b"x") == b"x"
            await asyncio.sleep(0.002)
        desk.open.set()
        assert (await end_of(watching)).code is grpc.StatusCode.OK


async def test_a_port_can_be_shared() -> None:
    """Two servers on one port, as several workers have it, both get connections."""
    answered = {"one": 0, "other": 0}

    def server(name: str) -> Server:
        def handle(calls: list[UnaryCall]) -> None:
            answered[name] += len(calls)
            echo_all(calls)

        server = Server([("grpc.so_reuseport", 1)])
        server.add_methods({"/test.Service/Echo": BatchMethod(handle)})
        return server

    one, other = server("one"), server("other")
    port = one.listen("127.0.0.1:0")
    assert other.listen(f"127.0.0.1:{port}") == port
    one.start()
    other.start()
    own = [("grpc.use_local_subchannel_pool", 1)]
    for _ in range(200):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", own) as channel:
            await unary(channel, "/test.Service/Echo", b"x")
        if all(answered.values()):
            break
    assert all(answered.values())
    await asyncio.gather(one.stop(None), other.stop(None))


async def test_a_unix_socket(tmp_path: Path) -> None:
    """It can listen on one."""
    server = Server(OPTIONS)
    server.add_methods({"/test.Service/Echo": BatchMethod(echo_all)})
    server.listen(f"unix:{tmp_path / 'socket'}")
    server.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 'socket'}") as channel:
        assert await unary(channel, "/test.Service/Echo", b"x") == b"x"
    await server.stop(None)


def guard_by_name(arrival: Arrival) -> str:
    """Lets in everybody but nobody."""
    assert arrival.peer().startswith("ipv4:127.0.0.1:")
    assert "x509_common_name" not in arrival.auth_context()
    who = str(dict(arrival.metadata)["who"])
    if who == "nobody":
        raise StatusError(Status(grpc.StatusCode.UNAUTHENTICATED, "who?", (("why", "because"),)))
    assert who != "defect"
    return who.upper()


async def test_a_guard_decides_before_the_request_is_read() -> None:
    """What it returns is the caller of the call; what it refuses, or fails at, reaches no handler of any kind."""
    reached: list[object] = []

    async def handle(call: UnaryCall) -> bytes:
        reached.append(call.caller)
        return call.request

    def handle_batch(calls: list[UnaryCall]) -> None:
        for call in calls:
            reached.append(call.caller)
            call.reply(call.request)

    async def handle_stream(stream: Stream) -> None:
        reached.append(stream.caller)
        await stream.send(await stream.receive() or b"")

    methods: dict[str, Method] = {
        "Unary": UnaryMethod(handle),
        "Batch": BatchMethod(handle_batch),
        "Stream": StreamMethod(handle_stream),
    }
    async with serving({}) as served:
        served.server.add_methods({f"/test.Service/{name}": method for name, method in methods.items()}, guard_by_name)
        for name in methods:
            for who, code in (("ana", "OK"), ("nobody", "UNAUTHENTICATED"), ("defect", "INTERNAL")):
                call = served.server_stream(name, b"request", metadata=(("who", who),), timeout=10)
                if code == "OK":
                    assert await call.read() == b"request"
                ended = await end_of(call)
                assert ended.code.name == code
                if who == "nobody":
                    assert (ended.details, ended.trailing_metadata["why"]) == ("who?", "because")
    assert reached == ["ANA"] * 3
