"""What is known about a call besides its request."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls."""

    name: str


ANONYMOUS = Caller("anonymous")
"""The caller of a server that runs open."""


@dataclass(frozen=True, slots=True)
class Call:
    """The context of one call. It is made once, where the bytes come in, and handed down from there."""

    deadline: float
    """When the call must be answered: a time of the event loop's clock (`loop.time()`), in seconds."""
    caller: Caller = ANONYMOUS
