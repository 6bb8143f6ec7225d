"""The rules of a near cache, one by one, with a clock of the test's."""

import random
from dataclasses import replace
from datetime import UTC, datetime

import grpc
import pytest

from catraca import InvalidReason, NearCache, Session, Validation, errors
from catraca._lease import LEASE_SECONDS, Lease
from catraca._near_cache import SETTLE_SECONDS, Fill, NearAnswers
from catraca._watching import SILENCE_SECONDS, Watch
from catraca.v1 import session_event_pb2 as events, session_service_pb2 as pb

TOKEN = "a-token-of-a-session"
MOMENT = datetime(2030, 1, 1, tzinfo=UTC)
MALFORMED = Validation(session=None, reason=InvalidReason.MALFORMED)


def valid(session_id: str = "session-1", user_id: str = "12345") -> Validation:
    """Returns the answer about a live session."""
    session = Session(
        session_id=session_id,
        user_id=user_id,
        create_time=MOMENT,
        last_active_time=MOMENT,
        expire_time=MOMENT,
        absolute_expire_time=MOMENT,
        idle_timeout=None,
        etag="1-1",
    )
    return Validation(session=session, reason=None)


class Near:
    """A near cache whose time stands still unless the test moves it."""

    def __init__(self, max_entries: int = 100) -> None:
        self.now = 1000.0
        self.answers = NearAnswers(NearCache(max_entries=max_entries), lambda: self.now)
        self.begin_watching()

    def begin_watching(self) -> None:
        """Begins as a new client does."""
        self.watch = Watch(self.answers, lambda: self.now, random.Random(1))  # noqa: S311  to be repeated

    def open(self, cursor: str = "e-0") -> pb.WatchStart:
        """Opens a stream. Returns how it began."""
        start = self.watch.start().start
        self.receive(opened=pb.WatchOpened(cursor=cursor))
        return start

    def receive(self, **response: object) -> None:
        """Something comes on the stream."""
        self.watch.receive(pb.WatchSessionsResponse(**response))  # type: ignore[arg-type]

    def event(self, session_id: str = "", user_id: str = "", cursor: str = "e-1") -> None:
        """An event comes."""
        kind = events.SESSION_EVENT_TYPE_REVOKED
        self.receive(event=events.SessionEvent(type=kind, session_id=session_id, user_id=user_id, cursor=cursor))

    def prove(self) -> None:
        """A ping and its pong."""
        pong = pb.WatchPong(nonce=self.watch.ping().ping.nonce)
        self.receive(pong=pong)

    def fill(self, token: str = TOKEN, answer: Validation | None = None, ttl: float = 60) -> Validation:
        """Asks, and keeps the answer if that is safe."""
        answer = valid() if answer is None else answer
        self.answers.keep(token, self.answers.begin(), answer, ttl)
        return answer

    def has(self, token: str = TOKEN) -> bool:
        """Whether an answer is given near."""
        return self.answers.get(token, None) is not None


@pytest.fixture
def near() -> Near:
    """A near cache with a live lease, whose stream has been open for a while."""
    cache = Near()
    cache.open()
    cache.now += SETTLE_SECONDS
    cache.prove()
    return cache


def test_the_same_answer_is_given_again(near: Near) -> None:
    """The very object, as often as it is asked for, and the hits are counted."""
    answer = near.fill()
    assert near.answers.get(TOKEN, None) is answer
    assert near.answers.get(TOKEN, "12345") is answer
    assert not near.has("another-token")
    stats = near.answers.stats()
    assert (stats.hits, stats.misses, stats.entries, stats.watching) == (2, 1, 1, True)
    assert TOKEN not in repr((stats, near.answers.begin(), near.watch, near.answers))


def test_another_users_question_goes_to_the_server(near: Near) -> None:
    """It may have a reason to think that the session has changed hands."""
    near.fill()
    assert near.answers.get(TOKEN, "67890") is None


def test_the_lease_counts_from_before_the_ping(near: Near) -> None:
    """However late its pong comes, and less the age that it tells."""
    near.fill()
    began = near.now
    ping = near.watch.ping().ping
    near.now += 1.5
    pong = pb.WatchPong(nonce=ping.nonce)
    pong.age.FromMilliseconds(250)
    near.receive(pong=pong)
    near.now = began + LEASE_SECONDS - 0.01
    assert near.has()
    near.now = began + LEASE_SECONDS
    assert not near.has()
    assert near.answers.stats().lease_lost == 1


