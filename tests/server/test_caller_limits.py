"""The limits of a caller: calls at a time, calls a second; and the log line about guessed tokens."""

from typing import Any

import grpc
import pytest
from tests.support.door import Door
from tests.support.inprocess import serving
from tests.support.waiting import eventually_async
from tests.support.wire import Refusal, refusal_of

from catraca import AsyncSessionClient
from catraca.v1 import session_service_pb2 as pb
from catraca_server.api.handlers import SERVICE_NAME
from catraca_server.domain.call import Role

OVERLOADED: Refusal = (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", [])
VALIDATE = f"/{SERVICE_NAME}/ValidateSession"
BODY = pb.ValidateSessionRequest(token="a-token-of-nobody").SerializeToString()


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    """Returns the metadata that shows a key."""
    return (("authorization", f"Bearer {key}"),)


async def is_let_in(channel: grpc.aio.Channel, key: str) -> bool:
    """Validates a token; False if the caller is over its limit."""
    call: Any = channel.unary_unary(VALIDATE)
    try:
        await call(BODY, metadata=bearer(key), timeout=10)
    except grpc.aio.AioRpcError as error:
        if refusal_of(error) != OVERLOADED:
            raise
        return False
    return True


async def test_calls_in_flight(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """Over all connections and keys of a caller. Others are served; calls that are over, or left, make room."""
    key, other_key = door.new_key(*Role), door.new_key(Role.VALIDATE)
    neighbour = door.new_key(Role.VALIDATE, name="neighbour")
    own = [("grpc.use_local_subchannel_pool", 1)]
    async with (
        serving(store_url="memory:", callers_file=str(door.callers), max_calls_per_caller="2") as target,
        grpc.aio.insecure_channel(target, own) as channel,
        grpc.aio.insecure_channel(target, own) as another,
    ):
        # Their requests do not come, so they stay in flight.
        stub: Any = channel.stream_unary(VALIDATE)
        open_calls = [stub(metadata=bearer(key), timeout=30) for _ in range(2)]

        async def is_refused() -> bool:
            for at, call in enumerate(open_calls):
                if call.done():
                    # It came while the call below was in flight, and was refused itself.
                    open_calls[at] = stub(metadata=bearer(key), timeout=30)
            return not await is_let_in(another, other_key)

        await eventually_async(is_refused, "both are in flight")
        assert await is_let_in(another, neighbour)
        for call in open_calls:
            call.cancel()

        async def has_room() -> bool:
            # None of the calls that are over, answered or refused, is still counted.
            return all([await is_let_in(another, key) for _ in range(50)])

        await eventually_async(has_room, "both are over")
    assert any("caller refused: reason=OVERLOADED" in line and "caller=web" in line for line in caplog.messages)


async def test_calls_a_second(door: Door) -> None:
    """What is over the rate is refused; after a while there is more."""
    key, neighbour = door.new_key(Role.VALIDATE), door.new_key(Role.VALIDATE, name="neighbour")
    async with (
        serving(store_url="memory:", callers_file=str(door.callers), max_rate_per_caller="5") as target,
        grpc.aio.insecure_channel(target) as channel,
    ):
        assert not all([await is_let_in(channel, key) for _ in range(200)])
        assert await is_let_in(channel, neighbour)

        async def has_more() -> bool:
            return await is_let_in(channel, key)

        await eventually_async(has_more, "time has passed")


async def test_tokens_that_are_tried(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """A caller with many invalid tokens is in the log, one by one or in batches; valid ones do not count."""
    alone, batches, honest = (door.new_key(Role.VALIDATE, Role.ISSUE, name=each) for each in ("one", "many", "honest"))
    settings = {"store_url": "memory:", "callers_file": str(door.callers), "invalid_tokens_alarm": "20"}
    async with serving(**settings) as target:
        for key in (alone, batches, honest):
            async with AsyncSessionClient(target, api_key=key, timeout=10) as sessions:
                if key is alone:
                    for number in range(20):
                        assert not await sessions.validate(f"a-token-of-nobody-{number}")
                elif key is batches:
                    assert not any(await sessions.validate_batch([f"a-token-of-nobody-{n}" for n in range(20)]))
                else:
                    token = (await sessions.create("12345")).token
                    assert all([await sessions.validate(token) for _ in range(30)])
    lines = [line for line in caplog.messages if line.startswith("many invalid tokens")]
    assert lines == [f"many invalid tokens: caller={each}, 20 or more within a minute" for each in ("one", "many")]
