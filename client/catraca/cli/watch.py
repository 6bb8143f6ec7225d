"""`catraca watch`: events about sessions, line by line, until Ctrl-C."""

import logging
from collections.abc import Sequence
from typing import NoReturn

from catraca import SessionClient, SessionEventType
from catraca.cli import tell
from catraca.cli.output import Output
from catraca.cli.text import visible


class _ToStderr(logging.Handler):
    """Shows what the client logs, such as a lost connection, in the way of the command's own messages."""

    def emit(self, record: logging.LogRecord) -> None:
        tell(f"catraca: {visible(record.getMessage())}")


def follow(sessions: SessionClient, types: Sequence[str], cursor: str, show: Output) -> NoReturn:
    """Shows events until Ctrl-C. Raises CatracaError if the watch cannot be opened, or is refused."""
    log = logging.getLogger("catraca")
    log.addHandler(_ToStderr())
    log.propagate = False
    for happening in sessions.watch(types=[SessionEventType[each.upper()] for each in types], cursor=cursor):
        show.happened(happening)
    raise AssertionError("a watch has no end")
