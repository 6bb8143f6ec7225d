"""Who is told how calls begin and end. Without one, nothing is measured."""

from typing import Any, Protocol

from catraca_server.api.engine.statuses import Metadata


class Observer(Protocol):
    """Is told of each call, on the event loop. It may take no time, and raises nothing."""

    def started(self, method: bytes, metadata: Metadata) -> Any:
        """A call has come in. `method` is its path; empty if there is no such method, for a caller may send any.

        What it returns is the call's `observed` from then on.
        """

    def handled(self, observed: Any, method: bytes, code: int, reason: str, seconds: float) -> None:
        """A call has ended after so many seconds, with a status code and the reason that its status has."""
