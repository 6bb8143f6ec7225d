"""The longest sessions that settings, requests and clocks allow: refused with the field's name, or valid at once."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from tests.support.backends import FakeClock
from tests.support.inprocess import serving
from tests.support.valkey import Valkey
from tests.support.wire import INVALID, TIMEOUT_SECONDS, change, refusal_of

from catraca.v1 import session_pb2, session_service_pb2 as pb
from catraca.v1.session_service_pb2_grpc import SessionServiceStub
from catraca_server.domain.limits import LAST_MOMENT_MS
from catraca_server.setting_values import Duration as SettingDuration
from catraca_server.settings import LIFETIME_MAX

SECOND, DAY = 1000, 86_400_000
LIFETIME_MAX_MS = SettingDuration.parse(LIFETIME_MAX).ms
TODAY_MS = 1_790_000_000_000
USER = "12345"

LONGEST = {"max_ttl": LIFETIME_MAX, "default_ttl": LIFETIME_MAX, "default_idle_timeout": LIFETIME_MAX}
SETTINGS: dict[str, dict[str, str]] = {
    "defaults": {},
    "longest": LONGEST,
    "longest, never idle": {**LONGEST, "default_idle_timeout": "0s"},
    "shortest": {"max_ttl": "1s", "default_ttl": "1s", "default_idle_timeout": "0s"},
}
TO_THE_LAST_MOMENT_MS = (0, 1, SECOND, 20 * SECOND, 300 * SECOND, DAY, 30 * DAY, LIFETIME_MAX_MS, LIFETIME_MAX_MS + 1)
API_MAX_SECONDS = 315_576_000_000
"""What a Duration may hold at most: 10,000 years."""


def duration(milliseconds: int) -> Duration:
    """Returns a Duration."""
    return Duration(seconds=milliseconds // 1000, nanos=milliseconds % 1000 * 1_000_000)


def timestamp(unix_ms: int) -> Timestamp:
    """Returns a Timestamp, of times also that no Timestamp should hold."""
    return Timestamp(seconds=unix_ms // 1000, nanos=unix_ms % 1000 * 1_000_000)


@asynccontextmanager
async def stub_on(store_url: str, settings: dict[str, str]) -> AsyncIterator[Any]:
    """Runs a service in this process and connects to it."""
    async with (
        serving(store_url=store_url, store_timeout="20s", **settings) as target,
        grpc.aio.insecure_channel(target, [("grpc.enable_retries", 0)]) as channel,
    ):
        yield SessionServiceStub(channel)


async def accepted(call: Any, fields: set[str]) -> Any:
    """Returns the response, or None if the call was refused as INVALID_ARGUMENT for some of these fields."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        code, reason, named = refusal_of(error)
        assert (code, reason) == INVALID
        assert named
        assert set(named) <= fields
        return None


async def assert_there(stub: Any, token: str, session: session_pb2.Session) -> None:
    """Asserts that a session is valid by its token, can be read by its id, and is listed."""
    response = await stub.ValidateSession(pb.ValidateSessionRequest(token=token), timeout=TIMEOUT_SECONDS)
    assert response.valid, (pb.InvalidReason.Name(response.invalid_reason), session)
    assert response.session.absolute_expire_time == session.absolute_expire_time
    assert response.session.idle_timeout == session.idle_timeout
    request = pb.GetSessionRequest(session_id=session.session_id)
    assert (await stub.GetSession(request, timeout=TIMEOUT_SECONDS)).session.session_id == session.session_id
    listed = await stub.ListSessions(pb.ListSessionsRequest(user_id=USER), timeout=TIMEOUT_SECONDS)
    assert session.session_id in [each.session_id for each in listed.sessions]


