"""What the audit receives: what happens to sessions, and calls that were refused because of their callers."""

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
    """The caller's name; empty if it is not known."""
    key_id: str
    """The public id of the API key that was presented; empty without one, or if it cannot be one of ours."""
    peer: str
    """Where the call came from, such as `ipv4:10.0.0.7:40312`."""
    request_id: str = ""
    """As in `Call`; empty if the caller gave none."""
    trace_id: str = ""


class Audit(Protocol):
    """Receives what must be accounted for. It must not block or raise."""

    def session_changed(self, event: SessionEvent, call: Call) -> None:
        """A call has changed a session, or reports again a change that an earlier call made."""

    def caller_refused(self, refused: CallerRefused) -> None:
        """A call was refused."""

    def invalid_tokens(self, caller: str, count: int) -> None:
        """A caller has presented this many tokens that are not valid."""


class NoAudit:
    """Ignores everything."""

    def session_changed(self, event: SessionEvent, call: Call) -> None:
        """Does nothing."""

    def caller_refused(self, refused: CallerRefused) -> None:
        """Does nothing."""

    def invalid_tokens(self, caller: str, count: int) -> None:
        """Does nothing."""


class Audits:
    """Notifies several audits."""

    def __init__(self, *audits: Audit) -> None:
        self._audits = audits

    def session_changed(self, event: SessionEvent, call: Call) -> None:
        """Notifies each."""
        for audit in self._audits:
            audit.session_changed(event, call)

    def caller_refused(self, refused: CallerRefused) -> None:
        """Notifies each."""
        for audit in self._audits:
            audit.caller_refused(refused)

    def invalid_tokens(self, caller: str, count: int) -> None:
        """Notifies each."""
        for audit in self._audits:
            audit.invalid_tokens(caller, count)
