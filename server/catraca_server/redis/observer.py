"""Who is told how the store does."""

from typing import Protocol


class StoreObserver(Protocol):
    """Is told of each exchange. It may take no time, and raises nothing."""

    def exchanged(self, commands: int, seconds: float) -> None:
        """A batch with so many commands of callers was answered, or given up, after so many seconds."""

    def reconnected(self) -> None:
        """A connection was made in place of one that was closed."""


class NoStoreObserver:
    """Takes no notice."""

    def exchanged(self, commands: int, seconds: float) -> None:
        """Does nothing."""

    def reconnected(self) -> None:
        """Does nothing."""


NO_OBSERVER = NoStoreObserver()
