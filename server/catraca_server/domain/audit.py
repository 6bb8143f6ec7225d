"""What must be accounted for, and to whom it is told: what happens to sessions, and calls refused for who made them."""

from dataclasses import dataclass
from typing import Protocol

from catraca_server.domain.call import Call
from catraca_server.domain.events import SessionEvent


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
    request_id: str = ""
    """As in `Call`; empty if the caller gave none."""
    trace_id: str = ""


class Audit(Protocol):
    """Is told what must be accounted for. It may take no time, and raises nothing."""

    def session_changed(self, event: SessionEvent, call: Call) -> None:
        """A call has changed a session, or tells once more of a change that an earlier call made."""

    def caller_refused(self, refused: CallerRefused) -> None:
        """A call was refused."""

    def invalid_tokens(self, caller: str, count: int) -> None:
        """A caller has presented so many tokens that are not valid."""


class NoAudit:
    """Tells nobody."""

    def session_changed(self, event: SessionEvent, call: Call) -> None:
        """Does nothing."""

    def caller_refused(self, refused: CallerRefused) -> None:
        """Does nothing."""

    def invalid_tokens(self, caller: str, count: int) -> None:
        """Does nothing."""


class Audits:
    """Tells several."""

    def __init__(self, *audits: Audit) -> None:
        self._audits = audits

    def session_changed(self, event: SessionEvent, call: Call) -> None:
        """Tells each."""
        for audit in self._audits:
            audit.session_changed(event, call)

    def caller_refused(self, refused: CallerRefused) -> None:
        """Tells each."""
        for audit in self._audits:
            audit.caller_refused(refused)

    def invalid_tokens(self, caller: str, count: int) -> None:
        """Tells each."""
        for audit in self._audits:
            audit.invalid_tokens(caller, count)
