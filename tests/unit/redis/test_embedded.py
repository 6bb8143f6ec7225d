"""The supervision of the embedded store, where starting it again fails: the rest is in tests/server/."""

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest
from tests.support.valkey import BINARY, WHY_MISSING
from tests.support.waiting import eventually_async

from catraca_server.redis import embedded as module
from catraca_server.redis.dialer import RedisConnector
from catraca_server.redis.embedded import EmbeddedStore
from catraca_server.redis.errors import StoreUnavailable

pytestmark = pytest.mark.skipif(BINARY is None, reason=WHY_MISSING)


@pytest.mark.parametrize("failure", [OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), ZeroDivisionError()], ids=repr)
async def test_a_restart_that_fails_is_tried_again(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And logged each time, until the store runs again."""
    assert BINARY is not None
    monkeypatch.setattr(module, "_RETRY_PAUSE_SECONDS", 0)
    launch: Any = asyncio.create_subprocess_exec
    failures = [failure] * 3
    started: list[asyncio.subprocess.Process] = []

    async def launch_or_fail(*args: Any, **options: Any) -> asyncio.subprocess.Process:
        if started and failures:
            raise failures.pop()
        started.append(await launch(*args, **options))
        return started[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", launch_or_fail)
    store = EmbeddedStore(tmp_path, BINARY)
    await store.start()
    try:
        started[0].kill()
        await eventually_async(lambda: answers(store, started), "the store answers again")
    finally:
        await store.stop()
    assert [each.getMessage() for each in caplog.records if "not started" in each.getMessage()] == [
        "embedded store not started, next attempt in 0 s"
    ] * 3


async def answers(store: EmbeddedStore, started: list[asyncio.subprocess.Process]) -> bool:
    """Whether a second process was started and answers."""
    if len(started) < 2:
        return False
    try:
        connection = await RedisConnector(store.url)()
    except StoreUnavailable:
        return False
    await connection.disconnect()
    return True
