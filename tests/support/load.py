"""Validations under way all the time, over the wire and without retries, every answer kept to be looked at."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc
from tests.support.waiting import eventually_async

from catraca.v1 import session_service_pb2 as pb
from catraca.v1.session_service_pb2_grpc import SessionServiceStub

CALL_TIMEOUT = 20.0
"""Seconds; so much more than the store has that only a server that does not answer runs into it."""

_PAUSE = 0.005


@dataclass(frozen=True, slots=True)
class Answer:
    """How a validation ended."""

    asked: float
    answered: float
    status: grpc.StatusCode
    right: bool
    """Valid and of the right user; says nothing if the status is not OK."""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.answered - self.asked


class Load:
    """Validates live sessions in turn, by several callers at once, for as long as it is open.

    `users` has whose session each token opens. All times are of `time.monotonic()`.
    """

    def __init__(self, target: str, users: Mapping[str, str], *, callers: int = 8) -> None:
        self.answers: list[Answer] = []
        self._target = target
        self._users = list(users.items())
        self._callers = callers

    @property
    def wrong(self) -> list[Answer]:
        """Answers that no fault of the store excuses: OK and yet not right, or any status but UNAVAILABLE."""
        excused = (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
        ok = grpc.StatusCode.OK
        return [each for each in self.answers if each.status not in excused or (each.status is ok and not each.right)]

    def count(self, status: grpc.StatusCode, since: float = 0) -> int:
        """Returns how many of the validations asked since a moment ended so."""
        return sum(each.status is status and each.asked >= since for each in self.answers)

    def first_right_after(self, moment: float) -> float | None:
        """Returns when the first right answer came to what was asked after a moment."""
        return min((each.answered for each in self.answers if each.right and each.asked >= moment), default=None)

    async def go_on(self) -> None:
        """Returns after 100 more right answers."""
        goal = self.count(grpc.StatusCode.OK) + 100

        async def reached() -> bool:
            return self.count(grpc.StatusCode.OK) >= goal

        await eventually_async(reached, "validations are right")

    async def __aenter__(self) -> Self:
        # A connection of its own, which other channels of this process would share.
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.aio.insecure_channel(self._target, options)
        self._tasks = [asyncio.create_task(self._call(first)) for first in range(self._callers)]
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close()

    async def _call(self, at: int) -> None:
        stub = SessionServiceStub(self._channel)
        while True:
            token, user = self._users[at % len(self._users)]
            at += self._callers
            asked = time.monotonic()
            try:
                response = await stub.ValidateSession(pb.ValidateSessionRequest(token=token), timeout=CALL_TIMEOUT)
                status, right = grpc.StatusCode.OK, response.valid and response.session.user_id == user
            except grpc.aio.AioRpcError as error:
                status, right = error.code(), False
            self.answers.append(Answer(asked, time.monotonic(), status, right))
            await asyncio.sleep(_PAUSE)
