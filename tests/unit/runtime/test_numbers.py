"""The numbers of workers that end: what the supervisor has after the last of them has ended."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from catraca_server.runtime import supervisor
from catraca_server.runtime.numbers import AllNumbers
from catraca_server.settings import load

COUNTER, GAUGE = "catraca_sessions_created_total", "catraca_watches"

DRAINS = f"""
import sys
sys.stdout.write("serving\\n")
sys.stdout.flush()
while sys.stdin.buffer.read(1):
    pass  # its configuration, and nothing that it is asked
print('{{"{COUNTER}": {{"": 7}}, "{GAUGE}": {{"": 3}}}}', flush=True)
"""
"""A worker that tells its numbers once, when it has drained."""

IS_KILLED = f"""
import sys
print("serving", flush=True)
print('{{"{COUNTER}": {{"": 7}}}}', flush=True)
sys.stdout.write('{{"{COUNTER}": ')
sys.stdout.flush()
"""
"""A worker that ends in the middle of a line."""


@pytest.fixture
def run_as_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has the supervisor run a program as its workers."""
    monkeypatch.setattr(supervisor, "WORKER_MODULE", "catraca_test_worker")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(program: str) -> None:
        (tmp_path / "catraca_test_worker.py").write_text(program)

    return run


@pytest.mark.skipif(sys.platform != "linux", reason="workers take Linux")
async def test_what_a_worker_tells_when_it_has_drained_stays_in(run_as_worker: Callable[[str], None]) -> None:
    """Its counters, of which nobody asked before: an exporter sends them once more at the end."""
    run_as_worker(DRAINS)
    settings, numbers = load({}, {"CATRACA_WORKERS": "2"}).settings, AllNumbers()
    async with supervisor.run_workers(settings, None, numbers):
        pass
    last = await numbers.snapshot()
    assert last[COUNTER] == {"": 14}
    assert not last.get(GAUGE)


@pytest.mark.skipif(sys.platform != "linux", reason="workers take Linux")
async def test_half_a_line_is_not_read(run_as_worker: Callable[[str], None]) -> None:
    """The worker was killed while it wrote; what it told before stays in."""
    run_as_worker(IS_KILLED)
    config, numbers = supervisor.WorkerConfig(1, load({}, {}).settings, None), AllNumbers()
    await supervisor._run_worker(config, asyncio.Event(), numbers)
    assert (await numbers.snapshot())[COUNTER] == {"": 7}
