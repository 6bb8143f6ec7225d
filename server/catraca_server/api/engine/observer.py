"""Who is told how calls begin and end. Without one, nothing is measured."""

from typing import Protocol


class Observer(Protocol):
    """Is told of each call, on the event loop. It may take no time, and raises nothing."""

    def started(self, method: bytes) -> None:
        """A call has come in. `method` is its path; empty if there is no such method, for a caller may send any."""

    def handled(self, method: bytes, code: int, reason: str, seconds: float) -> None:
        """A call has ended after so many seconds, with a status code and the reason that its status has."""
