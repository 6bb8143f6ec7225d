"""A service with a feed and its near caches, in virtual time: everything that happens is drawn from one seed.

The clients are the real ones without their I/O. The service is a model: what it promises (docs/guarantees.md), and all
that it may do beyond: it reads its feed late, loses streams and clients' requests, trims the feed, fails over.
"""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Self

import grpc
from tests.support.near_cache_rules import Rules

from catraca._model import InvalidReason, Session, Validation
from catraca.v1 import session_event_pb2 as events, session_service_pb2 as pb

BOUND_SECONDS = 5.0
"""T: how long after its end was acknowledged a session may still be valid in a near cache."""
TOKENS = 10
MAX_ENTRIES = (8, 2 * TOKENS)
"""Too few for all, or enough, so that answers are kept for long."""
USERS = 3
DETECTION_SECONDS = 1.0
"""How long a server may take a primary that was replaced for the primary."""

_Step = Callable[[], None]


class Breach(AssertionError):
    """A promise that was broken."""


@dataclass(slots=True)
class Stored:
    """A session as the store has it."""

    user_id: str
    alive: bool = True
    version: int = 0


@dataclass(slots=True)
class Store:
    """A primary: its sessions and its feed, which begins at `first`."""

    epoch: int
    sessions: list[Stored]
    feed: list[events.SessionEvent] = field(default_factory=list)
    trimmed: int = 0


class World:
    """One run."""

    def __init__(self, seed: int, rules: Rules, *, clients: int = 2) -> None:
        self.chance = random.Random(seed)  # noqa: S311  a seed is to be replayed
        self.rules = rules
        self.now = self.chance.uniform(0, 1000)
        self._steps: list[tuple[float, int, _Step]] = []
        self._order = itertools.count()
        self.store = Store(1, [Stored(f"user-{at % USERS}") for at in range(TOKENS)])
        # What was acknowledged when: the end of a session, and each of its versions.
        self.ended: dict[int, float] = {}
        self.versions: dict[tuple[int, int], float] = {}
        self.feed_server = Server(self)
        self.other_server = Server(self)
        self.clients = [Client(self, number) for number in range(clients)]
        self.hits = 0
        self.held_up = False
        """Whether a thread is stalled in the middle of a lookup."""

    def after(self, seconds: float, step: _Step) -> None:
        """Schedules something for later."""
        heapq.heappush(self._steps, (self.now + seconds, next(self._order), step))

    def advance(self, seconds: float) -> None:
        """Lets time pass, and runs what is scheduled for it."""
        until = self.now + seconds
        while self._steps and self._steps[0][0] <= until:
            self.now, _, step = heapq.heappop(self._steps)
            step()
        self.now = until

    def run(self, seconds: float) -> None:
        """Plays it."""
        for each in self.clients:
            each.begin()
        self.feed_server.read()
        if self.chance.random() < 0.2:
            # Only failovers, so that nothing else undoes the effect of one at once.
            for number in range(4):
                self.after(self.chance.uniform(0.15, 0.25) * seconds * (number + 0.5), self.fail_over)
        else:
            self.after(self.chance.expovariate(1), self.change)
            if self.chance.random() < 0.4:
                self.after(self.chance.uniform(1, seconds), self.fail_over)
        self.advance(seconds)

    def delay(self) -> float:
        """How long something takes: mostly milliseconds, sometimes seconds."""
        draw = self.chance.random()
        return draw * 0.05 if draw < 0.9 else self.chance.uniform(0, 12) if draw < 0.98 else self.chance.uniform(0, 0.5)

    def change(self) -> None:
        """A caller ends or changes sessions: the store first, then the feed, then the acknowledgement."""
        store, at = self.store, self.chance.randrange(TOKENS)
        draw = self.chance.random()
        if draw < 0.35:
            self._write(store, [at], events.SESSION_EVENT_TYPE_REVOKED)
        elif draw < 0.55:
            mine = [each for each in range(TOKENS) if store.sessions[each].user_id == store.sessions[at].user_id]
            # An earlier call, interrupted, has ended some: this one's only event for these is the user's.
            self._write(store, mine, events.SESSION_EVENT_TYPE_REVOKED, user_id=store.sessions[at].user_id)
        elif draw < 0.8:
            self._write(store, [at], events.SESSION_EVENT_TYPE_UPDATED)
        else:
            self.revive(at)
        if self.chance.random() < 0.1:
            store.trimmed = len(store.feed)
        self.after(self.chance.expovariate(0.7), self.change)

    def revive(self, at: int) -> None:
        """A user logs in: perhaps in place of a session that has ended."""
        self.store.sessions[at].alive = True
        self.ended.pop(at, None)

    def _write(self, store: Store, ats: list[int], kind: events.SessionEventType.ValueType, user_id: str = "") -> None:
        versions: list[tuple[int, int]] = []

        def make() -> None:
            for at in ats:
                if kind == events.SESSION_EVENT_TYPE_REVOKED:
                    store.sessions[at].alive = False
                else:
                    store.sessions[at].version += 1
                    versions.append((at, store.sessions[at].version))

        def tell() -> None:
            if user_id:
                store.feed.append(events.SessionEvent(type=kind, user_id=user_id))
            else:
                store.feed.extend(events.SessionEvent(type=kind, session_id=session_id(at)) for at in ats)
            self.after(self.chance.uniform(0, 0.05), acknowledge)

        def acknowledge() -> None:
            if store is not self.store:
                return  # the failover came first: this was never acknowledged
            for at in ats:
                if kind == events.SESSION_EVENT_TYPE_REVOKED and not store.sessions[at].alive:
                    self.ended.setdefault(at, self.now)
            self.versions.update(dict.fromkeys(versions, self.now))

        make()
        self.after(self.chance.uniform(0, 0.3), tell)

    def fail_over(self) -> None:
        """A replica that has everything becomes the primary, with a feed of its own."""
        for at in range(TOKENS):
            self.revive(at)
        self.store = Store(self.store.epoch + 1, [replace(each) for each in self.store.sessions])
        late = DETECTION_SECONDS
        self.after(self.chance.choice([0, late / 4, late]), self.feed_server.notice)
        self.after(self.chance.choice([0, late / 4, late]), self.other_server.notice)
        # Lively right afterwards: the old primary is still asked about what ends.
        for _ in range(5):
            self.after(self.chance.uniform(0, DETECTION_SECONDS / 2), self.revoke_one)

    def revoke_one(self) -> None:
        """A caller ends a session, and all clients ask about it."""
        at = self.chance.randrange(TOKENS)
        self._write(self.store, [at], events.SESSION_EVENT_TYPE_REVOKED)
        for each in self.clients:
            self.after(self.chance.uniform(0, DETECTION_SECONDS), partial(each.fetch, at))


