"""The observer, which is notified when calls begin and end. Without one, nothing is measured."""

from typing import Any, Protocol

from catraca_server.api.engine.statuses import Metadata


class Observer(Protocol):
    """Is notified of each call, on the event loop. It must not block or raise."""

    def started(self, method: bytes, metadata: Metadata) -> Any:
        """A call has come in. `method` is its path; empty if it is unknown, because callers may send any path.

        The result becomes the call's `observed`.
        """

    def handled(self, observed: Any, method: bytes, code: int, reason: str, seconds: float) -> None:
        """A call has ended after so many seconds, with this status code and its status's reason."""
