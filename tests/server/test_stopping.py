"""How the running service stops: on Ctrl-C or SIGTERM it drains, logs that, and does not wait in vain."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.support.proxy import Proxy
from tests.support.service import ServeProcess
from tests.support.valkey import Valkey
from tests.support.waiting import eventually_async

from catraca import AsyncSessionClient, Validation, errors

STOP_SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)


def has_logged(process: ServeProcess, text: str) -> Callable[[], Awaitable[bool]]:
    """Returns the condition that a text is in the service's log."""

    async def is_logged() -> bool:
        return text in process.log

    return is_logged


async def validation_in_flight(sessions: AsyncSessionClient, token: str, proxy: Proxy) -> asyncio.Task[Validation]:
    """Starts a validation and returns it once `proxy` holds its request to the store."""
    proxy.hold()
    call = asyncio.create_task(sessions.validate(token))
    await proxy.holding(token[4:26].encode())
    return call


@STOP_SIGNALS
async def test_calls_in_flight_finish(number: signal.Signals, valkey: Valkey, tmp_path: Path) -> None:
    """A call that waits for the store when the signal comes is answered; then the service ends, and logs each step."""
    async with (
        Proxy(valkey.socket, tmp_path / "proxy.sock") as proxy,
        ServeProcess(store_url=proxy.url, store_timeout="30s", drain_timeout="30s") as process,
        AsyncSessionClient(process.target, timeout=30) as sessions,
        AsyncSessionClient(process.target, timeout=1) as late,
    ):
        token = (await sessions.create("12345")).token
        call = await validation_in_flight(sessions, token, proxy)
        process.signal(number)
        await eventually_async(has_logged(process, "draining"), "the service drains")
        with pytest.raises(errors.Unavailable):
            await late.validate(token)
        assert not call.done()
        proxy.release()
        assert await call
        assert await asyncio.to_thread(process.wait) == 0
    lines = [line.split(maxsplit=2)[2].strip() for line in process.log.splitlines()][-3:]
    assert lines[0] == "draining: timeout 30s"
    assert lines[1].startswith("drained: ")
    assert lines[2] == "stopped"


async def test_a_call_that_does_not_finish_does_not_hold_the_stop(valkey: Valkey, tmp_path: Path) -> None:
    """After the drain timeout the remaining calls are ended as UNAVAILABLE."""
    async with (
        Proxy(valkey.socket, tmp_path / "proxy.sock") as proxy,
        ServeProcess(store_url=proxy.url, store_timeout="300s", drain_timeout="300ms") as process,
        AsyncSessionClient(process.target, timeout=300) as sessions,
    ):
        token = (await sessions.create("12345")).token
        call = await validation_in_flight(sessions, token, proxy)
        process.signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == 0
        with pytest.raises(errors.Unavailable):
            await call


@STOP_SIGNALS
async def test_watches_do_not_hold_the_stop(number: signal.Signals) -> None:
    """A watch of the health gets NOT_SERVING and ends; the service does not wait for its client."""
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    statuses: dict[str, list[int]] = {"": [], "store": [], "unknown": []}

    async def watch(stub: Any, name: str) -> None:
        async for message in stub.Watch(health_pb2.HealthCheckRequest(service=name)):
            statuses[name].append(message.status)

    async def all_watch() -> bool:
        return all(statuses.values())

    async with (
        ServeProcess(store_url="memory:", drain_timeout="300s") as process,
        grpc.aio.insecure_channel(process.target) as channel,
    ):
        watches = [asyncio.create_task(watch(health_pb2_grpc.HealthStub(channel), name)) for name in statuses]
        await eventually_async(all_watch, "all watches have begun")
        process.signal(number)
        assert await asyncio.to_thread(process.wait) == 0
        await asyncio.gather(*watches)
    assert statuses == {"": [serving, not_serving], "store": [serving, not_serving], "unknown": [unknown]}
