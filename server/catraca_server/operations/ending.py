"""The only way a session ends before it expires: by a logout, by an eviction, or because a token was reused.

A session is ended first; then its end is appended to the feed, and it is removed from its user's index. A crash in
between leaves an index entry without a session, which is harmless and found later, and perhaps no event; but then no
call has acknowledged the end either. A repeated call will, so an end that is asked for is appended even if the session
was gone. Every method returns what it ended; of all calls that end a session at the same time, exactly one returns it.
"""

import asyncio
import contextlib
from collections.abc import Sequence

from catraca_server.domain.call import Call
from catraca_server.domain.events import EndCause, SessionEvent, revoked
from catraca_server.domain.session import Session
from catraca_server.store import (
    Appender,
    IndexEntries,
    IndexEntry,
    Overloaded,
    SessionStore,
    StoreUnavailable,
    UserIndex,
)


class Ending:
    """Ends sessions. Methods raise what the store's methods raise."""

    def __init__(self, store: SessionStore, index: UserIndex, feed: Appender) -> None:
        self._store = store
        self._index = index
        self._feed = feed

    async def end_entries(
        self, user_id: str, entries: IndexEntries, cause: EndCause, call: Call
    ) -> Sequence[SessionEvent]:
        """Ends those sessions of a user that have these entries in the index, written yet or not."""
        if not entries.entries:
            return ()
        events, ended_for_good = await self._end(user_id, entries, cause, call)
        await asyncio.gather(self._append(events, call), self._remove(user_id, ended_for_good, call))
        return [event for event in events if not event.repeated]

    async def end_of_user(
        self, user_id: str, entries: IndexEntries, call: Call, *, is_last: bool
    ) -> Sequence[SessionEvent]:
        """Ends sessions of a user who is logged out everywhere, in several steps.

        The last step also appends that all have ended. That covers those that were gone, perhaps without an event: many
        of a user's sessions have ended long ago, so no event is appended for each of them.
        """
        events, ended_for_good = await self._end(user_id, entries, EndCause.USER_REQUEST, call)
        ended = [event for event in events if not event.repeated]
        of_all = [revoked("", user_id, EndCause.USER_REQUEST)] if is_last else []
        await asyncio.gather(self._append([*ended, *of_all], call), self._remove(user_id, ended_for_good, call))
        return ended

    async def end_session(self, session: Session, now_ms: int, cause: EndCause, call: Call) -> Sequence[SessionEvent]:
        """Ends a session that was read at `now_ms`."""
        entry = None
        with contextlib.suppress(StoreUnavailable):
            # Read first: an entry that is reserved anew while the session ends has another score, and stays. If the
            # entry cannot be read, the session has to end all the same.
            entry = await self._index.entry(session.user_id, session.session_id, call)
        if entry is None:
            return await self._delete(session.session_id, session.user_id, cause, call)
        return await self.end_entries(session.user_id, IndexEntries(now_ms, [entry]), cause, call)

    async def end_unreadable(self, session_id: str, cause: EndCause, call: Call) -> Sequence[SessionEvent]:
        """Ends whatever is under a session's key and could not be read as a session. Its user is not known."""
        return await self._delete(session_id, "", cause, call)

    async def tell_again(self, session_id: str, cause: EndCause, call: Call) -> None:
        """Appends the end of a session that was gone: the call that ended it may not have been able to append it."""
        await asyncio.gather(
            self._append([revoked(session_id, "", cause, repeated=True)], call),
            self._store.ensure_replicated([session_id], call),
        )

    async def _end(
        self, user_id: str, entries: IndexEntries, cause: EndCause, call: Call
    ) -> tuple[list[SessionEvent], list[IndexEntry]]:
        """Ends the sessions of entries. Returns an event for each, and the entries that nothing will be written for."""
        ended_ids = await self._store.end(user_id, entries, call) if entries.entries else ()
        events = [
            revoked(entry.session_id, user_id, cause, repeated=entry.session_id not in ended_ids)
            for entry in entries.entries
        ]
        # A session that this call did not end may be about to be written, unless its login is over.
        return events, [
            entry for entry in entries.entries if entry.session_id in ended_ids or entry.is_over(entries.now_ms)
        ]

    async def _delete(self, session_id: str, user_id: str, cause: EndCause, call: Call) -> Sequence[SessionEvent]:
        deleted = await self._store.delete(session_id, call)
        event = revoked(session_id, user_id, cause, repeated=not deleted)
        await self._append([event], call)
        return [event] if deleted else ()

    async def _append(self, events: Sequence[SessionEvent], call: Call) -> None:
        if events:
            await self._feed.append(events, call)

    async def _remove(self, user_id: str, entries: Sequence[IndexEntry], call: Call) -> None:
        """Removes entries if it can: their sessions have ended, whether the index still names them or not."""
        with contextlib.suppress(StoreUnavailable, Overloaded):
            await self._index.remove(user_id, entries, call)
