"""What each operation on all sessions of a user does: logging in within a limit, listing, logging out everywhere.

A session is in two places, its own key and its user's index, and no step changes both. The order of the steps makes
every crash between them harmless:

- Logging in: reserve a place in the index, end the sessions that the index is evicting, write the session, commit. A
  crash leaves an entry without a session, or one that is evicting, whose session the next login ends before it writes
  its own. So the index names every live session, and there are never more live ones than the limit.
- Ending sessions (`ending`): end the session, then remove it from the index. A crash leaves an entry without a session.

An entry without a session is removed when it is met: by a listing, by a login at the limit, by a look at a few random
entries on every other login. The index itself expires with the last deadline of its sessions. `store/attempts.py` has
the states of a login.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from catraca_server.domain.call import Call
from catraca_server.domain.commands import NewSession
from catraca_server.domain.errors import InvalidRequest, SessionLimitReached, TokenInUse
from catraca_server.domain.events import EndCause, EventType, SessionEvent
from catraca_server.domain.limits import Policy
from catraca_server.domain.session import Session, StoredSession
from catraca_server.domain.tokens import Credential, Tokens
from catraca_server.operations.ending import Ending
from catraca_server.store import (
    Appender,
    Creation,
    IndexEntries,
    IndexEntry,
    Overloaded,
    SessionStore,
    StoreProblem,
    StoreUnavailable,
    UserIndex,
)

STEP_SESSIONS = 50
"""Sessions handled in one exchange with the store, so that a user with thousands delays nobody else."""

REPEATED_WITHIN_MS = 60_000
"""How long after a login another call with its token may be its repetition: longer than clients repeat a call."""

PAGE_MAX_BYTES = 2 << 20
"""Bytes of records after which a page ends early: clients take messages of 4 MiB unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Login:
    """A created session, its token, which is returned only here, and the sessions that were evicted for it."""

    token: str = field(repr=False)
    stored: StoredSession
    evicted_session_ids: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """Live sessions of a user, newest first."""

    sessions: Sequence[StoredSession]
    next_before: int | None
    """The sequence where the next page begins; None: this is the last page."""


