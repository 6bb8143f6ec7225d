"""The events of `AsyncSessionClient.watch`, read in the task that iterates over them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import grpc
from google.protobuf.message import DecodeError

from catraca import _core
from catraca._channel_aio import AsyncChannel
from catraca._events import SessionEvent, WatchOpened, WatchReset
from catraca._feed import Feed, failure, late
from catraca._watch_aio import AsyncStreams
from catraca.errors import CatracaError, Unavailable, UnexpectedAnswer


async def watch(
    channel: AsyncChannel, feed: Feed, timeout: float, closings: Callable[[], int]
) -> AsyncIterator[SessionEvent | WatchOpened | WatchReset]:
    """Yields what stream after stream says, until the client is closed: `closings` counts how often it was closed."""
    streams = AsyncStreams(channel, feed)
    closed = closings()
    while True:
        error: CatracaError | None = None
        feed.begins()
        # gRPC waits 20 s for a machine that does not answer.
        opening = asyncio.get_running_loop().call_later(timeout, _give_up, feed, streams)
        try:
            async with aclosing(streams.messages()) as messages:
                async for response in messages:
                    said = feed.receive(response)
                    if said is not None:
                        feed.pauses()
                        yield said
                        feed.resumes()
        except grpc.aio.AioRpcError as ended:
            error = failure(ended)
        except grpc.aio.BaseError as ended:
            error = Unavailable(f"gRPC failed: {ended}")
        except DecodeError:
            error = UnexpectedAnswer("an event cannot be read")
        except CatracaError as ended:
            error = ended if feed.is_open or opening.when() > asyncio.get_running_loop().time() else late(timeout)
        finally:
            opening.cancel()
        _raise_if_closed(closings() != closed)
        await asyncio.sleep(feed.ended(error))
        _raise_if_closed(closings() != closed)


def _give_up(feed: Feed, streams: AsyncStreams) -> None:
    if not feed.is_open:
        streams.cancel()


def _raise_if_closed(closed: bool) -> None:
    if closed:
        raise Unavailable(_core.CLOSED)
