"""The only way a session ends before it expires: by a logout, by an eviction, or because a token was reused.

A session is ended first and then removed from its user's index. A crash in between leaves an index entry without a
session, which is harmless and found later. Every method returns what it ended, of whom and why; of all calls that end a
session at the same time, exactly one returns it.
"""

import contextlib
from collections.abc import Sequence

from catraca_server.domain.call import Call
from catraca_server.domain.events import EndCause, Ended
from catraca_server.domain.session import Session
from catraca_server.store import IndexEntries, Overloaded, SessionStore, StoreUnavailable, UserIndex


class Ending:
    """Ends sessions. Methods raise what the store's methods raise."""

    def __init__(self, store: SessionStore, index: UserIndex) -> None:
        self._store = store
        self._index = index

    async def end_entries(self, user_id: str, entries: IndexEntries, cause: EndCause, call: Call) -> Sequence[Ended]:
        """Ends those sessions of a user that have these entries in the index, written already or not."""
        if not entries.entries:
            return ()
        ended_ids = await self._store.end(user_id, entries, call)
        # What this call did not end may be about to be written, unless its login is over.
        ended_for_good = [
            entry for entry in entries.entries if entry.session_id in ended_ids or entry.is_over(entries.now_ms)
        ]
        # They have ended, whether the index still names them or not.
        with contextlib.suppress(StoreUnavailable, Overloaded):
            await self._index.remove(user_id, ended_for_good, call)
        return [Ended(session_id, user_id, cause) for session_id in ended_ids]

    async def end_session(self, session: Session, now_ms: int, cause: EndCause, call: Call) -> Sequence[Ended]:
        """Ends a session that was read at `now_ms`."""
        entry = None
        with contextlib.suppress(StoreUnavailable):
            # Read first: an entry that is reserved anew while the session ends has another score, and stays. If the
            # entry cannot be read, the session has to end all the same.
            entry = await self._index.entry(session.user_id, session.session_id, call)
        if entry is None:
            return await self._delete(session.session_id, session.user_id, cause, call)
        return await self.end_entries(session.user_id, IndexEntries(now_ms, [entry]), cause, call)

    async def end_unreadable(self, session_id: str, cause: EndCause, call: Call) -> Sequence[Ended]:
        """Ends whatever is under a session's key and could not be read as a session. Its user is not known."""
        return await self._delete(session_id, "", cause, call)

    async def _delete(self, session_id: str, user_id: str, cause: EndCause, call: Call) -> Sequence[Ended]:
        deleted = await self._store.delete(session_id, call)
        return [Ended(session_id, user_id, cause)] if deleted else ()
