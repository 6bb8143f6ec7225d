"""The types of the public API, as a program that uses it sees them. Checked by mypy, never run.

An unused `type: ignore` is an error, so a mistake that mypy no longer sees fails this file too.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import assert_type

from catraca import (
    AsyncSessionClient,
    InvalidReason,
    Login,
    NearCache,
    NearCacheStats,
    Rotation,
    Session,
    SessionClient,
    SessionEvent,
    SessionEventType,
    Validation,
    WatchOpened,
    WatchReset,
)
from catraca.errors import (
    CatracaError,
    EtagMismatch,
    FieldViolation,
    InvalidRequest,
    InvalidSetting,
    Overloaded,
    SessionInvalid,
    SessionLimitReached,
    TokenReused,
    Unavailable,
    UnusableAfterFork,
)


def sync_client() -> None:
    """`SessionClient`."""
    with SessionClient("localhost:50051", timeout=0.5) as sessions:
        assert_type(sessions, SessionClient)
        login = sessions.create(user_id="12345", ttl=timedelta(hours=8), attributes={"device": "phone"})
        assert_type(login, Login)
        check = sessions.validate(login.token, user_id="12345", skip_touch=True, timeout=1)
        assert_type(check, Validation)
        assert_type(bool(check), bool)
        assert_type(sessions.validate_batch(token for token in [login.token]), list[Validation])
        assert_type(sessions.require(login.token), Session)
        assert_type(sessions.get(login.session.session_id), Session)
        assert_type(sessions.list_sessions("12345", page_size=500), Iterator[Session])
        end = datetime.now(UTC)
        assert_type(sessions.update("id", etag="1", absolute_expire_time=end, idle_timeout=timedelta(0)), Session)
        assert_type(sessions.update("id", attributes={"a": "1"}, set_attributes={"b": "2", "c": None}), Session)
        events = sessions.watch(types=[SessionEventType.REVOKED], cursor="a-cursor", timeout=1)
        assert_type(events, Iterator[SessionEvent | WatchOpened | WatchReset])
        assert_type(sessions.rotate(login.token), Rotation)
        assert_type(sessions.revoke(token=login.token), bool)
        assert_type(sessions.revoke_user_sessions("12345", except_session_id="id"), int)
        sessions.close()
        SessionClient(use_proxy=True, insecure=None, api_key="ctrk_a-key")
        SessionClient(api_key_file=Path("a-file"), insecure=True)
        SessionClient(api_key=b"ctrk_a-key")  # type: ignore[arg-type]
        SessionClient(near_cache=True, coalesce=False)
        assert_type(SessionClient(near_cache=NearCache(max_entries=100)).near_cache_stats(), NearCacheStats | None)
        SessionClient(near_cache=100)  # type: ignore[arg-type]
        SessionClient(use_proxy="true")  # type: ignore[arg-type]
        sessions.create(12345)  # type: ignore[arg-type]
        sessions.create("12345", 60)  # type: ignore[call-arg, arg-type]
        sessions.create("12345", ttl=60)  # type: ignore[arg-type]
        sessions.validate(None)  # type: ignore[arg-type]
        sessions.update("id", attributes={"a": None})  # type: ignore[dict-item]
        sessions.update("id", absolute_expire_time=timedelta(hours=1))  # type: ignore[arg-type]


async def async_client() -> None:
    """`AsyncSessionClient`."""
    async with AsyncSessionClient(use_proxy=None) as sessions:
        assert_type(sessions, AsyncSessionClient)
        login = await sessions.create("12345", idle_timeout=timedelta(0), token="a-token-of-ones-own")
        assert_type(login, Login)
        assert_type(await sessions.validate(login.token), Validation)
        assert_type(await sessions.validate_batch([login.token]), list[Validation])
        assert_type(await sessions.require(login.token), Session)
        assert_type(await sessions.get(login.session.session_id), Session)
        assert_type(sessions.list_sessions("12345"), AsyncIterator[Session])
        assert_type([each async for each in sessions.list_sessions("12345")], list[Session])
        assert_type(await sessions.update("id", set_attributes={"a": None}), Session)
        assert_type(await sessions.rotate(login.token), Rotation)
        assert_type(await sessions.revoke(session_id=login.session.session_id), bool)
        assert_type(await sessions.revoke_user_sessions("12345"), int)
        assert_type(sessions.near_cache_stats(), NearCacheStats | None)
        await sessions.create(12345)  # type: ignore[arg-type]


def values(login: Login, check: Validation, rotation: Rotation) -> None:
    """What the calls return."""
    assert_type(login.token, str)
    assert_type(login.evicted_session_ids, tuple[str, ...])
    assert_type(rotation.token, str)
    assert_type(rotation.session, Session)
    assert_type(check.session, Session | None)
    assert_type(check.reason, InvalidReason | None)
    assert_type(check.token_rotated, bool)
    session = login.session
    assert_type(session.session_id, str)
    assert_type(session.user_id, str)
    assert_type(session.attributes, Mapping[str, str])
    assert_type(session.create_time, datetime)
    assert_type(session.last_active_time, datetime)
    assert_type(session.expire_time, datetime)
    assert_type(session.absolute_expire_time, datetime)
    assert_type(session.idle_timeout, timedelta | None)
    assert_type(session.etag, str)
    session.user_id = "6"  # type: ignore[misc]
    session.attributes["device"] = "x"  # type: ignore[index]


def near_cache_stats(stats: NearCacheStats) -> None:
    """What a near cache tells."""
    assert_type(stats.hits, int)
    assert_type(stats.feed_age, float | None)
    assert_type(stats.watching, bool)
    stats.hits = 0  # type: ignore[misc]


def errors(sessions: SessionClient) -> None:
    """What the calls raise."""
    try:
        sessions.require("token")
    except SessionInvalid as error:
        assert_type(error.invalid_reason, InvalidReason)
    except InvalidRequest as error:
        assert_type(error.violations, tuple[FieldViolation, ...])
    except Overloaded as error:
        assert_type(error.retry_delay, timedelta)
    except (EtagMismatch, SessionLimitReached, TokenReused) as error:
        assert_type(error, EtagMismatch | SessionLimitReached | TokenReused)
    except (UnusableAfterFork, InvalidSetting) as error:
        assert_type(error, UnusableAfterFork | InvalidSetting)
    except Unavailable as error:
        assert_type(error.reason, str | None)
    except CatracaError as error:
        assert_type(error.reason, str | None)
