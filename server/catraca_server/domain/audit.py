"""What is to be told of calls that were refused because of who made them, and to whom it is told."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class CallerRefused:
    """A call that was refused before its request was read. No secret is in here."""

    reason: str
    """`UNAUTHENTICATED`, `PERMISSION_DENIED` or `OVERLOADED`, as the API names it."""
    method: str
    caller: str
    """Its name; empty if nobody knows it."""
    key_id: str
    """The public id of the API key that was presented; empty without one, or if it cannot be one of ours."""
    peer: str
    """Where the call came from, such as `ipv4:10.0.0.7:40312`."""


class Audit(Protocol):
    """Is told what must be accounted for. It may take no time, and raises nothing."""

    def caller_refused(self, refused: CallerRefused) -> None:
        """A call was refused."""

    def invalid_tokens(self, caller: str, count: int) -> None:
        """A caller has presented so many tokens that are not valid."""


class NoAudit:
    """Tells nobody."""

    def caller_refused(self, refused: CallerRefused) -> None:
        """Does nothing."""

    def invalid_tokens(self, caller: str, count: int) -> None:
        """Does nothing."""