@pytest.mark.parametrize(("age", "until"), [(0.0, 12.0), (0.5, 11.5), (100.0, None), (-0.1, None)])
def test_ages(age: float, until: float | None) -> None:
    """An age counts against the lease, a great one leaves none, and one of the future proves nothing."""
    lease = Lease()
    lease.ping(7, 10.0)
    lease.pong(7, age)
    assert lease.until == until or (until is None and lease.until < 10)


def test_a_weaker_proof_takes_nothing() -> None:
    """A pong from a server that lags does not shorten what another has proven; each ping counts once."""
    lease = Lease()
    lease.ping(1, 10.0)
    lease.pong(1, 0)
    lease.ping(2, 10.5)
    lease.pong(2, 5)
    assert lease.until == 12
    lease.pong(1, -100)
    lease.pong(99, 0)
    assert lease.until == 12


def test_pings_without_a_pong_are_forgotten() -> None:
    """They take no memory, and a pong for one of them proves nothing."""
    lease = Lease()
    for nonce in range(1000):
        lease.ping(nonce, 10.0)
    lease.pong(1, 0)
    assert lease.age(10.0) is None
    lease.pong(999, 0)
    assert lease.age(10.5) == 0.5
    lease.ping(1000, 20)
    lease.forget_pings()
    lease.pong(1000, 0)
    assert lease.until == 12


def test_an_answer_ends_by_its_own_time(near: Near) -> None:
    """That counts from before it was asked for, and reading prolongs nothing."""
    fill = near.answers.begin()
    near.now += 0.6
    near.answers.keep(TOKEN, fill, valid(), 1.0)
    near.prove()
    near.now += 0.39
    assert near.has()
    near.now += 0.01
    assert not near.has()
    assert near.answers.stats().lease_lost == 0


@pytest.mark.parametrize("ttl", [0, -1])
def test_what_may_not_be_kept(near: Near, ttl: float) -> None:
    """Neither what the server gives no time, nor what a rotated token is told, nor "not valid"."""
    near.fill(ttl=ttl)
    near.fill(answer=replace(valid(), token_rotated=True))
    near.fill(answer=Validation(session=None, reason=InvalidReason.NOT_FOUND))
    assert not near.has()


def test_the_clock_is_read_last(near: Near) -> None:
    """A thread that is held up between its lookup and its look at the clock does not give an old answer."""
    near.fill()

    def held_up() -> float:
        near.now += LEASE_SECONDS
        return near.now

    near.answers._clock = held_up
    assert not near.has()


def test_the_lease_is_read_before_the_entry(near: Near) -> None:
    """A lease that was proven after the lookup says nothing of what was found."""
    near.fill()

    def held_up() -> float:
        near.now += 3
        near.answers._clock = lambda: near.now
        near.event("session-1")
        near.prove()
        return near.now

    near.answers._clock = held_up
    assert not near.has()


@pytest.mark.parametrize(
    ("session_id", "user_id", "left"),
    [
        ("session-1", "12345", ["b", "c"]),
        ("session-1", "", ["b", "c"]),
        ("", "12345", ["c"]),
        ("", "", []),
        ("session-9", "12345", ["a", "b", "c"]),
    ],
)
def test_what_an_event_drops(near: Near, session_id: str, user_id: str, left: list[str]) -> None:
    """Its session; without one every session of its user; without either whatever there is."""
    near.fill("a", valid("session-1"))
    near.fill("b", valid("session-2"))
    near.fill("c", valid("session-3", "67890"))
    near.event(session_id, user_id)
    assert [token for token in "abc" if near.has(token)] == left


@pytest.mark.parametrize(("session_id", "user_id"), [("session-1", "12345"), ("", "12345"), ("", "")])
def test_an_event_overtakes_an_answer(near: Near, session_id: str, user_id: str) -> None:
    """An answer that was read before the event, and comes after it, is not kept; the next one is."""
    fill = near.answers.begin()
    near.event(session_id, user_id)
    near.answers.keep(TOKEN, fill, valid(), 60)
    assert not near.has()
    near.fill()
    assert near.has()


def test_an_event_about_others_does_no_harm(near: Near) -> None:
    """Unless there were so many of them that nobody knows whom they were about."""
    fill = near.answers.begin()
    near.event("session-2", "67890")
    near.answers.keep(TOKEN, fill, valid(), 60)
    assert near.has()
    fill = near.answers.begin()
    for at in range(4_001):
        near.event(f"other-{at}")
    near.answers.keep("another-token", fill, valid("session-2"), 60)
    assert not near.has("another-token")


