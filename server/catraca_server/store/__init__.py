"""The store's face: what the operations ask of it, and what it promises. One implementation serves every Redis.

Promises common to all methods of `SessionStore`:

- `deadline` is a time of the event loop's clock (`loop.time()`). A method answers by then or raises.
- `StoreUnavailable` means that nothing is known: of a read, what is there; of a write, whether it was done. Repeating
  either is safe.
- Each change to a session is one atomic step on one key, and every key has an expiry at every instant.
- Answers come from the primary, and were read after the question was asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from catraca_server.domain import Live, Session


class StoreUnavailable(Exception):
    """The store did not answer, not in time, or not as itself. The text is for the log, not for callers."""


class Overloaded(Exception):
    """More is waiting for the store than it can be expected to answer in time."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the store had."""

    now: int
    """Its clock when it began to answer."""
    found: Sequence[Live | None]
    """In the order asked for; None where there is no session."""


class SessionStore(Protocol):
    """Keeps sessions until they expire."""

    async def now(self, deadline: float) -> int:
        """Returns the store's clock, in Unix milliseconds."""

    async def create(self, session: Session, expiry: int, deadline: float) -> Live | None:
        """Writes a session under an id that is free. None, and nothing changes, if it is taken."""

    async def read(self, session_ids: Sequence[str], deadline: float) -> Reading:
        """Reads sessions. What is under a key but is no session counts as none and is logged as an error.

        Raises StoreUnavailable, and closes the connection, if an answer names another session than was asked for.
        """

    async def touch(self, touches: Sequence[tuple[Live, int]], deadline: float) -> Sequence[bool]:
        """Moves each session's expiry to a later one, if it still is what was read.

        False where the record has changed or is gone: then nothing was done. An expiry is never moved to an earlier
        time, so touches that overtake each other do no harm.
        """

    async def delete(self, session_id: str, deadline: float) -> bool:
        """Deletes a session for good. Whether there was one."""
