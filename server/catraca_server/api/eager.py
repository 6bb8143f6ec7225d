"""Tasks that begin at once."""

import asyncio
from collections.abc import Coroutine, Generator
from functools import partial
from types import coroutine
from typing import Any


def start_now(work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None] | None:
    """Runs a coroutine until it first waits, and the rest in a task; returns None if it has ended by then.

    A task would begin only in the next turn of the loop. This way the coroutine's request to the store is on its way
    before the engine looks for more calls. (Python has eager tasks from 3.12 on.) Until the coroutine first waits, it
    has no task of its own, so it may not use `asyncio.timeout` there.
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
        except BaseException as error:  # noqa: BLE001  the coroutine has to see cancellations too
            step = partial(work.throw, error)
        else:
            step = partial(work.send, sent)
        try:
            awaited = step()
        except StopIteration:
            return
