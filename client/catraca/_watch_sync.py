"""The watch stream of a client for threads: one thread reads it, from the first validation until `close`."""

import os
import random
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from catraca import _core
from catraca._channel_sync import SyncChannel
from catraca._forks import WithoutConnection, forks, never_free
from catraca._lease import PING_SECONDS
from catraca._near_cache import Clock, NearAnswers
from catraca._watching import SILENT, Talk, Watch, log_refusal
from catraca.errors import CatracaError, Unavailable
from catraca.v1 import session_service_pb2 as pb

_JOIN_SECONDS = 5.0
"""How long `close` waits for the thread at most. It ends as soon as its call does."""


class SyncStreams:
    """One stream after another, each read by the thread that iterates over `messages`."""

    def __init__(self, channel: SyncChannel, talk: Talk) -> None:
        self._channel = channel
        self._talk = talk
        self._call: Any = None
        self._over = False
        self._silent = False

    def messages(self) -> Iterator[pb.WatchSessionsResponse]:
        """Opens a stream and yields what comes, to its end. Raises grpc.RpcError, CatracaError or DecodeError."""
        ended = threading.Event()
        self._silent = False
        try:
            call = self._call = self._channel.stream(_core.WATCH, self._requests(ended))
            if self._over:  # stopped before there was anything to cancel
                call.cancel()
            for response in call:
                yield pb.WatchSessionsResponse.FromString(response)
        except grpc.RpcError:
            if self._silent:
                raise Unavailable(SILENT) from None
            raise
        finally:
            ended.set()
            self.cancel()
            self._call = None

    def cancel(self) -> None:
        """Ends the stream that is open, if one is."""
        call = self._call
        if call is not None:
            call.cancel()

    def stop(self) -> None:
        """Ends the stream that is open, and every later one."""
        self._over = True
        self.cancel()

    def _requests(self, ended: threading.Event) -> Iterator[bytes]:
        """Yields the requests of a stream, in a thread of gRPC's."""
        yield self._talk.start().SerializeToString()
        while not ended.is_set():
            yield self._talk.ping().SerializeToString()
            ended.wait(PING_SECONDS)
            if not ended.is_set() and self._talk.is_silent():
                self._silent = True
                self.cancel()


class _Reader:
    """A thread that reads one stream after another. It knows nothing of the client, so that a client can be freed."""

    def __init__(self, channel: SyncChannel, answers: NearAnswers, clock: Clock) -> None:
        self._watch = Watch(answers, clock, random.Random())  # noqa: S311  it spreads reconnects and guards nothing
        self._streams = SyncStreams(channel, self._watch)
        self._over = threading.Event()
        self._pid = os.getpid()
        # A daemon, because a program may end without closing its client.
        self._thread = threading.Thread(target=self._run, name="catraca-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the stream and the thread."""
        if os.getpid() != self._pid:
            return  # a child has no such thread, and its locks stay held for ever
        self._over.set()
        self._streams.stop()
        if self._thread is not threading.current_thread():
            self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        while not self._over.is_set():
            code = self._stream()
            log_refusal(self._watch, code)
            self._over.wait(self._watch.ended(code))

    def _stream(self) -> grpc.StatusCode:
        """Reads a stream to its end. Returns how it ended."""
        try:
            for response in self._streams.messages():
                self._watch.receive(response)
        except grpc.RpcError as error:
            return error.code()
        except (CatracaError, DecodeError):
            return grpc.StatusCode.UNAVAILABLE
        return grpc.StatusCode.OK


class SyncWatch(WithoutConnection):
    """Keeps a near cache up to date while a client is in use. Its channel ends the stream at a fork."""

    def __init__(self, channel: SyncChannel, answers: NearAnswers, clock: Clock) -> None:
        self._channel = channel
        self._answers = answers
        self._clock = clock
        self._reader: _Reader | None = None
        self._finalizer: weakref.finalize[..., SyncWatch] | None = None
        self._lock = threading.Lock()
        forks.watch(self)

    def begin(self) -> None:
        """Makes sure that the stream is read. Raises UnusableAfterFork."""
        forks.check()
        if self._reader is not None:
            return
        with self._lock:
            if self._reader is None:
                self._reader = _Reader(self._channel, self._answers, self._clock)
                # For clients that nobody closes.
                self._finalizer = weakref.finalize(self, self._reader.stop)

    def close(self) -> None:
        """Ends the stream and its thread, and forgets the answers. A later `begin` begins anew."""
        with self._lock:
            finalizer, self._finalizer, self._reader = self._finalizer, None, None
        if finalizer is not None:
            finalizer()
        self._answers.closed()

    def abandon(self) -> None:
        """See `Connection`."""
        self._lock = threading.Lock()
        if self._finalizer is not None:
            self._finalizer.detach()
        if self._reader is not None:
            never_free(self._reader)
        self._finalizer = self._reader = None
        self._answers.renew()