async def create_and_change(stub: Any, now_ms: int, max_ttl_ms: int, **fields: Any) -> bool:
    """Creates, rotates and updates a session, and asserts that it is there after each step that is accepted."""
    request = pb.CreateSessionRequest(user_id=USER, **fields)
    created = await accepted(stub.CreateSession(request, timeout=TIMEOUT_SECONDS), {"ttl", "idle_timeout"})
    if created is None:
        return False
    await assert_there(stub, created.token, created.session)
    rotated = await stub.RotateSession(pb.RotateSessionRequest(token=created.token), timeout=TIMEOUT_SECONDS)
    for token in (created.token, rotated.token):
        await assert_there(stub, token, rotated.session)
    session_id = created.session.session_id
    for end_ms in (now_ms + max_ttl_ms, now_ms + max_ttl_ms + SECOND, LAST_MOMENT_MS, LAST_MOMENT_MS + 1, 2**62):
        update = change(session_id, "absolute_expire_time", absolute_expire_time=timestamp(end_ms))
        call = stub.UpdateSession(update, timeout=TIMEOUT_SECONDS)
        updated = await accepted(call, {"session.absolute_expire_time"})
        if updated is not None:
            assert updated.session.absolute_expire_time == timestamp(end_ms)
            await assert_there(stub, rotated.token, updated.session)
    for idle_timeout in (duration(max_ttl_ms), duration(max_ttl_ms + 1), Duration(seconds=API_MAX_SECONDS)):
        update = change(session_id, "idle_timeout", idle_timeout=idle_timeout)
        updated = await accepted(stub.UpdateSession(update, timeout=TIMEOUT_SECONDS), {"session.idle_timeout"})
        if updated is not None:
            await assert_there(stub, rotated.token, updated.session)
    revoked = await stub.RevokeUserSessions(pb.RevokeUserSessionsRequest(user_id=USER), timeout=TIMEOUT_SECONDS)
    assert revoked.revoked_count == 1
    return True


def requests(max_ttl_ms: int) -> list[dict[str, Duration]]:
    """Returns the fields of logins: none, the most that is allowed, and more than that."""
    spans = [duration(max_ttl_ms), duration(max_ttl_ms + 1), Duration(seconds=API_MAX_SECONDS), Duration(seconds=2**62)]
    return [
        {},
        *({name: span} for name in ("ttl", "idle_timeout") for span in spans),
        *({"ttl": span, "idle_timeout": span} for span in spans),
    ]


def max_ttl_ms_of(settings: dict[str, str]) -> int:
    """Returns the longest ttl under these settings."""
    return SettingDuration.parse(settings.get("max_ttl", "30d")).ms


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
async def test_the_longest_sessions_today(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With every setting at its bound, the longest that may be requested is accepted and valid at once."""
    FakeClock(monkeypatch, TODAY_MS)
    max_ttl_ms = max_ttl_ms_of(settings)
    async with stub_on("memory:", settings) as stub:
        outcomes = [await create_and_change(stub, TODAY_MS, max_ttl_ms, **each) for each in requests(max_ttl_ms)]
    # Without fields, and with the most for ttl, for the idle timeout and for both.
    assert [at for at, is_accepted in enumerate(outcomes) if is_accepted] == [0, 1, 5, 9]


@pytest.mark.parametrize("left_ms", TO_THE_LAST_MOMENT_MS)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
async def test_the_longest_sessions_in_the_year_9999(
    settings: dict[str, str], left_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a session would outlast what a record can hold it is refused; what is accepted is valid at once."""
    now_ms = LAST_MOMENT_MS - left_ms
    FakeClock(monkeypatch, now_ms)
    max_ttl_ms = max_ttl_ms_of(settings)
    async with stub_on("memory:", settings) as stub:
        for fields in requests(max_ttl_ms):
            await create_and_change(stub, now_ms, max_ttl_ms, **fields)


@pytest.mark.parametrize("settings", [SETTINGS["defaults"], LONGEST], ids=["defaults", "longest"])
async def test_the_longest_sessions_on_a_real_store(settings: dict[str, str], valkey: Valkey) -> None:
    """Valkey keeps them, too."""
    valkey.command("FLUSHALL")
    seconds, _ = valkey.command("TIME")
    max_ttl_ms = max_ttl_ms_of(settings)
    async with stub_on(valkey.url, settings) as stub:
        for fields in requests(max_ttl_ms):
            await create_and_change(stub, int(seconds) * 1000, max_ttl_ms, **fields)
