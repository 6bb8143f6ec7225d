"""Many connections with a call each: their calls are validated together, as those of few connections are."""

import signal
from contextlib import ExitStack, closing

from tests.support.metrics import free_port, scrape
from tests.support.raw_http2 import RawConnection
from tests.support.service import ServeProcess
from tests.support.valkey import Valkey
from tests.support.waiting import eventually

from catraca.v1 import session_service_pb2 as pb

CONNECTIONS = 40
_COMMANDS = "catraca_store_batch_commands"


def test_calls_of_many_connections_share_requests_to_the_store(valkey: Valkey) -> None:
    """A poll of the core reads from one connection, and a turn of the engine goes on until nothing is left."""
    port = free_port()
    request = pb.ValidateSessionRequest(token="a-token-that-nobody-brought").SerializeToString()
    with (
        ServeProcess(store_url=valkey.url, store_timeout="5s", metrics_port=str(port)) as service,
        ExitStack() as stack,
    ):
        server_port = int(service.target.rpartition(":")[2])
        connections = [
            stack.enter_context(closing(RawConnection(server_port, "catraca.v1.SessionService")))
            for _ in range(CONNECTIONS)
        ]
        before = scrape(port)
        # All calls are there before the first one is read.
        service.signal(signal.SIGSTOP)
        streams = [connection.begin("ValidateSession", request) for connection in connections]
        service.signal(signal.SIGCONT)
        for connection, stream in zip(connections, streams, strict=True):
            connection.wait_for_end(stream)

        def grown(name: str) -> float:
            return scrape(port)[f"{_COMMANDS}_{name}"] - before[f"{_COMMANDS}_{name}"]

        # Two commands for each: its record and its expiry.
        eventually(lambda: grown("sum") == 2 * CONNECTIONS, "all of them are counted")
        assert grown("count") <= CONNECTIONS / 8
