"""Unary calls: what a handler receives, what a caller gets, and what happens if a handler fails."""

import asyncio
import gzip
import logging
import math
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from tests.support.engine import LARGE, Pile, as_dict, echo, echo_all, end_of, serving, unary
from tests.support.waiting import TIMEOUT_SECONDS

from catraca_server.api.engine import BatchMethod, Method, Status, StatusError, UnaryCall, UnaryMethod


def batch_of(handle: Callable[[UnaryCall], Any]) -> BatchMethod:
    """Makes a batch method of what is done with one call."""

    def handle_all(calls: list[UnaryCall]) -> None:
        for call in calls:
            handle(call)

    return BatchMethod(handle_all)


BOTH_SHAPES = pytest.mark.parametrize(
    "make", [lambda: BatchMethod(echo_all), lambda: UnaryMethod(echo)], ids=["batch", "coroutine"]
)


@BOTH_SHAPES
async def test_a_call_is_answered(make: Callable[[], Method]) -> None:
    """Each gets the reply to its own request, also many at a time and empty ones."""
    async with serving({"Echo": make()}) as served:
        requests = [b"", b"\0", *(b"%d" % number for number in range(300))]
        assert await asyncio.gather(*(served.unary("Echo", request) for request in requests)) == requests


@BOTH_SHAPES
async def test_large_messages(make: Callable[[], Method]) -> None:
    """8 MiB go both ways. What is over the limit is refused, and calls beside and after it are not."""
    async with serving({"Echo": make()}) as served:
        large = bytes(range(256)) * (LARGE // 256)
        assert await served.unary("Echo", large) == large
        too_large, small = served.unary("Echo", large + bytes(2048)), served.unary("Echo", b"small")
        assert (await end_of(too_large)).code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await small == b"small"
        await served.has_taken(0)


@BOTH_SHAPES
@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_requests(make: Callable[[], Method], compression: grpc.Compression) -> None:
    """A handler gets what was compressed as it was before."""
    async with serving({"Echo": make()}) as served:
        request = b"compressible " * 1000
        assert await served.unary("Echo", request, compression=compression) == request


async def test_a_compressed_body_may_be_compressed_data() -> None:
    """A message that happens to be gzip is not touched."""
    async with serving({"Echo": BatchMethod(echo_all)}) as served:
        request = gzip.compress(b"data")
        assert await served.unary("Echo", request) == request


async def test_what_a_handler_is_told() -> None:
    """The method, the metadata, the peer, and the deadline as a time of the loop's clock."""
    pile = Pile()
    async with serving({"Ask": pile.method}) as served:
        sent = (("key", "value"), ("key", "again"), ("key-bin", b"\0\xff"))
        before = asyncio.get_running_loop().time()
        first = served.unary("Ask", b"request", metadata=sent, timeout=TIMEOUT_SECONDS)
        (call,) = await pile.has(1)
        after = asyncio.get_running_loop().time()
        assert call.method == b"/test.Service/Ask"
        assert call.request == b"request"
        assert [pair for pair in call.metadata if pair[0].startswith("key")] == list(sent)
        assert call.peer().startswith("ipv4:127.0.0.1:")
        assert call.peer_identities() is None
        assert (call.cancelled, call.answered) == (False, False)
        # The deadline travels in whole milliseconds or so, rounded up.
        assert before + TIMEOUT_SECONDS - 1 < call.deadline < after + TIMEOUT_SECONDS + 1
        call.reply(b"")
        await first
        assert call.answered
        await served.has_taken(0)
        assert not call.peer()
        assert not call.auth_context()
        second = served.unary("Ask")
        (_, call) = await pile.has(2)
        assert call.deadline == math.inf
        call.reply(b"")
        await second


def with_metadata(call: UnaryCall) -> None:
    """Sets metadata of both kinds."""
    call.initial_metadata = (("first", "1"), ("first-bin", b"\1\0"))
    call.trailing_metadata = (("last", "2"), ("last-bin", b"\2\0"))


async def test_metadata_that_a_handler_sends() -> None:
    """Initial metadata come before the reply, trailing metadata with the status; also when the call fails."""

    async def reply(call: UnaryCall) -> bytes:
        with_metadata(call)
        return b"reply"

    async def fail(call: UnaryCall) -> bytes:
        with_metadata(call)
        details = (("grpc-status-details-bin", b"details"),)
        raise StatusError(Status(grpc.StatusCode.ABORTED, "why, with ümlauts", details))

    def reply_now(call: UnaryCall) -> None:
        with_metadata(call)
        call.reply(b"reply")

    methods = {"Reply": UnaryMethod(reply), "Fail": UnaryMethod(fail), "Batch": batch_of(reply_now)}
    async with serving(methods) as served:
        for method in ("Reply", "Batch"):
            call = served.unary(method)
            assert await call == b"reply"
            assert as_dict(await call.initial_metadata()) == {"first": "1", "first-bin": b"\1\0"}
            assert as_dict(await call.trailing_metadata()) == {"last": "2", "last-bin": b"\2\0"}
        call = served.unary("Fail")
        ended = await end_of(call)
        assert (ended.code, ended.details) == (grpc.StatusCode.ABORTED, "why, with ümlauts")
        assert ended.trailing_metadata == {"last": "2", "last-bin": b"\2\0", "grpc-status-details-bin": b"details"}
        assert as_dict(await call.initial_metadata()) == {"first": "1", "first-bin": b"\1\0"}


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_every_status(code: grpc.StatusCode) -> None:
    """A call may fail with each of them, in both shapes."""

    async def fail(call: UnaryCall) -> bytes:
        raise StatusError(Status(code, "why"))

    methods = {"Coroutine": UnaryMethod(fail), "Batch": batch_of(lambda call: call.fail(Status(code, "why")))}
    async with serving(methods) as served:
        for method in methods:
            ended = await end_of(served.unary(method))
            assert (ended.code, ended.details) == (code, "why")


async def test_unknown_methods() -> None:
    """They are UNIMPLEMENTED, whatever their paths look like."""
    async with serving({"Echo": BatchMethod(echo_all)}) as served:
        for path in ("/test.Service/Unknown", "/test.Unknown/Echo", "/", "//", "/test.Service/Echo/", "/test.Service"):
            call = unary(served.channel, path, b"")
            assert (await end_of(call)).code is grpc.StatusCode.UNIMPLEMENTED
        await served.has_taken(0)


async def test_calls_come_together() -> None:
    """What arrives while the loop is busy is handed over at once, not one by one."""
    sizes: list[int] = []

    def handle(calls: list[UnaryCall]) -> None:
        sizes.append(len(calls))
        echo_all(calls)

    async with serving({"Echo": BatchMethod(handle)}) as served:
        for _ in range(20):
            await asyncio.gather(*(served.unary("Echo", b"x") for _ in range(50)))
    assert sum(sizes) == 1000
    assert max(sizes) > 1


class SecretError(Exception):
    """Its text must not leave the process."""


def raises(call: UnaryCall) -> bytes:
    """Raises an exception that quotes the request."""
    raise SecretError(call.request)


def returns_text(call: UnaryCall) -> Any:
    """Returns what is no message."""
    return call.request.decode()


def sets_initial_metadata(call: UnaryCall) -> bytes:
    """Sets metadata that would split a header."""
    call.initial_metadata = (("key", "line\n" + call.request.decode()),)
    return b""


def sets_trailing_metadata(call: UnaryCall) -> bytes:
    """Sets metadata with a key that HTTP/2 does not allow."""
    call.trailing_metadata = (("Upper", call.request.decode()),)
    return b""


def sets_binary_metadata(call: UnaryCall) -> bytes:
    """Sets text where bytes belong."""
    call.trailing_metadata = (("key-bin", call.request.decode()),)
    return b""


@pytest.mark.parametrize(
    "answer", [raises, returns_text, sets_initial_metadata, sets_trailing_metadata, sets_binary_metadata]
)
async def test_handlers_with_defects(answer: Callable[[UnaryCall], bytes], caplog: pytest.LogCaptureFixture) -> None:
    """The caller gets INTERNAL, the log where it happened; neither says what the handler was working on."""

    async def coroutine(call: UnaryCall) -> bytes:
        return answer(call)

    methods = {"Coroutine": UnaryMethod(coroutine), "Batch": batch_of(lambda call: call.reply(answer(call)))}
    with caplog.at_level(logging.INFO):
        async with serving(methods) as served:
            for method in methods:
                ended = await end_of(served.unary(method, b"s3cret"))
                assert ended.code is grpc.StatusCode.INTERNAL
                assert "s3cret" not in ended.details
                assert f"the handler of /test.Service/{method} failed" in caplog.text
            await served.has_taken(0)
    assert "s3cret" not in caplog.text


async def test_a_defect_fails_only_what_is_not_answered() -> None:
    """A batch handler that raises in the middle leaves the answers it has given."""
    pile: list[UnaryCall] = []

    def handle(calls: list[UnaryCall]) -> None:
        pile.extend(calls)
        if len(pile) == 2:
            pile[0].reply(b"answered")
            raise ValueError

    async with serving({"Ask": BatchMethod(handle)}) as served:
        calls = [served.unary("Ask"), served.unary("Ask")]
        codes = {(await end_of(call)).code for call in calls}
    assert codes in ({grpc.StatusCode.OK, grpc.StatusCode.INTERNAL}, {grpc.StatusCode.OK})


async def test_a_call_is_answered_once() -> None:
    """A second answer is a mistake of the handler, and changes nothing."""
    pile = Pile()
    async with serving({"Ask": pile.method}) as served:
        asked = served.unary("Ask")
        (call,) = await pile.has(1)
        with pytest.raises(ValueError, match="OK"):
            call.fail(Status(grpc.StatusCode.OK))
        call.reply(b"once")
        with pytest.raises(RuntimeError, match="already"):
            call.reply(b"twice")
        with pytest.raises(RuntimeError, match="already"):
            call.fail(Status(grpc.StatusCode.INTERNAL))
        assert await asked == b"once"
    with pytest.raises(ValueError, match="OK"):
        StatusError(Status(grpc.StatusCode.OK))


async def test_metadata_limits() -> None:
    """Metadata over the limit end the call with RESOURCE_EXHAUSTED, and no other call on the connection."""
    async with serving({"Echo": BatchMethod(echo_all)}, [("grpc.absolute_max_metadata_size", 16 << 10)]) as served:
        fits = served.unary("Echo", b"fits", metadata=(("key", "v" * 4000),))
        assert await fits == b"fits"
        too_large = served.unary("Echo", b"", metadata=(("key", "v" * (32 << 10)),))
        assert (await end_of(too_large)).code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await served.unary("Echo", b"after") == b"after"
        await served.has_taken(0)


async def test_a_synchronous_client() -> None:
    """It is served as well, from threads of its own."""
    async with serving({"Echo": BatchMethod(echo_all)}) as served:

        def ask() -> list[bytes]:
            with grpc.insecure_channel(served.target) as channel:
                stub: Any = channel.unary_unary("/test.Service/Echo")
                futures = [stub.future(b"%d" % number, timeout=TIMEOUT_SECONDS) for number in range(100)]
                return [future.result() for future in futures]

        assert await asyncio.to_thread(ask) == [b"%d" % number for number in range(100)]
