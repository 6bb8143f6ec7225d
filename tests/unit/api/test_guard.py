"""Streams that the guard has let in: when it checks again, and which of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.support.door import CA, Door
from tests.support.waiting import eventually_async

from catraca_server.api import callers
from catraca_server.api.callers import CallerGuard
from catraca_server.api.certificates import valid_until
from catraca_server.api.engine import StatusError
from catraca_server.domain.call import Caller, Role

WATCH = b"/test.Service/Watch"


@dataclass(eq=False)
class FakeStream:
    """A stream, as the guard knows it."""

    key: str = ""
    context: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    caller: Caller = Caller("web")  # noqa: RUF009  it is immutable
    cancelled: bool = False
    method: bytes = WATCH
    asked: int = 0

    @property
    def metadata(self) -> Sequence[tuple[str, str]]:
        """What it came with."""
        self.asked += 1
        return (("authorization", f"Bearer {self.key}"),) if self.key else ()

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """What TLS knows."""
        return self.context

    def peer(self) -> str:
        """Where it comes from."""
        return "ipv4:127.0.0.1:1"


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Returns the seconds since 1970."""
        return self.now


@pytest.fixture
def door(tmp_path: Path) -> Door:
    """A callers file."""
    return Door(tmp_path)


def guard_of(door: Door, clock: Clock | None = None) -> CallerGuard:
    """Returns a guard of a service with one method."""
    return CallerGuard(door.callers, {WATCH.decode(): Role.VALIDATE}, now=clock or Clock())


def stream(**how: Any) -> Any:
    """Returns a stream."""
    return FakeStream(**how)


def test_a_key_that_is_revoked_between_the_call_and_its_stream(door: Door) -> None:
    """The stream does not begin: nobody would end it later."""
    key = door.new_key(Role.VALIDATE)
    guard, ended = guard_of(door), list[StatusError]()
    door.revoke(key)
    guard.check()
    with pytest.raises(StatusError) as caught, guard.watching(stream(key=key), ended.append):
        pytest.fail("it has begun")
    assert caught.value.status.code is grpc.StatusCode.UNAUTHENTICATED
    assert not ended


def test_each_is_told_once(door: Door) -> None:
    """However often the file changes after that; and nobody whose stream is over."""
    key, other = door.new_key(Role.VALIDATE), door.new_key(Role.VALIDATE)
    guard, ended, not_ended = guard_of(door), list[StatusError](), list[StatusError]()
    with guard.watching(stream(key=key), ended.append):
        with guard.watching(stream(key=key), not_ended.append):
            pass
        with guard.watching(gone := stream(key=key), not_ended.append):
            gone.cancelled = True
            door.revoke(key)
            guard.check()
            door.revoke(other)
            guard.check()
    assert [each.status.reason for each in ended] == ["UNAUTHENTICATED"]
    assert not not_ended


def test_while_nothing_changes_nobody_is_asked(door: Door) -> None:
    """There may be thousands of streams, and the guard looks every second."""
    guard = guard_of(door)
    watch = stream(key=door.new_key(Role.VALIDATE))
    guard.check()
    with guard.watching(watch, list[StatusError]().append):
        asked = watch.asked
        for _ in range(10):
            guard.check()
        assert watch.asked == asked


def test_a_certificate_ends_when_it_says(door: Door) -> None:
    """Not a second before."""
    door.callers.write_text("web validate dns:web.test\n")
    certificate = CA.client(dns="web.test", lives=timedelta(hours=1)).certificate
    clock, ended = Clock(), list[StatusError]()
    guard, until = guard_of(door, clock), valid_until(certificate)
    watch = stream(context={"x509_pem_cert": [certificate], "peer_dns": [b"web.test"]})
    with guard.watching(watch, ended.append):
        clock.now = until
        guard.check()
        assert not ended
        clock.now = until + 1
        guard.check()
        assert [each.status.reason for each in ended] == ["UNAUTHENTICATED"]


async def test_the_file_is_checked_again_after_a_defect(
    door: Door, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise a key that is revoked later would go on working. What the exception says stays out of the log."""
    monkeypatch.setattr(callers, "CHECK_SECONDS", 0)
    key = door.new_key(Role.VALIDATE)
    guard, ended = guard_of(door), list[StatusError]()
    check, failures = guard.check, [KeyError(key)] * 3

    def check_or_fail() -> None:
        if failures:
            raise failures.pop()
        check()

    monkeypatch.setattr(guard, "check", check_or_fail)
    with guard.watching(stream(key=key), ended.append):
        async with guard.following_file():
            door.revoke(key)

            async def has_ended() -> bool:
                return bool(ended)

            await eventually_async(has_ended, "the stream has ended")
    assert [each.status.reason for each in ended] == ["UNAUTHENTICATED"]
    assert caplog.text.count("defect in checking the callers file") == 3
    assert key not in caplog.text
