"""grpc.health.v1: whether this server serves, and under the name `store`, whether it has its store.

The overall status and the service's do not follow the store: taking every server out of rotation because Redis is away
would turn "unknown, retry" into "connection refused". Watch `store` to be told.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

STORE = "store"
_Status = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):
    """Serves the status of `services` and of the store.

    The stock servicer is not used because its watchers keep a draining server waiting, and a slow one holds up all.
    """

    def __init__(self, *services: str) -> None:
        self._status: dict[str, int] = dict.fromkeys(("", *services), _Status.SERVING)
        self._status[STORE] = _Status.NOT_SERVING
        self._changed = asyncio.Event()
        self._draining = False

    def store_changed(self, found: bool) -> None:
        """Tells that the store was found or lost."""
        if not self._draining:
            self._set(STORE, _Status.SERVING if found else _Status.NOT_SERVING)

    def drain(self) -> None:
        """Says NOT_SERVING to all, and ends the watches."""
        self._draining = True
        for name in self._status:
            self._set(name, _Status.NOT_SERVING)

    def _set(self, name: str, status: int) -> None:
        self._status[name] = status
        # Watchers hold on to the event they wait for; the next change has one of its own.
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(  # noqa: N802  the engine's name
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        """Answers the status of a service; NOT_FOUND for one it does not know."""
        status = self._status.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802  the engine's name
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Answers the status of a service, and again whenever it changes, until the server drains."""
        del context
        told = None
        while True:
            changed = self._changed
            status = self._status.get(request.service, _Status.SERVICE_UNKNOWN)
            if status != told:
                yield health_pb2.HealthCheckResponse(status=status)
                told = status
            if self._draining:
                return
            await changed.wait()
