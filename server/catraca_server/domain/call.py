"""What is known about a call besides its request."""

from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """What a caller may do. None of them includes another; a caller may have several."""

    VALIDATE = "validate"
    """Ask whether tokens are good, and watch what happens to sessions."""
    ISSUE = "issue"
    """Begin, change, rotate and end single sessions."""
    ADMIN = "admin"
    """Look at sessions by their ids and users, and end all of a user."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and what it may do: nothing, unless it was given a role."""

    name: str
    roles: frozenset[Role] = frozenset()


ANONYMOUS = Caller("anonymous", frozenset(Role))
"""The caller on a server without a callers file."""


@dataclass(frozen=True, slots=True)
class Call:
    """The context of one call. It is made once, where the bytes come in, and handed down from there."""

    deadline: float
    """When the call must be answered: a time of the event loop's clock (`loop.time()`), in seconds."""
    caller: Caller = ANONYMOUS
    request_id: str = ""
    """Names the call in the log, here and at its caller. Empty: it has none."""
    trace_id: str = ""
    """Names the W3C trace that the call is part of; empty if it is not part of one."""
