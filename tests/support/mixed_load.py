"""A mixed load over the wire: all operations by many callers, every response checked against the promises.

Each caller has users of its own and changes their sessions one call at a time, so that it knows what these must be;
meanwhile all callers validate each other's sessions. A call that failed with UNAVAILABLE may have been done or not: a
session whose end is unknown may be valid or not until its end is acknowledged.
"""

import asyncio
import contextlib
import random
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Awaitable
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Self, TypeVar

import grpc
from tests.support.load import OK, Outcome, Outcomes
from tests.support.promises import STEP, Breach, Fate, Known, breach_in
from tests.support.waiting import eventually_async

from catraca import AsyncSessionClient, Session, Validation, errors

_WEIGHTS = {"validate": 12, "create": 4, "update": 3, "rotate": 2, "revoke": 2, "revoke_user": 1}
_PAUSE_SECONDS = 0.005
_USERS = 2
_BATCH = 10
_OWN_MAX = 12
"""Live sessions of a caller from which on it creates no more."""

_CHECK_BATCH = 500
_CHECK_TIMEOUT_SECONDS = 10.0
_GONE = (errors.SessionNotFound, errors.TokenReused)
_Response = TypeVar("_Response")


@dataclass(frozen=True, slots=True)
class BrokenPromise:
    """Which promise was broken, when by `time.monotonic()`, and what is known of the session."""

    breach: Breach
    moment: float
    details: str


