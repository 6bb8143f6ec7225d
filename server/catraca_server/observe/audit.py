"""The audit in the log: one line for what happened to a session, and one for each refused call.

A line has words (`user_id=ana`), which JSON logs have as fields. What callers choose themselves is escaped, so that
they cannot forge lines. No token, key or attribute gets here.
"""

import logging
import time
from collections.abc import Callable, Mapping

from catraca_server.domain.audit import CallerRefused
from catraca_server.domain.call import Call
from catraca_server.domain.events import EndCause, EventType, SessionEvent

logger = logging.getLogger(__name__)
# An audit that was asked for is written even if the log level admits only warnings or errors.
logger.setLevel(logging.INFO)

LINES_PER_SECOND = 20
"""Callers without a key can still make calls. However many these are, they must not fill the disk."""

_WHAT: Mapping[EventType, str] = {
    EventType.CREATED: "session created",
    EventType.UPDATED: "session updated",
    EventType.ROTATED: "session rotated",
    EventType.REVOKED: "session ended",
}


class LogAudit:
    """Writes to the log; with `sessions`, also what happens to sessions.

    `invalid_tokens_alarm` is how many invalid tokens of one caller within a minute are worth a line; 0: no number is.
    `now` returns the seconds of a monotonic clock.
    """

    def __init__(
        self, *, sessions: bool = True, invalid_tokens_alarm: int = 0, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._sessions = sessions
        self._now = now
        self._alarm = invalid_tokens_alarm
        self._minute = 0
        self._invalid: dict[str, int] = {}
        self._second = 0
        self._lines = 0

    def session_changed(self, event: SessionEvent, call: Call) -> None:
        """Writes what happened to which session, and who asked for it."""
        if not self._sessions:
            return
        words = {
            "session_id": event.session_id,
            "user_id": event.user_id,
            "caller": call.caller.name,
            "request_id": call.request_id,
            "trace_id": call.trace_id,
        }
        if event.cause is not None:
            words["cause"] = event.cause.name
        if event.repeated:
            words["repeated"] = "true"
        # A token that comes back after it was rotated out may have been stolen.
        level = logging.WARNING if event.cause is EndCause.TOKEN_REUSE else logging.INFO
        _write(level, _WHAT[event.type], words)

    def caller_refused(self, refused: CallerRefused) -> None:
        """Writes a line with everything that is known about the call, up to LINES_PER_SECOND."""
        second = int(self._now())
        if second != self._second:
            if self._lines > LINES_PER_SECOND:
                logger.warning("caller refused: %d more, not logged one by one", self._lines - LINES_PER_SECOND)
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines <= LINES_PER_SECOND:
            words = {
                "reason": refused.reason,
                "method": refused.method,
                "caller": refused.caller,
                "key_id": refused.key_id,
                "peer": refused.peer,
            }
            ids = {"request_id": refused.request_id, "trace_id": refused.trace_id}
            _write(logging.WARNING, "caller refused", words | {name: value for name, value in ids.items() if value})

    def invalid_tokens(self, caller: str, count: int) -> None:
        """Writes a line, at most one a minute for each caller, when a caller may be guessing tokens."""
        minute = int(self._now() / 60)
        if minute != self._minute:
            self._minute, self._invalid = minute, {}
        before = self._invalid.get(caller, 0)
        self._invalid[caller] = now = before + count
        if before < self._alarm <= now:
            logger.warning("many invalid tokens: caller=%s, %d or more within a minute", _word(caller), self._alarm)


def _write(level: int, what: str, words: Mapping[str, str]) -> None:
    line = " ".join([f"{name}={_word(value)}" for name, value in words.items()])
    logger.log(level, "%s: %s", what, line, extra={"what": what, "words": words})


def _word(text: str) -> str:
    """Returns a text as one word; `-` if it is empty."""
    return ascii(text)[1:-1].replace(" ", r"\x20") or "-"
