"""The near cache without its I/O: which answers are kept, and when one of them may be given again.

The rules, and what each is for, are in docs/near-cache.md. The lease is the guarantee; events only make it quick. A
lookup takes no lock: it reads the lease, then the entry, then the clock, and each of these is replaced as a whole.
"""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from catraca._lease import LEASE_SECONDS, Lease
from catraca._model import InvalidReason, Session, Validation
from catraca.errors import InvalidSetting

SETTLE_SECONDS = 3.0
"""For so long after everything was dropped an answer is kept no longer than a lease lasts. The store's primary may just
have changed: the answer may be of a server that has not noticed yet, and the event that corrects it from before."""

_MALFORMED_ENTRIES = 1_000
_MALFORMED_LENGTH = 256
"""Longer ones are not kept, so that nobody can fill the memory with text that is no token."""

Clock = Callable[[], float]


def suspend_counting_clock() -> Clock:
    """Returns a clock that goes on while the machine is suspended, if there is one: a lease must end meanwhile."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        # Here it counts suspend, which time.monotonic does not.
        return partial(time.clock_gettime, time.CLOCK_MONOTONIC)
    return time.monotonic


@dataclass(frozen=True, slots=True, kw_only=True)
class NearCache:
    """How a near cache is set up."""

    max_entries: int = 10_000
    """How many valid answers are kept at most. One takes about 1.5 KB, and what its token and attributes take."""

    def __post_init__(self) -> None:
        if self.max_entries < 2:
            raise InvalidSetting(f"max_entries is {self.max_entries}: make it at least 2, or use no near cache")


def settings_of(near_cache: bool | NearCache) -> NearCache | None:
    """Returns how a client's near cache is set up, by what its caller said; None if there is none."""
    if isinstance(near_cache, NearCache):
        return near_cache
    return NearCache() if near_cache else None


@dataclass(frozen=True, slots=True, kw_only=True)
class NearCacheStats:
    """What a near cache has done since its client was made."""

    hits: int
    """Validations answered here. In a free-threaded Python, threads that count at the same instant may count once."""
    misses: int
    """Validations that were not: the server, or another caller's call under way, was asked."""
    lease_lost: int
    """Misses for which there was an answer, but no live lease to give it under."""
    resets: int
    """How often everything was dropped because events may have been missed."""
    evictions: int
    """Answers dropped to make room."""
    entries: int
    """Valid answers kept now. Some may have run out."""
    feed_age: float | None
    """Seconds since the moment for which it is proven that all events are here; None if there has been no proof."""
    watching: bool
    """Whether the stream of events is open."""


@dataclass(frozen=True, slots=True)
class Fill:
    """A request that is about to be sent, whose answer may be kept. Holds what was known before it was."""

    started: float
    seen: int
    """How many events had arrived."""
    voided: int
    watching: bool


Entry = tuple[float, Validation]


class _Generation:
    """Entries that go together when room is needed, and where to find those of a session or a user."""

    __slots__ = ("_sessions", "_users", "entries")

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self._sessions: dict[str, set[str]] = {}
        self._users: dict[str, set[str]] = {}

    def put(self, token: str, entry: Entry, session: Session) -> None:
        self._sessions.setdefault(session.session_id, set()).add(token)
        self._users.setdefault(session.user_id, set()).add(session.session_id)
        self.entries[token] = entry

    def drop_session(self, session_id: str) -> None:
        for token in self._sessions.pop(session_id, ()):
            _, validation = self.entries.pop(token)
            assert validation.session is not None, "only valid answers are kept"
            user_id = validation.session.user_id
            sessions = self._users.get(user_id, set())
            sessions.discard(session_id)
            if not sessions:
                self._users.pop(user_id, None)

    def drop_user(self, user_id: str) -> None:
        for session_id in list(self._users.get(user_id, ())):
            self.drop_session(session_id)


class _Recent:
    """When ids were last named by events, for those that came lately. Of the others it knows since when it does."""

    def __init__(self) -> None:
        self._young: dict[str, int] = {}
        self._old: dict[str, int] = {}
        self._young_since = 0
        self._since = 0

    def note(self, name: str, seen: int) -> None:
        self._young[name] = seen
        if len(self._young) >= 2_000:
            self._since, self._young_since = self._young_since, seen
            self._old, self._young = self._young, {}

    def named_after(self, name: str, seen: int) -> bool:
        """Whether an event after the first `seen` named it; true if that is not known any more."""
        return seen < self._since or self._young.get(name, self._old.get(name, 0)) > seen


class OwnChanges:
    """Sees to it that a client sees what it has changed itself. Without a near cache it does anyway."""

    @contextmanager
    def changing(
        self, *, token: str | None = None, session_ids: Iterable[str] = (), user_id: str = ""
    ) -> Iterator[None]:
        """Around a call that may change or end sessions, whatever becomes of it."""
        try:
            yield
        finally:
            self.changed(token=token, session_ids=session_ids, user_id=user_id)

    def changed(self, *, token: str | None = None, session_ids: Iterable[str] = (), user_id: str = "") -> None:
        """Takes note of what may have been changed or ended."""


