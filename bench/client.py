"""`python -m bench client`: what a validation costs the caller, beside a GET of Redis and beside a JWT.

The load is this process, with the client in it. The server has a core of its own, and the store shares the load's. All
rows but one reach the store over TCP, as in a deployment.
"""

import asyncio
import gc
import importlib
import json
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import psutil
import redis.asyncio

from bench.checkouts import THIS
from bench.client_loads import Taken, in_tasks, in_threads, in_turn
from bench.http2 import LoadError
from bench.measure import Measurement, Plan, Row, idle_seconds
from bench.processes import Server, find_cores, pin, serving
from bench.report import P99, Column, Results, Sheet, Table, rate
from bench.sessions import log_in, single_validations
from bench.store import Store, connect, temporary_store
from catraca import AsyncSessionClient, NearCacheStats, SessionClient
from catraca._near_cache import SETTLE_SECONDS
from catraca_server.redis.url import StoreUrl

_SESSIONS, _TASKS, _THREADS = 1_000, 256, 64
_NEAR_CACHES, _REVOCATIONS = 50, 20
_TIMEOUT_SECONDS = 20.0

_P50 = Column("p50 µs", lambda each: each.p50_seconds * 1e6, "{:,.2f}")
_FASTER = Column("base p50 / p50", lambda each: 1 / each.p50_seconds, "{:,.2f}", compared=True)
_MORE = Column("rate / base", lambda each: each.rate, "{:,.2f}", compared=True)
_REDIS, _JWT = "redis-py GET + json.loads", "PyJWT HS256 decode"
_REDIS_LOCAL = "the same over a unix socket"
_HIT, _HIT_AWAITED = "near-cache hit, sync", "near-cache hit, awaited"
_REDIS_TASKS = "256 tasks, redis-py asyncio GETs"
_TASKS_ALONE, _TASKS_TOGETHER = "256 tasks, one call each", "256 tasks, coalesced"
_THREADS_ALONE, _THREADS_TOGETHER = "64 threads, one call each", "64 threads, coalesced"

_Loads = dict[str, Callable[[float], Taken]]


@dataclass(frozen=True)
class _Refusals:
    """How long it took from sending RevokeSession until each near cache refused the session."""

    round: int
    refusals: int
    p50_seconds: float
    p99_seconds: float
    slowest_seconds: float


def compare_clients(plan: Plan, *, progress: Callable[[str], None]) -> Results:
    """Measures hits, calls that are sent together, and how soon near caches know of a revocation."""
    cores = find_cores()
    pin(cores.load)
    notes: list[str] = []
    measurements, refusals = [], []
    with ExitStack() as stack:
        store = stack.enter_context(temporary_store(core=cores.load))
        progress("creating sessions")
        tokens = [each.token for each in log_in(_SESSIONS, THIS, store.url, core=cores.server)]
        over_tcp = StoreUrl.parse(f"redis://127.0.0.1:{store.port}")
        server = stack.enter_context(serving(THIS.serve(over_tcp), core=cores.server))
        runner = stack.enter_context(asyncio.Runner())
        loads = {
            name: load
            for name, load in _loads(f"127.0.0.1:{server.port}", store, tokens, runner, stack, notes).items()
            if plan.has(Row(name, single_validations([])))
        }
        # A full collection of all that the load has by now would stop every client in this process for 50 ms.
        gc.collect()
        gc.freeze()
        for number in range(1, plan.rounds + 1):
            for name in list(loads)[:: 1 if number % 2 else -1]:
                progress(f"round {number} of {plan.rounds}: {name}")
                measurements.append(_measured(name, number, plan, loads[name], server, store))
            progress(f"round {number} of {plan.rounds}: revocations")
            refusals.append(runner.run(_refusals(number, f"127.0.0.1:{server.port}")))
    return Results(plan, cores, store.version, _tables(), measurements, [_sheet(refusals)], notes)


