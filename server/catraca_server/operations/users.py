"""What each operation on all sessions of a user does: logging in within a limit, listing, logging out everywhere.

A session is in two places, its own key and its user's index, and no step is on both. What makes every crash between two
steps harmless is the order of the steps:

- Logging in: enter into the index, end what the index marked to make room, write the session. A crash leaves an entry
  without a session, or a mark whose session the next login ends before it writes its own. So the index names every live
  session, and there are never more live ones than the limit.
- Ending sessions: end the session, then take it out of the index. A crash leaves an entry without a session.
- An entry without a session may be a login that is under way. Whoever ends it leaves a note under the session's key for
  as long as that login may still write, and the login finds the note instead of a free key.

Entries without a session go when they are met: by a listing, by a login at the limit, by a look at a few at random on
every other login, and with the index itself, which expires with the last deadline of its sessions.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from catraca_server.domain.commands import (
    PAGE_MAX_BYTES,
    InvalidRequest,
    NewSession,
    Policy,
    SessionLimitReached,
    TokenInUse,
    violations_of_login,
)
from catraca_server.domain.session import Live, Session
from catraca_server.domain.tokens import Tokens
from catraca_server.store import (
    ATTEMPT_MAY_WRITE,
    Creation,
    Entries,
    Entry,
    Overloaded,
    SessionStore,
    StoreProblem,
    StoreUnavailable,
    UserIndex,
)

STEP = 50
"""Sessions handled in one exchange with the store, so that a user with thousands holds nobody up."""


@dataclass(frozen=True, slots=True)
class Login:
    """A created session, its token, which is told this once, and the sessions that were revoked to make room."""

    token: str = field(repr=False)
    live: Live
    evicted: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """Live sessions of a user, newest first."""

    sessions: Sequence[Live]
    next_before: int | None
    """Where the next page begins; None: there is none."""


class UserSessions:
    """The operations on all sessions of a user.

    Every `deadline` is a time of the event loop's clock; every method raises what the store's methods raise.
    """

    def __init__(self, store: SessionStore, index: UserIndex, tokens: Tokens, policy: Policy) -> None:
        self._store = store
        self._index = index
        self._tokens = tokens
        self._policy = policy

    async def create(self, new: NewSession, deadline: float) -> Login:
        """Starts a session.

        Raises InvalidRequest; TokenInUse if the brought token names a live session; SessionLimitReached if the user has
        as many sessions as there may be and the policy is to reject.
        """
        if violations := violations_of_login(new, self._policy):
            raise InvalidRequest(*violations)
        token = new.token or self._tokens.mint()
        credential = self._tokens.read(token)
        assert credential is not None, "minted, or brought and found free of faults"
        ((now, live, _),) = await self._store.read([credential.session_id], deadline)
        if live is not None:
            # Seen before anybody is logged out to make room for nothing.
            raise TokenInUse
        session = Session(
            session_id=credential.session_id,
            user_id=new.user_id,
            digest=credential.digest,
            attributes=new.attributes,
            create_time=now,
            absolute_expire_time=now + (self._policy.default_ttl if new.ttl is None else new.ttl),
            idle_timeout=self._policy.default_idle_timeout if new.idle_timeout is None else new.idle_timeout,
        )
        entry, marked = await self._enter(session, deadline)
        evicted = await self._end(new.user_id, marked, deadline) if marked.found else ()
        outcome, live = await self._store.create(
            session, session.expiry_if_active_at(now), entry.attempt, now + ATTEMPT_MAY_WRITE, deadline
        )
        match outcome:
            case Creation.TAKEN:
                raise TokenInUse
            case Creation.LATE:
                raise StoreUnavailable("the session was not written in time", StoreProblem.NOT_IN_TIME)
            case Creation.FOUND if new.token:
                # Another call may have brought it, and only one may be told that it did it. Nobody else mints this one.
                raise StoreUnavailable("the token may have been used by another call", StoreProblem.DISCONNECTED)
            case Creation.CREATED | Creation.FOUND | Creation.VOID:
                # Void: somebody ended it as soon as it began, as they might have a moment later.
                with contextlib.suppress(StoreUnavailable, Overloaded):
                    # It is created; the entry settles by itself in a while.
                    settled = await self._index.settle(new.user_id, entry, deadline)
                    if outcome is not Creation.VOID and not settled:
                        # Ended, by now or before it was written, which a brought token may survive that is brought
                        # again and again: the index has to name it all the same.
                        await self._index.extend(session, deadline)
                return Login(token, live, evicted)

    async def page(self, user_id: str, before: int | None, size: int, deadline: float) -> Page:
        """Returns live sessions, newest first: of entries before that number, at the most `size`."""
        entries = await self._index.newest(user_id, before, size, deadline)
        page: list[Live] = []
        room = PAGE_MAX_BYTES
        for at in range(0, len(entries.found), STEP):
            step = entries.found[at : at + STEP]
            found = await self._live(user_id, Entries(entries.now, step), deadline)
            page += found
            room -= sum(len(live.stored_as) for live in found)
            if room < 0:
                return Page(page, step[-1].number)
        return Page(page, entries.found[-1].number if len(entries.found) == size else None)

    async def revoke(self, user_id: str, except_session_id: str, deadline: float) -> int:
        """Ends all sessions of a user but one. Returns how many there were.

        Reaches all that were in the index when it began, whatever becomes of their entries meanwhile: another login may
        mark them, or bring the same token. Logins that come later do not keep it busy.
        """
        named = await self._index.session_ids(user_id, deadline)
        ending = [session_id for session_id in named if session_id != except_session_id]
        revoked = 0
        for at in range(0, len(ending), STEP):
            entries = await self._index.entries(user_id, ending[at : at + STEP], deadline)
            if entries.found:
                revoked += len(await self._end(user_id, entries, deadline))
        return revoked

    async def _enter(self, session: Session, deadline: float) -> tuple[Entry, Entries]:
        """Enters a session into the index. Returns its entry and those that have to end first."""
        limit, evict_oldest = self._policy.max_sessions_per_user, self._policy.evict_oldest
        entrance = await self._index.enter(session, limit=limit, mark_oldest=False, deadline=deadline)
        if entrance.entry is None:
            # What has ended by itself takes up no room.
            await self._prune(session.user_id, entrance.others, deadline)
            entrance = await self._index.enter(session, limit=limit, mark_oldest=evict_oldest, deadline=deadline)
            if entrance.entry is None:
                raise SessionLimitReached
        elif not limit:
            await self._prune(session.user_id, entrance.others, deadline)
        return entrance.entry, Entries(entrance.others.now, entrance.marked)

    async def _live(self, user_id: str, entries: Entries, deadline: float) -> list[Live]:
        """Reads the sessions of entries, and forgets the entries of those that have ended."""
        looks = await self._store.read([entry.session_id for entry in entries.found], deadline)
        live, ended = [], []
        for entry, look in zip(entries.found, looks, strict=True):
            if look.live is not None and look.live.session.user_id == user_id:
                live.append(look.live)
            elif (look.gone or look.live is not None) and entry.is_settled(entries.now):
                ended.append(entry)
        with contextlib.suppress(StoreUnavailable, Overloaded):
            # An end that a failover could undo must be in the index for as long.
            await self._store.confirm([entry.session_id for entry in ended], deadline)
            await self._index.forget(user_id, ended, deadline)
        return live

    async def _prune(self, user_id: str, entries: Entries, deadline: float) -> None:
        """Forgets the entries of sessions that have ended, if that can be done."""
        with contextlib.suppress(StoreUnavailable, Overloaded):
            for at in range(0, len(entries.found), STEP):
                await self._live(user_id, Entries(entries.now, entries.found[at : at + STEP]), deadline)

    async def _end(self, user_id: str, entries: Entries, deadline: float) -> Sequence[str]:
        """Ends the sessions of entries and forgets the entries. Returns which there were."""
        ended = await self._store.kill(user_id, entries, deadline)
        # What this did not end may be about to be written. The index may name what has ended.
        over = [entry for entry in entries.found if entry.session_id in ended or entry.is_settled(entries.now)]
        with contextlib.suppress(StoreUnavailable, Overloaded):
            await self._index.forget(user_id, over, deadline)
        return ended
