"""Replies: the problem of an error reply, what is logged of it, and how replies are split."""

from dataclasses import dataclass, field

import hiredis
import pytest
from redis._parsers import BaseParser
from redis.exceptions import ResponseError

from catraca_server.redis.errors import StoreProblem, StoreUnavailable
from catraca_server.redis.replies import Replies, described, problem_of

SECRET = "ctr_this-must-not-be-logged"


@dataclass
class Source:
    """The source of replies."""

    logged: list[str] = field(default_factory=list)
    invalidated: list[StoreProblem] = field(default_factory=list)

    def invalidate(self, _why: str, problem: StoreProblem = StoreProblem.MALFORMED_REPLY) -> None:
        """Records why."""
        self.invalidated.append(problem)

    def log_throttled(self, what: str) -> None:
        """Records what is logged."""
        self.logged.append(what)


def error_reply(text: str) -> ResponseError:
    """Returns an error reply as redis-py gives it."""
    reader = hiredis.Reader(replyError=BaseParser.parse_error)
    reader.feed(f"-{text}\r\n".encode())
    reply = reader.gets()
    assert isinstance(reply, ResponseError)
    return reply


@pytest.mark.parametrize("in_script", ["", "ERR Error running script (call to f_1): @user_script:36: -"])
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", StoreProblem.FULL),
        ("READONLY You can't write against a read only replica.", StoreProblem.NOT_PRIMARY),
        ("MISCONF Errors writing to the AOF file", StoreProblem.READ_ONLY),
        ("NOREPLICAS Not enough good replicas to write.", StoreProblem.READ_ONLY),
        ("CLUSTERDOWN Hash slot not served", StoreProblem.SLOT_UNCOVERED),
        ("TRYAGAIN Multiple keys request during rehashing of slot", StoreProblem.SLOT_UNCOVERED),
        ("NOPERM this user has no permissions to run the 'eval' command", StoreProblem.REFUSED),
        ("ERR unknown command 'EVAL'", StoreProblem.REFUSED),
    ],
)
def test_the_problem_of_an_error_reply(text: str, problem: StoreProblem, in_script: str) -> None:
    """Full, read-only, no longer a primary and refused are distinguished, also as Redis 6.2 quotes them in a script."""
    source = Source()
    with pytest.raises(StoreUnavailable) as caught:
        Replies(0, [error_reply(in_script + text)], source).get(0, bytes)
    assert caught.value.problem is problem
    (logged,) = source.logged
    assert logged.startswith(f"store refused a command: {problem.value}: ")
    assert text.removeprefix("ERR ") in logged, "the code can be searched for"
    assert source.invalidated == ([problem] if problem is StoreProblem.NOT_PRIMARY else [])


def test_what_redis_quotes_is_not_logged() -> None:
    """A Redis with renamed commands quotes their arguments: keys, records and digests."""
    reply = error_reply(f"ERR unknown command 'EVAL', with args beginning with: '{SECRET}' ")
    assert problem_of(reply) is StoreProblem.REFUSED
    assert described(reply) == "unknown command 'EVAL'"


def test_a_reply_of_another_type_invalidates_the_connection() -> None:
    """It may be the reply to another request."""
    source = Source()
    with pytest.raises(StoreUnavailable) as caught:
        Replies(0, [b"1"], source).get(0, int)
    assert caught.value.problem is StoreProblem.MALFORMED_REPLY
    assert source.invalidated == [StoreProblem.MALFORMED_REPLY]
    assert Replies(0, [b"1"], source).get(0, int, bytes) == b"1"


def test_replies_are_split_by_request() -> None:
    """Each part keeps the clock, and whether it was repeated."""
    parts = Replies(7, [1, 2, 3], Source(), repeated=True).split([2, 0, 1])
    assert [(part.now_ms, part.values, part.repeated) for part in parts] == [
        (7, [1, 2], True),
        (7, [], True),
        (7, [3], True),
    ]
