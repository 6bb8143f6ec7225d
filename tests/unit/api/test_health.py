"""What a watch of the health receives while the server begins to drain."""

from typing import Any

from grpc_health.v1 import health_pb2

from catraca_server.api.health import STORE, Health

_Response = health_pb2.HealthCheckResponse


async def test_a_drain_that_comes_while_a_status_is_being_sent_is_told() -> None:
    """The watcher still gets NOT_SERVING, and then the end."""
    health = Health()
    context: Any = None
    watch = health.Watch(health_pb2.HealthCheckRequest(), context)
    assert (await anext(watch)).status == _Response.SERVING
    # As if the first message were still on its way: the watcher asks for the next one only afterwards.
    health.drain()
    assert [each.status async for each in watch] == [_Response.NOT_SERVING]


async def test_a_status_that_does_not_change_is_sent_once() -> None:
    """A store that stays away is told once, and a drain adds nothing to it."""
    health = Health()
    context: Any = None
    watch = health.Watch(health_pb2.HealthCheckRequest(service=STORE), context)
    assert (await anext(watch)).status == _Response.NOT_SERVING
    health.drain()
    assert [each.status async for each in watch] == []
