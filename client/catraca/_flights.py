"""Single flight, without its I/O: validations of the same token that miss a near cache at once share a call."""

from collections.abc import Callable
from typing import Generic, TypeVar

from catraca._lease import LEASE_SECONDS
from catraca._model import Validation

Key = tuple[str, str | None, bool]
"""What has to be the same: token, user_id, skip_touch."""

_Signal = TypeVar("_Signal")


class Flight(Generic[_Signal]):
    """A call under way that others may wait for."""

    __slots__ = ("answer", "landed", "started")

    def __init__(self, started: float, landed: _Signal) -> None:
        self.started = started
        self.landed = landed
        """Signals to those who wait that it is over."""
        self.answer: Validation | None = None
        """None until it is over, and afterwards if it brought no answer."""

    def answer_at(self, now: float) -> Validation | None:
        """Returns the answer for a caller that joined, unless it may be older than a near cache may give."""
        return self.answer if now <= self.started + LEASE_SECONDS else None


class Flights(Generic[_Signal]):
    """The calls under way, by what they ask."""

    def __init__(self) -> None:
        self._under_way: dict[Key, Flight[_Signal]] = {}

    def join(self, key: Key, now: float) -> Flight[_Signal] | None:
        """Returns a call to wait for, if there is one whose answer may still be used."""
        flight = self._under_way.get(key)
        return flight if flight is not None and now <= flight.started + LEASE_SECONDS else None

    def lead(self, key: Key, now: float, signal: Callable[[], _Signal]) -> Flight[_Signal]:
        """Returns a call that is about to be made, and that others may join from now on."""
        flight = self._under_way[key] = Flight(now, signal())
        return flight

    def land(self, key: Key, flight: Flight[_Signal]) -> None:
        """A call is over; nobody joins it any more."""
        if self._under_way.get(key) is flight:
            self._under_way.pop(key, None)

    def clear(self) -> None:
        """Nobody joins the calls under way any more: this client has changed something since they left."""
        self._under_way = {}
