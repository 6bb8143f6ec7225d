"""Runs servicers that were written for grpc.aio, of which it supports enough for health and reflection.

A servicer's unary methods are coroutine functions; those that answer a stream are async generators.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from math import inf
from typing import Any, NoReturn

import grpc

from catraca_server.api.engine.calls import NO_REQUEST, Call, UnaryCall
from catraca_server.api.engine.methods import Method, StreamMethod, UnaryMethod
from catraca_server.api.engine.statuses import Metadata, Status, StatusError
from catraca_server.api.engine.streams import Stream

NOT_A_MESSAGE = Status(grpc.StatusCode.INTERNAL, "the request is not a message of this method's type")


def from_servicer(add_to_server: Callable[[Any, Any], None], servicer: Any) -> dict[str, Method]:
    """Returns the methods of a servicer, given the `add_…Servicer_to_server` that was generated for it."""
    recorder = _Recorder()
    add_to_server(servicer, recorder)
    return {path: from_rpc_handler(handler) for path, handler in recorder.handlers.items()}


def from_rpc_handler(handler: Any) -> Method:
    """Returns the method for a `grpc.RpcMethodHandler`."""
    read, write = handler.request_deserializer or _as_is, handler.response_serializer or _as_is
    if handler.response_streaming:
        behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
        return StreamMethod(_streaming(behaviour, read, write, one_request=not handler.request_streaming))
    if handler.request_streaming:
        raise NotImplementedError("no servicer needs a stream of requests with one reply")

    async def handle(call: UnaryCall) -> bytes:
        context = Context(call)
        reply = await handler.unary_unary(_read(read, call.request), context)
        context.raise_if_failed()
        return _serialised(write, reply)

    return UnaryMethod(handle)


def _streaming(behaviour: Any, read: Any, write: Any, *, one_request: bool) -> Any:
    async def handle(stream: Stream) -> None:
        context = Context(stream)
        if one_request:
            message = await stream.receive()
            if message is None:
                raise StatusError(NO_REQUEST)
            request = _read(read, message)
        else:
            request = _messages(stream, read)
        async for reply in behaviour(request, context):
            await stream.send(_serialised(write, reply))
        context.raise_if_failed()

    return handle


async def _messages(stream: Stream, read: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    async for message in stream:
        yield _read(read, message)


def _read(read: Callable[[bytes], Any], message: bytes) -> Any:
    try:
        return read(message)
    except Exception:  # noqa: BLE001  each package has its own errors, and their texts may quote the request
        raise StatusError(NOT_A_MESSAGE) from None


class Context:
    """A servicer's view of its call, and how it fails: the part of `grpc.aio.ServicerContext` that is used."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._code = grpc.StatusCode.OK
        self._details = ""

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """Ends the call with a status."""
        raise StatusError(Status(code, details, trailing_metadata))

    def set_code(self, code: grpc.StatusCode) -> None:
        """Sets the code to end with."""
        self._code = code

    def set_details(self, details: str) -> None:
        """Sets the message to end with."""
        self._details = details

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """Sets the metadata that is sent with the status."""
        self._call.trailing_metadata = metadata

    def invocation_metadata(self) -> Metadata:
        """Returns the metadata that the caller sent."""
        return self._call.metadata

    def peer(self) -> str:
        """Returns where the call comes from."""
        return self._call.peer()

    def time_remaining(self) -> float | None:
        """Returns the seconds until the deadline; None if there is none."""
        if self._call.deadline == inf:
            return None
        return max(self._call.deadline - asyncio.get_running_loop().time(), 0.0)

    def raise_if_failed(self) -> None:
        """Raises StatusError if a code other than OK has been set."""
        if self._code is not grpc.StatusCode.OK:
            raise StatusError(Status(self._code, self._details))


class _Recorder:
    """Takes the place of the server in a generated `add_…_to_server`."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Does nothing: the same handlers are registered again by the method below."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Records the handlers by their paths."""
        self.handlers.update({f"/{service}/{name}": handler for name, handler in handlers.items()})


def _as_is(message: Any) -> Any:
    return message


def _serialised(write: Callable[[Any], Any], reply: Any) -> bytes:
    message = write(reply)
    assert isinstance(message, bytes)
    return message
