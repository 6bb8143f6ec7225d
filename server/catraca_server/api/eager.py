"""Tasks that begin at once."""

import asyncio
from collections.abc import Coroutine, Generator
from functools import partial
from types import coroutine
from typing import Any


def start_now(work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None] | None:
    """Runs a coroutine up to where it first waits, and the rest in a task; None if it has ended by then.

    A task would begin in the next turn of the loop. Here what the coroutine asks of the store is on its way before the
    engine looks for more calls. (From Python 3.12 on there are eager tasks.) Until it first waits, the coroutine has no
    task of its own: it may not use `asyncio.timeout` there.
    """
    try:
        awaited = work.send(None)
    except StopIteration:
        return None
    return asyncio.create_task(_go_on(work, awaited), name=name)


async def _go_on(work: Coroutine[Any, Any, None], awaited: Any) -> None:
    await _rest(work, awaited)


@coroutine
def _rest(work: Coroutine[Any, Any, None], awaited: Any) -> Generator[Any, Any, None]:
    while True:
        try:
            sent = yield awaited
        except BaseException as error:  # noqa: BLE001  a cancellation too is for the coroutine to see
            step = partial(work.throw, error)
        else:
            step = partial(work.send, sent)
        try:
            awaited = step()
        except StopIteration:
            return
