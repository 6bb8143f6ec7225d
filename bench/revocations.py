"""`python -m bench revocations`: from the acknowledgement of a revocation until near caches have dropped the answer.

All near caches are in one process and one event loop, so the last one waits until all others are served.
"""

import asyncio
import importlib
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.checkouts import THIS
from bench.processes import StartError, find_cores, pin, serving
from bench.store import temporary_store
from catraca import AsyncSessionClient, NearCacheStats

_CACHES = 50
_SETTLED_SECONDS = 20.0


@dataclass(frozen=True)
class Lags:
    """Seconds from the acknowledgement, one for each near cache and revocation, in order."""

    name: str
    seconds: Sequence[float]

    def line(self) -> str:
        """Returns the percentiles of the delays."""
        parts = ", ".join(f"{name} {self._at(part) * 1e3:.1f}" for name, part in (("p50", 0.5), ("p99", 0.99)))
        return f"{self.name}: {parts}, longest {self.seconds[-1] * 1e3:.1f} ms, of {len(self.seconds):,}"

    def _at(self, part: float) -> float:
        return self.seconds[int(len(self.seconds) * part)]


def measure_revocations(*, quick: bool, progress: Callable[[str], None]) -> Sequence[Lags]:
    """Measures revocations by the server that the near caches watch, and by another server."""
    cores = find_cores()
    with ExitStack() as stack:
        store = stack.enter_context(temporary_store(core=cores.server))
        command = THIS.serve(store.url)
        ports = [stack.enter_context(serving(command, core=cores.server)).port for _ in range(2)]
        pin(cores.load)
        names = ("by the server that is watched", "by another server")
        found = []
        for name, port in zip(names, ports, strict=True):
            progress(name)
            found.append(Lags(name, sorted(asyncio.run(_lags(ports[0], port, 20 if quick else 300)))))
    return found


def plot_revocations(found: Sequence[Lags], file: Path) -> None:
    """Draws the part of near caches that have dropped the answer, over time."""
    figure = importlib.import_module("matplotlib.figure").Figure(figsize=(8, 4), layout="constrained")
    panel = figure.subplots()
    for lags in found:
        count = len(lags.seconds)
        # A point for each percent, and the last one: all points would make a file of megabytes.
        chosen = [count * percent // 200 for percent in range(200)] + [count - 1]
        panel.plot([lags.seconds[at] * 1e3 for at in chosen], [(at + 1) / count for at in chosen], label=lags.name)
    panel.set_xlabel("ms after the revocation was acknowledged")
    panel.set_ylabel("part of the near caches that refuse")
    panel.set_xlim(left=0)
    panel.set_ylim(0, 1)
    panel.grid(visible=True, alpha=0.3)
    panel.legend(title=f"revoked, {_CACHES} near caches", loc="lower right")
    figure.savefig(file)


async def _lags(watched: int, revoking: int, rounds: int) -> list[float]:
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(AsyncSessionClient(f"127.0.0.1:{revoking}"))
        caches = [AsyncSessionClient(f"127.0.0.1:{watched}", near_cache=True, timeout=10) for _ in range(_CACHES)]
        for cache in caches:
            await stack.enter_async_context(cache)
        lags: list[float] = []
        for _ in range(rounds):
            login = await other.create("user")
            await _kept(caches, login.token)
            await other.revoke(session_id=login.session.session_id)
            lags += await _dropped(caches)
        return lags


async def _kept(caches: Sequence[AsyncSessionClient], token: str) -> None:
    """Returns once every near cache has the answer, and nothing else."""
    deadline = time.monotonic() + _SETTLED_SECONDS
    while missing := [each for each in caches if not _stats(each).entries]:
        if time.monotonic() > deadline:
            raise StartError("the near caches keep no answers")
        await asyncio.gather(*(each.validate(token) for each in missing))


async def _dropped(caches: Sequence[AsyncSessionClient]) -> list[float]:
    """Returns after how many seconds each near cache has dropped it."""
    acknowledged = time.perf_counter()
    waiting, lags = list(caches), list[float]()
    while waiting:
        kept = [each for each in waiting if _stats(each).entries]
        lags += [time.perf_counter() - acknowledged] * (len(waiting) - len(kept))
        waiting = kept
        await asyncio.sleep(0)
    return lags


def _stats(client: AsyncSessionClient) -> NearCacheStats:
    stats = client.near_cache_stats()
    assert stats is not None, "these clients have near caches"
    return stats
