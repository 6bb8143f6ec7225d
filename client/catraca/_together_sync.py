"""Validations of many threads in few calls. There is no extra thread: one of the waiting threads makes each call."""

import threading
import time
from _thread import allocate_lock

from catraca import _coalesce, _core, _validations
from catraca._channel_sync import SyncChannel
from catraca._validations import Answer
from catraca.errors import CatracaError, Unavailable

_OVERSTAY_SECONDS = 0.010
"""By how much a thread that makes a call for others may overrun its own deadline for theirs."""
_INTERRUPTED = "the thread that made this call for several was interrupted"


class _Waiting:
    """A thread that waits for the answer to its validation."""

    __slots__ = ("answer", "bell", "deadline", "error", "group", "request")

    def __init__(self, request: bytes, deadline: float) -> None:
        self.request = request
        self.deadline = deadline
        self.answer: Answer | None = None
        self.error: BaseException | None = None
        self.group: _coalesce.Group[_Waiting] | None = None
        """The group that this thread has to send. It is a member of that group."""
        # The cheapest thing to wait on. The thread that has news releases it.
        self.bell = allocate_lock()
        self.bell.acquire()

    def fail(self, error: CatracaError) -> None:
        """See `Waiting`. Call `ring` afterwards."""
        self.error = error

    def ring(self) -> None:
        """Wakes the thread. Two calls at once wake it once."""
        try:  # noqa: SIM105  every answer comes through here
            self.bell.release()
        except RuntimeError:  # it has been rung already
            pass

    @property
    def told(self) -> bool:
        """Whether there is an answer or an error."""
        return self.answer is not None or self.error is not None


_Group = _coalesce.Group[_Waiting]
_Departures = _coalesce.Departures[_Waiting]


class SyncTogether:
    """Sends the validations of all threads, and lets those made at the same time share calls."""

    def __init__(self, channel: SyncChannel) -> None:
        self._channel = channel
        self.renew()

    def renew(self) -> None:
        """Begins with nobody waiting, as in a child."""
        self._lock = threading.Lock()
        self._departures: _Departures = _coalesce.Departures()

    def ask(self, request: bytes, timeout: float) -> Answer:
        """Returns the answer to a validation. Raises CatracaError."""
        departures = self._departures
        mine = _Waiting(request, time.monotonic() + timeout)
        try:
            with self._lock:
                departures.add(mine)
                self._depart(departures, mine)
            while not mine.told:
                if mine.group is not None:
                    self._lead(mine.group)
                    self._leave(departures, mine)
                else:
                    self._wait(departures, mine, timeout)
        finally:
            if mine.group is not None or not mine.told:
                self._leave(departures, mine)
        if mine.answer is not None:
            return mine.answer
        assert mine.error is not None, "the loop ends with an answer or an error"
        raise mine.error

    def close(self) -> None:
        """Fails the validations that have not left yet. Of those that have, none is sent again."""
        with self._lock:
            waiting = self._departures.close()
        for each in waiting:
            each.error = Unavailable(_core.CLOSED)
            each.ring()

    @staticmethod
    def _depart(departures: _Departures, mine: _Waiting) -> None:
        """Gives each group that may leave now to one of its members, which makes the call."""
        while (group := departures.next_group(time.monotonic())) is not None:
            # A thread that is not a member may already be making a call, or have its answer. The call lasts until the
            # last deadline, so the member with that deadline makes it, unless this thread can start at once.
            leader = max(group.members, key=_deadline)
            if leader.deadline <= mine.deadline + _OVERSTAY_SECONDS and mine in group.members:
                leader = mine
            leader.group = group
            if leader is not mine:
                leader.ring()

    def _wait(self, departures: _Departures, mine: _Waiting, timeout: float) -> None:
        """Waits for news, for this thread's turn to send, or for its deadline. Raises Unavailable at the deadline."""
        with self._lock:
            # A thread whose validation has left only waits for the answer. The others look after themselves.
            until = min(mine.deadline, departures.next_look()) if mine in departures else mine.deadline
        mine.bell.acquire(timeout=min(max(until - time.monotonic(), 0), threading.TIMEOUT_MAX))
        if mine.told:
            return
        with self._lock:
            if mine.group is not None:
                return
            if time.monotonic() < mine.deadline:
                self._depart(departures, mine)
                return
            sent = not departures.remove(mine)
        if not mine.told:
            raise _core.too_late(timeout, sent=sent)

    def _lead(self, group: _Group) -> None:
        """Makes the call of a group, and another for the rest if some of its requests break a rule."""
        members = group.members
        while members and not group.closed:
            members = self._send(members)
        for each in members:  # a call would open a connection that nobody closes
            each.fail(Unavailable(_core.CLOSED))

    def _send(self, members: list[_Waiting]) -> list[_Waiting]:
        """Makes a call. Returns the members to send again, because the call failed for others' requests."""
        requests = [each.request for each in members]
        timeout = max(max(each.deadline for each in members) - time.monotonic(), 0)
        try:
            if len(members) == 1:
                alone = _validations.alone(requests[0])
                members[0].answer = alone.result(self._channel.call(alone, timeout))
                return []
            together = _validations.together(requests)
            answers = together.result(self._channel.call(together, timeout))
        except CatracaError as error:
            return _coalesce.tell(error, members)
        for each, answer in zip(members, answers, strict=True):
            each.answer = answer
        return []

    def _leave(self, departures: _Departures, mine: _Waiting) -> None:
        """Ends this thread's part: its call has returned, its deadline has passed, or it was interrupted.

        If it is interrupted here, it can be called again.
        """
        with self._lock:
            departures.remove(mine)  # nobody gives it a group from now on
            group = mine.group
            if group in departures.away:
                departures.returned(group)
            nxt = departures.last()
        for each in group.members if group is not None else ():
            if not each.told:  # Ctrl-C in this thread does not concern the others
                each.error = Unavailable(_INTERRUPTED)
            each.ring()
        # The place of the call is free; or this thread was woken to look whether a group may leave, and did not look.
        if nxt is not None:
            nxt.ring()
        mine.group = None


def _deadline(waiting: _Waiting) -> float:
    return waiting.deadline
