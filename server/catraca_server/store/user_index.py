"""The sessions of each user, as a sorted set in Redis: commands and scripts, and what their replies mean."""

from collections.abc import Sequence
from importlib.resources import files
from types import NoneType
from typing import Any

from catraca_server.domain.session import Session
from catraca_server.redis.link import Link
from catraca_server.redis.multiplexer import Command
from catraca_server.redis.replies import Replies
from catraca_server.store import Entrance, Entries, Entry, StoreProblem, StoreUnavailable
from catraca_server.store.keys import Keys

_SCRIPTS = files("catraca_server.store") / "scripts"
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

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys

    async def enter(self, session: Session, *, limit: int, mark_oldest: bool, deadline: float) -> Entrance:
        """Enters a session that is about to be written."""
        words = (session.session_id, session.absolute_expire_time, limit, int(mark_oldest), MARKED_AT_ONCE)
        answer = await self._write(session.user_id, _ENTER, *words, deadline=deadline, durable=True)
        reply = answer.get(0, list)
        if [type(part) for part in reply] != [bytes, list, list]:
            answer.invalidate("a reply to an entrance that is none")
        score, marked, others = reply
        entry = _entry(answer, session.session_id.encode(), score)
        return Entrance(
            entry if entry.number else None, _entries(answer, marked), Entries(answer.now_ms, _entries(answer, others))
        )

    async def settle(self, user_id: str, entry: Entry, deadline: float) -> bool:
        """Says of an entry that its session has been written."""
        answer = await self._write(user_id, _SETTLE, entry.session_id, entry.attempt, deadline=deadline)
        return bool(answer.get(0, int))

    async def extend(self, session: Session, deadline: float) -> None:
        """Makes the index last until a session's absolute deadline."""
        words = (session.session_id, session.absolute_expire_time)
        (await self._write(session.user_id, _EXTEND, *words, deadline=deadline, durable=True)).get(0, int)

    async def entry(self, user_id: str, session_id: str, deadline: float) -> Entry | None:
        """Returns the entry of a session, if there is one."""
        answer = await self._ask(user_id, ("ZSCORE", self._keys.user_index(user_id), session_id), deadline)
        score = answer.get(0, bytes, NoneType)
        return None if score is None else _entry(answer, session_id.encode(), score)

    async def newest(self, user_id: str, before: int | None, count: int, deadline: float) -> Entries:
        """Returns entries that are not marked, newest first."""
        highest = "+inf" if before is None else f"({before}"
        key = self._keys.user_index(user_id)
        words = ("ZREVRANGEBYSCORE", key, highest, "(0", "WITHSCORES", "LIMIT", 0, count)
        answer = await self._ask(user_id, words, deadline)
        return Entries(answer.now_ms, _entries(answer, answer.get(0, list)))

    async def session_ids(self, user_id: str, deadline: float) -> Sequence[str]:
        """Returns the ids of all sessions that are in the index."""
        answer = await self._ask(user_id, ("ZRANGE", self._keys.user_index(user_id), 0, -1), deadline)
        try:
            return [session_id.decode(errors="replace") for session_id in answer.get(0, list)]
        except AttributeError:
            answer.invalidate("an id that is none")

    async def entries(self, user_id: str, session_ids: Sequence[str], deadline: float) -> Entries:
        """Returns the entries of these sessions."""
        answer = await self._ask(user_id, ("ZMSCORE", self._keys.user_index(user_id), *session_ids), deadline)
        scores = answer.get(0, list)
        if len(scores) != len(session_ids):
            answer.invalidate("more or fewer scores than were asked for")
        named = zip(session_ids, scores, strict=True)
        return Entries(
            answer.now_ms, [_entry(answer, name.encode(), score) for name, score in named if score is not None]
        )

    async def forget(self, user_id: str, entries: Sequence[Entry], deadline: float) -> None:
        """Takes out sessions that have ended."""
        if entries:
            words = [word for entry in entries for word in (entry.session_id, entry.number)]
            (await self._write(user_id, _FORGET, *words, deadline=deadline)).get(0, int)

    async def _write(
        self, user_id: str, script: bytes, *words: str | int, deadline: float, durable: bool = False
    ) -> Replies:
        command = ("EVAL", script, 1, self._keys.user_index(user_id), *words)
        return await self._ask(user_id, command, deadline, durable=durable)

    async def _ask(self, user_id: str, command: Command, deadline: float, *, durable: bool = False) -> Replies:
        (answer,) = await self._link.execute([(self._keys.user_index(user_id), [command])], deadline, durable=durable)
        return answer


def _entries(answer: Replies, flat: Sequence[Any]) -> list[Entry]:
    """Reads ids and scores in turn."""
    if len(flat) % 2:
        answer.invalidate("an id without a score")
    return [_entry(answer, *pair) for pair in zip(flat[::2], flat[1::2], strict=True)]


def _entry(answer: Replies, session_id: Any, score: Any) -> Entry:
    try:
        # An id that is no text is no session's: it stands for one that has ended.
        name, number = session_id.decode(errors="replace"), float(score)
    except (AttributeError, TypeError, ValueError):
        answer.invalidate("an id and a score that are none")
    if not abs(number) < _NUMBER_END:
        # Somebody else has written to the index. The connection is as good as it was.
        raise StoreUnavailable("a user's index has a number that no clock has told", StoreProblem.MALFORMED_REPLY)
    return Entry(name, int(number))
