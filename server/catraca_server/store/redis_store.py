"""The sessions in Redis, over the batcher: commands and scripts, and what their replies mean."""

import logging
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from redis.exceptions import ResponseError

from catraca_server.domain import Live, Session
from catraca_server.store import ATTEMPT_LASTS, Creation, Entries, Look
from catraca_server.store.batcher import Batcher, Command
from catraca_server.store.keys import Keys
from catraca_server.store.records import UnreadableRecord, decode, encode

logger = logging.getLogger(__name__)

# Sent whole each time (EVAL): they are short and rare, and so a restarted store or a new primary needs no loading.
_SCRIPTS = files("catraca_server.store") / "lua"
_CREATE = (_SCRIPTS / "create.lua").read_bytes()
_DELETE = (_SCRIPTS / "delete.lua").read_bytes()
_KILL = (_SCRIPTS / "kill.lua").read_bytes()
_REPLACE = (_SCRIPTS / "replace.lua").read_bytes()
_TOUCH = (_SCRIPTS / "touch.lua").read_bytes()

_VOID = b'{"void":'
"""What stands under the key of a session that was revoked before it was written, until it cannot be any more."""


class RedisSessionStore:
    """The `SessionStore` of every Redis, Valkey and fakeredis.

    `tells_expiry`: whether the store has PEXPIRETIME (Redis 7.0). One that has not is asked for the time left, which
    is exact but for the milliseconds that pass while it answers.
    """

    def __init__(self, batcher: Batcher, keys: Keys, *, tells_expiry: bool) -> None:
        self._batcher = batcher
        self._keys = keys
        self._tells_expiry = tells_expiry

    async def create(
        self, session: Session, expiry: int, attempt: int, written_by: int, deadline: float
    ) -> tuple[Creation, Live]:
        """Writes a session under an id that is free."""
        record = encode(session)
        key = self._keys.session(session.session_id)
        command = ("EVAL", _CREATE, 1, key, record, expiry, written_by, attempt)
        reply = self._batcher.checked((await self._batcher.ask([command], deadline)).replies[0], bytes)
        try:
            return Creation(reply.decode()), Live(session, expiry, record)
        except ValueError:
            self._batcher.distrust("a reply to a creation that is none")

    async def read(self, session_ids: Sequence[str], deadline: float) -> Sequence[Look]:
        """Reads sessions, with the expiry they have."""
        expiry_command = "PEXPIRETIME" if self._tells_expiry else "PTTL"
        commands: list[Command] = []
        for session_id in session_ids:
            key = self._keys.session(session_id)
            commands += [("GET", key), (expiry_command, key)]
        answer = await self._batcher.ask(commands, deadline)
        replies = iter(answer.replies)
        return [self._look(session_id, answer.now, next(replies), next(replies)) for session_id in session_ids]

    async def touch(self, touches: Sequence[tuple[Live, int]], deadline: float) -> Sequence[bool]:
        """Moves expiries to a later time, of sessions that still are what was read."""
        commands: list[Command] = [
            ("EVAL", _TOUCH, 1, self._keys.session(live.session.session_id), live.stored_as, expiry)
            for live, expiry in touches
        ]
        return [
            bool(self._batcher.checked(reply, int)) for reply in (await self._batcher.ask(commands, deadline)).replies
        ]

    async def replace(self, before: Live, after: Live, deadline: float) -> Live | None:
        """Writes a session's next version if it still is what was read."""
        record = encode(after.session)
        key = self._keys.session(before.session.session_id)
        expiry: int | str = "" if after.expiry == before.expiry else after.expiry
        command = ("EVAL", _REPLACE, 1, key, before.stored_as, record, expiry, before.expiry)
        (written,) = await self._ask_for_numbers([command], deadline)
        return Live(after.session, after.expiry, record) if written else None

    async def delete(self, session_id: str, deadline: float) -> bool:
        """Deletes what is under a session's key."""
        (deleted,) = await self._ask_for_numbers([("EVAL", _DELETE, 1, self._keys.session(session_id))], deadline)
        return deleted == 1

    async def kill(self, user_id: str, entries: Entries, deadline: float) -> Sequence[str]:
        """Ends the sessions of a user that are in these entries."""
        commands: list[Command] = []
        for entry in entries.found:
            attempt = entry.attempt if entry.is_recent(entries.now) else ""
            settled = int(entry.is_settled(entries.now))
            key = self._keys.session(entry.session_id)
            commands.append(("EVAL", _KILL, 1, key, user_id, attempt, settled, ATTEMPT_LASTS))
        ended = await self._ask_for_numbers(commands, deadline)
        return [entry.session_id for entry, number in zip(entries.found, ended, strict=True) if number]

    async def _ask_for_numbers(self, commands: Sequence[Command], deadline: float) -> list[int]:
        answer = await self._batcher.ask(commands, deadline)
        return [self._batcher.checked(reply, int) for reply in answer.replies]

    def _look(self, session_id: str, now: int, record: Any, expiry: Any) -> Look:
        """Reads the two replies about a session."""
        if record is None or (type(record) is bytes and record.startswith(_VOID)):
            return Look(now, None, gone=True)
        try:
            session = decode(self._record(record))
        except UnreadableRecord as fault:
            logger.error("what is stored as session %s is none: %s", session_id, fault)  # noqa: TRY400  it has no more to say
            return Look(now, None, gone=False)
        if session.session_id != session_id:
            logger.critical("asked for session %s, was answered with %s", session_id, session.session_id)
            self._batcher.distrust("an answer named another session than was asked for")
        if self._batcher.checked(expiry, int) < 0:
            # It expired between the two commands; or somebody took its expiry away, and it must not pass for ever.
            return Look(now, None, gone=False)
        if not self._tells_expiry:
            expiry += now
        # Whoever moved the expiry of a key by hand has not moved the session's end.
        return Look(now, Live(session, min(expiry, session.absolute_expire_time), record), gone=False)

    def _record(self, reply: Any) -> Any:
        if isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE"):
            raise UnreadableRecord("not a string")
        return self._batcher.checked(reply, bytes)