def _loads(  # noqa: PLR0917  all differ, and there is one caller
    target: str, store: Store, tokens: Sequence[str], runner: asyncio.Runner, stack: ExitStack, notes: list[str]
) -> _Loads:
    def awaited(*, near_cache: bool = False, coalesce: bool = True) -> AsyncSessionClient:
        client = AsyncSessionClient(target, timeout=_TIMEOUT_SECONDS, near_cache=near_cache, coalesce=coalesce)
        stack.callback(lambda: runner.run(client.close()))
        return client

    def threaded(*, near_cache: bool = False, coalesce: bool = True) -> SessionClient:
        return stack.enter_context(
            SessionClient(target, timeout=_TIMEOUT_SECONDS, near_cache=near_cache, coalesce=coalesce)
        )

    def tasks(client: AsyncSessionClient, callers: int, seconds: float) -> Taken:
        return runner.run(in_tasks(client.validate, tokens, seconds, callers=callers))

    near, near_awaited = threaded(near_cache=True), awaited(near_cache=True)
    _until_near(near.near_cache_stats, lambda: in_turn(near.validate, tokens, 1.0))
    _until_near(near_awaited.near_cache_stats, lambda: tasks(near_awaited, 1, 1.0))
    record = json.dumps({"user_id": "12345", "attributes": {"device": "phone", "plan": "family"}})
    plain, local = stack.enter_context(redis.Redis(port=store.port)), stack.enter_context(connect(store.url))
    for token in tokens:
        plain.set(f"session:{token}", record)
    shared = redis.asyncio.Redis(port=store.port, max_connections=_TASKS)
    stack.callback(lambda: runner.run(shared.aclose()))

    def read(store: redis.Redis, token: str) -> object:
        found = store.get(f"session:{token}")
        assert isinstance(found, bytes)
        return json.loads(found)

    async def read_awaited(token: str) -> object:
        found = await shared.get(f"session:{token}")
        assert isinstance(found, bytes)
        return json.loads(found)

    return {
        _REDIS: partial(in_turn, partial(read, plain), tokens),
        _REDIS_LOCAL: partial(in_turn, partial(read, local), tokens),
        **_jwt(notes),
        _HIT: partial(in_turn, near.validate, tokens),
        _HIT_AWAITED: partial(tasks, near_awaited, 1),
        _TASKS_ALONE: partial(tasks, awaited(coalesce=False), _TASKS),
        _TASKS_TOGETHER: partial(tasks, awaited(), _TASKS),
        _REDIS_TASKS: lambda seconds: runner.run(in_tasks(read_awaited, tokens, seconds, callers=_TASKS)),
        _THREADS_ALONE: partial(in_threads, threaded(coalesce=False).validate, tokens, callers=_THREADS),
        _THREADS_TOGETHER: partial(in_threads, threaded().validate, tokens, callers=_THREADS),
    }


def _until_near(stats: Callable[[], NearCacheStats | None], ask: Callable[[], object]) -> None:
    """Returns once near caches have all answers. Those kept in the first seconds of a watch do not stay long."""
    ask()
    time.sleep(SETTLE_SECONDS)
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        before = stats()
        ask()
        after = stats()
        if before and after and before.misses == after.misses:
            return
    raise LoadError("a near cache does not answer")


def _jwt(notes: list[str]) -> _Loads:
    try:
        # Imported here because it is installed for `make bench` only.
        jwt = importlib.import_module("jwt")
    except ModuleNotFoundError as error:
        notes.append(f"No JWTs: {error}.")
        return {}
    key = secrets.token_bytes(32)
    signed = [
        jwt.encode({"sub": "12345", "jti": str(number), "device": "phone"}, key, "HS256") for number in range(_SESSIONS)
    ]
    return {_JWT: partial(in_turn, lambda token: jwt.decode(token, key, algorithms=["HS256"]), signed)}


