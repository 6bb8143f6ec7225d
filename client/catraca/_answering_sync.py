"""How a client for threads answers a validation: near cache, another's call, a shared call, its own call."""

import threading
import time
from collections.abc import Iterable

from catraca import _coalesce, _core, _validations
from catraca._channel_sync import SyncChannel
from catraca._flights import Flight, Flights, Key
from catraca._forks import WithoutConnection, forks
from catraca._model import Validation
from catraca._near_cache import Clock, NearAnswers, NearCache, OwnChanges, settings_of, suspend_counting_clock
from catraca._together_sync import SyncTogether
from catraca._validations import Answer
from catraca._watch_sync import SyncWatch
from catraca.errors import Unavailable


class SyncAnswering(OwnChanges, WithoutConnection):
    """Answers validations without a near cache."""

    near: NearAnswers | None = None

    def __init__(self, channel: SyncChannel, *, coalesce: bool) -> None:
        self._channel = channel
        self._together = SyncTogether(channel) if coalesce else None
        forks.watch(self)

    def validate(self, token: str, user_id: str | None, skip_touch: bool, timeout: float) -> Validation:
        """Returns the answer. Raises CatracaError."""
        return _validations.validation(self._ask(token, user_id, skip_touch, timeout))

    def close(self) -> None:
        """Fails the validations that have not left yet."""
        if self._together is not None:
            self._together.close()

    def abandon(self) -> None:
        """See `Connection`. In the parent, threads that wait for another's call go on once the fork is over."""
        if self._together is not None:
            self._together.renew()

    def _ask(self, token: str, user_id: str | None, skip_touch: bool, timeout: float) -> Answer:
        request = _validations.request(token, user_id=user_id, skip_touch=skip_touch)
        if self._together is None or _coalesce.is_refused(token, user_id):
            call = _validations.alone(request)
            return call.result(self._channel.call(call, timeout))
        return self._together.ask(request, timeout)


class _NearAnswering(SyncAnswering):
    """Answers validations that the near cache could not, and keeps the answer for next time."""

    def __init__(self, channel: SyncChannel, settings: NearCache, *, coalesce: bool) -> None:
        super().__init__(channel, coalesce=coalesce)
        self._clock: Clock = suspend_counting_clock()
        self.near = self._answers = NearAnswers(settings, self._clock)
        self._watch = SyncWatch(channel, self._answers, self._clock)
        self._flights: Flights[threading.Event] = Flights()
        self._closings = 0

    def validate(self, token: str, user_id: str | None, skip_touch: bool, timeout: float) -> Validation:
        """See `SyncAnswering`."""
        self._watch.begin()
        key = (token, user_id, skip_touch)
        closings = self._closings
        flight = self._flights.join(key, self._clock())
        if flight is None:
            return self._lead(key, timeout)
        deadline = time.monotonic() + timeout
        flight.landed.wait(min(timeout, threading.TIMEOUT_MAX))
        if (answer := flight.answer_at(self._clock())) is not None:
            return answer
        if self._closings != closings:
            raise Unavailable(_core.CLOSED)
        # The other's call failed, which says nothing about this one; or it took too long.
        left = deadline - time.monotonic()
        if left <= 0:
            raise _core.too_late(timeout, sent=True)
        return self._fetch(key, left)

    def close(self) -> None:
        """See `SyncAnswering`."""
        self._closings += 1
        self._watch.close()
        super().close()

    def abandon(self) -> None:
        """See `Connection`."""
        super().abandon()
        self._flights.clear()

    def changed(self, *, token: str | None = None, session_ids: Iterable[str] = (), user_id: str = "") -> None:
        """See `SyncAnswering`."""
        self._answers.drop_for_write(token=token, session_ids=session_ids, user_id=user_id)
        self._flights.clear()

    def _lead(self, key: Key, timeout: float) -> Validation:
        flight: Flight[threading.Event] = self._flights.lead(key, self._clock(), threading.Event)
        try:
            flight.answer = self._fetch(key, timeout)
            return flight.answer
        finally:
            self._flights.land(key, flight)
            flight.landed.set()

    def _fetch(self, key: Key, timeout: float) -> Validation:
        token, user_id, skip_touch = key
        fill = self._answers.begin()
        answer = self._ask(token, user_id, skip_touch, timeout)
        validation = _validations.validation(answer)
        self._answers.keep(token, fill, validation, _validations.cache_ttl_seconds(answer))
        return validation


def answering(channel: SyncChannel, near_cache: bool | NearCache, *, coalesce: bool) -> SyncAnswering:
    """Returns what answers a client's validations, according to its arguments."""
    settings = settings_of(near_cache)
    if settings is None:
        return SyncAnswering(channel, coalesce=coalesce)
    return _NearAnswering(channel, settings, coalesce=coalesce)
