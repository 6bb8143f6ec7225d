"""A stream as its handler sees it."""

import asyncio
from typing import Any

from catraca_server.api.engine import core
from catraca_server.api.engine.calls import Call
from catraca_server.api.engine.completions import Completions
from catraca_server.api.engine.slots import Slot
from catraca_server.api.engine.statuses import Status, checked


class Stream(Call):
    """A call with any number of requests and any number of replies.

        async for message in stream:
            await stream.send(b"reply to " + message)

    The requests end when the caller half-closes. The status is sent when the handler returns (OK) or raises. The
    handler is cancelled when the caller leaves. One task may receive while another sends, but two tasks may not both
    receive, or both send.
    """

    __slots__ = ("_initial_metadata_sent", "_next", "_received", "_sent")

    def __init__(self, event: Any, slot: Slot, completions: Completions, caller: Any) -> None:
        self._received: asyncio.Future[bytes | None] | None = None
        self._sent: asyncio.Future[None] | None = None
        """The send that is under way."""
        self._next: asyncio.Future[None] | None = None
        """Done when that send is: the next senders wait for it."""
        self._initial_metadata_sent = False
        super().__init__(event, slot, completions, caller, watched=True)

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> bytes:
        message = await self.receive()
        if message is None:
            raise StopAsyncIteration
        return message

    async def receive(self) -> bytes | None:
        """Returns the next message, decompressed; None if there are no more."""
        self._check_open()
        # If a timeout gives a receive up, its operation goes on: the message is not lost, the next receive returns it.
        if self._received is None:
            self._received = asyncio.get_running_loop().create_future()
            receive = core.ReceiveMessageOperation(core.NO_FLAGS)
            self._completions.begin(self._core, (receive,), self._on_received)
        message = await asyncio.shield(self._received)
        self._received = None
        return message

    async def send(self, message: bytes, *, more_follows: bool = False) -> None:
        """Sends a message. Returns when the core has taken it; a caller that does not read delays that.

        If more follow at once, the core may wait for them, so that they are written together. It holds back at most
        `grpc.http2.write_buffer_size` of a stream.
        """
        if type(message) is not bytes:
            raise TypeError("a message is bytes")
        # Never with the initial metadata, which has to be written: the send would wait for ever.
        flags = core.MORE_FOLLOWS if more_follows and self._initial_metadata_sent else core.NO_FLAGS
        await self._send(core.SendMessageOperation(message, flags))

    async def send_initial_metadata(self) -> None:
        """Sends `initial_metadata` now, ahead of the first message."""
        if not self._initial_metadata_sent:
            await self._send()

    def finish(self, _: None = None) -> None:
        """Ends the stream with OK. For the code that runs the handler, not for the handler."""
        self._finish(self._initial_metadata_operations())

    def fail(self, status: Status) -> None:
        """Ends the stream with another status. For the code that runs the handler; the handler raises StatusError."""
        self._finish(self._initial_metadata_operations(), status)

    def cancel(self) -> None:
        """Ends the stream even if its caller does not read: a status cannot overtake messages that wait to be sent."""
        if self._core is not None:
            self._core.cancel()

    async def _send(self, *operations: Any) -> None:
        loop = asyncio.get_running_loop()
        while self._sent is not None:
            # A send that was given up still goes on.
            self._next = self._next or loop.create_future()
            await asyncio.shield(self._next)
        self._check_open()
        operations = (*self._initial_metadata_operations(), *operations)
        sent = self._sent = loop.create_future()
        self._completions.begin(self._core, operations, self._on_sent)
        await sent

    def _initial_metadata_operations(self) -> tuple[Any, ...]:
        if self._initial_metadata_sent:
            return ()
        initial = checked(self.initial_metadata)
        self._initial_metadata_sent = True
        return (core.SendInitialMetadataOperation(initial, core.NO_FLAGS),)

    def _check_open(self) -> None:
        """Cancels any task that uses the call after its end without an answer, also one beside the handler."""
        if self.cancelled:
            raise asyncio.CancelledError
        if self.answered:
            raise RuntimeError("the stream has ended")

    def _on_received(self, event: Any) -> None:
        # Without a message, either the requests have ended or the caller has left. The event that the caller has left
        # comes in the same turn, so the next turn knows which it was.
        asyncio.get_running_loop().call_soon(self._hand_over, event.batch_operations[0].message())

    def _hand_over(self, message: bytes | None) -> None:
        assert self._received is not None
        if self.cancelled:
            self._received.cancel()
        else:
            self._received.set_result(message)

    def _on_sent(self, event: Any) -> None:
        waiting = [each for each in (self._sent, self._next) if each is not None and not each.done()]
        self._sent = self._next = None
        if event.success:
            for each in waiting:
                each.set_result(None)
            return
        # The caller has left, or the message is larger than the server may send: either way the call is over. The task
        # that waits for this is cancelled, as the handler is.
        for each in waiting:
            each.cancel()
        if self._core is not None:
            self._core.cancel()