class MixedLoad(Outcomes):
    """Callers of the bundled client, retries and all, for as long as it is open. Then `check_all`.

    `weights` says how often each operation is done. The service must not limit the sessions of a user. A status is OK,
    a reason such as STORE_UNAVAILABLE, or the name of a code such as DEADLINE_EXCEEDED.
    """

    def __init__(self, target: str, *, callers: int = 16, timeout_seconds: float = 1.0, **weights: int) -> None:
        super().__init__()
        self.broken: list[BrokenPromise] = []
        self.sessions: list[Known] = []
        self.stopping = False
        self.client = AsyncSessionClient(target, timeout=timeout_seconds)
        self._target = target
        self._callers = [Caller(self, number, {**_WEIGHTS, **weights}) for number in range(callers)]

    async def go_on(self, operations: int = 200) -> None:
        """Returns after this many more operations that were OK."""
        goal = self.count(OK) + operations

        async def is_reached() -> bool:
            return self.count(OK) >= goal

        await eventually_async(is_reached, f"{operations} more operations are OK")

    async def check_all(self) -> list[BrokenPromise]:
        """Validates every session once more, as soon as that is possible, and returns all promises ever broken."""
        usable = [each for each in self.sessions if each.usable]
        async with AsyncSessionClient(self._target, timeout=_CHECK_TIMEOUT_SECONDS) as client:
            for at in range(0, len(usable), _CHECK_BATCH):
                chosen = usable[at : at + _CHECK_BATCH]
                for known, validation in zip(chosen, await _validated(client, chosen), strict=True):
                    self.check(known, copy(known), validation.session)
        return self.broken

    def longest_gap_seconds(self) -> float:
        """Returns the longest time in which no operation became OK."""
        if not self.outcomes:
            return 0.0
        oks = (each.ended for each in self.outcomes if each.status == OK)
        moments = [self.outcomes[0].began, *oks, self.outcomes[-1].ended]
        return max(after - before for before, after in pairwise(moments))

    def table(self) -> str:
        """Returns how many of each operation ended how, what became of the sessions, and the longest gap."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for each in self.outcomes:
            counts[each.operation][each.status] += 1
        counts["sessions"].update(each.fate.name for each in self.sessions)
        counts["breaches"].update(each.breach.name for each in self.broken)
        lines = [f"{row:15}" + ", ".join(f"{what} {n}" for what, n in cells.items()) for row, cells in counts.items()]
        return "\n".join([*lines, f"longest time without success: {self.longest_gap_seconds():.2f} s"])

    async def call(self, operation: str, call: Awaitable[_Response], about: Known | None = None) -> _Response:
        """Waits for a response and writes down how the call ended; NOT_FOUND is checked as well."""
        began, status = time.monotonic(), OK
        try:
            return await call
        except errors.CatracaError as error:
            status = error.reason or _code(error)
            if about is not None and isinstance(error, _GONE):
                self.check(about, copy(about), None)
            elif not isinstance(error, errors.Unavailable):
                self._write_down(Breach.FAILED, f"{operation}: {error}")
            raise
        finally:
            self.outcomes.append(Outcome(operation, status, began, time.monotonic()))

    def check(self, known: Known, before: Known, found: Session | None) -> None:
        """Checks what a response says of a session against what was known before the call, and is known now."""
        breach = breach_in(found, known, before)
        if breach is not None:
            self._write_down(breach, f"known {before}, found {found}")
            known.fate = Fate.UNKNOWN

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(each.run()) for each in self._callers]
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Calls in flight may finish, so that no more is unknown than has to be.
        self.stopping = True
        await asyncio.gather(*self._tasks)
        await self.client.close()

    def _write_down(self, breach: Breach, details: str) -> None:
        self.broken.append(BrokenPromise(breach, time.monotonic(), details))


class Caller:
    """Does one thing after the other to the sessions of users of its own."""

    def __init__(self, load: MixedLoad, number: int, weights: dict[str, int]) -> None:
        self._load = load
        self._client = load.client
        self._weights = weights
        self._dice = random.Random(number)  # noqa: S311  no secret
        self._users = [str(uuid.uuid4()) for _ in range(_USERS)]
        self._own: list[Known] = []

    async def run(self) -> None:
        """Goes on until the load is stopped."""
        while not self._load.stopping:
            (operation,) = self._dice.choices(list(self._weights), list(self._weights.values()))
            with contextlib.suppress(errors.CatracaError):  # It has been recorded.
                await getattr(self, operation)()
            await asyncio.sleep(_PAUSE_SECONDS)

    async def create(self) -> None:
        """Logs a user in."""
        if len(self._alive()) >= _OWN_MAX:
            return
        user = self._dice.choice(self._users)
        login = await self._load.call("create", self._client.create(user, attributes={STEP: "0"}))
        known = Known(user, login.session.session_id, login.token)
        self._load.check(known, copy(known), login.session)
        self._own.append(known)
        self._load.sessions.append(known)

    async def validate(self) -> None:
        """Validates one token or a batch, of any caller, half of them its own ones that should be valid."""
        pools = [pool for pool in (self._load.sessions, self._alive()) if pool]
        count = self._dice.choice((1, _BATCH)) if pools else 0
        chosen = [each for _ in range(count) if (each := self._dice.choice(self._dice.choice(pools))).usable]
        known_before = [copy(each) for each in chosen]
        validations: list[Validation] = []
        if len(chosen) == 1:
            validations = [await self._load.call("validate", self._client.validate(chosen[0].token))]
        elif chosen:
            tokens = [each.token for each in chosen]
            validations = await self._load.call("validate batch", self._client.validate_batch(tokens))
        for known, before, validation in zip(chosen, known_before, validations, strict=True):
            self._load.check(known, before, validation.session)

    async def update(self) -> None:
        """Raises the `STEP` of a session by one."""
        for known in self._one_of(self._alive()):
            known.updates_begun += 1
            call = self._client.update(known.session_id, set_attributes={STEP: str(known.updates_begun)})
            session = await self._load.call("update", call, known)
            known.updates_acknowledged = known.updates_begun
            self._load.check(known, copy(known), session)

    async def rotate(self) -> None:
        """Rotates a token, preferably one that may have been rotated already: the same new token comes back."""
        usable = [each for each in self._alive() if each.usable]
        for known in self._one_of([each for each in usable if each.rotating_since] or usable):
            known.rotating_since = known.rotating_since or time.monotonic()
            rotation = await self._load.call("rotate", self._client.rotate(known.token), known)
            known.token, known.rotating_since = rotation.token, None
            self._load.check(known, copy(known), rotation.session)

    async def revoke(self) -> None:
        """Ends a session, preferably one that may have ended already."""
        for known in self._one_of([each for each in self._own if each.fate is Fate.UNKNOWN] or self._own):
            if known.usable and self._dice.random() < 0.5:
                await self._end("revoke", [known], self._client.revoke(token=known.token))
            else:
                await self._end("revoke", [known], self._client.revoke(session_id=known.session_id))

    async def revoke_user(self) -> None:
        """Ends all sessions of a user."""
        user = self._dice.choice(self._users)
        theirs = [each for each in self._own if each.user_id == user]
        await self._end("revoke user", theirs, self._client.revoke_user_sessions(user))

    async def _end(self, operation: str, chosen: list[Known], call: Awaitable[object]) -> None:
        for known in chosen:
            known.fate = Fate.UNKNOWN
        await self._load.call(operation, call)
        for known in chosen:
            known.fate = Fate.ENDED
            self._own.remove(known)

    def _alive(self) -> list[Known]:
        return [each for each in self._own if each.fate is Fate.ALIVE]

    def _one_of(self, pool: list[Known]) -> list[Known]:
        return self._dice.sample(pool, min(1, len(pool)))


async def _validated(client: AsyncSessionClient, chosen: list[Known]) -> list[Validation]:
    """Returns the validations of these sessions as soon as the store is available."""
    validations: list[Validation] = []

    async def is_available() -> bool:
        with contextlib.suppress(errors.Unavailable):
            validations[:] = await client.validate_batch([each.token for each in chosen], skip_touch=True)
        return bool(validations)

    await eventually_async(is_available, "sessions are validated")
    return validations


def _code(error: errors.CatracaError) -> str:
    cause = error.__cause__
    return cause.code().name if isinstance(cause, grpc.aio.AioRpcError) else type(error).__name__
