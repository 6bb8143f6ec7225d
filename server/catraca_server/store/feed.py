"""The feed in Redis, a stream: commands and a script, and what their replies mean.

Each entry names the one before it (`prev`). So a reader that continues after an entry can prove that nothing between
was trimmed. What the chain cannot show is that entries were lost with their primary: the ids that a new primary gives
may be lower than those that were read from the old one, and would be skipped. Hence the epoch. It is the replication id
of the primary that answered: Redis and Valkey make a new one whenever a server starts, and whenever a replica becomes a
primary, and never return to an old one.
"""

import hashlib
import logging
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from catraca_server.domain.call import Call
from catraca_server.domain.events import (
    BEFORE_ALL,
    EPOCH_BYTES,
    EndCause,
    EntryId,
    EventType,
    FeedEntry,
    Position,
    ResetReason,
    SessionEvent,
)
from catraca_server.redis.link import Link
from catraca_server.redis.multiplexer import Command
from catraca_server.redis.replies import Replies
from catraca_server.store import FeedReading, Overloaded, StoreProblem, StoreUnavailable, scripts
from catraca_server.store.keys import Keys

logger = logging.getLogger(__name__)

KEEP_MS = 10 * 60_000
"""Entries are kept at least this long, unless there are too many."""

ENTRIES_MAX = 100_000
"""How many entries are kept: some 20 MB."""

EXPIRY_MS = 24 * 3_600_000
"""How long the feed outlives its last entry. After that, a reader cannot prove that nothing was lost."""

_APPEND = scripts.load("append")
_INFO: Command = ("INFO", "replication")
_REPLICATION_ID = re.compile(rb"^master_replid:([0-9a-f]+)\r?$", re.MULTILINE)
_ID = re.compile(rb"(\d{1,20})-(\d{1,20})")
_FIELDS = (b"prev", b"type", b"cause", b"session_id", b"user_id")


class RedisFeed:
    """The `Feed` of every Redis, Valkey and fakeredis.

    `has_info`: whether INFO gives the store's replication id. Only the store within the process has none, and it lives
    as long as this object.
    """

    def __init__(self, link: Link, keys: Keys, *, has_info: bool = True) -> None:
        self.on_append: Callable[[], None] = lambda: None
        self._link = link
        self._key = keys.feed()
        self._has_info = has_info
        self._own_epoch = secrets.token_bytes(EPOCH_BYTES)

    async def append(self, events: Sequence[SessionEvent], call: Call) -> None:
        """Appends events, in this order."""
        args: list[str | int] = [KEEP_MS, ENTRIES_MAX, EXPIRY_MS]
        for event in events:
            cause = event.cause.name if event.cause else ""
            args += [event.type.name, cause, event.session_id, event.user_id]
        request = (self._key, [("EVAL", _APPEND, 1, self._key, *args)])
        try:
            (replies,) = await self._link.execute([request], call.deadline)
        except Overloaded:
            # Overloaded would say that nothing was begun, but the change that the event reports has been made.
            raise StoreUnavailable(
                "too much waits for the store to append an event", StoreProblem.NOT_IN_TIME
            ) from None
        if replies.get(0, int) != len(events):
            replies.invalidate("malformed reply to an append")
        self.on_append()

    async def end(self, call: Call) -> Position:
        """Returns where the feed ends."""
        # The epoch first: if the primary changes in between, the position is of an epoch that is over, and the next
        # reading notices.
        replies = await self._execute([*self._info(), ("XREVRANGE", self._key, "+", "-", "COUNT", 1)], call)
        raw = replies.get(len(replies.values) - 1, list)
        return Position(self._epoch(replies, 0), _id_of(replies, raw[0]) if raw else BEFORE_ALL)

    async def read(self, after: Position, count: int, call: Call, *, until: EntryId | None = None) -> FeedReading:
        """Reads entries after a position."""
        # From the entry itself on: if it is still there, nothing after it has been trimmed, and the feed has not been
        # deleted. The epoch last: if it is the position's, it was the same during the read.
        start, stop = _text(after.entry_id), "+" if until is None else _text(until)
        replies = await self._execute([("XRANGE", self._key, start, stop, "COUNT", count + 1), *self._info()], call)
        raw = replies.get(0, list)
        epoch = self._epoch(replies, 1)
        if epoch != after.epoch:
            return FeedReading(after, (), ResetReason.EPOCH_CHANGED, at_end=False)
        last, entries = after.entry_id, list[FeedEntry]()
        found = after.entry_id == BEFORE_ALL
        for each in raw:
            entry_id = _id_of(replies, each)
            if entry_id == after.entry_id:
                found = True
                continue
            if len(entries) == count:
                break
            entry = _entry(Position(epoch, entry_id), last, each[1])
            if entry is None:
                return FeedReading(after, (), ResetReason.TRIMMED, at_end=False)
            entries.append(entry)
            last, found = entry_id, True
        if not found:
            return FeedReading(after, (), ResetReason.TRIMMED, at_end=False)
        return FeedReading(Position(epoch, last), entries, None, at_end=len(raw) <= count)

    async def _execute(self, commands: Sequence[Command], call: Call) -> Replies:
        (replies,) = await self._link.execute([(self._key, commands)], call.deadline)
        return replies

    def _info(self) -> Sequence[Command]:
        return [_INFO] if self._has_info else []

    def _epoch(self, replies: Replies, at: int) -> bytes:
        if not self._has_info:
            return self._own_epoch
        match = _REPLICATION_ID.search(replies.get(at, bytes))
        if match is None:
            replies.source.log_throttled("store does not tell its replication id: no session can be watched")
            raise StoreUnavailable("INFO has no master_replid", StoreProblem.REFUSED)
        return hashlib.sha256(match[1]).digest()[:EPOCH_BYTES]


def _entry(position: Position, previous: EntryId, fields: Sequence[Any]) -> FeedEntry | None:
    """Reads an entry; None if it is not the one that follows `previous`, or is not an entry of a feed at all."""
    try:
        values = dict(zip(fields[::2], fields[1::2], strict=True))
        prev, event_type, cause, session_id, user_id = (values[name].decode() for name in _FIELDS)
        event = SessionEvent(EventType[event_type], session_id, user_id, EndCause[cause] if cause else None)
    except (AttributeError, KeyError, TypeError, ValueError):
        logger.error("unreadable entry in the feed: %s", _text(position.entry_id))  # noqa: TRY400  that is all there is
        return None
    return FeedEntry(position, event) if prev == _text(previous) else None


def _id_of(replies: Replies, entry: Any) -> EntryId:
    name = entry[0] if isinstance(entry, list) and [type(part) for part in entry] == [bytes, list] else b""
    match = _ID.fullmatch(name)
    if match is None:
        replies.invalidate("malformed entry of the feed")
    return EntryId(int(match[1]), int(match[2]))


def _text(entry_id: EntryId) -> str:
    return f"{entry_id.ms}-{entry_id.number}"
