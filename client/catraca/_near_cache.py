"""The near cache without its I/O: which answers are kept, and when one of them may be reused.

The rules, and why each is needed, are in docs/near-cache.md. The lease is the guarantee; events only make it quick. A
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
"""How long after everything was dropped new answers are kept for no longer than a lease lasts. The store's primary may
just have changed: a server that has not noticed yet may have answered, and the event that corrects the answer may be
from before."""

_MALFORMED_ENTRIES = 1_000
_MALFORMED_LENGTH = 256
"""Longer ones are not kept, so that nobody can fill the memory with text that is not a token."""

Clock = Callable[[], float]


def suspend_counting_clock() -> Clock:
    """Returns a clock that keeps running while the machine is suspended, if there is one: leases must end meanwhile."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        # On macOS it counts time in suspend, which time.monotonic does not.
        return partial(time.clock_gettime, time.CLOCK_MONOTONIC)
    return time.monotonic


@dataclass(frozen=True, slots=True, kw_only=True)
class NearCache:
    """How a near cache is set up."""

    max_entries: int = 10_000
    """How many valid answers are kept at most. One takes about 1.5 KB, plus its token and attributes."""

    def __post_init__(self) -> None:
        if self.max_entries < 2:
            raise InvalidSetting(f"max_entries is {self.max_entries}: make it at least 2, or use no near cache")


def settings_of(near_cache: bool | NearCache) -> NearCache | None:
    """Returns how a client's near cache is set up, from its argument; None if there is none."""
    if isinstance(near_cache, NearCache):
        return near_cache
    return NearCache() if near_cache else None


@dataclass(frozen=True, slots=True, kw_only=True)
class NearCacheStats:
    """What a near cache has done since its client was made."""

    hits: int
    """Validations answered here. In free-threaded Python, hits at the same instant may be counted once."""
    misses: int
    """Validations not answered here: they asked the server, or joined another caller's call under way."""
    lease_lost: int
    """Misses for which there was an answer, but no live lease."""
    resets: int
    """How often everything was dropped because events may have been missed."""
    evictions: int
    """Answers dropped to make room."""
    entries: int
    """Valid answers kept now. Some may have expired."""
    feed_age: float | None
    """Seconds since the moment up to which all events are proven to be here; None without any proof."""
    watching: bool
    """Whether the stream of events is open."""


@dataclass(frozen=True, slots=True)
class Fill:
    """A request whose answer may be kept, with what was known just before it was sent."""

    started: float
    seen: int
    """How many events had arrived."""
    voided: int
    watching: bool


Entry = tuple[float, Validation]


class _Generation:
    """Entries that are evicted together, and where to find those of a session or a user."""

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
    """When events last named an id, for recent ids; and since when this is known."""

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
        """Whether an event after the first `seen` named it; true if that is no longer known."""
        return seen < self._since or self._young.get(name, self._old.get(name, 0)) > seen


class OwnChanges:
    """Makes sure that a client sees its own changes. Without a near cache there is nothing to do."""

    @contextmanager
    def changing(
        self, *, token: str | None = None, session_ids: Iterable[str] = (), user_id: str = ""
    ) -> Iterator[None]:
        """Wraps a call that may change or end sessions, whether it succeeds or not."""
        try:
            yield
        finally:
            self.changed(token=token, session_ids=session_ids, user_id=user_id)

    def changed(self, *, token: str | None = None, session_ids: Iterable[str] = (), user_id: str = "") -> None:
        """Notes what may have been changed or ended."""


class NearAnswers:
    """The answers that a client keeps, and its lease. One thread reports what the stream brings, in order."""

    def __init__(self, settings: NearCache, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._hits = self._misses = self._lease_lost = self._resets = self._evictions = 0
        self._seen = 0
        """How many events have come."""
        self._voided = 0
        """How often answers under way have become worthless. It is never reset, not even by `renew`."""
        self._settled_at = -math.inf
        self._young, self._old = _Generation(), _Generation()
        self.renew()

    def renew(self) -> None:
        """Starts empty, as in a child: threads that exist only in the parent may have held the locks."""
        self._lock = threading.Lock()
        self.lease = Lease()
        self._malformed: dict[str, Validation] = {}
        self._sessions_seen, self._users_seen = _Recent(), _Recent()
        self._watching = False
        self._drop_all()

    def get(self, token: str, user_id: str | None) -> Validation | None:
        """Returns the answer to a validation, if it may be given without asking."""
        # The order matters. What the lease proved was applied before the entry is looked up; and the clock, read last,
        # shows how long this thread was held up.
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
        """Returns what is known before a request is sent. Send it then, and hand its answer to `keep`."""
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
                # Counted from before the request was sent, so that a delayed answer is not kept longer.
                until = fill.started + self._keep_seconds(fill, cache_ttl_seconds)
                self._young.put(token, (until, validation), session)
                self._make_room()

    def drop_for_event(self, session_id: str, user_id: str) -> None:
        """Takes an event: the answers about its session, or about all sessions of its user, may be outdated."""
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
        """Takes a change that this client has made or tried to make, and must see from now on."""
        with self._lock:
            # Answers under way may be older than the change.
            self._voided += 1
            entry = token and (self._young.entries.get(token) or self._old.entries.get(token))
            if entry and entry[1].session:
                self._drop_session(entry[1].session.session_id)
            for session_id in session_ids:
                self._drop_session(session_id)
            if user_id:
                self._drop_user(user_id)

    def opened(self, *, resumed: bool) -> None:
        """The stream is open: it continues where the last one ended, or begins now."""
        with self._lock:
            self._voided += 1
            self._watching = True
            if not resumed:
                self._begin_anew()

    def ended(self) -> None:
        """The stream has ended. The lease and the answers stay; the next stream brings the events that follow."""
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
            # An old primary may have vouched for events that it did not have.
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
        """Whether every event about the session since its record was read is still to come."""
        return (
            # Events from before the stream was open do not come.
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
        # It depends only on the token: it needs no lease, no events and no expiry.
        if len(token) > _MALFORMED_LENGTH:
            return
        with self._lock:
            if len(self._malformed) >= _MALFORMED_ENTRIES:
                self._malformed = {}
            self._malformed[token] = validation

    def _make_room(self) -> None:
        if len(self._young.entries) >= self._settings.max_entries // 2:
            self._evictions += len(self._old.entries)
            # In this order, so that a lookup in between finds the young entries in at least one place.
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
