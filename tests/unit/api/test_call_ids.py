"""What names a call: taken from its caller only if it is short and harmless."""

import pytest

from catraca_server.api.call_ids import CallIds, call_ids, given_ids
from catraca_server.domain.callers import new_key
from catraca_server.domain.tokens import Tokens

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


def some_bytes(count: int) -> bytes:
    """Returns bytes for a token."""
    return bytes(range(count))


@pytest.mark.parametrize("request_id", ["a", "0af7651916cd43dd-8448.eb_211c80319c", "A" * 64])
def test_a_request_id_is_taken(request_id: str) -> None:
    """As it is."""
    assert given_ids([("x-request-id", request_id)]) == CallIds(request_id)
    assert call_ids([("x-request-id", request_id)]).request_id == request_id


@pytest.mark.parametrize(
    "request_id",
    [
        "",
        "A" * 65,
        "two words",
        "line\n",
        "\x1b[2J",
        "caller=ops",
        "\u00e9",
        b"bytes",
        Tokens(some_bytes).mint(),
        new_key(some_bytes)[0],
    ],
)
def test_what_is_not_a_request_id_is_not_taken(request_id: str | bytes) -> None:
    """A token or a key neither; the call gets an id of its own."""
    assert given_ids([("x-request-id", request_id)]) == CallIds()
    made = call_ids([("x-request-id", request_id)]).request_id
    assert len(made) == 16
    assert made != call_ids([]).request_id


def test_a_trace_is_taken() -> None:
    """Of its parent only the trace id is told, of this version and of those to come."""
    assert given_ids([("traceparent", PARENT)]) == CallIds("", TRACE)
    assert given_ids([("traceparent", f"cc{PARENT[2:]}")]).trace_id == TRACE
    assert str(CallIds("r", TRACE)) == f" request_id=r trace_id={TRACE}"


@pytest.mark.parametrize(
    "parent",
    [
        f"ff{PARENT[2:]}",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-00f067aa0ba902b7-01",
        PARENT + "\n",
        PARENT[1:],
        PARENT + "x",
        PARENT.encode(),
        "",
    ],
)
def test_what_is_not_a_trace_is_not_taken(parent: str | bytes) -> None:
    """As if there were none."""
    assert given_ids([("traceparent", parent)]) == CallIds()
