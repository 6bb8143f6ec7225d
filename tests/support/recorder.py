"""A mixed load over the wire, all its outcomes written down, and every answer held against the promises.

Each caller has users of its own and does one thing after the other to their sessions, so that what these must be is
known; meanwhile everybody validates everybody's. What ended as unavailable may have happened or not: a session whose
end is unknown may be valid or not until its end is acknowledged.
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
from tests.support.promises import STEP, Breach, Fate, Known, breach_in
from tests.support.waiting import eventually_async

from catraca import AsyncSessionClient, Session, Validation, errors

OK = "OK"

_WEIGHTS = {"validate": 12, "create": 4, "update": 3, "rotate": 2, "revoke": 2, "revoke_user": 1}
_PAUSE = 0.005
_USERS = 2
_BATCH = 10
_MOST_OWN = 12
"""Live sessions of a caller beyond which it creates no more."""

_CHECK_BATCH = 500
_CHECK_TIMEOUT = 10.0
_GONE = (errors.SessionNotFound, errors.TokenReused)
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an operation ended: OK, a reason such as STORE_UNAVAILABLE, or a status such as DEADLINE_EXCEEDED."""

    operation: str
    told: str
    asked: float
    answered: float


@dataclass(frozen=True, slots=True)
class Breached:
    """A broken promise: which, when by `time.monotonic()`, and what is known of it."""

    breach: Breach
    moment: float
    details: str


