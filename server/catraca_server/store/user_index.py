"""The sessions of each user, as a sorted set in Redis: commands and scripts, and what their replies mean."""

from collections.abc import Sequence
from importlib.resources import files
from types import NoneType
from typing import Any

from catraca_server.domain import Session
from catraca_server.store import Entrance, Entries, Entry, StoreUnavailable
from catraca_server.store.batcher import Batcher, Command
from catraca_server.store.keys import Keys

_SCRIPTS = files("catraca_server.store") / "lua"
_ENTER = (_SCRIPTS / "enter.lua").read_bytes()
_EXTEND = (_SCRIPTS / "extend.lua").read_bytes()
_FORGET = (_SCRIPTS / "forget.lua").read_bytes()
_SETTLE = (_SCRIPTS / "settle.lua").read_bytes()

MARKED_AT_ONCE = 100
"""Sessions that one login ends at the most: there are more only after an operator has lowered the limit."""

_NUMBER_END = 2**62
"""More than twice the microseconds of any time; a score can be much more, and infinite."""


class RedisUserIndex:
    """The `UserIndex` of every Redis, Valkey and fakeredis."""

    def __init__(self, batcher: Batcher, keys: Keys) -> None:
        self._batcher = batcher
        self._keys = keys

    async def enter(self, session: Session, *, limit: int, mark_oldest: bool, deadline: float) -> Entrance:
        """Enters a session that is about to be written."""
        key = self._keys.user_index(session.user_id)
        until = session.absolute_expire_time
        command = ("EVAL", _ENTER, 1, key, session.session_id, until, limit, int(mark_oldest), MARKED_AT_ONCE)
        now, reply = await self._ask(command, list, deadline)
        if [type(part) for part in reply] != [bytes, list, list]:
            self._batcher.distrust("a reply to an entrance that is none")
        score, marked, others = reply
        entry = self._entry(session.session_id.encode(), score)
        return Entrance(entry if entry.number else None, self._entries(marked), Entries(now, self._entries(others)))

    async def settle(self, user_id: str, entry: Entry, deadline: float) -> None:
        """Says of an entry that its session has been written."""
        key = self._keys.user_index(user_id)
        await self._ask(("EVAL", _SETTLE, 1, key, entry.session_id, entry.attempt), int, deadline)

    async def extend(self, session: Session, deadline: float) -> None:
        """Makes the index last until a session's absolute deadline."""
        key = self._keys.user_index(session.user_id)
        await self._ask(("EVAL", _EXTEND, 1, key, session.session_id, session.absolute_expire_time), int, deadline)

    async def entry(self, user_id: str, session_id: str, deadline: float) -> Entry | None:
        """Returns the entry of a session, if there is one."""
        answer = await self._batcher.ask([("ZSCORE", self._keys.user_index(user_id), session_id)], deadline)
        score = self._batcher.checked(answer.replies[0], bytes, NoneType)
        return None if score is None else self._entry(session_id.encode(), score)

    async def newest(self, user_id: str, before: int | None, count: int, deadline: float) -> Entries:
        """Returns entries that are not marked, newest first."""
        highest = "+inf" if before is None else f"({before}"
        key = self._keys.user_index(user_id)
        now, found = await self._ask(
            ("ZREVRANGEBYSCORE", key, highest, "(0", "WITHSCORES", "LIMIT", 0, count), list, deadline
        )
        return Entries(now, self._entries(found))

    async def oldest(self, user_id: str, after: int | None, until: int, count: int, deadline: float) -> Entries:
        """Returns entries, the marked first and then the oldest."""
        lowest = "-inf" if after is None else f"({after}"
        key = self._keys.user_index(user_id)
        now, found = await self._ask(
            ("ZRANGEBYSCORE", key, lowest, until, "WITHSCORES", "LIMIT", 0, count), list, deadline
        )
        return Entries(now, self._entries(found))

    async def forget(self, user_id: str, entries: Sequence[Entry], deadline: float) -> None:
        """Takes out sessions that have ended."""
        if entries:
            words = [word for entry in entries for word in (entry.session_id, entry.number)]
            await self._ask(("EVAL", _FORGET, 1, self._keys.user_index(user_id), *words), int, deadline)

    async def _ask(self, command: Command, reply_type: type, deadline: float) -> tuple[int, Any]:
        """Returns the store's clock and the reply."""
        answer = await self._batcher.ask([command], deadline)
        return answer.now, self._batcher.checked(answer.replies[0], reply_type)

    def _entries(self, flat: Sequence[Any]) -> list[Entry]:
        """Reads ids and scores in turn."""
        if len(flat) % 2:
            self._batcher.distrust("an id without a score")
        return [self._entry(*pair) for pair in zip(flat[::2], flat[1::2], strict=True)]

    def _entry(self, session_id: Any, score: Any) -> Entry:
        try:
            # An id that is no text is no session's: it stands for one that has ended.
            name, number = session_id.decode(errors="replace"), float(score)
        except (AttributeError, TypeError, ValueError):
            self._batcher.distrust("an id and a score that are none")
        if not abs(number) < _NUMBER_END:
            # Somebody else has written to the index. The connection is as good as it was.
            raise StoreUnavailable("a user's index has a number that no clock has told")
        return Entry(name, int(number))
