"""The replies to one caller's commands, and what an error reply means."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from types import MappingProxyType
from typing import Any, NoReturn, Protocol

from redis.exceptions import (
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from catraca_server.redis.errors import StoreProblem, StoreUnavailable

_CODES: Mapping[type[ResponseError], str] = MappingProxyType(
    {
        ClusterDownError: "CLUSTERDOWN",
        NoPermissionError: "NOPERM",
        OutOfMemoryError: "OOM",
        ReadOnlyError: "READONLY",
        TryAgainError: "TRYAGAIN",
    }
)
"""The codes of error replies from whose text redis-py removes them."""

_PROBLEMS: Mapping[str, StoreProblem] = MappingProxyType(
    {
        "CLUSTERDOWN": StoreProblem.SLOT_UNCOVERED,
        "LOADING": StoreProblem.LOADING,
        "MISCONF": StoreProblem.READ_ONLY,
        "NOREPLICAS": StoreProblem.READ_ONLY,
        "OOM": StoreProblem.FULL,
        "READONLY": StoreProblem.NOT_PRIMARY,
        "TRYAGAIN": StoreProblem.SLOT_UNCOVERED,
    }
)

_CODE = re.compile(r"(?:^|: -)([A-Z]{3,}) ")
"""Where the code is in an error reply; a script on Redis 6.2 quotes the code of the command that failed in it."""


class Source(Protocol):
    """The connection that replies came over."""

    def invalidate(self, why: str, problem: StoreProblem = StoreProblem.MALFORMED_REPLY) -> None:
        """Has the connection closed and a new one made."""

    def log_throttled(self, what: str) -> None:
        """Logs what is wrong, but not once for every call that it affects."""


@dataclass(frozen=True, slots=True)
class Replies:
    """The replies to one caller's commands, in order. An error reply stands in its place as an exception."""

    now_ms: int
    """The store's clock, in Unix milliseconds, when it began the batch."""
    values: Sequence[Any]
    source: Source = field(repr=False)
    repeated: bool = False
    """Whether the request was sent before, on a connection that was closed before the reply, and may have been executed
    then. For commands that only read it makes no difference. A write may have found its own work done."""

    def split(self, counts: Sequence[int]) -> Sequence["Replies"]:
        """Returns the replies in parts of these sizes, in order."""
        ends = [*accumulate(counts)]
        return [replace(self, values=self.values[end - count : end]) for count, end in zip(counts, ends, strict=True)]

    def pair(self, at: int) -> "Replies":
        """Returns the two replies about the key at a position, if there are two about each."""
        return replace(self, values=self.values[2 * at : 2 * at + 2])

    def get(self, at: int, *types: type) -> Any:
        """Returns a reply, which must have one of these types. Raises StoreUnavailable."""
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
        """Has the connection closed that a reply came over, because it cannot be the reply to what was requested.

        Raises StoreUnavailable: nothing is known.
        """
        self.source.invalidate(why, problem)
        raise StoreUnavailable(why, problem)


def problem_of(reply: ResponseError) -> StoreProblem:
    """Returns the problem behind an error reply."""
    codes = [code for code in _CODE.findall(_with_code(reply)) if code in _PROBLEMS]
    return _PROBLEMS[codes[0]] if codes else StoreProblem.REFUSED


def described(reply: ResponseError) -> str:
    """Returns an error reply's text for the log: without what Redis quotes in it, which may be a key or a record."""
    return _with_code(reply).partition(", with args beginning with")[0]


def _with_code(reply: ResponseError) -> str:
    code = _CODES.get(type(reply))
    return f"{code} {reply}" if code else str(reply)
