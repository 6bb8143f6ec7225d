"""A call and what is logged of it have the same name."""

import re
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tests.support.service import ServeProcess
from tests.support.waiting import TIMEOUT_SECONDS, eventually

from catraca.v1 import session_service_pb2 as pb
from catraca.v1.session_service_pb2_grpc import SessionServiceStub

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.fixture(scope="module")
def service() -> Iterator[ServeProcess]:
    """A service with an audit."""
    with ServeProcess(store_url="memory:", audit="true") as process:
        yield process


def create(target: str, *metadata: tuple[str, str], user: str = "ana") -> grpc.Call:
    """Logs in and returns the call."""
    with grpc.insecure_channel(target) as channel:
        _, call = SessionServiceStub(channel).CreateSession.with_call(
            pb.CreateSessionRequest(user_id=user), metadata=metadata, timeout=TIMEOUT_SECONDS
        )
        return call


def request_id_of(call: Any) -> str:
    """Returns the id that a call came back with, also one that failed."""
    return str(dict(call.initial_metadata())["x-request-id"])


def test_the_callers_own_ids_are_logged_and_returned(service: ServeProcess) -> None:
    """Request id and trace id are in the audit, and the request id comes back."""
    call = create(service.target, ("x-request-id", "my-request"), ("traceparent", PARENT))
    assert request_id_of(call) == "my-request"
    eventually(lambda: f"caller=anonymous request_id=my-request trace_id={TRACE}\n" in service.log, "the audit")


def test_a_call_without_an_id_gets_one(service: ServeProcess) -> None:
    """Also one whose id cannot be taken, which nobody ever sees again; and one that is refused."""
    for metadata in ((), (("x-request-id", "no id = forged"),)):
        returned = request_id_of(create(service.target, *metadata))
        assert re.fullmatch("[0-9a-f]{16}", returned)
        eventually(lambda found=returned: f" request_id={found} " in service.log, "the audit")  # type: ignore[misc]
    assert "forged" not in service.log
    with grpc.insecure_channel(service.target) as channel, pytest.raises(grpc.RpcError) as refused:
        SessionServiceStub(channel).CreateSession(pb.CreateSessionRequest(), timeout=TIMEOUT_SECONDS)
    assert re.fullmatch("[0-9a-f]{16}", request_id_of(refused.value))
