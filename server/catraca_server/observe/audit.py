"""The audit in the log: one line for each refused call, as long as there are not too many of them.

What callers choose themselves is escaped, so that nobody writes lines of their own.
"""

import logging
import time
from collections.abc import Callable

from catraca_server.domain.audit import CallerRefused

logger = logging.getLogger(__name__)

LINES_PER_SECOND = 20
"""Whoever has no key can still make calls; their number must not fill the disk."""


class LogAudit:
    """Writes to the log. `now` returns seconds of a clock that only runs forward.

    `invalid_tokens_alarm` is how many invalid tokens of one caller within a minute are worth a line; 0: none are.
    """

    def __init__(self, *, invalid_tokens_alarm: int = 0, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._alarm = invalid_tokens_alarm
        self._minute = 0
        self._invalid: dict[str, int] = {}
        self._second = 0
        self._lines = 0

    def caller_refused(self, refused: CallerRefused) -> None:
        """Writes a line with everything that is known of the call."""
        second = int(self._now())
        if second != self._second:
            if self._lines > LINES_PER_SECOND:
                logger.warning("caller refused: %d more, not logged one by one", self._lines - LINES_PER_SECOND)
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines <= LINES_PER_SECOND:
            logger.warning(
                "caller refused: reason=%s method=%s caller=%s key_id=%s peer=%s",
                refused.reason,
                _word(refused.method),
                _word(refused.caller),
                _word(refused.key_id),
                _word(refused.peer),
            )

    def invalid_tokens(self, caller: str, count: int) -> None:
        """Writes a line, at most one a minute for each caller, when somebody may be trying tokens."""
        minute = int(self._now() / 60)
        if minute != self._minute:
            self._minute, self._invalid = minute, {}
        before = self._invalid.get(caller, 0)
        self._invalid[caller] = now = before + count
        if before < self._alarm <= now:
            logger.warning("many invalid tokens: caller=%s, %d or more within a minute", _word(caller), self._alarm)


def _word(text: str) -> str:
    """Returns a text as one word; `-` if it is empty."""
    return ascii(text)[1:-1].replace(" ", r"\x20") or "-"
