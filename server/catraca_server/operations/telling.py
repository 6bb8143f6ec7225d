"""The one place where what happens to sessions is told: to the audit, and to the feed."""

from collections.abc import Sequence

from catraca_server.domain.audit import Audit
from catraca_server.domain.call import Call
from catraca_server.domain.events import SessionEvent
from catraca_server.store import Appender


class Telling:
    """Appends events to the feed as whoever changes sessions asks for it, and tells the audit of the same ones."""

    def __init__(self, feed: Appender, audit: Audit) -> None:
        self._feed = feed
        self._audit = audit

    async def append(self, events: Sequence[SessionEvent], call: Call) -> None:
        """Tells of events. Raises what the feed raises."""
        # The audit first: the changes have been made, also if the feed cannot be told of them.
        for event in events:
            self._audit.session_changed(event, call)
        await self._feed.append(events, call)