class Recorder:
    """Callers of the bundled client, retries and all, for as long as it is open. Then `check`.

    `weights` says how often each operation is done; the service must not limit the sessions of a user.
    """

    def __init__(self, target: str, *, callers: int = 16, timeout: float = 1.0, **weights: int) -> None:
        self.outcomes: list[Outcome] = []
        self.breaches: list[Breached] = []
        self.sessions: list[Known] = []
        self.stopping = False
        self.client = AsyncSessionClient(target, timeout=timeout)
        self._target = target
        self._callers = [Caller(self, number, {**_WEIGHTS, **weights}) for number in range(callers)]

    def count(self, told: str, since: float = 0) -> int:
        """Returns how many operations that were asked since a moment ended so."""
        return sum(each.told == told and each.asked >= since for each in self.outcomes)

    async def go_on(self, operations: int = 200) -> None:
        """Returns after so many more operations that were OK."""
        goal = self.count(OK) + operations

        async def reached() -> bool:
            return self.count(OK) >= goal

        await eventually_async(reached, f"{operations} more operations are OK")

    async def check(self) -> list[Breached]:
        """Looks at every session once more, as soon as there are answers, and returns all breaches ever."""
        usable = [each for each in self.sessions if each.usable]
        async with AsyncSessionClient(self._target, timeout=_CHECK_TIMEOUT) as patient:
            for at in range(0, len(usable), _CHECK_BATCH):
                chosen = usable[at : at + _CHECK_BATCH]
                for known, answer in zip(chosen, await _answered(patient, chosen), strict=True):
                    self.judge(known, copy(known), answer.session)
        return self.breaches

    def longest_gap(self) -> float:
        """Returns the longest time in seconds in which no operation became OK."""
        if not self.outcomes:
            return 0.0
        oks = (each.answered for each in self.outcomes if each.told == OK)
        moments = [self.outcomes[0].asked, *oks, self.outcomes[-1].answered]
        return max(after - before for before, after in pairwise(moments))

    def table(self) -> str:
        """Returns how many of each operation ended how, what became of the sessions, and the longest gap."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for each in self.outcomes:
            counts[each.operation][each.told] += 1
        counts["sessions"].update(each.fate.name for each in self.sessions)
        counts["breaches"].update(each.breach.name for each in self.breaches)
        lines = [f"{row:15}" + ", ".join(f"{what} {n}" for what, n in cells.items()) for row, cells in counts.items()]
        return "\n".join([*lines, f"longest time without success: {self.longest_gap():.2f} s"])

    async def ask(self, operation: str, call: Awaitable[_Answer], about: Known | None = None) -> _Answer:
        """Waits for an answer and writes down how that ended; that there is no such session is an answer, too."""
        asked, told = time.monotonic(), OK
        try:
            return await call
        except errors.CatracaError as error:
            told = error.reason or _status(error)
            if about is not None and isinstance(error, _GONE):
                self.judge(about, copy(about), None)
            elif not isinstance(error, errors.Unavailable):
                self._write_down(Breach.FAILED, f"{operation}: {error}")
            raise
        finally:
            self.outcomes.append(Outcome(operation, told, asked, time.monotonic()))

    def judge(self, known: Known, asked: Known, found: Session | None) -> None:
        """Holds an answer about a session against what was known when it was asked for, and what is known now."""
        breach = breach_in(found, known, asked)
        if breach is not None:
            self._write_down(breach, f"asked {asked}, found {found}")
            known.fate = Fate.UNKNOWN

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(each.run()) for each in self._callers]
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Politely, so that no more is unknown than has to be.
        self.stopping = True
        await asyncio.gather(*self._tasks)
        await self.client.close()

    def _write_down(self, breach: Breach, details: str) -> None:
        self.breaches.append(Breached(breach, time.monotonic(), details))


class Caller:
    """Does one thing after the other to the sessions of users of its own."""

    def __init__(self, recorder: Recorder, number: int, weights: dict[str, int]) -> None:
        self._recorder = recorder
        self._client = recorder.client
        self._weights = weights
        self._dice = random.Random(number)  # noqa: S311  no secret
        self._users = [str(uuid.uuid4()) for _ in range(_USERS)]
        self._own: list[Known] = []

    async def run(self) -> None:
        """Goes on until told to stop."""
        while not self._recorder.stopping:
            (operation,) = self._dice.choices(list(self._weights), list(self._weights.values()))
            with contextlib.suppress(errors.CatracaError):  # It has been written down.
                await getattr(self, operation)()
            await asyncio.sleep(_PAUSE)

    async def create(self) -> None:
        """Lets a user log in."""
        if len(self._alive()) >= _MOST_OWN:
            return
        user = self._dice.choice(self._users)
        login = await self._recorder.ask("create", self._client.create(user, attributes={STEP: "0"}))
        known = Known(user, login.session.session_id, login.token)
        self._recorder.judge(known, copy(known), login.session)
        self._own.append(known)
        self._recorder.sessions.append(known)

    async def validate(self) -> None:
        """Validates one token or some, of anybody, half of them from among its own that should be valid."""
        pools = [pool for pool in (self._recorder.sessions, self._alive()) if pool]
        count = self._dice.choice((1, _BATCH)) if pools else 0
        chosen = [each for _ in range(count) if (each := self._dice.choice(self._dice.choice(pools))).usable]
        asked = [copy(each) for each in chosen]
        found: list[Validation] = []
        if len(chosen) == 1:
            found = [await self._recorder.ask("validate", self._client.validate(chosen[0].token))]
        elif chosen:
            tokens = [each.token for each in chosen]
            found = await self._recorder.ask("validate batch", self._client.validate_batch(tokens))
        for known, before, answer in zip(chosen, asked, found, strict=True):
            self._recorder.judge(known, before, answer.session)

    async def update(self) -> None:
        """Counts one up."""
        for known in self._one_of(self._alive()):
            known.tried += 1
            call = self._client.update(known.session_id, set_attributes={STEP: str(known.tried)})
            session = await self._recorder.ask("update", call, known)
            known.acknowledged = known.tried
            self._recorder.judge(known, copy(known), session)

    async def rotate(self) -> None:
        """Replaces a token, first of all one that may have been replaced: that is answered with the same new one."""
        usable = [each for each in self._alive() if each.usable]
        for known in self._one_of([each for each in usable if each.rotating_since] or usable):
            known.rotating_since = known.rotating_since or time.monotonic()
            rotation = await self._recorder.ask("rotate", self._client.rotate(known.token), known)
            known.token, known.rotating_since = rotation.token, None
            self._recorder.judge(known, copy(known), rotation.session)

    async def revoke(self) -> None:
        """Ends a session, first of all one that may have ended."""
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
        await self._recorder.ask(operation, call)
        for known in chosen:
            known.fate = Fate.ENDED
            self._own.remove(known)

    def _alive(self) -> list[Known]:
        return [each for each in self._own if each.fate is Fate.ALIVE]

    def _one_of(self, pool: list[Known]) -> list[Known]:
        return self._dice.sample(pool, min(1, len(pool)))


async def _answered(patient: AsyncSessionClient, chosen: list[Known]) -> list[Validation]:
    """Returns the answers about these tokens as soon as there are any."""
    answers: list[Validation] = []

    async def are_there() -> bool:
        with contextlib.suppress(errors.Unavailable):
            answers[:] = await patient.validate_batch([each.token for each in chosen], skip_touch=True)
        return bool(answers)

    await eventually_async(are_there, "validations are answered")
    return answers


def _status(error: errors.CatracaError) -> str:
    cause = error.__cause__
    return cause.code().name if isinstance(cause, grpc.aio.AioRpcError) else type(error).__name__
