"""When a watch gives its stream up for the server's silence."""

import pytest

from catraca._feed import Feed
from catraca._watching import SILENCE_SECONDS, Silence
from catraca.v1 import session_service_pb2 as pb


class Watched:
    """A feed whose time stands still unless the test moves it, with an open stream."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.feed = Feed((), "")

    def open(self) -> None:
        """Opens the stream."""
        self.feed.begins()
        self.feed.receive(pb.WatchSessionsResponse(opened=pb.WatchOpened(cursor="e-0")))

    def go_on(self, seconds: float) -> None:
        """Lets time pass, with a ping in every second, as the stream's thread or task sends them."""
        for _ in range(int(seconds)):
            self.feed.ping()
            self.now += 1


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """A feed with a clock of the test's."""
    watched = Watched()
    monkeypatch.setattr(watched.feed, "_silence", Silence(lambda: watched.now))
    watched.open()
    return watched


def test_a_silent_server(watched: Watched) -> None:
    """After so long without a message, the connection is considered dead; a message shows that it is not."""
    watched.go_on(SILENCE_SECONDS)
    assert not watched.feed.is_silent()
    watched.go_on(1)
    assert watched.feed.is_silent()
    watched.feed.receive(pb.WatchSessionsResponse(pong=pb.WatchPong()))
    assert not watched.feed.is_silent()


def test_an_event_that_takes_its_reader_long(watched: Watched) -> None:
    """Meanwhile nobody reads what the server sends, so it does not count as silent. Afterwards it is given its time."""
    watched.feed.pauses()
    watched.go_on(SILENCE_SECONDS * 10)
    assert not watched.feed.is_silent()
    watched.feed.resumes()
    watched.go_on(SILENCE_SECONDS)
    assert not watched.feed.is_silent()
    watched.go_on(1)
    assert watched.feed.is_silent()


def test_another_stream_begins_anew(watched: Watched) -> None:
    """Also if the last one ended while its event was handled."""
    watched.feed.pauses()
    watched.go_on(SILENCE_SECONDS * 2)
    watched.open()
    assert not watched.feed.is_silent()
    watched.go_on(SILENCE_SECONDS + 1)
    assert watched.feed.is_silent()