class UserSessions:
    """The operations on all sessions of a user. Every method raises what the store's methods raise."""

    def __init__(
        self, store: SessionStore, index: UserIndex, ending: Ending, tokens: Tokens, policy: Policy, *, feed: Appender
    ) -> None:
        self._store = store
        self._index = index
        self._feed = feed
        self._ending = ending
        self._tokens = tokens
        self._policy = policy

    async def create(self, new: NewSession, call: Call) -> Login:
        """Starts a session.

        Raises InvalidRequest; TokenInUse if the brought token names a live session; SessionLimitReached if the user is
        at the session limit and the policy is to reject.
        """
        if violations := new.violations(self._policy):
            raise InvalidRequest(*violations)
        token = new.token or self._tokens.mint()
        credential = self._tokens.read(token)
        assert credential is not None, "minted, or brought and found free of faults"
        ((now_ms, stored, _),) = await self._store.read([credential.session_id], call)
        if stored is not None:
            # Seen before anybody is logged out to make room for nothing.
            await self._tell_again(new, credential, stored, now_ms, call)
            raise TokenInUse
        session = new.start(credential, now_ms, self._policy)
        entry, evicting = await self._reserve(session, call)
        evicted = await self._ending.end_entries(new.user_id, evicting, EndCause.LIMIT, call)
        outcome, stored = await self._store.create(session, entry, call)
        match outcome:
            case Creation.TAKEN:
                ((now_ms, taken_by, _),) = await self._store.read([credential.session_id], call)
                if taken_by is not None:
                    await self._tell_again(new, credential, taken_by, now_ms, call)
                raise TokenInUse
            case Creation.LATE:
                raise StoreUnavailable("the login took too long: its session was not written", StoreProblem.NOT_IN_TIME)
            case Creation.FOUND if new.token:
                # Another call may have brought it, and only one may be told that it did. A minted one is ours alone.
                raise StoreUnavailable("another call may have used the token", StoreProblem.DISCONNECTED)
            case Creation.REVOKED:
                # Somebody ended it as soon as it began, as they might have a moment later. They tell of its end, after
                # which it must not seem to begin.
                await self._commit(session, entry, call, written=False)
            case Creation.CREATED | Creation.FOUND:
                created = SessionEvent(EventType.CREATED, session.session_id, session.user_id)
                await asyncio.gather(
                    self._feed.append([created], call), self._commit(session, entry, call, written=True)
                )
        return Login(token, stored, tuple(each.session_id for each in evicted))

    async def page(self, user_id: str, before: int | None, size: int, call: Call) -> Page:
        """Returns live sessions, newest first: at most `size`, of logins before that sequence."""
        newest = await self._index.newest(user_id, before, size, call)
        page: list[StoredSession] = []
        room_bytes = PAGE_MAX_BYTES
        for at in range(0, len(newest.entries), STEP_SESSIONS):
            step = newest.entries[at : at + STEP_SESSIONS]
            live = await self._live(user_id, IndexEntries(newest.now_ms, step), call)
            page += live
            room_bytes -= sum(len(stored.record) for stored in live)
            if room_bytes < 0:
                return Page(page, step[-1].sequence)
        return Page(page, newest.entries[-1].sequence if len(newest.entries) == size else None)

    async def revoke(self, user_id: str, except_session_id: str, call: Call) -> int:
        """Ends all sessions of a user but one. Returns how many there were.

        It reaches all sessions that the index named when it began, whatever becomes of their entries meanwhile: another
        login may evict them, or bring the same token. Later logins do not keep it busy.
        """
        named = await self._index.session_ids(user_id, call)
        ending = [session_id for session_id in named if session_id != except_session_id]
        revoked = 0
        # One step even if there are none: that all have ended is told in any case.
        for at in range(0, max(len(ending), 1), STEP_SESSIONS):
            step, is_last = ending[at : at + STEP_SESSIONS], at + STEP_SESSIONS >= len(ending)
            entries = await self._index.entries(user_id, step, call) if step else IndexEntries(0, ())
            revoked += len(await self._ending.end_of_user(user_id, entries, call, is_last=is_last))
        return revoked

    async def _tell_again(
        self, new: NewSession, credential: Credential, stored: StoredSession, now_ms: int, call: Call
    ) -> None:
        """Tells of the session that has a brought token already, if this may be the call that made it, repeated.

        The earlier call may have failed before it could tell.
        """
        session = stored.session
        is_recent = now_ms - session.create_time_ms <= REPEATED_WITHIN_MS
        if is_recent and session.user_id == new.user_id and credential.opens(session.digest):
            created = SessionEvent(EventType.CREATED, session.session_id, session.user_id, repeated=True)
            await asyncio.gather(
                self._feed.append([created], call), self._store.ensure_replicated([session.session_id], call)
            )

    async def _reserve(self, session: Session, call: Call) -> tuple[IndexEntry, IndexEntries]:
        """Reserves a place in the index. Returns the session's entry and those that have to end first."""
        limit, evict_oldest = self._policy.max_sessions_per_user, self._policy.evict_oldest
        reservation = await self._index.reserve(session, limit=limit, evict_oldest=False, call=call)
        if reservation.entry is None:
            # Sessions that expired take up no room.
            await self._prune(session.user_id, reservation.others, call)
            reservation = await self._index.reserve(session, limit=limit, evict_oldest=evict_oldest, call=call)
            if reservation.entry is None:
                raise SessionLimitReached
        elif not limit:
            await self._prune(session.user_id, reservation.others, call)
        return reservation.entry, reservation.evicting

    async def _commit(self, session: Session, entry: IndexEntry, call: Call, *, written: bool) -> None:
        """Commits a login, if that is possible. If not, its entry is over after ATTEMPT_LIFETIME_MS all the same."""
        with contextlib.suppress(StoreUnavailable, Overloaded):
            named = await self._index.commit(session.user_id, entry, call)
            if written and not named:
                # Its entry was removed, now or before it was written, which a brought token that is brought again and
                # again may survive. The index has to name it all the same.
                await self._index.extend(session, call)

    async def _live(self, user_id: str, entries: IndexEntries, call: Call) -> list[StoredSession]:
        """Reads the sessions of entries, and removes the entries of those that have ended."""
        results = await self._store.read([entry.session_id for entry in entries.entries], call)
        live, ended = [], []
        for entry, result in zip(entries.entries, results, strict=True):
            if result.stored is not None and result.stored.session.user_id == user_id:
                live.append(result.stored)
            elif (result.absent or result.stored is not None) and entry.is_over(entries.now_ms):
                ended.append(entry)
        with contextlib.suppress(StoreUnavailable, Overloaded):
            # An end that a failover could undo must stay in the index for as long.
            await self._store.ensure_replicated([entry.session_id for entry in ended], call)
            await self._index.remove(user_id, ended, call)
        return live

    async def _prune(self, user_id: str, entries: IndexEntries, call: Call) -> None:
        """Removes the entries of sessions that have ended, if that is possible."""
        with contextlib.suppress(StoreUnavailable, Overloaded):
            for at in range(0, len(entries.entries), STEP_SESSIONS):
                step = entries.entries[at : at + STEP_SESSIONS]
                await self._live(user_id, IndexEntries(entries.now_ms, step), call)