def test_a_request_from_before_the_stream_was_open() -> None:
    """No event will tell of what happened in between."""
    near = Near()
    near.fill()
    assert near.answers.stats().entries == 0
    fill = near.answers.begin()
    near.open()
    near.prove()
    near.answers.keep(TOKEN, fill, valid(), 60)
    assert not near.has()


def test_a_stream_that_is_resumed(near: Near) -> None:
    """It goes on after the last cursor, and what is kept is given all the while under the lease that is left."""
    near.fill()
    near.event("session-2", cursor="e-7")
    fill = near.answers.begin()
    near.watch.ended(grpc.StatusCode.UNAVAILABLE)
    assert near.has()
    assert near.open().cursor == "e-7"
    assert near.has()
    near.answers.keep("another-token", fill, valid("session-3"), 60)
    assert not near.has("another-token")
    near.now += LEASE_SECONDS
    assert not near.has()
    near.prove()
    assert near.has()


def test_a_reset_that_is_lost(near: Near) -> None:
    """A stream that could not be resumed ended before its reset came: the next one asks from the same cursor."""
    near.event("session-2", cursor="e-7")
    near.watch.ended(grpc.StatusCode.UNAVAILABLE)
    near.open("e-20")
    near.watch.ended(grpc.StatusCode.UNAVAILABLE)
    assert near.open().cursor == "e-7"


def test_pongs_of_an_earlier_stream(near: Near) -> None:
    """A ping that was sent on it is not answered on the next."""
    ping = near.watch.ping().ping
    near.watch.ended(grpc.StatusCode.UNAVAILABLE)
    near.open()
    before = near.answers.lease.until
    near.now += 1
    near.receive(pong=pb.WatchPong(nonce=ping.nonce))
    assert near.answers.lease.until == before


def test_a_stream_without_a_cursor_begins_anew(near: Near) -> None:
    """What happened before it is not told, so nothing from before is kept."""
    near.fill()
    near.event("session-2", cursor="")
    near.watch.ended(grpc.StatusCode.UNAVAILABLE)
    assert not near.open().cursor
    assert not near.has()


def test_a_reset_drops_everything(near: Near) -> None:
    """What is kept, what is under way, and the lease; the stream goes on after the reset's cursor."""
    near.fill()
    fill = near.answers.begin()
    ping = near.watch.ping().ping
    near.receive(reset=pb.WatchReset(cursor="e-20", reason=pb.WATCH_RESET_REASON_TRIMMED))
    near.answers.keep(TOKEN, fill, valid(), 60)
    near.fill("another-token", valid("session-2"))
    near.receive(pong=pb.WatchPong(nonce=ping.nonce))
    assert not near.has("another-token")
    near.prove()
    assert near.has("another-token")
    assert not near.has()
    assert near.answers.stats().resets == 1
    near.watch.ended(grpc.StatusCode.UNAVAILABLE)
    assert near.open().cursor == "e-20"


@pytest.mark.parametrize("anew", ["reset", "opened"])
def test_answers_are_kept_briefly_at_first(anew: str) -> None:
    """Another server may not have noticed a failover, and what corrects its answer may be from before the stream."""
    near = Near()
    near.open()
    if anew == "reset":
        near.now += 60
        near.receive(reset=pb.WatchReset(cursor="f-1", reason=pb.WATCH_RESET_REASON_EPOCH_CHANGED))
    near.now += SETTLE_SECONDS - 0.1
    near.prove()
    near.fill()
    near.now += LEASE_SECONDS - 0.1
    near.prove()
    assert near.has()
    near.now += 0.1
    assert not near.has()
    near.fill()
    near.now += 50
    near.prove()
    assert near.has()


def test_what_this_client_changes(near: Near) -> None:
    """It sees its own changes at once, also against answers that were under way."""
    near.fill("a", valid("session-1"))
    near.fill("b", valid("session-2"))
    near.fill("c", valid("session-3"))
    near.fill("d", valid("session-4", "67890"))
    near.fill("e", valid("session-5", "67890"))
    fill = near.answers.begin()
    near.answers.drop_for_write(token="a")
    near.answers.drop_for_write(session_ids=["session-2"])
    near.answers.drop_for_write(user_id="67890")
    near.answers.drop_for_write(token="unknown")
    near.answers.keep("a", fill, valid("session-1"), 60)
    assert [token for token in "abcde" if near.has(token)] == ["c"]


