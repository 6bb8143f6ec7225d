"""The observer of exchanges with the store."""

from typing import Protocol


class StoreObserver(Protocol):
    """Is notified of each exchange. It must not block or raise."""

    def exchanged(self, commands: int, seconds: float) -> None:
        """A batch with this many commands of callers was answered, or given up, after this many seconds."""

    def reconnected(self) -> None:
        """A connection was made in place of one that was closed."""


class NoStoreObserver:
    """Ignores everything."""

    def exchanged(self, commands: int, seconds: float) -> None:
        """Does nothing."""

    def reconnected(self) -> None:
        """Does nothing."""


NO_OBSERVER = NoStoreObserver()
