"""grpc.health.v1: whether this server serves and, under the name `store`, whether it is connected to its store.

The overall status and that of the service do not follow the store: taking every server out of rotation because Redis is
down would turn "unknown, retry" into "connection refused". Watch `store` to follow the store. `secure` is NOT_SERVING
on a server that could start only because of `--insecure`, so that it is not forgotten.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

STORE = "store"
SECURE = "secure"
_Status = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):
    """Serves the status of `services`, of the store, and whether the service is protected where others can reach it.

    The stock servicer would not do: its watchers keep a draining server waiting, and one slow watcher delays them all.
    """

    def __init__(self, *services: str, secure: bool = True) -> None:
        self._status: dict[str, int] = dict.fromkeys(("", *services), _Status.SERVING)
        self._status[SECURE] = _Status.SERVING if secure else _Status.NOT_SERVING
        self._status[STORE] = _Status.NOT_SERVING
        self._changed = asyncio.Event()
        self._draining = False
        self._store_connected = False

    @property
    def store_connected(self) -> bool:
        """Whether the server is connected to its store, also while it drains."""
        return self._store_connected

    def store_changed(self, connected: bool) -> None:
        """Sets the status of the store."""
        self._store_connected = connected
        if not self._draining:
            self._set(STORE, _Status.SERVING if connected else _Status.NOT_SERVING)

    def drain(self) -> None:
        """Sets everything to NOT_SERVING, for good, and ends the watches."""
        self._draining = True
        for name in self._status:
            self._set(name, _Status.NOT_SERVING)

    def _set(self, name: str, status: int) -> None:
        self._status[name] = status
        # Watchers keep the event they wait for; the next change gets a new one.
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(  # noqa: N802  the engine's name
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        """Returns the status of a service, or NOT_FOUND if it is unknown."""
        status = self._status.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802  the engine's name
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Sends the status of a service, and again whenever it changes, until the server drains."""
        del context
        sent = None
        while True:
            changed = self._changed
            status = self._status.get(request.service, _Status.SERVICE_UNKNOWN)
            if status != sent:
                yield health_pb2.HealthCheckResponse(status=status)
                sent = status
            elif self._draining:
                # Only once the last status has been sent: draining may have begun while an earlier one was being sent.
                return
            else:
                await changed.wait()
