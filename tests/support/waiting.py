"""Waiting in tests: polling with a deadline, never a sleep of a guessed length."""

import asyncio
import time
from collections.abc import Awaitable, Callable

TIMEOUT_SECONDS = 20.0
"""How long a test waits before it fails; far longer than even a slow machine needs."""

_POLL_SECONDS = 0.01


def eventually(condition: Callable[[], bool], what: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """Returns once the condition holds; fails if it does not in time."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_seconds:g} s: {what}"
        time.sleep(_POLL_SECONDS)


async def eventually_async(
    condition: Callable[[], Awaitable[bool]], what: str, timeout_seconds: float = TIMEOUT_SECONDS
) -> None:
    """Returns once the condition holds; fails if it does not in time."""
    deadline = time.monotonic() + timeout_seconds
    while not await condition():
        assert time.monotonic() < deadline, f"not within {timeout_seconds:g} s: {what}"
        await asyncio.sleep(_POLL_SECONDS)
