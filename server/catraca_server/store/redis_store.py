"""The sessions in Redis, over the batcher: commands and scripts, and what their replies mean."""

import logging
from collections.abc import Sequence
from importlib.resources import files
from types import NoneType
from typing import Any, NoReturn

from redis.exceptions import ResponseError

from catraca_server.domain import Live, Session
from catraca_server.store import Reading, StoreUnavailable
from catraca_server.store.batcher import Batcher, Command
from catraca_server.store.keys import Keys
from catraca_server.store.records import UnreadableRecord, decode, encode

logger = logging.getLogger(__name__)

# Sent whole each time (EVAL): they are short and rare, and so a restarted store or a new primary needs no loading.
_TOUCH = (files("catraca_server.store") / "lua" / "touch.lua").read_bytes()


class RedisSessionStore:
    """The `SessionStore` of every Redis, Valkey and fakeredis.

    `tells_expiry`: whether the store has PEXPIRETIME (Redis 7.0). One that has not is asked for the time left, which
    is exact but for the milliseconds that pass while it answers.
    """

    def __init__(self, batcher: Batcher, keys: Keys, *, tells_expiry: bool) -> None:
        self._batcher = batcher
        self._keys = keys
        self._tells_expiry = tells_expiry

    async def now(self, deadline: float) -> int:
        """Returns the store's clock, in Unix milliseconds."""
        return (await self._batcher.ask([], deadline)).now

    async def create(self, session: Session, expiry: int, deadline: float) -> Live | None:
        """Writes a session under an id that is free."""
        record = encode(session)
        command = ("SET", self._keys.session(session.session_id), record, "NX", "PXAT", expiry)
        created = self._checked((await self._batcher.ask([command], deadline)).replies[0], bytes, NoneType)
        if created not in (b"OK", None):
            self._distrust("a reply to SET that is none")
        return Live(session, expiry, record) if created else None

    async def read(self, session_ids: Sequence[str], deadline: float) -> Reading:
        """Reads sessions, with the expiry they have."""
        expiry_command = "PEXPIRETIME" if self._tells_expiry else "PTTL"
        commands: list[Command] = []
        for session_id in session_ids:
            key = self._keys.session(session_id)
            commands += [("GET", key), (expiry_command, key)]
        answer = await self._batcher.ask(commands, deadline)
        replies = iter(answer.replies)
        since = 0 if self._tells_expiry else answer.now
        found = [self._live(session_id, next(replies), next(replies), since) for session_id in session_ids]
        return Reading(answer.now, found)

    async def touch(self, touches: Sequence[tuple[Live, int]], deadline: float) -> Sequence[bool]:
        """Moves expiries to a later time, of sessions that still are what was read."""
        commands: list[Command] = [
            ("EVAL", _TOUCH, 1, self._keys.session(live.session.session_id), live.stored_as, expiry)
            for live, expiry in touches
        ]
        return [bool(self._checked(reply, int)) for reply in (await self._batcher.ask(commands, deadline)).replies]

    async def delete(self, session_id: str, deadline: float) -> bool:
        """Deletes a session for good."""
        answer = await self._batcher.ask([("DEL", self._keys.session(session_id))], deadline)
        return bool(self._checked(answer.replies[0], int))

    def _live(self, session_id: str, record: Any, expiry: Any, since: int) -> Live | None:
        """Reads the two replies about a session; `expiry` counts from `since`."""
        if record is None:
            return None
        try:
            session = decode(self._record(record))
        except UnreadableRecord as fault:
            logger.error("what is stored as session %s is none: %s", session_id, fault)  # noqa: TRY400  it has no more to say
            return None
        if session.session_id != session_id:
            logger.critical("asked for session %s, was answered with %s", session_id, session.session_id)
            self._distrust("an answer named another session than was asked for")
        if self._checked(expiry, int) < 0:
            # It expired between the two commands; or somebody took its expiry away, and it must not pass for ever.
            return None
        # Whoever moved the expiry of a key by hand has not moved the session's end.
        return Live(session, min(since + expiry, session.absolute_expire_time), record)

    def _record(self, reply: Any) -> Any:
        if isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE"):
            raise UnreadableRecord("not a string")
        return self._checked(reply, bytes)

    def _checked(self, reply: Any, *types: type) -> Any:
        """Returns a reply of a type that its command has. One of another type answers something else."""
        if isinstance(reply, ResponseError):
            raise StoreUnavailable(f"the store refused: {reply}")
        if type(reply) not in types:
            self._distrust("a reply that cannot be one to what was asked")
        return reply

    def _distrust(self, why: str) -> NoReturn:
        self._batcher.distrust(why)
        raise StoreUnavailable(why)
