"""The sessions in Redis, over a link: commands and scripts, and what their replies mean."""

import logging
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from redis.exceptions import ResponseError

from catraca_server.domain.session import Live, Session
from catraca_server.redis.link import Link, Request
from catraca_server.redis.replies import Replies
from catraca_server.store import ATTEMPT_LASTS, Creation, Entries, Look, StoreProblem, StoreUnavailable
from catraca_server.store.keys import Keys
from catraca_server.store.records import UnreadableRecord, decode, encode

logger = logging.getLogger(__name__)

# Sent whole each time (EVAL): they are short and rare, and so a restarted store or a new primary needs no loading.
_SCRIPTS = files("catraca_server.store") / "scripts"
_CONFIRM = (_SCRIPTS / "confirm.lua").read_bytes()
_CREATE = (_SCRIPTS / "create.lua").read_bytes()
_DELETE = (_SCRIPTS / "delete.lua").read_bytes()
_KILL = (_SCRIPTS / "kill.lua").read_bytes()
_REPLACE = (_SCRIPTS / "replace.lua").read_bytes()
_TOUCH = (_SCRIPTS / "touch.lua").read_bytes()

_VOID = b'{"void":'
"""What stands under the key of a session that was revoked before it was written, until it cannot be any more."""


class RedisSessionStore:
    """The `SessionStore` of every Redis, Valkey and fakeredis.

    `has_pexpiretime`: whether the store has PEXPIRETIME (Redis 7.0). One that has not is asked for the time left, which
    is exact but for the milliseconds that pass while it answers.
    """

    def __init__(self, link: Link, keys: Keys, *, has_pexpiretime: bool) -> None:
        self._link = link
        self._keys = keys
        self._has_pexpiretime = has_pexpiretime

    async def create(
        self, session: Session, expiry: int, attempt: int, written_by: int, deadline: float
    ) -> tuple[Creation, Live]:
        """Writes a session under an id that is free."""
        record = encode(session)
        words = (record, expiry, written_by, attempt, session.user_id)
        answer = await self._write(session.session_id, _CREATE, *words, deadline=deadline)
        try:
            outcome = Creation(answer.get(0, bytes).decode())
        except ValueError:
            answer.invalidate("malformed reply to a creation")
        if outcome is Creation.FOUND and not answer.repeated:
            outcome = Creation.TAKEN
        elif outcome is Creation.FOUND:
            await self.confirm([session.session_id], deadline)
        elif outcome is Creation.TAKEN and answer.repeated:
            # By the first sending, perhaps, and changed since.
            raise _unknown()
        return outcome, Live(session, expiry, record)

    async def read(self, session_ids: Sequence[str], deadline: float) -> Sequence[Look]:
        """Reads sessions, with the expiry they have."""
        expiry_command = "PEXPIRETIME" if self._has_pexpiretime else "PTTL"
        keys = [self._keys.session(session_id) for session_id in session_ids]
        answers = await self._link.execute([(key, (("GET", key), (expiry_command, key))) for key in keys], deadline)
        return [self._look(session_id, answer) for session_id, answer in zip(session_ids, answers, strict=True)]

    async def touch(self, touches: Sequence[tuple[Live, int]], deadline: float) -> Sequence[bool]:
        """Moves expiries to a later time, of sessions that still are what was read."""
        questions: list[Request] = []
        for live, expiry in touches:
            key = self._keys.session(live.session.session_id)
            questions.append((key, [("EVAL", _TOUCH, 1, key, live.stored_as, expiry)]))
        return [answer.get(0, int) == 1 for answer in await self._link.execute(questions, deadline)]

    async def replace(
        self, before: Live, after: Live, deadline: float, *, durable: bool = True, exclusive: bool = False
    ) -> Live | None:
        """Writes a session's next version if it still is what was read."""
        record = encode(after.session)
        expiry: int | str = "" if after.expiry == before.expiry else after.expiry
        words = (before.stored_as, record, expiry, before.expiry)
        answer = await self._write(before.session.session_id, _REPLACE, *words, deadline=deadline, durable=durable)
        outcome = answer.get(0, int)
        if answer.repeated and outcome != 1:
            if outcome != 2 or exclusive:
                # Whether the first sending came too late, or in time and was overwritten, cannot be told; nor, of two
                # that write the same, whose it is that is there.
                raise _unknown()
            if durable:
                await self.confirm([before.session.session_id], deadline)
            return Live(after.session, after.expiry, record)
        return Live(after.session, after.expiry, record) if outcome == 1 else None

    async def delete(self, session_id: str, deadline: float) -> bool:
        """Deletes what is under a session's key."""
        answer = await self._write(session_id, _DELETE, deadline=deadline)
        deleted = bool(answer.get(0, int))
        if not deleted:
            if answer.repeated:
                # There was nothing: deleted by the first sending, by another call, or never there.
                raise _unknown()
            await self.confirm([session_id], deadline)
        return deleted

    async def kill(self, user_id: str, entries: Entries, deadline: float) -> Sequence[str]:
        """Ends the sessions of a user that are in these entries."""
        questions: list[Request] = []
        for entry in entries.found:
            attempt = entry.attempt if entry.is_recent(entries.now) else ""
            settled = int(entry.is_settled(entries.now))
            key = self._keys.session(entry.session_id)
            questions.append((key, [("EVAL", _KILL, 1, key, user_id, attempt, settled, ATTEMPT_LASTS)]))
        answers = await self._link.execute(questions, deadline, durable=True)
        ended = [bool(answer.get(0, int)) for answer in answers]
        if any(answer.repeated and not by_us for answer, by_us in zip(answers, ended, strict=True)):
            # Ended by the first sending, which would have to tell it, or by another call, which tells it.
            raise _unknown()
        await self.confirm(
            [entry.session_id for entry, by_us in zip(entries.found, ended, strict=True) if not by_us], deadline
        )
        return [entry.session_id for entry, by_us in zip(entries.found, ended, strict=True) if by_us]

    async def confirm(self, session_ids: Sequence[str], deadline: float) -> None:
        """Makes sure that what was read of these sessions lasts."""
        if self._link.replicates and session_ids:
            keys = [self._keys.session(session_id) for session_id in session_ids]
            questions = [(key, [("EVAL", _CONFIRM, 1, key)]) for key in keys]
            for answer in await self._link.execute(questions, deadline, durable=True):
                answer.get(0, int)

    async def _write(
        self, session_id: str, script: bytes, *words: str | bytes | int, deadline: float, durable: bool = True
    ) -> Replies:
        key = self._keys.session(session_id)
        (answer,) = await self._link.execute([(key, [("EVAL", script, 1, key, *words)])], deadline, durable=durable)
        return answer

    def _look(self, session_id: str, answer: Replies) -> Look:
        """Reads the two replies about a session."""
        now, record = answer.now_ms, answer.values[0]
        if record is None or (type(record) is bytes and record.startswith(_VOID)):
            return Look(now, None, gone=True)
        try:
            session = decode(_record(answer))
        except UnreadableRecord as fault:
            logger.error("what is stored as session %s is none: %s", session_id, fault)  # noqa: TRY400  it has no more to say
            return Look(now, None, gone=False)
        if session.session_id != session_id:
            logger.critical("asked for session %s, was answered with %s", session_id, session.session_id)
            answer.invalidate("an answer named another session than was asked for")
        expiry = answer.get(1, int)
        if expiry < 0:
            # It expired between the two commands; or somebody took its expiry away, and it must not pass for ever.
            return Look(now, None, gone=False)
        if not self._has_pexpiretime:
            expiry += now
        # Whoever moved the expiry of a key by hand has not moved the session's end.
        return Look(now, Live(session, min(expiry, session.absolute_expire_time), record), gone=False)


def _unknown() -> StoreUnavailable:
    return StoreUnavailable(
        "the connection was closed before the reply, and repeating the request does not tell what it did",
        StoreProblem.DISCONNECTED,
    )


def _record(answer: Replies) -> Any:
    reply = answer.values[0]
    if isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE"):
        raise UnreadableRecord("not a string")
    return answer.get(0, bytes)