class Server:
    """A server: which primary it believes in, how far it has read the feed, and who watches."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.store = world.store
        self.read_at = world.now
        self.position = 0
        self.streams: list[Stream] = []

    def notice(self) -> None:
        """It learns of the new primary: events may have been missed, so every watch gets a reset."""
        self.store, self.position, self.read_at = self._world.store, 0, self._world.now
        for stream in self.streams:
            stream.reset(pb.WATCH_RESET_REASON_EPOCH_CHANGED)

    def read(self) -> None:
        """Reads the feed to its end, now and again later; sometimes the store does not answer for seconds."""
        world = self._world
        before, self.position, self.read_at = self.position, len(self.store.feed), world.now
        if before < self.store.trimmed:
            before = self.position
            for stream in self.streams:
                stream.reset(pb.WATCH_RESET_REASON_TRIMMED)
        for at in range(max(before, self.store.trimmed), self.position):
            for stream in self.streams:
                stream.send_event(at + 1, self.store.feed[at])
        outage = world.chance.random() < 0.03
        world.after(world.chance.uniform(1, 12) if outage else world.chance.uniform(0.005, 0.1), self.read)

    def validate(self, at: int) -> tuple[Validation, float]:
        """Answers a validation, from the primary that it believes in."""
        stored = self.store.sessions[at]
        if not stored.alive:
            return Validation(session=None, reason=InvalidReason.NOT_FOUND), 0
        return valid(at, stored), self._world.chance.choice([0, 1, 20, 60])


class Stream:
    """A watch: two ordered ways, each with its delays. What has not arrived when it is lost never does."""

    def __init__(self, world: World, client: "Client", start: pb.WatchStart) -> None:
        self._world = world
        self._client = client
        self._server = world.feed_server
        self._store = self._server.store
        self.types = set(start.types)
        self.lost = False
        self._down_free_at = self._up_free_at = world.now
        self._generation = 0
        epoch, _, position = start.cursor.partition("-")
        self._up(lambda: self._open(int(epoch or 0), int(position or 0), resuming=bool(start.cursor)))
        world.after(world.chance.expovariate(1 / 15), self._lose)

    def ping(self, request: pb.WatchSessionsRequest) -> None:
        """The client has sent a ping."""
        self._up(lambda: self._pong(request.ping.nonce))

    def send_event(self, at: int, event: events.SessionEvent) -> None:
        """Sends an event."""
        if event.type in self.types:
            copied = events.SessionEvent()
            copied.CopyFrom(event)
            copied.cursor = f"{self._server.store.epoch}-{at}"
            self._down(pb.WatchSessionsResponse(event=copied))

    def reset(self, reason: pb.WatchResetReason.ValueType) -> None:
        """Says that events may have been missed. Those that are not on their way yet never come."""
        self._generation += reason == pb.WATCH_RESET_REASON_SLOW_CONSUMER
        cursor = f"{self._server.store.epoch}-{self._server.position}"
        self._down(pb.WatchSessionsResponse(reset=pb.WatchReset(cursor=cursor, reason=reason)))

    def _open(self, epoch: int, position: int, *, resuming: bool) -> None:
        server = self._server
        here = f"{server.store.epoch}-{server.position}"
        continues = resuming and epoch == server.store.epoch and server.store.trimmed <= position <= server.position
        cursor = f"{epoch}-{position}" if continues else here
        self._down(pb.WatchSessionsResponse(opened=pb.WatchOpened(cursor=cursor)))
        if resuming and not continues:
            other = epoch != server.store.epoch
            self.reset(pb.WATCH_RESET_REASON_EPOCH_CHANGED if other else pb.WATCH_RESET_REASON_TRIMMED)
        elif continues:
            for at in range(max(position, server.store.trimmed), server.position):
                self.send_event(at + 1, server.store.feed[at])
        server.streams.append(self)

    def _pong(self, nonce: int) -> None:
        if self._world.chance.random() < 0.02:
            self.reset(pb.WATCH_RESET_REASON_SLOW_CONSUMER)
        pong = pb.WatchPong(nonce=nonce)
        pong.age.FromNanoseconds(int((self._world.now - self._server.read_at) * 1e9))
        self._down(pb.WatchSessionsResponse(pong=pong))

    def _up(self, step: _Step) -> None:
        self._up_free_at = max(self._up_free_at, self._world.now + self._world.delay())
        self._world.after(self._up_free_at - self._world.now, lambda: None if self.lost else step())

    def _down(self, response: pb.WatchSessionsResponse) -> None:
        generation = self._generation
        self._down_free_at = max(self._down_free_at, self._world.now + self._world.delay())

        def arrive() -> None:
            # A slow consumer's events are dropped, and so is whatever else was in the queue.
            if not self.lost and (generation == self._generation or response.HasField("opened")):
                self._client.receive(self, response)

        self._world.after(self._down_free_at - self._world.now, arrive)

    def _lose(self) -> None:
        self.lost = True
        if self in self._server.streams:
            self._server.streams.remove(self)
        self._world.after(self._world.chance.uniform(0, 2), lambda: self._client.stream_ended(self))


class HeldUp(str):  # noqa: SLOT000  it has one attribute
    """A user id. A thread that compares it, once it has looked up an answer, may be held up for seconds."""

    _hold_up: _Step
    __hash__ = str.__hash__

    def __new__(cls, user_id: str, hold_up: _Step) -> Self:
        """Makes one."""
        made = super().__new__(cls, user_id)
        made._hold_up = hold_up
        return made

    def __eq__(self, other: object) -> bool:
        self._hold_up()
        return str.__eq__(self, other)


class Client:
    """A client with a near cache: the real one, its stream and calls played by the world."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._offset = 1000.0 * number
        self._max_entries = world.chance.choice(MAX_ENTRIES)
        self.answers = world.rules.near_answers(self._max_entries, self.clock)
        self._watch = world.rules.watch(self.answers, self.clock, world.chance)
        self._stream: Stream | None = None
        self._pinged: dict[int, float] = {}
        self._proven_until = 0.0
        self._own: dict[int, tuple[float, float]] = {}
        """The sessions that this client has ended itself: when any client first knew, and when this client did."""
        self._fetched: dict[int, tuple[Validation, float, float]] = {}
        """When each answer was asked for, and until when it may be reused."""

    def clock(self) -> float:
        """Its clock, which only measures durations."""
        return self._world.now + self._offset

    def begin(self) -> None:
        """Watches and validates."""
        self._world.after(self._world.chance.choice([0, 0, 1]), self.open)
        self._world.after(self._world.chance.uniform(0, 0.7), self._ping)
        self._world.after(0, self._validate)

    def open(self) -> None:
        """Opens a stream."""
        self._stream = Stream(self._world, self, self._watch.start().start)

    def receive(self, stream: Stream, response: pb.WatchSessionsResponse) -> None:
        """Something has come on the stream."""
        if stream is not self._stream:
            return
        if response.WhichOneof("response") == "pong":
            age = response.pong.age.ToNanoseconds() / 1e9
            self._proven_until = max(self._proven_until, self._pinged[response.pong.nonce] - age + 2.0)
        self._watch.receive(response)

    def stream_ended(self, stream: Stream) -> None:
        """The stream is lost."""
        if stream is self._stream:
            self._stream = None
            self._world.after(self._watch.ended(grpc.StatusCode.UNAVAILABLE), self.open)

    def _ping(self) -> None:
        if self._stream is not None:
            request = self._watch.ping()
            self._pinged[request.ping.nonce] = self._world.now
            self._stream.ping(request)
        self._world.after(0.7, self._ping)

    def _validate(self) -> None:
        world, at = self._world, self._world.chance.randrange(TOKENS)
        world.after(world.chance.expovariate(8), self._validate)
        if world.chance.random() < 0.02:
            self._revoke(at)
            return
        began_at = world.now
        known = self.answers.get(token(at), HeldUp(world.store.sessions[at].user_id, self._hold_up))
        if known is None:
            self.fetch(at)
        else:
            self._check(at, known, began_at)

    def _hold_up(self) -> None:
        world = self._world
        if not world.held_up and world.chance.random() < 0.06:
            world.held_up = True
            world.advance(world.chance.uniform(0, 15))
            world.held_up = False

    def fetch(self, at: int) -> None:
        """Asks a server, and keeps the answer."""
        world = self._world
        server = world.chance.choice([world.feed_server, world.other_server])
        fill = self.answers.begin()

        def arrive() -> None:
            validation, cache_ttl = server.validate(at)
            self._fetched[id(validation)] = validation, sent_at, sent_at + cache_ttl
            world.after(world.delay(), lambda: self.answers.keep(token(at), fill, validation, cache_ttl))

        sent_at = world.now
        world.after(world.delay(), arrive)

    def _revoke(self, at: int) -> None:
        store = self._world.store
        store.sessions[at].alive = False
        store.feed.append(events.SessionEvent(type=events.SESSION_EVENT_TYPE_REVOKED, session_id=session_id(at)))

        def answered() -> None:
            if store is not self._world.store or store.sessions[at].alive:
                return
            self._world.ended.setdefault(at, self._world.now)
            self.answers.drop_for_write(token=token(at))
            self._own[at] = self._world.ended[at], self._world.now

        self._world.after(self._world.delay(), answered)

    def _check(self, at: int, known: Validation, began_at: float) -> None:
        world = self._world
        world.hits += 1
        if world.now >= self._proven_until:
            raise Breach(f"an answer {world.now - self._proven_until:.2f} s after the lease")
        _, asked_at, good_until = self._fetched[id(known)]
        if world.now >= good_until:
            raise Breach("an answer past its time")
        ended = world.ended.get(at)
        own_ended, told_at = self._own.get(at, (None, 0.0))
        # It has asked again since; a server that has not noticed a failover may be wrong, with a near cache or without.
        # And a thread that began before another one's revocation returned may still have its answer from before.
        if ended is not None and own_ended == ended and asked_at <= told_at < began_at:
            raise Breach("a session that this client has ended is valid to it")
        if ended is not None and world.now > ended + BOUND_SECONDS:
            raise Breach(f"valid {world.now - ended:.2f} s after its end was acknowledged")
        assert known.session is not None
        newer = world.versions.get((at, int(known.session.etag) + 1))
        if newer is not None and world.now > newer + BOUND_SECONDS:
            raise Breach(f"outdated {world.now - newer:.2f} s after its update was acknowledged")
        if (entries := self.answers.stats().entries) > self._max_entries:
            raise Breach(f"{entries} entries")


def token(at: int) -> str:
    """Returns the token of a session."""
    return f"token-{at}"


def session_id(at: int) -> str:
    """Returns the id of a session."""
    return f"session-{at}"


def valid(at: int, stored: Stored) -> Validation:
    """Returns the answer about a live session."""
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    session = Session(
        session_id=session_id(at),
        user_id=stored.user_id,
        create_time=moment,
        last_active_time=moment,
        expire_time=moment,
        absolute_expire_time=moment,
        idle_timeout=None,
        etag=str(stored.version),
    )
    return Validation(session=session, reason=None)
