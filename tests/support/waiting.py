"""Waiting in tests: polling with a deadline, never a sleep of a length somebody guessed."""

import asyncio
import time
from collections.abc import Awaitable, Callable

PATIENCE = 20.0
"""Seconds after which what is waited for counts as not happening; far above what even a noisy machine needs."""

_POLL = 0.01


def eventually(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Returns once the condition holds; fails if it does not within `patience` seconds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience:g} s: {what}"
        time.sleep(_POLL)


async def eventually_async(condition: Callable[[], Awaitable[bool]], what: str, patience: float = PATIENCE) -> None:
    """Returns once the condition holds; fails if it does not within `patience` seconds."""
    deadline = time.monotonic() + patience
    while not await condition():
        assert time.monotonic() < deadline, f"not within {patience:g} s: {what}"
        await asyncio.sleep(_POLL)
