"""The events of `SessionClient.watch`, read in the thread that iterates over them."""

import threading
import time
from collections.abc import Callable, Iterator

import grpc
from google.protobuf.message import DecodeError

from catraca import _core
from catraca._channel_sync import SyncChannel
from catraca._events import SessionEvent, WatchOpened, WatchReset
from catraca._feed import Feed, failure, late
from catraca._watch_sync import SyncStreams
from catraca.errors import CatracaError, Unavailable, UnexpectedAnswer


def watch(
    channel: SyncChannel, feed: Feed, timeout: float, closings: Callable[[], int]
) -> Iterator[SessionEvent | WatchOpened | WatchReset]:
    """Yields what stream after stream says, until the client is closed: `closings` counts how often it was closed."""
    streams = SyncStreams(channel, feed)
    closed = closings()
    while True:
        error: CatracaError | None = None
        feed.begins()
        # gRPC waits 20 s for a machine that does not answer.
        opening = threading.Timer(timeout, _give_up, (feed, streams))
        opening.daemon = True
        opening.start()
        try:
            for response in streams.messages():
                said = feed.receive(response)
                if feed.is_open:
                    opening.cancel()
                if said is not None:
                    feed.pauses()
                    yield said
                    feed.resumes()
        except grpc.RpcError as ended:
            cancelled = ended.code() is grpc.StatusCode.CANCELLED and not feed.is_open
            error = late(timeout) if cancelled else failure(ended)
        except DecodeError:
            error = UnexpectedAnswer("an event cannot be read")
        except CatracaError as ended:
            error = ended
        finally:
            opening.cancel()
        _raise_if_closed(closings() != closed)
        time.sleep(feed.ended(error))
        _raise_if_closed(closings() != closed)


def _give_up(feed: Feed, streams: SyncStreams) -> None:
    if not feed.is_open:
        streams.cancel()


def _raise_if_closed(closed: bool) -> None:
    if closed:
        raise Unavailable(_core.CLOSED)
