"""Checks that the Go peer answers as catraca does: it is a peer only if it does the same work."""

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from google.protobuf.duration_pb2 import Duration

from bench.checkouts import Checkout
from bench.closed_loop import Client
from bench.http2 import LoadError
from bench.processes import serving
from bench.sessions import ask
from bench.store import Store
from catraca.v1.session_service_pb2 import (
    CreateSessionRequest,
    CreateSessionResponse,
    RotateSessionRequest,
    RotateSessionResponse,
    ValidateSessionRequest,
    ValidateSessionResponse,
)
from catraca_server.domain.tokens import Tokens

# A twentieth of it is the touch interval.
_IDLE_TIMEOUT = Duration(seconds=2)
_TOUCH_DUE_SECONDS = 0.2


def check_peer(program: Path, kinds: Sequence[str], store: Store, checkout: Checkout, *, core: int | None) -> None:
    """Raises LoadError if one kind of the peer does not answer as catraca does."""
    with _client(checkout.serve(store.url), core) as catraca:
        for kind in kinds:
            with _client([str(program), kind, store.url.socket_path], core) as peer:
                _compare(catraca, peer, kind)


@contextmanager
def _client(command: Sequence[str], core: int | None) -> Iterator[Client]:
    with serving(command, core=core) as server, closing(Client(server.port, connections=1)) as client:
        yield client


def _compare(catraca: Client, peer: Client, kind: str) -> None:
    login = CreateSessionRequest(user_id="user", attributes={"device": "phone"})
    (created,) = ask(catraca, [login], CreateSessionResponse)
    (rotated,) = ask(catraca, [RotateSessionRequest(token=created.token)], RotateSessionResponse)
    tokens = Tokens(secrets.token_bytes)
    wrong_checksum = rotated.token[:-1] + ("0" if rotated.token[-1] != "0" else "1")
    requests = [
        ValidateSessionRequest(token=rotated.token),
        ValidateSessionRequest(token=rotated.token, user_id="another"),
        ValidateSessionRequest(token=created.token),  # inside its grace
        ValidateSessionRequest(token=wrong_checksum),
        ValidateSessionRequest(token=tokens.renew(rotated.token, "another secret of the same session")),
        ValidateSessionRequest(token=tokens.mint()),
    ]
    for request in requests:
        _expect_same(_validate(catraca, request), _validate(peer, request), kind)
    login.idle_timeout.CopyFrom(_IDLE_TIMEOUT)
    (touched,) = ask(catraca, [login], CreateSessionResponse)
    time.sleep(_TOUCH_DUE_SECONDS)
    by_peer = _validate(peer, ValidateSessionRequest(token=touched.token))
    if by_peer.session.last_active_time.ToMilliseconds() == touched.session.last_active_time.ToMilliseconds():
        raise LoadError(f"{kind} writes no activity down")
    _expect_same(_validate(catraca, ValidateSessionRequest(token=touched.token, skip_touch=True)), by_peer, kind)


def _validate(client: Client, request: ValidateSessionRequest) -> ValidateSessionResponse:
    (response,) = ask(client, [request], ValidateSessionResponse)
    return response


def _expect_same(expected: ValidateSessionResponse, answer: ValidateSessionResponse, kind: str) -> None:
    # The cache TTL shrinks with the time that is left.
    if expected.HasField("cache_ttl") != answer.HasField("cache_ttl"):
        raise LoadError(f"{kind} does not tell for how long its answer may be reused")
    expected.ClearField("cache_ttl")
    answer.ClearField("cache_ttl")
    if expected != answer:
        raise LoadError(f"{kind} answers\n{answer}\nand catraca\n{expected}")