def _measured(  # noqa: PLR0917  the same
    name: str, number: int, plan: Plan, load: Callable[[float], Taken], server: Server, store: Store
) -> Measurement:
    load(plan.warm_up_seconds)
    idle = idle_seconds()
    before = server.cpu_seconds(), time.process_time(), store.running.cpu_seconds()
    taken = load(plan.seconds)
    after = server.cpu_seconds(), time.process_time(), store.running.cpu_seconds()
    idle = idle_seconds() - idle
    server_cpu, load_cpu, store_cpu = (late - early for late, early in zip(after, before, strict=True))
    # Not earlier: summarising a million near-cache hits takes as long as the hits themselves.
    times = sorted(taken.latencies)
    return Measurement(
        row=name,
        round=number,
        items=len(times),
        seconds=taken.seconds,
        p50_seconds=times[len(times) // 2],
        p99_seconds=times[len(times) * 99 // 100],
        slowest_seconds=times[-1],
        server_cpu_seconds=server_cpu,
        load_cpu_seconds=load_cpu,
        store_cpu_seconds=store_cpu,
        other_cpu_seconds=taken.seconds * (psutil.cpu_count() or 1) - idle - server_cpu - load_cpu - store_cpu,
    )


async def _refusals(number: int, target: str) -> _Refusals:
    """Revokes sessions that near caches hold, all in this loop, and measures when they learn of it."""
    caches = [AsyncSessionClient(target, timeout=_TIMEOUT_SECONDS, near_cache=True) for _ in range(_NEAR_CACHES)]
    times: list[float] = []
    async with AsyncSessionClient(target, timeout=_TIMEOUT_SECONDS) as revoking:
        for _ in range(_REVOCATIONS):
            token = (await revoking.create("12345")).token
            await asyncio.gather(*(_held(each, token) for each in caches))
            began = time.perf_counter()
            revocation = asyncio.ensure_future(revoking.revoke(token=token))
            times += await asyncio.gather(*(_refused(each, token, began) for each in caches))
            await revocation
    for each in caches:
        await each.close()
    times.sort()
    return _Refusals(number, len(times), times[len(times) // 2], times[len(times) * 99 // 100], times[-1])


async def _held(cache: AsyncSessionClient, token: str) -> None:
    """Returns once the near cache answers for the token."""
    for _ in range(1_000):
        before = cache.near_cache_stats()
        await cache.validate(token)
        after = cache.near_cache_stats()
        if before and after and after.hits > before.hits:
            return
        await asyncio.sleep(0.01)
    raise LoadError("a near cache does not answer")


async def _refused(cache: AsyncSessionClient, token: str, began: float) -> float:
    while await cache.validate(token):  # noqa: ASYNC110  there is no event for when the token is refused
        # All near caches are asked in one thread: asking more often would keep it from handling the events.
        await asyncio.sleep(0.002)
    return time.perf_counter() - began


def _tables() -> list[Table]:
    rates = (rate("validations"), _P50, P99, _MORE)
    return [
        Table(
            "One caller",
            [_REDIS, _REDIS_LOCAL, _JWT, _HIT, _HIT_AWAITED],
            (_P50, P99, rate("validations"), _FASTER),
            _P50,
        ),
        Table("256 at a time, awaited", [_TASKS_ALONE, _TASKS_TOGETHER, _REDIS_TASKS], rates, rates[0]),
        Table("The same, redis-py as base", [_REDIS_TASKS, _TASKS_TOGETHER], rates, rates[0]),
        Table("64 threads", [_THREADS_ALONE, _THREADS_TOGETHER], rates, rates[0]),
    ]


def _sheet(refusals: Sequence[_Refusals]) -> Sheet:
    return Sheet(
        "Revoked, until refused at 50 near caches: round",
        refusals,
        {
            "round": lambda row: str(row.round),
            "refusals": lambda row: str(row.refusals),
            "p50 ms": lambda row: f"{row.p50_seconds * 1e3:.1f}",
            "p99 ms": lambda row: f"{row.p99_seconds * 1e3:.1f}",
            "max ms": lambda row: f"{row.slowest_seconds * 1e3:.1f}",
        },
        "All near caches are in the load's process, and are asked every 2 ms.",
    )
