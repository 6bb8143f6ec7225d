"""How a client for asyncio answers a validation: near cache, another's call, a shared call, its own call."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from catraca import _coalesce, _core, _validations
from catraca._channel_aio import AsyncChannel
from catraca._flights import Flight, Flights, Key
from catraca._model import Validation
from catraca._near_cache import Clock, NearAnswers, NearCache, OwnChanges, settings_of, suspend_counting_clock
from catraca._together_aio import AsyncTogether
from catraca._validations import Answer
from catraca._watch_aio import AsyncWatch
from catraca.errors import Unavailable


@dataclass(slots=True)
class _InLoop:
    """What belongs to one event loop."""

    loop: asyncio.AbstractEventLoop
    together: AsyncTogether
    flights: Flights[asyncio.Event] = field(default_factory=Flights)


class AsyncAnswering(OwnChanges):
    """Answers validations without a near cache."""

    near: NearAnswers | None = None

    def __init__(self, channel: AsyncChannel, *, coalesce: bool) -> None:
        self._channel = channel
        self._coalesce = coalesce
        self._in_loop: _InLoop | None = None

    async def validate(self, token: str, user_id: str | None, skip_touch: bool, timeout: float) -> Validation:
        """Returns the answer. Raises CatracaError."""
        return _validations.validation(await self._ask(token, user_id, skip_touch, timeout))

    async def close(self) -> None:
        """Fails the validations that have not left yet."""
        state = self._in_loop
        if state is not None and state.loop is asyncio.get_running_loop():
            state.together.close()

    def _here(self) -> _InLoop:
        """Returns what belongs to the running loop."""
        loop = asyncio.get_running_loop()
        state = self._in_loop
        if state is None or state.loop is not loop:
            state = self._in_loop = _InLoop(loop, AsyncTogether(self._channel, loop))
        return state

    async def _ask(self, token: str, user_id: str | None, skip_touch: bool, timeout: float) -> Answer:
        request = _validations.request(token, user_id=user_id, skip_touch=skip_touch)
        if not self._coalesce or _coalesce.is_refused(token, user_id):
            call = _validations.alone(request)
            return call.result(await self._channel.call(call, timeout))
        return await self._here().together.ask(request, timeout)


class _NearAnswering(AsyncAnswering):
    """Answers validations that the near cache could not, and keeps the answer for next time."""

    def __init__(self, channel: AsyncChannel, settings: NearCache, *, coalesce: bool) -> None:
        super().__init__(channel, coalesce=coalesce)
        self._clock: Clock = suspend_counting_clock()
        self.near = self._answers = NearAnswers(settings, self._clock)
        self._watch = AsyncWatch(channel, self._answers, self._clock)
        self._closings = 0

    async def validate(self, token: str, user_id: str | None, skip_touch: bool, timeout: float) -> Validation:
        """See `AsyncAnswering`."""
        self._watch.begin()
        key = (token, user_id, skip_touch)
        state = self._here()
        closings = self._closings
        flight = state.flights.join(key, self._clock())
        if flight is None:
            return await self._lead(state.flights, key, timeout)
        deadline = state.loop.time() + timeout
        try:
            async with asyncio.timeout(timeout):
                await flight.landed.wait()
        except TimeoutError:
            raise _core.too_late(timeout, sent=True) from None
        if (answer := flight.answer_at(self._clock())) is not None:
            return answer
        if self._closings != closings:
            raise Unavailable(_core.CLOSED)
        # The other's call failed or was cancelled, which says nothing about this one; or it took too long.
        return await self._fetch(key, max(deadline - state.loop.time(), 0))

    async def close(self) -> None:
        """See `AsyncAnswering`."""
        self._closings += 1
        await self._watch.close()
        await super().close()

    def changed(self, *, token: str | None = None, session_ids: Iterable[str] = (), user_id: str = "") -> None:
        """See `AsyncAnswering`."""
        self._answers.drop_for_write(token=token, session_ids=session_ids, user_id=user_id)
        self._here().flights.clear()

    async def _lead(self, flights: Flights[asyncio.Event], key: Key, timeout: float) -> Validation:
        flight: Flight[asyncio.Event] = flights.lead(key, self._clock(), asyncio.Event)
        try:
            flight.answer = await self._fetch(key, timeout)
            return flight.answer
        finally:
            flights.land(key, flight)
            flight.landed.set()

    async def _fetch(self, key: Key, timeout: float) -> Validation:
        token, user_id, skip_touch = key
        fill = self._answers.begin()
        answer = await self._ask(token, user_id, skip_touch, timeout)
        validation = _validations.validation(answer)
        self._answers.keep(token, fill, validation, _validations.cache_ttl_seconds(answer))
        return validation


def answering(channel: AsyncChannel, near_cache: bool | NearCache, *, coalesce: bool) -> AsyncAnswering:
    """Returns what answers a client's validations, according to its arguments."""
    settings = settings_of(near_cache)
    if settings is None:
        return AsyncAnswering(channel, coalesce=coalesce)
    return _NearAnswering(channel, settings, coalesce=coalesce)
