"""Admission: how calls come in. There are so many places, and each takes one call at a time.

grpc.aio asks its core for one call, and for the next one only a turn of the event loop later. Here all free places ask
at once: a turn takes in every call there is, the store gets larger batches, and a core answers half as many calls again
and more (docs/performance.md).

Places also bound what is in hand. A call for which there is none waits in the core, where it counts towards the calls
that its connection may have in flight. What comes on top is refused by the core as it reads it, before it is a call;
anywhere later, refusing would cost about as much as answering. docs/reliability.md has what comes of it.

All of this hangs on private parts of grpcio, as they are in the versions that pyproject.toml allows;
tests/server/test_admission.py tells when they no longer are.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextvars import ContextVar
from math import inf
from typing import Any, cast

import grpc
from grpc._cython.cygrpc import AioServer, _handle_rpc, _RequestCallError, _schedule_rpc_coro
from grpc.aio import _server

logger = logging.getLogger(__name__)

PLACES = 100
"""Enough to keep a core busy, with some 25 ms of its work. Fewer than a connection may have in flight by default, so
that most of those wait in the core and count there; with 200 places they came in, and overload with them."""

LASTING = 0.5
"""Seconds after which a call gives up its place: it waits for something, its caller's own request perhaps. Longer than
the store has for a call by default, and than calls take at the capacity of a core."""


def server(options: Sequence[tuple[str, Any]], places: int = PLACES) -> grpc.aio.Server:
    """Makes a server as `grpc.aio.server` does, but one with places."""
    return cast("grpc.aio.Server", _Server(options, places))


class _Server(_server.Server):
    def __init__(self, options: Sequence[tuple[str, Any]], places: int) -> None:
        # The base's own would make an engine without places.
        self._loop = asyncio.get_running_loop()
        self._server = _Engine(self._loop, options, places)


class _Engine(AioServer):  # type: ignore[misc]  # compiled, without types
    """The engine of a server. Its own loop takes in calls by `_request_call`, which never returns here."""

    def __init__(self, loop: asyncio.AbstractEventLoop, options: Sequence[tuple[str, Any]], places: int) -> None:
        # The base has the first two as well, where Python does not see them; and it adds handlers.
        self._handlers: list[grpc.GenericRpcHandler] = []
        self._loop = loop
        super().__init__(loop, None, (), (), options, None)
        self._count = places
        self._places: dict[_Place, asyncio.Task[None]] = {}
        self._ended: asyncio.Future[None] = loop.create_future()

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._handlers += map(_Handlers, handlers)

    async def shutdown(self, grace: float | None) -> None:
        # The base waits for its own loop before it lets calls finish.
        self._end(_RequestCallError())
        await super().shutdown(grace)

    async def _request_call(self) -> None:
        for _ in range(self._count):
            self.open_place()
        while True:
            # Looked at now and then, because a timer for each call would cost every call.
            await asyncio.wait([self._ended], timeout=LASTING / 4)
            if self._ended.done():
                return self._ended.result()
            begun = self._loop.time() - LASTING
            for place in list(self._places):
                if place.taken_at < begun:
                    place.give_up()

    def open_place(self) -> None:
        """Opens one place more."""
        place = _Place(self)
        self._places[place] = task = asyncio.create_task(place.take_calls(), name="place")
        task.add_done_callback(lambda _: self._places.pop(place))

    async def take_call(self, place: "_Place") -> None:
        """Waits for a call and handles it. When the server stops, there is none."""
        try:
            call = await super()._request_call()
        except Exception as error:  # noqa: BLE001  for the base, which knows those that mean it is stopping
            self._end(error)
            return
        place.taken_at = self._loop.time()
        try:
            handling = _handle_rpc(self._handlers, (), call, self._loop, False)
            await _schedule_rpc_coro(handling, call, self._loop)
        except Exception:
            logger.exception("defect in the engine: a call was not handled")
        place.taken_at = inf

    @property
    def takes_calls(self) -> bool:
        """Whether there may be calls to come."""
        return not self._ended.done()

    def _end(self, error: Exception) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)


class _Place:
    """Takes one call at a time."""

    def __init__(self, engine: _Engine) -> None:
        self.taken_at = inf
        """When the call came that it has; never, if it has none."""
        self._engine = engine
        self._given_up = False

    async def take_calls(self) -> None:
        """Takes calls until the server stops or the place is given up."""
        _current.set(self)  # the handlers' tasks inherit it
        while self._engine.takes_calls and not self._given_up:
            await self._engine.take_call(self)

    def give_up(self) -> None:
        """Has another place opened instead of this one, which ends with the call it has. Twice is the same as once."""
        if not self._given_up:
            self._given_up = True
            self._engine.open_place()


_current: ContextVar[_Place] = ContextVar("_current")


class _Handlers(grpc.GenericRpcHandler):
    """Finds handlers as another does. Streams give up their places at once."""

    def __init__(self, handlers: grpc.GenericRpcHandler) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        found = self._handlers.service(handler_call_details)
        if found is not None and (found.request_streaming or found.response_streaming):
            _current.get().give_up()
        return found
