"""The index of each user's sessions, a sorted set in Redis: commands and scripts, and what their replies mean."""

from collections.abc import Sequence
from types import NoneType
from typing import Any

from catraca_server.domain.call import Call
from catraca_server.domain.session import Session
from catraca_server.redis.link import Link
from catraca_server.redis.multiplexer import Command
from catraca_server.redis.replies import Replies
from catraca_server.store import IndexEntries, IndexEntry, Reservation, StoreProblem, StoreUnavailable, scripts
from catraca_server.store.attempts import SEQUENCE_LIMIT
from catraca_server.store.keys import Keys

_COMMIT = scripts.load("commit", with_attempts=True)
_EXTEND = scripts.load("extend", with_attempts=True)
_REMOVE = scripts.load("remove")
_RESERVE = scripts.load("reserve", with_attempts=True)

EVICTIONS_MAX = 100
"""Sessions that one login evicts at most: there are more only after an operator has lowered the limit."""


class RedisUserIndex:
    """The `UserIndex` of every Redis, Valkey and fakeredis."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys

    async def reserve(self, session: Session, *, limit: int, evict_oldest: bool, call: Call) -> Reservation:
        """Reserves a place for a session that is about to be written."""
        args = (session.session_id, session.absolute_expire_time_ms, limit, int(evict_oldest), EVICTIONS_MAX)
        replies = await self._write(session.user_id, _RESERVE, *args, call=call, durable=True)
        reply = replies.get(0, list)
        if [type(part) for part in reply] != [bytes, list, list]:
            replies.invalidate("malformed reply to a reservation")
        score, evicting, others = reply
        entry = _entry(replies, session.session_id.encode(), score)
        return Reservation(
            entry if entry.score else None,
            IndexEntries(replies.now_ms, _entries(replies, evicting)),
            IndexEntries(replies.now_ms, _entries(replies, others)),
        )

    async def commit(self, user_id: str, entry: IndexEntry, call: Call) -> bool:
        """Commits a login: its session has been written."""
        replies = await self._write(user_id, _COMMIT, entry.session_id, entry.sequence, call=call)
        return bool(replies.get(0, int))

    async def extend(self, session: Session, call: Call) -> None:
        """Makes the index name a session and last until its absolute deadline."""
        args = (session.session_id, session.absolute_expire_time_ms)
        (await self._write(session.user_id, _EXTEND, *args, call=call, durable=True)).get(0, int)

    async def entry(self, user_id: str, session_id: str, call: Call) -> IndexEntry | None:
        """Returns the entry of a session, if there is one."""
        replies = await self._execute(user_id, ("ZSCORE", self._keys.user_index(user_id), session_id), call)
        score = replies.get(0, bytes, NoneType)
        return None if score is None else _entry(replies, session_id.encode(), score)

    async def newest(self, user_id: str, before: int | None, count: int, call: Call) -> IndexEntries:
        """Returns entries that are not evicting, newest first."""
        highest = "+inf" if before is None else f"({before}"
        key = self._keys.user_index(user_id)
        command = ("ZREVRANGEBYSCORE", key, highest, "(0", "WITHSCORES", "LIMIT", 0, count)
        replies = await self._execute(user_id, command, call)
        return IndexEntries(replies.now_ms, _entries(replies, replies.get(0, list)))

    async def session_ids(self, user_id: str, call: Call) -> Sequence[str]:
        """Returns the ids of all sessions in the index."""
        replies = await self._execute(user_id, ("ZRANGE", self._keys.user_index(user_id), 0, -1), call)
        try:
            return [session_id.decode(errors="replace") for session_id in replies.get(0, list)]
        except AttributeError:
            replies.invalidate("malformed session id in a user's index")

    async def entries(self, user_id: str, session_ids: Sequence[str], call: Call) -> IndexEntries:
        """Returns the entries of these sessions."""
        replies = await self._execute(user_id, ("ZMSCORE", self._keys.user_index(user_id), *session_ids), call)
        scores = replies.get(0, list)
        if len(scores) != len(session_ids):
            replies.invalidate("more or fewer scores than were asked for")
        pairs = zip(session_ids, scores, strict=True)
        entries = [_entry(replies, session_id.encode(), score) for session_id, score in pairs if score is not None]
        return IndexEntries(replies.now_ms, entries)

    async def remove(self, user_id: str, entries: Sequence[IndexEntry], call: Call) -> None:
        """Removes sessions that have ended."""
        if entries:
            args = [arg for entry in entries for arg in (entry.session_id, entry.score)]
            (await self._write(user_id, _REMOVE, *args, call=call)).get(0, int)

    async def _write(self, user_id: str, script: bytes, *args: str | int, call: Call, durable: bool = False) -> Replies:
        command = ("EVAL", script, 1, self._keys.user_index(user_id), *args)
        return await self._execute(user_id, command, call, durable=durable)

    async def _execute(self, user_id: str, command: Command, call: Call, *, durable: bool = False) -> Replies:
        request = (self._keys.user_index(user_id), [command])
        (replies,) = await self._link.execute([request], call.deadline, durable=durable)
        return replies


def _entries(replies: Replies, flat: Sequence[Any]) -> list[IndexEntry]:
    """Reads ids and scores in turn."""
    if len(flat) % 2:
        replies.invalidate("a session id without a score")
    return [_entry(replies, *pair) for pair in zip(flat[::2], flat[1::2], strict=True)]


def _entry(replies: Replies, session_id: Any, score: Any) -> IndexEntry:
    try:
        # An id that is not text cannot be a session's: the entry is treated like that of an ended session.
        name, number = session_id.decode(errors="replace"), float(score)
    except (AttributeError, TypeError, ValueError):
        replies.invalidate("malformed entry of a user's index")
    if not abs(number) < SEQUENCE_LIMIT:
        # Another program has written to the index. The connection is still good.
        raise StoreUnavailable("a user's index has a score that no clock yields", StoreProblem.MALFORMED_REPLY)
    return IndexEntry(name, int(number))