class NearAnswers:
    """The answers that a client keeps, and its lease. What comes on the stream is told in its order, by one thread."""

    def __init__(self, settings: NearCache, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._hits = self._misses = self._lease_lost = self._resets = self._evictions = 0
        self._seen = 0
        """How many events have come."""
        self._voided = 0
        """How often answers under way have become worthless. It never begins again, whatever else does."""
        self._settled_at = -math.inf
        self._young, self._old = _Generation(), _Generation()
        self.renew()

    def renew(self) -> None:
        """Begins with nothing, as in a child: threads that exist only in the parent may have held what is here."""
        self._lock = threading.Lock()
        self.lease = Lease()
        self._malformed: dict[str, Validation] = {}
        self._sessions_seen, self._users_seen = _Recent(), _Recent()
        self._watching = False
        self._drop_all()

    def get(self, token: str, user_id: str | None) -> Validation | None:
        """Returns the answer to a validation, if it may be given without asking."""
        # In this order. What the lease proved was worked in before the entry is looked up; and however long this thread
        # was held up, the clock says so.
        lease_until = self.lease.until
        entry = self._young.entries.get(token) or self._old.entries.get(token)
        if entry is not None:
            until, validation = entry
            if not user_id or validation.session.user_id == user_id:  # type: ignore[union-attr]  # it is a valid one
                now = self._clock()
                if now < until:
                    if now < lease_until:
                        self._hits += 1
                        return validation
                    self._lease_lost += 1
        elif token in self._malformed:
            self._hits += 1
            return self._malformed.get(token)
        self._misses += 1
        return None

    def begin(self) -> Fill:
        """Returns what is known before a request is sent; then send it, and hand the answer to `keep`."""
        return Fill(self._clock(), self._seen, self._voided, self._watching)

    def keep(self, token: str, fill: Fill, validation: Validation, cache_ttl_seconds: float) -> None:
        """Keeps an answer, if that is safe."""
        if validation.reason is InvalidReason.MALFORMED:
            self._keep_malformed(token, validation)
        session = validation.session
        if session is None:
            return
        with self._lock:
            if self._may_keep(fill, session) and cache_ttl_seconds > 0 and not validation.token_rotated:
                # From before the request was sent, so that no delay of the answer prolongs it.
                until = fill.started + self._keep_seconds(fill, cache_ttl_seconds)
                self._young.put(token, (until, validation), session)
                self._make_room()

    def drop_for_event(self, session_id: str, user_id: str) -> None:
        """Takes an event: what is kept of its session, or of all sessions of its user, may be outdated."""
        with self._lock:
            self._seen += 1
            if session_id:
                self._sessions_seen.note(session_id, self._seen)
                self._drop_session(session_id)
            elif user_id:
                self._users_seen.note(user_id, self._seen)
                self._drop_user(user_id)
            else:  # it may be about anything
                self._drop_all()

    def drop_for_write(self, *, token: str | None = None, session_ids: Iterable[str] = (), user_id: str = "") -> None:
        """Takes a change that this client has made or tried to make: it is to see it from now on."""
        with self._lock:
            # Answers under way may be older than it.
            self._voided += 1
            entry = token and (self._young.entries.get(token) or self._old.entries.get(token))
            if entry and entry[1].session:
                self._drop_session(entry[1].session.session_id)
            for session_id in session_ids:
                self._drop_session(session_id)
            if user_id:
                self._drop_user(user_id)

    def opened(self, *, resumed: bool) -> None:
        """The stream is open: it goes on where the last one ended, or begins now."""
        with self._lock:
            self._voided += 1
            self._watching = True
            if not resumed:
                self._begin_anew()

    def ended(self) -> None:
        """The stream has ended. What was proven stays proven, and what is kept waits for the events that follow."""
        with self._lock:
            self._watching = False
            self.lease.forget_pings()

    def closed(self) -> None:
        """The client was closed: nobody listens to events from now on."""
        with self._lock:
            self._watching = False
            self._drop_all()
            self.lease.end()

    def reset(self) -> None:
        """Events may have been missed."""
        with self._lock:
            self._resets += 1
            self._begin_anew()
            # An old primary may have vouched for what it did not know.
            self.lease.end()

    def stats(self) -> NearCacheStats:
        """Returns what has been counted, and the state."""
        return NearCacheStats(
            hits=self._hits,
            misses=self._misses,
            lease_lost=self._lease_lost,
            resets=self._resets,
            evictions=self._evictions,
            entries=len(self._young.entries.keys() | self._old.entries.keys()),
            feed_age=self.lease.age(self._clock()),
            watching=self._watching,
        )

    def _may_keep(self, fill: Fill, session: Session) -> bool:
        """Whether whatever happens to the session after its record was read is still to be heard of."""
        return (
            # An event from before the stream was open does not come.
            fill.watching
            # Everything was dropped since, or this client changed something.
            and fill.voided == self._voided
            # An event overtook the answer.
            and not self._sessions_seen.named_after(session.session_id, fill.seen)
            and not self._users_seen.named_after(session.user_id, fill.seen)
        )

    def _keep_seconds(self, fill: Fill, cache_ttl_seconds: float) -> float:
        return min(cache_ttl_seconds, LEASE_SECONDS) if fill.started < self._settled_at else cache_ttl_seconds

    def _keep_malformed(self, token: str, validation: Validation) -> None:
        # It depends on nothing but the token: no lease, no event, no time.
        if len(token) > _MALFORMED_LENGTH:
            return
        with self._lock:
            if len(self._malformed) >= _MALFORMED_ENTRIES:
                self._malformed = {}
            self._malformed[token] = validation

    def _make_room(self) -> None:
        if len(self._young.entries) >= self._settings.max_entries // 2:
            self._evictions += len(self._old.entries)
            # In this order: a lookup between the two finds the young ones in one place at least.
            self._old = self._young
            self._young = _Generation()

    def _drop_session(self, session_id: str) -> None:
        self._young.drop_session(session_id)
        self._old.drop_session(session_id)

    def _drop_user(self, user_id: str) -> None:
        self._young.drop_user(user_id)
        self._old.drop_user(user_id)

    def _begin_anew(self) -> None:
        self._drop_all()
        self._settled_at = self._clock() + SETTLE_SECONDS

    def _drop_all(self) -> None:
        self._voided += 1
        self._young, self._old = _Generation(), _Generation()
