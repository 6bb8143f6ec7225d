"""catraca's services over the engine: sessions, health and reflection, called by the clients that people use."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection import SERVICE_NAME as REFLECTION_NAME
from tests.support.engine import unary
from tests.support.waiting import TIMEOUT_SECONDS

from catraca import AsyncSessionClient, SessionClient, errors
from catraca.v1 import session_service_pb2 as pb
from catraca_server import app
from catraca_server.api.engine import Server, from_rpc_handler
from catraca_server.api.handlers import SERVICE_NAME, session_service_methods
from catraca_server.api.health import Health
from catraca_server.api.watch import Watches
from catraca_server.core_options import core_options
from catraca_server.domain.audit import NoAudit
from catraca_server.operations.watching import Watching
from catraca_server.settings import load

METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["SessionService"].methods]


@asynccontextmanager
async def serving_sessions() -> AsyncIterator[tuple[str, Health]]:
    """Serves all three over a store in memory; yields the target."""
    settings = load({}, {"CATRACA_STORE_URL": "memory:"}).settings
    health = Health(SERVICE_NAME)
    async with app._store(settings, {}, health) as (store, index, feed):
        service = app._service(store, index, feed, settings, None, audit=NoAudit())
        server = Server(core_options(settings))
        watches = Watches(Watching(feed, timeout_seconds=1))
        server.add_methods(session_service_methods(service, watches, store_timeout_seconds=1))
        app._add_standard_methods(server, health, settings)
        port = server.listen("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}", health
        finally:
            health.drain()
            await server.stop(TIMEOUT_SECONDS)


async def test_sessions() -> None:
    """Log in, validate, log out; and errors come with their reasons."""
    async with serving_sessions() as (target, _), AsyncSessionClient(target, timeout=TIMEOUT_SECONDS) as sessions:
        login = await sessions.create("12345", attributes={"device": "phone"})
        assert await sessions.validate(login.token)
        await sessions.revoke(token=login.token)
        assert not await sessions.validate(login.token)
        with pytest.raises(errors.SessionNotFound):
            await sessions.get(login.session.session_id)
        with pytest.raises(errors.InvalidRequest):
            await sessions.create("")


async def test_a_synchronous_client() -> None:
    """The same from a thread."""

    def use(target: str) -> bool:
        with SessionClient(target, timeout=TIMEOUT_SECONDS) as sessions:
            return bool(sessions.validate(sessions.create("12345").token))

    async with serving_sessions() as (target, _):
        assert await asyncio.to_thread(use, target)


async def test_a_body_that_is_no_message() -> None:
    """INVALID_ARGUMENT by our own handlers, INTERNAL by those of others."""
    async with serving_sessions() as (target, _), grpc.aio.insecure_channel(target) as channel:
        for path, code in {
            f"/{SERVICE_NAME}/ValidateSession": grpc.StatusCode.INVALID_ARGUMENT,
            "/grpc.health.v1.Health/Check": grpc.StatusCode.INTERNAL,
            "/grpc.health.v1.Health/Watch": grpc.StatusCode.INTERNAL,
        }.items():
            stub: Any = channel.unary_stream(path)
            assert await stub(b"\xff\xff").code() is code


async def test_health() -> None:
    """Check, Watch, and a service it does not know; a drain ends the watches."""
    statuses: list[int] = []
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    async with serving_sessions() as (target, health), grpc.aio.insecure_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE_NAME))).status == serving
        with pytest.raises(grpc.aio.AioRpcError, match="unknown service"):
            await stub.Check(health_pb2.HealthCheckRequest(service="unknown"))
        async for message in stub.Watch(health_pb2.HealthCheckRequest(service="")):
            statuses.append(message.status)
            # Health is told of a change only between two messages, so the first has to be sent for good.
            await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE_NAME))
            health.drain()
    assert statuses == [serving, not_serving]


async def test_reflection() -> None:
    """Services are listed, and files come with their comments."""
    async with serving_sessions() as (target, _), grpc.aio.insecure_channel(target) as channel:
        untyped: Any = channel
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(untyped)
        call = stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = (await call.read()).list_services_response.service
        assert {each.name for each in listed} == {SERVICE_NAME, "grpc.health.v1.Health", REFLECTION_NAME}
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE_NAME))
        assert (await call.read()).file_descriptor_response.file_descriptor_proto
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK


async def test_a_deadline_reaches_the_handler() -> None:
    """As the time that is left; None without one."""
    seen: list[float] = []

    async def note(_request: bytes, context: Any) -> bytes:
        remaining = context.time_remaining()
        seen.append(inf if remaining is None else remaining)
        return b""

    server = Server()
    server.add_methods({"/s/Note": from_rpc_handler(grpc.unary_unary_rpc_method_handler(note))})
    port = server.listen("127.0.0.1:0")
    server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await unary(channel, "/s/Note", b"")
        await unary(channel, "/s/Note", b"", timeout=TIMEOUT_SECONDS)
    await server.stop(None)
    assert seen[0] == inf
    assert 0 < seen[1] <= TIMEOUT_SECONDS + 1
