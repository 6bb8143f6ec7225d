"""The server: what it serves, where it listens, how it starts and how it stops."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

import grpc

from catraca_server.api.engine import core
from catraca_server.api.engine.calls import Arrival, Guard
from catraca_server.api.engine.completions import Completions
from catraca_server.api.engine.methods import DEFECT, Method, Work, log_defect
from catraca_server.api.engine.observer import Observer
from catraca_server.api.engine.shedding import Shedding
from catraca_server.api.engine.slots import Slot, Slots
from catraca_server.api.engine.statuses import Status, StatusError, checked

logger = logging.getLogger(__name__)

SLOTS = 100
"""Enough to keep a core busy. Fewer calls than a connection may reasonably have in flight, so that most of those wait
in gRPC's core and count there."""

SLOT_HOLD_LIMIT_SECONDS = 0.5
"""Longer than calls take when a core is at its capacity."""

UNKNOWN_METHOD = Status(grpc.StatusCode.UNIMPLEMENTED, "unknown method")

_UNKNOWN: tuple[None, None] = (None, None)

_LAST_WORDS_SECONDS = 5.0
"""How long cancelled handlers may take to finish."""

_ABANDON_SECONDS = 2.0
"""How long an exiting interpreter waits for the core to close down."""


class Server:
    """A gRPC server on the running event loop. It starts once and stops once.

    `options` are those of grpc.server, such as `("grpc.max_concurrent_streams", 250)`. There are `slots` slots; a call
    gives its slot up after `slot_hold_limit_seconds` (slots.py). `observer` is notified when calls begin and end.
    """

    def __init__(
        self,
        options: Sequence[tuple[str, Any]] = (),
        *,
        slots: int = SLOTS,
        slot_hold_limit_seconds: float = SLOT_HOLD_LIMIT_SECONDS,
        observer: Observer | None = None,
    ) -> None:
        self._methods: dict[bytes, tuple[Method, Guard | None]] = {}
        self._work = Work()
        self._observer = observer
        self.shedding = Shedding(dict(options).get("grpc.max_concurrent_streams", 0))
        self._completions = Completions(self.shedding, observer)
        self._core = core.Server(tuple(options), False)  # not xDS
        self._core.register_completion_queue(self._completions.queue)
        self.slots = Slots(self._core, self._completions, self._accept, slots, slot_hold_limit_seconds)
        self._started = False
        self._shut_down = False
        self._stop: asyncio.Task[None] | None = None
        self._all_done = asyncio.Event()

    def add_methods(self, methods: Mapping[str, Method], guard: Guard | None = None) -> None:
        """Serves methods, by their paths: `/package.Service/Method`. A later method replaces one with the same path.

        The guard decides about each call before any of its request is read.
        """
        for path, method in methods.items():
            method.bind(self._work)
            self._methods[path.encode()] = method, guard

    def listen(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Binds an address, before `start`, and returns the port; with credentials, for TLS. Raises OSError."""
        own = () if credentials is None else (cast("Any", credentials)._credentials,)  # noqa: SLF001  as grpc.server does
        try:
            port: int = self._core.add_http2_port(address.encode(), *own)
        except RuntimeError:
            port = 0
        if not port:
            raise OSError(f"cannot listen on {address}")
        return port

    def start(self) -> None:
        """Accepts calls from now on."""
        self._completions.start(self._after_turn, self._abandon)
        self._core.start()
        self._started = True
        self.slots.open()

    async def stop(self, grace_seconds: float | None) -> None:
        """Accepts no more calls, waits for those in flight to end, and cancels the rest after the grace.

        Without a grace (None) they are cancelled at once. A second stop waits for the first one, and may shorten its
        grace.
        """
        if self._stop is None:
            if not self._started:
                # The core can shut down only a server that was started.
                self._completions.start(self._after_turn, self._abandon)
                self._core.start()
            # The core ends calls that it reads after this with CANCELLED, although nothing has been done for them.
            self._completions.take_in()
            self._begin_to_stop()
            self._stop = asyncio.create_task(self._finish_stop())
        _, stopping = await asyncio.wait([self._stop], timeout=grace_seconds or 0)
        if stopping and not self._shut_down:
            self._core.cancel_all_calls()
        await asyncio.shield(self._stop)

    def _begin_to_stop(self) -> None:
        self.slots.close()
        self._completions.due += 1
        self._core.shutdown(self._completions.queue, self._on_shut_down)

    async def _finish_stop(self) -> None:
        await self._all_done.wait()
        if self._work.tasks:
            # The tasks have been cancelled: their calls are over.
            _, stuck = await asyncio.wait(self._work.tasks, timeout=_LAST_WORDS_SECONDS)
            for task in stuck:
                logger.error("the handler of %s does not end when cancelled", self._work.tasks[task].decode())
        self._core.destroy()
        await self._completions.close()

    def _accept(self, slot: Slot, event: Any) -> None:
        method, guard = self._methods.get(event.call_details.method, _UNKNOWN)
        if self._observer is not None:
            path = event.call_details.method if method is not None else b""
            slot.observed = self._observer.started(path, event.invocation_metadata)
        if method is None:
            self._refuse(slot, event, UNKNOWN_METHOD)
            return
        caller = None
        if guard is not None:
            arrival = Arrival(event)
            try:
                caller = guard(arrival)
            except StatusError as refused:
                self._refuse(slot, event, refused.status)
                return
            except Exception as error:  # noqa: BLE001  a guard that fails lets nobody in
                log_defect(event.call_details.method, error)
                self._refuse(slot, event, DEFECT)
                return
            slot.on_release = arrival.on_end
        method.accept(event, slot, self._completions, caller)

    def _refuse(self, slot: Slot, event: Any, status: Status) -> None:
        refusal = (
            core.SendInitialMetadataOperation((), core.NO_FLAGS),
            core.ReceiveCloseOnServerOperation(core.NO_FLAGS),
            core.SendStatusFromServerOperation(
                checked(status.trailing_metadata), status.code.value[0], status.message.encode(), core.NO_FLAGS
            ),
        )
        if self._observer is not None:
            method = b"" if status is UNKNOWN_METHOD else event.call_details.method
            self._observer.handled(slot.observed, method, status.code.value[0], status.reason, 0)
        self._completions.begin(event.call, refusal, lambda _: slot.release())

    def _after_turn(self) -> None:
        self._work.hand_over()
        if self._shut_down and not self._completions.due:
            self._all_done.set()

    def _on_shut_down(self, event: Any) -> None:
        del event
        self._shut_down = True

    def _abandon(self) -> None:
        """Shuts down without the loop, which has ended."""
        if self._stop is None:
            self._begin_to_stop()
        self._core.cancel_all_calls()
        if self._completions.drain(_ABANDON_SECONDS):
            self._core.destroy()
