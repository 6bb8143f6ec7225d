"""What clients did, as they recorded it, and which promises of near caches it breaks.

Begin and end are by a clock that all processes of a machine share. When an answer was decided is not known: between the
two. So an answer breaks a promise only if its call *began* too late. A process that was stopped in a call proves
nothing; the next call of it does.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from math import inf
from pathlib import Path

BOUND_SECONDS = 5.0
"""How long after the acknowledgement of a revocation a near cache may still give the old answer."""

OK, BEGUN, UNAVAILABLE, REUSED = "ok", "begun", "unavailable", "reused"
GONE = ("invalid", REUSED)
"""No live session has this token or id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One operation. One that can end or change sessions is written twice: BEGUN before it is sent, and its result."""

    client: str
    near: bool
    """Whether the client has a near cache."""
    operation: str
    session_id: str = ""
    user_id: str = ""
    token: str = ""
    """Stands for the token, here and as `new_token`."""
    began: float
    ended: float
    result: str
    """OK, which for a validation is "valid"; BEGUN; UNAVAILABLE; one of GONE; or the name of what was raised."""
    found: tuple[str, str] = ("", "")
    """The session and the user that the answer names."""
    new_token: str = ""

    def line(self) -> bytes:
        """Returns it as a line of a file."""
        values = [getattr(self, name) for name in self.__slots__]
        return json.dumps(values).encode() + b"\n"


def read(file: Path) -> list[Record]:
    """Reads a file of records. A process that was killed may have left its last line unfinished."""
    whole = file.read_bytes().rpartition(b"\n")[0]
    records = []
    for line in whole.splitlines():
        values = dict(zip(Record.__slots__, json.loads(line), strict=True))
        values["found"] = tuple(values["found"])
        records.append(Record(**values))
    return records


class Breach(Enum):
    """A promise that was broken."""

    LATE = auto()
    """Valid, asked later after the acknowledged end of the session than allowed: by `BOUND_SECONDS`, or at all."""
    OWN = auto()
    """Valid near, although the same client had ended the session."""
    OTHERS = auto()
    """About another session or user."""
    ROTATED = auto()
    """Valid by a token whose grace and bound were over."""
    LOST = auto()
    """Denied, although no call that ends the session had begun."""
    FAILED = auto()
    """Neither an answer nor Unavailable."""


@dataclass(frozen=True, slots=True)
class Violation:
    """Which promise a record breaks, and by how many seconds, where that can be said."""

    breach: Breach
    record: Record
    seconds: float = 0.0


@dataclass(slots=True)
class _Fate:
    """What is known of a session. Of each kind of moment the earliest counts."""

    user_id: str = ""
    created: float = inf
    """When its creation was acknowledged."""
    ended: float = inf
    """When its end was acknowledged."""
    may_have_ended: float = inf
    """When a call began that may have ended it."""
    own: dict[str, list[Record]] = field(default_factory=lambda: defaultdict(list))
    """By client: its acknowledged revocations of it."""


class History:
    """The records of all clients of one run. `grace_seconds` is that of rotations."""

    def __init__(self, records: Iterable[Record], *, grace_seconds: float) -> None:
        self.records = list(records)
        self._grace_seconds = grace_seconds
        self._fates: dict[str, _Fate] = defaultdict(_Fate)
        self._rotated: dict[str, float] = {}
        self._take_creations()
        self._take_ends()

    @property
    def revocations(self) -> int:
        """How many calls that revoke were acknowledged."""
        return sum(each.operation in {"revoke", "revoke_user"} and each.result == OK for each in self.records)

    @property
    def revoked_sessions(self) -> int:
        """How many sessions are known to have ended."""
        return sum(each.ended < inf for each in self._fates.values())

    def violations(self) -> list[Violation]:
        """Returns all that breaks a promise."""
        found = (self._breach(each) for each in self.records if each.result != BEGUN)
        return [each for each in found if each is not None]

    def lags(self) -> list[float]:
        """Returns how long after its acknowledged end a session was last valid, for each near cache that then refused.

        Zero if it was not. By when the calls began.
        """
        valid: dict[tuple[str, str], float] = {}
        refused: set[tuple[str, str]] = set()
        for each in self.records:
            if each.operation == "validate" and each.near:
                key = (each.client, each.session_id)
                if each.result == OK:
                    valid[key] = max(valid.get(key, 0.0), each.began)
                elif each.result in GONE:
                    refused.add(key)
        ends = ((began, self._fates[key[1]].ended) for key, began in valid.items() if key in refused)
        return sorted(max(0.0, began - ended) for began, ended in ends if ended < inf)

    def _take_creations(self) -> None:
        for each in self.records:
            if each.session_id:
                fate = self._fates[each.session_id]
                # Every record has it: the record of the creation may be missing while clients still write.
                fate.user_id = each.user_id
                if each.operation == "create" and each.result == OK:
                    fate.created = each.ended

    def _take_ends(self) -> None:
        theirs: dict[str, list[_Fate]] = defaultdict(list)
        for fate in self._fates.values():
            theirs[fate.user_id].append(fate)
        for each in self.records:
            if each.operation == "revoke":
                self._take_end(each, self._fates[each.session_id])
            elif each.operation == "revoke_user":
                for fate in theirs[each.user_id]:
                    self._take_end(each, fate)
            elif each.operation == "rotate":
                self._take_rotation(each)
            if each.result == REUSED:
                # Its session has just been revoked, by the client that presented the token.
                fate = self._fates[each.session_id]
                fate.ended = min(fate.ended, each.ended)

    def _take_end(self, each: Record, fate: _Fate) -> None:
        fate.may_have_ended = min(fate.may_have_ended, each.began)
        # Of a session whose creation was not acknowledged yet, a revocation of all promises nothing.
        if each.result == OK and fate.created < each.began:
            fate.ended = min(fate.ended, each.ended)
            fate.own[each.client].append(each)

    def _take_rotation(self, each: Record) -> None:
        fate = self._fates[each.session_id]
        # From now on an old token may be presented after its grace, which ends the session.
        fate.may_have_ended = min(fate.may_have_ended, each.began)
        if each.result == OK:
            self._rotated[each.token] = min(self._rotated.get(each.token, inf), each.ended)

    def _breach(self, each: Record) -> Violation | None:
        if each.operation in {"create", "revoke", "revoke_user"}:
            failed = each.result not in {OK, UNAVAILABLE}
            return Violation(Breach.FAILED, each) if failed else None
        fate = self._fates[each.session_id]
        if each.result == OK:
            return self._breach_of_valid(each, fate)
        if each.result in GONE:
            return Violation(Breach.LOST, each) if each.ended < fate.may_have_ended else None
        return None if each.result == UNAVAILABLE else Violation(Breach.FAILED, each)

    def _breach_of_valid(self, each: Record, fate: _Fate) -> Violation | None:
        if each.found != (each.session_id, each.user_id):
            return Violation(Breach.OTHERS, each)
        near = each.near and each.operation == "validate"
        bound = BOUND_SECONDS if near else 0.0
        if each.began > fate.ended + bound:
            return Violation(Breach.LATE, each, each.began - fate.ended)
        if each.operation == "validate":
            if any(_is_seen(own, each) for own in fate.own.get(each.client, ())):
                return Violation(Breach.OWN, each, each.began - fate.ended)
            grace_ends = self._rotated.get(each.token, inf) + self._grace_seconds
            if each.began > grace_ends + bound:
                return Violation(Breach.ROTATED, each, each.began - grace_ends)
        return None


def _is_seen(own: Record, each: Record) -> bool:
    """Whether a validation must see its client's own revocation. One by another token of it waits for the event."""
    return each.began > own.ended and (not own.token or own.token == each.token)
