"""The one place where events of sessions go to the audit and into the feed."""

from collections.abc import Sequence

from catraca_server.domain.audit import Audit
from catraca_server.domain.call import Call
from catraca_server.domain.events import SessionEvent
from catraca_server.store import Appender


class Telling:
    """Appends to the feed for the operations that change sessions, and notifies the audit of the same events."""

    def __init__(self, feed: Appender, audit: Audit) -> None:
        self._feed = feed
        self._audit = audit

    async def append(self, events: Sequence[SessionEvent], call: Call) -> None:
        """Passes events to the audit and to the feed. Raises what the feed raises."""
        # The audit first: the changes have been made, even if they cannot be appended to the feed.
        for event in events:
            self._audit.session_changed(event, call)
        await self._feed.append(events, call)
