"""Validations of many tasks in few calls: a task sends a lone validation itself; a group gets a task of its own."""

import asyncio
import math

from catraca import _coalesce, _core, _validations
from catraca._channel_aio import AsyncChannel
from catraca._validations import Answer
from catraca.errors import CatracaError, Unavailable


class _Waiting:
    """A task that waits for the answer to its validation."""

    __slots__ = ("deadline", "future", "request", "timeout")

    def __init__(self, request: bytes, timeout: float, deadline: float, future: "asyncio.Future[Answer]") -> None:
        self.request = request
        self.timeout = timeout
        self.deadline = deadline
        self.future = future
        """Cancelled if the task has given up, or makes its own call."""

    def fail(self, error: CatracaError) -> None:
        """See `Waiting`."""
        if not self.future.done():  # it may have stopped waiting, by its deadline or a cancellation
            self.future.set_exception(error)

    def tell(self, answer: Answer) -> None:
        """Hands the answer over, if the task still waits."""
        if not self.future.done():
            self.future.set_result(answer)


_Group = _coalesce.Group[_Waiting]


class AsyncTogether:
    """Sends the validations of one event loop, and lets those made at the same time share calls."""

    def __init__(self, channel: AsyncChannel, loop: asyncio.AbstractEventLoop) -> None:
        self._channel = channel
        self._loop = loop
        self._departures: _coalesce.Departures[_Waiting] = _coalesce.Departures()
        self._tasks: set[asyncio.Task[None]] = set()
        self._expiry: asyncio.TimerHandle | None = None
        self._expires = math.inf
        """When that timer fires; infinity if there is none."""
        self._look: asyncio.TimerHandle | None = None

    async def ask(self, request: bytes, timeout: float) -> Answer:
        """Returns the answer to a validation. Raises CatracaError."""
        now = self._loop.time()
        mine = _Waiting(request, timeout, now + timeout, self._loop.create_future())
        self._departures.add(mine)
        group = self._departures.next_group(now)
        if group is not None:
            if group.members == [mine]:
                return await self._alone(group, timeout)
            self._send(group)
        if mine.deadline < self._expires:
            self._watch_deadline(mine.deadline)
        if self._look is None:
            self._watch_look()
        try:
            return await mine.future
        except asyncio.CancelledError:
            self._departures.remove(mine)
            raise

    def close(self) -> None:
        """Fails the validations that have not left yet. Of those that have, none is sent again."""
        for each in self._departures.close():
            each.fail(Unavailable(_core.CLOSED))

    async def _alone(self, group: _Group, timeout: float) -> Answer:
        (mine,) = group.members
        mine.future.cancel()
        call = _validations.alone(mine.request)
        try:
            return call.result(await self._channel.call(call, timeout))
        finally:
            self._returned(group)

    def _send(self, group: _Group) -> None:
        task = self._loop.create_task(self._together(group))
        # The loop itself holds tasks weakly.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _together(self, group: _Group) -> None:
        members = group.members
        try:
            while members and not group.closed:  # otherwise a call would open a connection that nobody closes
                members = await self._call(members)
        finally:
            for each in group.members:  # the client was closed, or the loop ends and cancels this task
                each.fail(Unavailable(_core.CLOSED))
            self._returned(group)

    async def _call(self, members: list[_Waiting]) -> list[_Waiting]:
        """Makes a call. Returns the members to send again, because the call failed for others' requests."""
        timeout = max(max(each.deadline for each in members) - self._loop.time(), 0)
        try:
            if len(members) == 1:
                alone = _validations.alone(members[0].request)
                members[0].tell(alone.result(await self._channel.call(alone, timeout)))
                return []
            together = _validations.together([each.request for each in members])
            answers = together.result(await self._channel.call(together, timeout))
        except CatracaError as error:
            return _coalesce.tell(error, members)
        for each, answer in zip(members, answers, strict=True):
            each.tell(answer)
        return []

    def _returned(self, group: _Group) -> None:
        self._departures.returned(group)
        self._depart()

    def _depart(self) -> None:
        """Sends what may leave now, and comes back when more may."""
        if self._look is not None:
            self._look.cancel()
            self._look = None
        while (group := self._departures.next_group(self._loop.time())) is not None:
            self._send(group)
        self._watch_look()

    def _watch_look(self) -> None:
        if self._look is None and self._departures.last() is not None:
            when = self._departures.next_look()
            if when < math.inf:
                self._look = self._loop.call_at(when, self._depart)

    def _watch_deadline(self, deadline: float) -> None:
        """Sets the one timer for all deadlines to this one, the earliest.

        Most deadlines are met, and a timer for each would be the largest cost here.
        """
        if self._expiry is not None:
            self._expiry.cancel()
        self._expires = deadline
        self._expiry = self._loop.call_at(deadline, self._expire)

    def _expire(self) -> None:
        """Fails those whose deadline has passed, and sets the timer for the next one."""
        now = self._loop.time()
        self._expiry, self._expires = None, math.inf
        pending = [each for each in self._departures.all() if not each.future.done()]
        for each in pending:
            if each.deadline <= now:
                each.fail(_core.too_late(each.timeout, sent=not self._departures.remove(each)))
        if left := [each.deadline for each in pending if each.deadline > now]:
            self._watch_deadline(min(left))
