"""A simple model of sessions, which knows the guarantees and not how they are kept.

A session is alive until the earlier of its deadlines and may end up to a touch interval before its idle deadline. Where
both outcomes are right, the model says so, and learns from the result which one it was. Moments are intervals, because
a real store's clock goes on while it is read.
"""

from dataclasses import dataclass, field
from enum import Enum, auto

SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000
GRACE = 30_000

Moment = tuple[int, int]
"""Not before the first and not after the second, in Unix milliseconds."""


class Life(Enum):
    """What a session, or a grace, must be."""

    ALIVE = auto()
    DEAD = auto()
    EITHER = auto()


@dataclass
class Expected:
    """A session as the model knows it."""

    session_id: str
    user_id: str
    token: str
    attributes: dict[str, str]
    born: int
    end: int
    """Its absolute deadline."""
    idle_timeout_ms: int
    active: Moment
    rotated_tokens: list[tuple[str, Moment]] = field(default_factory=list)
    """Tokens that were rotated out, and when each grace ends; oldest first."""
    versions: int = 1
    over: bool = False

    @property
    def touch_interval_ms(self) -> int:
        """min(60 s, idle_timeout / 20), as guaranteed."""
        return min(MINUTE, self.idle_timeout_ms // 20) if self.idle_timeout_ms else MINUTE

    @property
    def precision_ms(self) -> int:
        """How exactly the expiry tells the last activity under the absolute deadline."""
        return max(SECOND, self.touch_interval_ms)

    def life(self, now: Moment) -> Life:
        """Whether it must be alive, must be dead, or may be either."""
        ends = [self.end, self.end]
        # The expiry stops short of the absolute deadline by less than a thousandth of the life that is left.
        early = (self.end - self.active[0]) // 1000 + 2
        if self.idle_timeout_ms:
            ends = [min(self.end, at + self.idle_timeout_ms) for at in self.active]
            early = max(early, self.touch_interval_ms + 2)
        if self.over or now[0] > ends[1]:
            return Life.DEAD
        return Life.ALIVE if now[1] < ends[0] - early else Life.EITHER

    def grace(self, token: str, now: Moment) -> Life | None:
        """Whether a rotated-out token must be inside its grace; None if this is the current token."""
        if token == self.token:
            return None
        until = next(until for rotated, until in self.rotated_tokens if rotated == token)
        if now[1] < until[0]:
            return Life.ALIVE
        return Life.DEAD if now[0] >= until[1] else Life.EITHER

    def rotate(self, token: str, now: Moment) -> None:
        """Records a new token."""
        self.rotated_tokens.append((self.token, (now[0] + GRACE, now[1] + GRACE)))
        self.token = token
        self.versions += 1


class Users:
    """All sessions ever, by age."""

    def __init__(self) -> None:
        self.all: list[Expected] = []

    def of(self, user_id: str) -> list[Expected]:
        """Returns a user's sessions, oldest first."""
        return [each for each in self.all if each.user_id == user_id]

    def by_id(self, session_id: str) -> Expected:
        """Returns the last session of that id: a brought token may have been brought again."""
        return next(each for each in reversed(self.all) if each.session_id == session_id)

    def count(self, user_id: str, now: Moment) -> tuple[int, int]:
        """Returns how many live sessions a user has: at least, at most."""
        lives = [each.life(now) for each in self.of(user_id)]
        return lives.count(Life.ALIVE), len(lives) - lives.count(Life.DEAD)
