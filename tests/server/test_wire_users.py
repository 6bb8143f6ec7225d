"""All sessions of a user over the wire: limits, pages, and logging out everywhere."""

from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from google.rpc.status_pb2 import Status
from tests.support.valkey import Valkey
from tests.support.wire import (
    INVALID,
    LIMIT_BYTES,
    LIMIT_REACHED,
    NOBODY,
    TIMEOUT_SECONDS,
    assert_gone,
    create,
    get,
    page,
    refused,
    revoke_all,
    seconds,
    serving_stub,
    validate,
)

from catraca.v1 import session_service_pb2 as pb
from catraca.v1.session_service_pb2_grpc import SessionServiceStub

UNKNOWN_PAGE_TOKEN = "A" * 24

INVALID_USERS: list[dict[str, Any]] = [
    {},
    {"user_id": "u" * (LIMIT_BYTES + 1)},
    {"user_id": "é" * (LIMIT_BYTES // 2 + 1)},
    {"user_id": "with\nnewline"},
]


@pytest.mark.parametrize("fields", INVALID_USERS, ids=["missing", "long", "long in bytes", "control character"])
def test_a_missing_or_invalid_user_id(stub: SessionServiceStub, fields: dict[str, Any]) -> None:
    """It is refused, and the field is named."""
    assert refused(stub.ListSessions, pb.ListSessionsRequest(**fields)) == (*INVALID, ["user_id"])
    assert refused(stub.RevokeUserSessions, pb.RevokeUserSessionsRequest(**fields)) == (*INVALID, ["user_id"])


@pytest.mark.parametrize("size", [-1, -(2**31)])
def test_a_negative_page_size(stub: SessionServiceStub, size: int) -> None:
    """It is refused, and the field is named."""
    assert refused(stub.ListSessions, pb.ListSessionsRequest(user_id="u", page_size=size)) == (*INVALID, ["page_size"])


@pytest.mark.parametrize(
    "token", ["x", "!!!!", "é", "=" * 24, UNKNOWN_PAGE_TOKEN, "A" * 10_000, "null", "0", "\0" * 24, " "]
)
def test_a_malformed_page_token(stub: SessionServiceStub, token: str) -> None:
    """It is refused, and the field is named."""
    request = pb.ListSessionsRequest(user_id="u", page_token=token)
    assert refused(stub.ListSessions, request) == (*INVALID, ["page_token"])


def test_a_login_over_the_limit_is_rejected(valkey: Valkey, user: str) -> None:
    """RESOURCE_EXHAUSTED without RetryInfo, because retrying does not help; nobody is logged out."""
    with serving_stub(valkey, CATRACA_MAX_SESSIONS_PER_USER="1", CATRACA_SESSION_LIMIT_POLICY="reject") as stub:
        first = create(stub, user)
        assert not first.evicted_session_ids
        request = pb.CreateSessionRequest(user_id=user)
        assert refused(stub.CreateSession, request) == LIMIT_REACHED
        with pytest.raises(grpc.RpcError) as caught:
            stub.CreateSession(request, timeout=TIMEOUT_SECONDS)
        error: Any = caught.value
        details = Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"]).details
        assert [each.type_url for each in details] == ["type.googleapis.com/google.rpc.ErrorInfo"]
        assert validate(stub, first.token).valid
        assert create(stub, f"{user}-and-another").token
        stub.RevokeSession(pb.RevokeSessionRequest(token=first.token), timeout=TIMEOUT_SECONDS)
        assert create(stub, user).token


def test_a_login_over_the_limit_evicts(valkey: Valkey, user: str) -> None:
    """The oldest session ends, and the response says so; a login that fails evicts nobody."""
    with serving_stub(valkey, CATRACA_MAX_SESSIONS_PER_USER="2", CATRACA_SESSION_LIMIT_POLICY="evict-oldest") as stub:
        first, second = create(stub, user), create(stub, user, token=f"{user}-second")
        request = pb.CreateSessionRequest(user_id=user, token=f"{user}-second")
        assert refused(stub.CreateSession, request)[1] == "TOKEN_IN_USE"
        request = pb.CreateSessionRequest(user_id=user, ttl=seconds(-1))
        assert refused(stub.CreateSession, request) == (*INVALID, ["ttl"])
        assert validate(stub, first.token).valid
        third = create(stub, user)
        assert list(third.evicted_session_ids) == [first.session.session_id]
        assert_gone(stub, first.session.session_id, first.token)
        assert list(page(stub, user).sessions) == [third.session, second.session]


def test_pages(stub: SessionServiceStub, user: str) -> None:
    """Newest first; the default size is 50 and the largest 500; the last page has no token."""
    made = [create(stub, user).session for _ in range(501)][::-1]
    assert list(page(stub, user).sessions) == made[:50]
    for size in (500, 501, 2**31 - 1):
        first = page(stub, user, page_size=size)
        assert list(first.sessions) == made[:500]
        last = page(stub, user, page_size=size, page_token=first.next_page_token)
        assert list(last.sessions) == made[500:]
        assert not last.next_page_token
    assert revoke_all(stub, user) == 501
    assert MessageToDict(page(stub, user)) == {}


def test_a_page_token_is_good_for_its_user_only(stub: SessionServiceStub, user: str) -> None:
    """One of another user, a truncated and a changed one are refused; the page size may change."""
    sessions = [create(stub, user).session for _ in range(3)][::-1]
    token = page(stub, user, page_size=1).next_page_token
    assert list(page(stub, user, page_size=50, page_token=token).sessions) == sessions[1:]
    request = pb.ListSessionsRequest(user_id=f"{user}-and-another", page_token=token)
    assert refused(stub.ListSessions, request) == (*INVALID, ["page_token"])
    other = "B" if token[0] != "B" else "C"
    for wrong in (token[:-1], token[:-4], token[1:], token[:11], other + token[1:], token * 2, token.swapcase()):
        request = pb.ListSessionsRequest(user_id=user, page_token=wrong)
        assert refused(stub.ListSessions, request) == (*INVALID, ["page_token"])


def test_a_listing_is_the_same_as_reading_each_session(stub: SessionServiceStub, user: str) -> None:
    """Without tokens, and not as activity."""
    created = [create(stub, user, attributes={"device": name}) for name in ("phone", "tablet")]
    listed = page(stub, user)
    assert list(listed.sessions) == [get(stub, each.session.session_id) for each in reversed(created)]
    assert set(MessageToDict(listed)) == {"sessions"}
    assert not any(each.token in str(listed) for each in created)


def test_logging_out_everywhere(stub: SessionServiceStub, user: str) -> None:
    """All sessions of the user end, and no others; again, or for an unknown user, the count is zero."""
    mine = [create(stub, user) for _ in range(3)]
    other = create(stub, f"{user}-and-another")
    assert revoke_all(stub, user) == 3
    for each in mine:
        assert_gone(stub, each.session.session_id, each.token)
    assert revoke_all(stub, user) == 0
    assert revoke_all(stub, f"{user}-unknown") == 0
    assert validate(stub, other.token).valid


def test_logging_out_the_others(stub: SessionServiceStub, user: str) -> None:
    """The named session stays; the id of another user's session, or of none, keeps no session."""
    other = create(stub, f"{user}-and-another")
    for stays in (other.session.session_id, NOBODY):
        mine = [create(stub, user) for _ in range(3)]
        assert revoke_all(stub, user, except_session_id=mine[1].session.session_id) == 2
        assert [validate(stub, each.token).valid for each in mine] == [False, True, False]
        assert revoke_all(stub, user, except_session_id=stays) == 1
        assert not validate(stub, mine[1].token).valid
    assert validate(stub, other.token).valid


def test_the_session_to_keep_must_be_a_session_id(stub: SessionServiceStub, user: str) -> None:
    """Anything else, for example a token, is refused and logs nobody out."""
    created = create(stub, user)
    for stays in ("*", "é" * 22, created.token, created.session.session_id + " "):
        request = pb.RevokeUserSessionsRequest(user_id=user, except_session_id=stays)
        assert refused(stub.RevokeUserSessions, request) == (*INVALID, ["except_session_id"])
    assert validate(stub, created.token).valid
