"""The replies to one caller's commands, and what an error reply means."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, NoReturn, Protocol

from redis.exceptions import (
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)

from catraca_server.redis.errors import StoreProblem, StoreUnavailable

_PROBLEMS: Sequence[tuple[type[ResponseError] | None, str, StoreProblem]] = (
    (ReadOnlyError, "READONLY", StoreProblem.NOT_PRIMARY),
    (OutOfMemoryError, "OOM ", StoreProblem.FULL),
    (None, "MISCONF", StoreProblem.READ_ONLY),
    (None, "NOREPLICAS", StoreProblem.READ_ONLY),
    (ClusterDownError, "CLUSTERDOWN", StoreProblem.SLOT_UNCOVERED),
    (None, "TRYAGAIN", StoreProblem.SLOT_UNCOVERED),
    (None, "LOADING", StoreProblem.LOADING),
)
"""By redis-py's type, which has taken the code out of the text; by the code where a script met with it on Redis 6.2."""


class Source(Protocol):
    """What replies came over."""

    def invalidate(self, why: str, problem: StoreProblem = StoreProblem.MALFORMED_REPLY) -> None:
        """Has the connection closed and a new one made."""

    def log_throttled(self, what: str) -> None:
        """Logs what is wrong, but not once for every call that suffers from it."""


@dataclass(frozen=True, slots=True)
class Replies:
    """The replies to one caller's commands, in order. An error reply stands in its place as an exception."""

    now_ms: int
    """The store's clock, in Unix milliseconds, when it began the batch."""
    values: Sequence[Any]
    source: Source = field(repr=False)
    repeated: bool = False
    """Whether the request was sent before, on a connection that was closed before its reply, and may have been executed
    then. Of commands that only read it makes no difference. One that writes may have found its own work."""

    def split(self, counts: Sequence[int]) -> Sequence["Replies"]:
        """Returns the same replies in parts: the first so many, the next so many."""
        ends = [*accumulate(counts)]
        return [replace(self, values=self.values[end - count : end]) for count, end in zip(counts, ends, strict=True)]

    def get(self, at: int, *types: type) -> Any:
        """Returns a reply, which has to be of a type that its command's replies have. Raises StoreUnavailable."""
        value = self.values[at]
        if isinstance(value, ResponseError):
            problem = problem_of(value)
            self.source.log_throttled(f"store refused a command: {problem.value}: {described(value)}")
            if problem is StoreProblem.NOT_PRIMARY:
                self.invalidate("it is no longer a primary", problem)
            raise StoreUnavailable(f"the store refused a command: {described(value)}", problem)
        if type(value) not in types:
            self.invalidate("a reply of a type that its command never has")
        return value

    def invalidate(self, why: str, problem: StoreProblem = StoreProblem.MALFORMED_REPLY) -> NoReturn:
        """Has the connection closed that this came over, because it cannot be the reply to what was requested.

        Raises StoreUnavailable: nothing is known.
        """
        self.source.invalidate(why, problem)
        raise StoreUnavailable(why, problem)


def problem_of(reply: ResponseError) -> StoreProblem:
    """Returns what an error reply says."""
    text = str(reply)
    for error_type, code, problem in _PROBLEMS:
        if (error_type is not None and isinstance(reply, error_type)) or text.startswith(code) or f"-{code}" in text:
            return problem
    return StoreProblem.REFUSED


def described(reply: ResponseError) -> str:
    """Returns an error reply as it may be logged: without what Redis quotes, which may be a key or a record."""
    code = {NoPermissionError: "NOPERM ", ReadOnlyError: "READONLY ", OutOfMemoryError: "OOM "}.get(type(reply), "")
    text, _, _ = str(reply).partition(", with args beginning with")
    return f"{code}{text}"
