"""The sessions in Redis, over a link: commands and scripts, and what their replies mean."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from redis.exceptions import ResponseError

from catraca_server.domain.call import Call
from catraca_server.domain.session import Session, StoredSession
from catraca_server.redis.link import KeyReads, Link, Request
from catraca_server.redis.replies import Replies
from catraca_server.store import (
    Creation,
    IndexEntries,
    IndexEntry,
    ReadResult,
    Replacement,
    StoreProblem,
    StoreUnavailable,
    scripts,
)
from catraca_server.store.attempts import ATTEMPT_LIFETIME_MS, WRITE_WINDOW_MS, is_tombstone
from catraca_server.store.keys import Keys
from catraca_server.store.memo import Memo
from catraca_server.store.records import UnreadableRecord, decode, encode

logger = logging.getLogger(__name__)

_CREATE = scripts.load("create", with_attempts=True)
_DELETE = scripts.load("delete", with_attempts=True)
_END = scripts.load("end", with_attempts=True)
_ENSURE_REPLICATED = scripts.load("ensure_replicated")
_REPLACE = scripts.load("replace")
_TOUCH = scripts.load("touch")

_known_result: Callable[[tuple[int, StoredSession, bool]], ReadResult] = partial(tuple.__new__, ReadResult)
"""Makes a ReadResult in a third of the time."""

_CHANGED, _WRITTEN, _FOUND = 0, 1, 2
"""What `replace.lua` returns."""


class RedisSessionStore:
    """The `SessionStore` of every Redis, Valkey and fakeredis.

    `has_pexpiretime`: whether the store knows the command (Redis 7.0). One that does not is asked for the time left,
    which is exact but for the milliseconds that pass while it replies.
    """

    def __init__(self, link: Link, keys: Keys, *, has_pexpiretime: bool) -> None:
        self._link = link
        self._keys = keys
        self._has_pexpiretime = has_pexpiretime
        self._reads = KeyReads("GET", "PEXPIRETIME" if has_pexpiretime else "PTTL")
        self._memo = Memo()

    async def create(self, session: Session, entry: IndexEntry, call: Call) -> tuple[Creation, StoredSession]:
        """Writes a session under an id that is free."""
        stored = StoredSession(session, session.expiry_if_active_at(session.create_time_ms), encode(session))
        write_by_ms = session.create_time_ms + WRITE_WINDOW_MS
        args = (stored.record, stored.expiry_ms, write_by_ms, entry.sequence, session.user_id)
        replies = await self._write(session.session_id, _CREATE, *args, call=call)
        try:
            outcome = Creation(replies.get(0, bytes).decode())
        except ValueError:
            replies.invalidate("malformed reply to a creation")
        if outcome is Creation.FOUND and not replies.repeated:
            outcome = Creation.TAKEN
        elif outcome is Creation.FOUND:
            await self.ensure_replicated([session.session_id], call)
        elif outcome is Creation.TAKEN and replies.repeated:
            # Perhaps taken by the first sending, and changed since.
            raise _unknown()
        return outcome, stored

    async def read(self, session_ids: Sequence[str], call: Call) -> Sequence[ReadResult]:
        """Reads sessions, with the expiry they have."""
        keys = [self._keys.session(session_id) for session_id in session_ids]
        results: list[Any] = [None] * len(session_ids)
        known = self._memo.known
        for positions, replies in await self._link.read(keys, self._reads, call.deadline):
            now_ms, values = replies.now_ms, replies.values
            for at, (position, record, expiry) in enumerate(zip(positions, values[::2], values[1::2], strict=True)):
                session_id = session_ids[position]
                stored = known(session_id, record, expiry)
                results[position] = (
                    self._read_result(session_id, replies.pair(at))
                    if stored is None
                    else _known_result((now_ms, stored, False))
                )
        return results

    def together(self, session_ids: Sequence[str]) -> Sequence[Sequence[int]]:
        """Returns which sessions to read together."""
        return self._link.together([self._keys.session(session_id) for session_id in session_ids])

    async def touch(self, touched: Sequence[StoredSession], call: Call) -> Sequence[bool]:
        """Moves the expiries of sessions to a later time, where the record is still the same."""
        requests: list[Request] = []
        for stored in touched:
            key = self._keys.session(stored.session.session_id)
            requests.append((key, [("EVAL", _TOUCH, 1, key, stored.record, stored.expiry_ms)]))
        return [replies.get(0, int) == 1 for replies in await self._link.execute(requests, call.deadline)]

    async def replace(self, replacement: Replacement, call: Call, *, exclusive: bool = False) -> StoredSession | None:
        """Writes a session's next version if the session is still as it was read."""
        after = replacement.after
        record = encode(after.session)
        (replies,) = await self._link.execute([self._replacing(replacement, record)], call.deadline, durable=True)
        outcome = replies.get(0, int)
        if replies.repeated and (outcome == _CHANGED or (outcome == _FOUND and exclusive)):
            # It cannot be known whether the first sending came too late, or came in time and was overwritten; nor, if
            # two calls write the same, whose record it is.
            raise _unknown()
        if replies.repeated and outcome == _FOUND:
            await self.ensure_replicated([after.session.session_id], call)
            outcome = _WRITTEN
        return StoredSession(after.session, after.expiry_ms, record) if outcome == _WRITTEN else None

    async def tidy(self, replacements: Sequence[Replacement], call: Call) -> None:
        """Replaces many sessions in one exchange, without waiting for replicas."""
        requests = [self._replacing(each, encode(each.after.session)) for each in replacements]
        for replies in await self._link.execute(requests, call.deadline):
            replies.get(0, int)

    async def delete(self, session_id: str, call: Call) -> bool:
        """Deletes what is under a session's key."""
        replies = await self._write(session_id, _DELETE, call=call)
        deleted = bool(replies.get(0, int))
        if not deleted:
            if replies.repeated:
                # Deleted by the first sending, by another call, or never there.
                raise _unknown()
            await self.ensure_replicated([session_id], call)
        return deleted

    async def end(self, user_id: str, entries: IndexEntries, call: Call) -> Sequence[str]:
        """Ends the sessions of a user that have these entries."""
        requests: list[Request] = []
        for entry in entries.entries:
            sequence = entry.sequence if entry.is_recent(entries.now_ms) else ""
            is_over = int(entry.is_over(entries.now_ms))
            key = self._keys.session(entry.session_id)
            requests.append((key, [("EVAL", _END, 1, key, user_id, sequence, is_over, ATTEMPT_LIFETIME_MS)]))
        results = await self._link.execute(requests, call.deadline, durable=True)
        by_us = {
            entry.session_id: bool(replies.get(0, int)) for entry, replies in zip(entries.entries, results, strict=True)
        }
        if any(replies.repeated and not ended for replies, ended in zip(results, by_us.values(), strict=True)):
            # Ended by the first sending, which would have to report it, or by another call, which reports it.
            raise _unknown()
        await self.ensure_replicated([session_id for session_id, ended in by_us.items() if not ended], call)
        return [session_id for session_id, ended in by_us.items() if ended]

    async def ensure_replicated(self, session_ids: Sequence[str], call: Call) -> None:
        """Makes sure that what was read of these sessions lasts."""
        if self._link.replicates and session_ids:
            keys = [self._keys.session(session_id) for session_id in session_ids]
            requests: list[Request] = [(key, [("EVAL", _ENSURE_REPLICATED, 1, key)]) for key in keys]
            for replies in await self._link.execute(requests, call.deadline, durable=True):
                replies.get(0, int)

    async def _write(self, session_id: str, script: bytes, *args: str | bytes | int, call: Call) -> Replies:
        key = self._keys.session(session_id)
        (replies,) = await self._link.execute([(key, [("EVAL", script, 1, key, *args)])], call.deadline, durable=True)
        return replies

    def _replacing(self, replacement: Replacement, record: bytes) -> Request:
        before, after = replacement
        key = self._keys.session(before.session.session_id)
        expiry_ms: int | str = "" if after.expiry_ms == before.expiry_ms else after.expiry_ms
        args = (before.record, record, expiry_ms, before.expiry_ms)
        return key, [("EVAL", _REPLACE, 1, key, *args)]

    def _read_result(self, session_id: str, replies: Replies) -> ReadResult:
        """Reads the two replies about a session."""
        now_ms, record = replies.now_ms, replies.values[0]
        if record is None or (type(record) is bytes and is_tombstone(record)):
            return ReadResult(now_ms, None, absent=True)
        try:
            session = self._memo.session(session_id, record) or decode(_record(replies))
        except UnreadableRecord as fault:
            logger.error("unreadable record: session %s: %s", session_id, fault)  # noqa: TRY400  it has no more to say
            return ReadResult(now_ms, None, absent=False)
        if session.session_id != session_id:
            logger.critical("wrong record: read session %s, got session %s", session_id, session.session_id)
            replies.invalidate("a record names another session than was asked for")
        expiry_ms = replies.get(1, int)
        if expiry_ms < 0:
            # It expired between the two commands; or an operator removed its expiry, and it must not be valid for ever.
            return ReadResult(now_ms, None, absent=False)
        if not self._has_pexpiretime:
            expiry_ms += now_ms
        # The expiry of a key may have been moved by hand. That does not move the session's end.
        expiry_ms = min(expiry_ms, session.absolute_expire_time_ms)
        stored = StoredSession(session, expiry_ms, record)
        self._memo.keep(stored)
        return ReadResult(now_ms, stored, absent=False)


def _unknown() -> StoreUnavailable:
    return StoreUnavailable(
        "the connection was closed before the reply, and sending the request again does not tell what it did",
        StoreProblem.DISCONNECTED,
    )


def _record(replies: Replies) -> bytes:
    value = replies.values[0]
    if isinstance(value, ResponseError) and str(value).startswith("WRONGTYPE"):
        raise UnreadableRecord("not a string")
    record: bytes = replies.get(0, bytes)
    return record