def test_malformed_tokens_need_no_lease() -> None:
    """The answer depends on nothing but the token. Long ones are not kept, and not too many."""
    near = Near()
    near.fill("short", MALFORMED, ttl=0)
    assert near.answers.get("short", "12345") is MALFORMED
    near.fill("x" * 257, MALFORMED)
    assert not near.has("x" * 257)
    for at in range(5_000):
        near.fill(f"bad-{at}", MALFORMED)
    assert len(near.answers._malformed) <= 1_000


def test_memory_is_bounded() -> None:
    """However many sessions come and go, and whoever's they are; the oldest make room."""
    near = Near(max_entries=10)
    near.open()
    near.prove()
    for at in range(1_000):
        near.fill(f"token-{at}", valid(f"session-{at}", f"user-{at % 7}"))
        assert near.answers.stats().entries <= 10
        assert near.has(f"token-{at}")
        if at % 3 == 0:
            near.event(f"session-{at}")
    near.fill("token-999", valid("session-999", "user-5"))
    for generation in (near.answers._young, near.answers._old):
        assert len(generation._sessions) == len(generation.entries)
        assert sum(len(sessions) for sessions in generation._users.values()) == len(generation.entries)
        assert all(generation._users.values())
    assert near.answers.stats().evictions > 500
    with pytest.raises(errors.InvalidSetting):
        NearCache(max_entries=1)


def test_a_child_begins_with_nothing(near: Near) -> None:
    """And what was under way in the parent is worth nothing in it."""
    near.fill()
    fill = near.answers.begin()
    near.answers.renew()
    near.begin_watching()
    near.open()
    near.prove()
    near.answers.keep(TOKEN, fill, valid(), 60)
    assert not near.has()


def test_a_closed_client_knows_nothing(near: Near) -> None:
    """Until it watches again."""
    near.fill()
    near.answers.closed()
    assert not near.has()
    near.fill()
    assert not near.has()


def test_what_is_asked_of_the_feed(near: Near) -> None:
    """Nothing about logins, which are in no near cache."""
    types = near.watch.start().start.types
    assert set(types) == {
        events.SESSION_EVENT_TYPE_UPDATED,
        events.SESSION_EVENT_TYPE_ROTATED,
        events.SESSION_EVENT_TYPE_REVOKED,
    }


def test_when_the_next_stream_is_opened() -> None:
    """Soon, then ever later, spread out; after an opening soon again; after a refusal much later."""
    near = Near()
    delays = [near.watch.ended(grpc.StatusCode.UNAVAILABLE) for _ in range(20)]
    assert 0.05 <= delays[0] <= 0.1
    assert all(1.5 <= delay <= 3 for delay in delays[6:])
    assert len(set(delays)) == len(delays)
    near.open()
    assert near.watch.ended(grpc.StatusCode.UNAVAILABLE) <= 0.1
    assert not near.watch.refused
    for code in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
        assert 30 <= near.watch.ended(code) <= 60
        assert near.watch.refused
    near.open()
    assert not near.watch.refused
    # Of an open stream the key may have been replaced since: the next one tells.
    assert near.watch.ended(grpc.StatusCode.UNAUTHENTICATED) <= 0.1
    assert not near.watch.refused
    assert near.watch.ended(grpc.StatusCode.UNAUTHENTICATED) >= 30


def test_silence(near: Near) -> None:
    """A stream on which nothing comes after a ping is dead; anything that comes is a sign of life."""
    near.watch.ping()
    near.now += SILENCE_SECONDS
    near.watch.ping()
    assert not near.watch.is_silent()
    near.now += 0.1
    assert near.watch.is_silent()
    near.receive()
    assert not near.watch.is_silent()
    near.watch.ping()
    near.now += SILENCE_SECONDS + 1
    near.watch.start()
    assert not near.watch.is_silent()


def test_a_process_that_was_stopped(near: Near) -> None:
    """Or an event loop that was blocked: it sent no pings meanwhile, so it learned nothing about the server."""
    near.watch.ping()
    near.receive(pong=pb.WatchPong())
    near.now += SILENCE_SECONDS + 1
    assert not near.watch.is_silent()


def test_fills_tell_nothing() -> None:
    """A fill names no token."""
    assert set(Fill.__slots__) == {"seen", "started", "voided", "watching"}
