"""Decides which validations are sent together, and leaves the sending to the shells.

A validation leaves at once if no call is under way. Those that come while one is under way leave together: when it
returns, or beside it once they are enough (`ENOUGH`) and as many as it carries. So the busier a client is, the more
validations share a call, and an idle client makes none of them wait.
Nothing joins a call that has left, so every answer was read after it was asked for.
"""

import copy
import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Generic, Protocol, TypeVar

from catraca.errors import CatracaError, FieldViolation, InvalidRequest

MAX_CALLS = 1_000
"""What BatchValidateSessions takes."""
MAX_BYTES = 7 << 20
"""Of requests in a batch. Servers refuse more than 8 MiB."""
PATIENCE_SECONDS = 0.010
"""How long a call holds up those behind it. In a data centre a batch returns sooner; over a longer distance, or with a
slow store, nobody waits longer than this for a call that is not their own."""
ENOUGH = 8
"""A group of this size leaves beside the one call under way, if it is as large as that call's: then the server works on
one half of the validations while the client works on the other. In smaller groups the calls would cost too much."""
CALLS_AWAY = 8
"""How many calls may be under way in parallel. A server that answers nothing gets no more than these."""

_OVERHEAD_BYTES = 8
_USER_ID_MAX_BYTES = 256
_FIELD = re.compile(r"requests\[(\d+)\]\.(.+)", re.DOTALL)


class Waiting(Protocol):
    """A validation that somebody waits for."""

    request: bytes
    deadline: float
    """When the caller stops waiting."""

    def fail(self, error: CatracaError) -> None:
        """Hands the error to the caller that waits."""


_Waiting = TypeVar("_Waiting", bound=Waiting)


@dataclass(slots=True, eq=False)
class Group(Generic[_Waiting]):
    """Validations that leave in one call."""

    members: list[_Waiting]
    left_at: float
    closed: bool = False
    """Whether the client was closed after the group left. Nothing of the group is sent from then on."""


class Departures(Generic[_Waiting]):
    """Validations that wait to leave, and the calls that are away."""

    def __init__(self) -> None:
        self._waiting: dict[_Waiting, None] = {}  # in the order in which they came
        self.away: list[Group[_Waiting]] = []  # in the order in which they left

    def __contains__(self, waiting: _Waiting) -> bool:
        """Whether a validation waits to leave."""
        return waiting in self._waiting

    def add(self, waiting: _Waiting) -> None:
        """One more wants to leave."""
        self._waiting[waiting] = None

    def remove(self, waiting: _Waiting) -> bool:
        """One waits no longer. Returns whether it had not left yet."""
        return self._waiting.pop(waiting, self) is None

    def next_group(self, now: float) -> Group[_Waiting] | None:
        """Returns those that leave now, if any do. Send them, and call `returned` afterwards."""
        if not self._waiting or now < self.next_look():
            return None
        members = self._board(now)
        if not members:
            return None
        group = Group(members, now)
        self.away.append(group)
        return group

    def returned(self, group: Group[_Waiting]) -> None:
        """A call is no longer away, whether it succeeded or not."""
        self.away.remove(group)

    def next_look(self) -> float:
        """Returns when the next group may leave if no call returns before then."""
        away = self.away
        if not away:
            return -math.inf
        if len(away) >= CALLS_AWAY:
            return math.inf
        if len(away) == 1 and len(self._waiting) >= max(ENOUGH, len(away[0].members)):
            return -math.inf
        return away[-1].left_at + PATIENCE_SECONDS

    def last(self) -> _Waiting | None:
        """Returns the last of those that wait to leave, which usually has the latest deadline."""
        return next(reversed(self._waiting), None)

    def all(self) -> Iterator[_Waiting]:
        """Returns those that wait to leave, and those in calls under way."""
        return chain(self._waiting, *(group.members for group in self.away))

    def close(self) -> list[_Waiting]:
        """Returns all that wait to leave. None of them will, and the groups that have left send nothing more."""
        for group in self.away:
            group.closed = True
        waiting, self._waiting = list(self._waiting), {}
        return waiting

    def _board(self, now: float) -> list[_Waiting]:
        """Takes as many as fit into one call, and passes over those whose deadline has passed."""
        members: list[_Waiting] = []
        size = 0
        for each in self._waiting:
            if each.deadline <= now:
                continue  # whoever watches the deadline removes it
            size += len(each.request) + _OVERHEAD_BYTES
            if len(members) == MAX_CALLS or (members and size > MAX_BYTES):
                break
            members.append(each)
        for each in members:
            del self._waiting[each]
        return members


def is_refused(token: str | bytes, user_id: str | bytes | None) -> bool:
    """Whether a validation breaks a rule of the service: it has no token, or a user_id that no user can have.

    It is sent alone, because a batch is refused as a whole, and then everybody else in it is sent twice.
    """
    if not token:
        return True
    if not user_id:
        return False
    if isinstance(user_id, bytes):
        return True  # not known without reading them
    return len(user_id.encode()) > _USER_ID_MAX_BYTES or (
        not user_id.isprintable() and any(unicodedata.category(char) == "Cc" for char in user_id)
    )


def blamed(error: CatracaError, members: list[_Waiting]) -> dict[_Waiting, InvalidRequest]:
    """Returns whose requests broke a rule, each with an error of its own that names its own fields.

    Empty if the error blames none of them: then it concerns all.
    """
    if not isinstance(error, InvalidRequest):
        return {}
    violations: dict[int, list[FieldViolation]] = {}
    for violation in error.violations:
        field = _FIELD.fullmatch(violation.field)
        if field is None or int(field[1]) >= len(members):
            return {}
        violations.setdefault(int(field[1]), []).append(FieldViolation(field[2], violation.description))
    return {members[at]: _own_invalid(error, of_one) for at, of_one in violations.items()}


def tell(error: CatracaError, members: list[_Waiting]) -> list[_Waiting]:
    """Hands out the error of a failed call. Returns the members that it does not concern: they are sent again."""
    guilty = blamed(error, members)
    if not guilty:
        for each in members:
            each.fail(own(error))
        return []
    for each, mine in guilty.items():
        each.fail(mine)
    return [each for each in members if each not in guilty]


def own(error: CatracaError) -> CatracaError:
    """Returns a copy of an error that several callers get, because each raises it with its own traceback."""
    mine = copy.copy(error)
    mine.__cause__ = error.__cause__
    return mine


def _own_invalid(error: InvalidRequest, violations: list[FieldViolation]) -> InvalidRequest:
    # The text of the whole batch's error is about others, too.
    mine = InvalidRequest("; ".join(f"{each.field}: {each.description}" for each in violations) + " (INVALID_ARGUMENT)")
    mine.reason = error.reason
    mine.violations = tuple(violations)
    mine.__cause__ = error.__cause__
    return mine
