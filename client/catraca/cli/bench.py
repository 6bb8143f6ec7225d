"""`catraca bench`: how fast validations are against a service of yours, in each way of asking that the client has."""

import asyncio
import importlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from catraca import AsyncSessionClient
from catraca.cli import EXIT_FAILED, EXIT_UNAVAILABLE, EXIT_YES, bench_plot, tell
from catraca.cli.bench_load import PERCENTILES, Outcome, load
from catraca.cli.text import visible
from catraca.errors import CatracaError

_TTL = timedelta(minutes=10)
"""How long sessions live on, past the time that a bench takes, if it is killed before it revokes them."""
_AT_A_TIME = 32


class Connect(Protocol):
    """Makes a client of the service."""

    def __call__(self, *, near_cache: bool, coalesce: bool) -> AsyncSessionClient:
        """Returns a client."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure."""

    modes: Sequence[str]
    sessions: int
    duration: timedelta
    concurrency: int
    user_id: str
    compare: bool
    redis_url: str | None
    plot: Path | None
    as_json: bool


def run(connect: Connect, plan: Plan) -> int:
    """Measures and shows. Raises CatracaError if the sessions cannot be made."""
    outcomes, missing = asyncio.run(_measure(connect, plan))
    if plan.as_json:
        print(json.dumps({"runs": [_json(each) for each in outcomes], "missing": missing}, indent=2))
    else:
        _print_table(outcomes)
        for text in missing:
            print(text)
    if plan.plot is not None:
        bench_plot.write(outcomes, plan.plot)
    own = outcomes[: len(plan.modes)]
    if not any(each.validations for each in own):
        return EXIT_UNAVAILABLE
    return EXIT_FAILED if any(each.errors for each in own) else EXIT_YES


async def _measure(connect: Connect, plan: Plan) -> tuple[list[Outcome], list[str]]:
    outcomes: list[Outcome] = []
    missing: list[str] = []

    async def measured(name: str, ask: Callable[[str], Awaitable[str]], tokens: Sequence[str]) -> None:
        seconds = plan.duration.total_seconds()
        outcomes.append(await load(name, ask, tokens, concurrency=plan.concurrency, seconds=seconds))

    async with connect(near_cache=False, coalesce=False) as maker, _sessions(maker, plan) as tokens:
        for mode in plan.modes:
            async with connect(near_cache=mode == "near-cache", coalesce=mode != "single") as client:
                await measured(mode, _asking(client), tokens)
    if plan.compare:
        for name, compare in (("redis GET", _redis), ("JWT HS256", _jwt)):
            try:
                async with compare(plan) as (ask, tokens):
                    await measured(name, ask, tokens)
            except ModuleNotFoundError as error:
                package = {"redis": "redis", "jwt": "PyJWT"}.get(error.name or "", error.name)
                missing.append(f"{name} left out: {package} is not installed (pip install {package})")
            except _LeftOut as error:
                missing.append(f"{name} left out: {error}")
    return outcomes, missing


class _LeftOut(Exception):
    """Why something is not compared."""


def _asking(client: AsyncSessionClient) -> Callable[[str], Awaitable[str]]:
    async def ask(token: str) -> str:
        validation = await client.validate(token)
        return "" if validation.reason is None else f"not valid: {validation.reason.name}"

    return ask


@asynccontextmanager
async def _sessions(client: AsyncSessionClient, plan: Plan) -> AsyncIterator[list[str]]:
    """Makes sessions, each for its own user because a user may be allowed few, and ends them."""
    ttl = _TTL + plan.duration * len(plan.modes)
    tokens: list[str] = []
    turns = asyncio.Semaphore(_AT_A_TIME)

    async def create(number: int) -> CatracaError | None:
        async with turns:
            try:
                login = await client.create(f"{plan.user_id}-{number}", ttl=ttl, attributes={"device": "phone"})
            except CatracaError as error:
                return error
            tokens.append(login.token)
            return None

    async def revoke(token: str) -> bool:
        async with turns:
            try:
                await client.revoke(token=token)
            except CatracaError:
                return False
            return True

    try:
        failed = await asyncio.gather(*(create(number) for number in range(plan.sessions)))
        if error := next(filter(None, failed), None):
            raise error
        yield tokens
    finally:
        left = (await asyncio.gather(*map(revoke, tokens))).count(False)
        if left:
            tell(f"catraca: {left} sessions could not be revoked: they expire within {ttl}")


@asynccontextmanager
async def _redis(plan: Plan) -> AsyncIterator[tuple[Callable[[str], Awaitable[str]], list[str]]]:
    """A record that is read from Redis and parsed: the least that a service without catraca would do."""
    # By name, because the client must not depend on it.
    redis = importlib.import_module("redis.asyncio")
    if plan.redis_url is None:
        raise _LeftOut("--redis-url (CATRACA_REDIS_URL) does not say where Redis is")
    record = json.dumps({"user_id": plan.user_id, "attributes": {"device": "phone"}})
    prefix = f"catraca-bench:{secrets.token_hex(8)}"
    keys = [f"{prefix}:{number}" for number in range(plan.sessions)]

    async def ask(key: str) -> str:
        try:
            answer = await client.get(key)
        except errors as error:
            return type(error).__name__
        return "" if answer and json.loads(answer) else "not found"

    client = redis.Redis.from_url(plan.redis_url, max_connections=plan.concurrency + 1)
    errors = importlib.import_module("redis").RedisError
    try:
        for key in keys:
            await client.set(key, record, ex=int((_TTL + plan.duration).total_seconds()))
        try:
            yield ask, keys
        finally:
            for key in keys:
                await client.delete(key)
    except errors as error:
        # Not the error's text, which may contain the password of the URL.
        raise _LeftOut(f"Redis failed: {type(error).__name__}") from None
    finally:
        await client.aclose()


@asynccontextmanager
async def _jwt(plan: Plan) -> AsyncIterator[tuple[Callable[[str], Awaitable[str]], list[str]]]:
    """A token that is checked without asking anybody, and cannot be revoked."""
    jwt = importlib.import_module("jwt")
    key = secrets.token_bytes(32)

    async def ask(token: str) -> str:
        return "" if jwt.decode(token, key, algorithms=["HS256"]) else "empty"

    claims = {"sub": plan.user_id, "device": "phone"}
    yield ask, [jwt.encode({**claims, "jti": str(number)}, key, algorithm="HS256") for number in range(plan.sessions)]


def _json(outcome: Outcome) -> dict[str, object]:
    return {
        "name": outcome.name,
        "seconds": outcome.seconds,
        "validations": outcome.validations,
        "perSecond": outcome.rate,
        "latencySeconds": outcome.percentiles(),
        "errors": dict(outcome.errors),
    }


def _print_table(outcomes: Sequence[Outcome]) -> None:
    print(f"{'':<12} {'per second':>12} {'p50 ms':>9} {'p90 ms':>9} {'p99 ms':>9} {'max ms':>9}  errors")
    for each in outcomes:
        times = each.percentiles()
        cells = " ".join(f"{times[name] * 1e3:>9.3f}" if times else f"{'-':>9}" for name in (*PERCENTILES, "max"))
        errors = ", ".join(f"{count} {visible(kind)}" for kind, count in sorted(each.errors.items())) or "none"
        print(f"{each.name:<12} {each.rate:>12,.0f} {cells}  {errors}")
