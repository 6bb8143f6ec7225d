"""The statuses and the limits that the API documents, over the wire with the generated stubs."""

from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from tests.support.valkey import Valkey
from tests.support.wire import (
    INVALID,
    LIMIT_BYTES,
    NOBODY,
    NOT_FOUND,
    TIMEOUT_SECONDS,
    change,
    create,
    refused,
    seconds,
    serving_stub,
    validate,
)

from catraca.v1 import session_service_pb2 as pb
from catraca.v1.session_service_pb2_grpc import SessionServiceStub
from catraca_server.domain.limits import BATCH_MAX_REQUESTS

DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, ["user_id"]),
        ({"user_id": "x" * (LIMIT_BYTES + 1)}, ["user_id"]),
        ({"user_id": "é" * (LIMIT_BYTES // 2 + 1)}, ["user_id"]),
        ({"user_id": "with\nnewline"}, ["user_id"]),
        ({"user_id": "with\x85C1 control"}, ["user_id"]),
        ({"user_id": "u", "ttl": Duration()}, ["ttl"]),
        ({"user_id": "u", "ttl": seconds(-1)}, ["ttl"]),
        ({"user_id": "u", "ttl": seconds(30 * 86400 + 1)}, ["ttl"]),
        ({"user_id": "u", "ttl": Duration(seconds=2**62)}, ["ttl"]),
        ({"user_id": "u", "ttl": Duration(seconds=1, nanos=-1)}, ["ttl"]),
        ({"user_id": "u", "ttl": Duration(nanos=2_000_000_000)}, ["ttl"]),
        ({"user_id": "u", "idle_timeout": seconds(-1)}, ["idle_timeout"]),
        ({"user_id": "u", "idle_timeout": Duration(nanos=-1)}, ["idle_timeout"]),
        ({"user_id": "u", "idle_timeout": seconds(30 * 86400 + 1)}, ["idle_timeout"]),
        ({"user_id": "u", "attributes": {str(at): "" for at in range(65)}}, ["attributes"]),
        ({"user_id": "u", "attributes": {"k" * 129: ""}}, ["attributes"]),
        ({"user_id": "u", "attributes": {"": "v"}}, ["attributes"]),
        ({"user_id": "u", "attributes": {"k": "v" * 4097}}, ["attributes"]),
        ({"user_id": "u", "attributes": {f"{at:04}": "v" * 4093 for at in range(4)}}, ["attributes"]),
        ({"user_id": "u", "token": "fifteen-charact"}, ["token"]),
        ({"user_id": "u", "token": "x" * 4097}, ["token"]),
        ({"user_id": "u", "token": "not printable:\x7f is not"}, ["token"]),
        ({"user_id": "u", "token": "ctr_" + "x" * 71}, ["token"]),
        ({"token": "short", "ttl": Duration()}, ["user_id", "ttl", "token"]),
    ],
)
def test_what_cannot_be_created(stub: SessionServiceStub, fields: dict[str, Any], named: list[str]) -> None:
    """INVALID_ARGUMENT, which names every field that breaks a rule."""
    assert refused(stub.CreateSession, pb.CreateSessionRequest(**fields)) == (*INVALID, named)


@pytest.mark.parametrize(
    "fields",
    [
        {"user_id": "x" * LIMIT_BYTES},
        {"user_id": "usuário \u202e right-to-left is no control character"},
        {"user_id": "u", "ttl": Duration(nanos=1)},
        {"user_id": "u", "ttl": seconds(30 * 86400), "idle_timeout": seconds(30 * 86400)},
        {"user_id": "u", "attributes": {str(at): "" for at in range(64)}},
        {"user_id": "u", "attributes": {f"{at:04}": "v" * 4092 for at in range(4)}},
        {"user_id": "u", "attributes": {"k" * 128: "v" * 4096}},
    ],
)
def test_what_is_exactly_at_the_limits(stub: SessionServiceStub, fields: dict[str, Any]) -> None:
    """The limits themselves are allowed."""
    created = stub.CreateSession(pb.CreateSessionRequest(**fields), timeout=TIMEOUT_SECONDS)
    assert dict(created.session.attributes) == fields.get("attributes", {})


@pytest.mark.parametrize("length", [16, 4096])
def test_the_shortest_and_the_longest_brought_token(stub: SessionServiceStub, length: int) -> None:
    """16 and 4096 characters are allowed, and validate."""
    token = f"{length:05}".ljust(length, "x")
    stub.CreateSession(pb.CreateSessionRequest(user_id="u", token=token), timeout=TIMEOUT_SECONDS)
    assert stub.ValidateSession(pb.ValidateSessionRequest(token=token), timeout=TIMEOUT_SECONDS).valid
    assert stub.RevokeSession(pb.RevokeSessionRequest(token=token), timeout=TIMEOUT_SECONDS).revoked


def test_a_duration_is_never_rounded_to_zero(stub: SessionServiceStub) -> None:
    """A nanosecond counts as a millisecond."""
    created = stub.CreateSession(pb.CreateSessionRequest(user_id="u", ttl=Duration(nanos=1)), timeout=TIMEOUT_SECONDS)
    times = created.session
    assert times.absolute_expire_time.ToMilliseconds() - times.create_time.ToMilliseconds() == 1


def test_a_brought_token_in_use(stub: SessionServiceStub) -> None:
    """ALREADY_EXISTS; the session that has it stays as it is."""
    request = pb.CreateSessionRequest(user_id="first", token="a-token-brought-twice")
    stub.CreateSession(request, timeout=TIMEOUT_SECONDS)
    request.user_id = "second"
    assert refused(stub.CreateSession, request) == (grpc.StatusCode.ALREADY_EXISTS, "TOKEN_IN_USE", [])
    response = stub.ValidateSession(pb.ValidateSessionRequest(token=request.token), timeout=TIMEOUT_SECONDS)
    assert response.session.user_id == "first"
    stub.RevokeSession(pb.RevokeSessionRequest(token=request.token), timeout=TIMEOUT_SECONDS)


def test_an_invalid_token_is_not_an_error(stub: SessionServiceStub) -> None:
    """Unknown, revoked and malformed tokens: OK, valid false, and the reason, in the API's JSON."""
    created = stub.CreateSession(pb.CreateSessionRequest(user_id="u"), timeout=TIMEOUT_SECONDS)
    stub.RevokeSession(pb.RevokeSessionRequest(token=created.token), timeout=TIMEOUT_SECONDS)
    for token, reason in (
        (created.token, "INVALID_REASON_NOT_FOUND"),
        ("never-seen-before-token", "INVALID_REASON_NOT_FOUND"),
        (created.token[:-1], "INVALID_REASON_MALFORMED"),
        ("é" * 20, "INVALID_REASON_MALFORMED"),
    ):
        response = stub.ValidateSession(pb.ValidateSessionRequest(token=token), timeout=TIMEOUT_SECONDS)
        assert MessageToDict(response) == {"invalidReason": reason}


def test_a_valid_token(stub: SessionServiceStub) -> None:
    """The response has the session without its token, and for how long a near cache may reuse it."""
    created = stub.CreateSession(
        pb.CreateSessionRequest(user_id="12345", ttl=seconds(600), attributes={"device": "phone"}),
        timeout=TIMEOUT_SECONDS,
    )
    response = stub.ValidateSession(
        pb.ValidateSessionRequest(token=created.token, user_id="12345"), timeout=TIMEOUT_SECONDS
    )
    assert response.valid
    assert response.session == created.session
    assert created.token not in str(response)
    assert 0 < response.cache_ttl.ToMilliseconds() <= 60_000
    assert set(MessageToDict(response)) == {"valid", "session", "cacheTtl"}
    assert set(MessageToDict(response)["session"]) == {
        "sessionId",
        "userId",
        "attributes",
        "createTime",
        "lastActiveTime",
        "expireTime",
        "absoluteExpireTime",
        "idleTimeout",
        "etag",
    }


def test_validations_that_are_refused(stub: SessionServiceStub) -> None:
    """A missing token, and a user id that breaks the rules."""
    assert refused(stub.ValidateSession, pb.ValidateSessionRequest()) == (*INVALID, ["token"])
    too_long = pb.ValidateSessionRequest(token="x" * 16, user_id="u" * (LIMIT_BYTES + 1))
    assert refused(stub.ValidateSession, too_long) == (*INVALID, ["user_id"])


def test_a_batch_names_the_request_of_each_field(stub: SessionServiceStub) -> None:
    """The path of a field says which request it is in; an empty batch and one that is too large are refused."""
    good = pb.ValidateSessionRequest(token="some-unknown-token")
    bad = pb.ValidateSessionRequest(user_id="u" * (LIMIT_BYTES + 1))
    batch = pb.BatchValidateSessionsRequest(requests=[good, good, good, bad])
    named = ["requests[3].token", "requests[3].user_id"]
    assert refused(stub.BatchValidateSessions, batch) == (*INVALID, named)
    for size in (0, BATCH_MAX_REQUESTS + 1):
        batch = pb.BatchValidateSessionsRequest(requests=[good] * size)
        assert refused(stub.BatchValidateSessions, batch) == (*INVALID, ["requests"])


def test_a_batch_with_1000_violations_still_gets_its_status(stub: SessionServiceStub) -> None:
    """They do not fit into trailers: the first are named, and the status arrives."""
    batch = pb.BatchValidateSessionsRequest(requests=[pb.ValidateSessionRequest()] * BATCH_MAX_REQUESTS)
    code, reason, fields = refused(stub.BatchValidateSessions, batch)
    assert (code, reason) == INVALID
    assert fields[:2] == ["requests[0].token", "requests[1].token"]


def test_the_largest_batch(stub: SessionServiceStub) -> None:
    """1,000 of the longest tokens with the longest user ids is over 4 MiB and within the limits."""
    each = pb.ValidateSessionRequest(token="x" * 4096, user_id="u" * LIMIT_BYTES)
    batch = pb.BatchValidateSessionsRequest(requests=[each] * BATCH_MAX_REQUESTS)
    assert batch.ByteSize() > 4 << 20
    response = stub.BatchValidateSessions(batch, timeout=TIMEOUT_SECONDS)
    assert {each.invalid_reason for each in response.responses} == {pb.INVALID_REASON_NOT_FOUND}
    assert len(response.responses) == BATCH_MAX_REQUESTS


def test_the_largest_response(stub: SessionServiceStub) -> None:
    """1,000 sessions with the most attributes they may have come back whole."""
    attributes = {f"{at:04}": "v" * 4092 for at in range(4)}
    created = stub.CreateSession(pb.CreateSessionRequest(user_id="u", attributes=attributes), timeout=TIMEOUT_SECONDS)
    each = pb.ValidateSessionRequest(token=created.token)
    batch = pb.BatchValidateSessionsRequest(requests=[each] * BATCH_MAX_REQUESTS)
    response = stub.BatchValidateSessions(batch, timeout=TIMEOUT_SECONDS)
    assert response.ByteSize() > 16_000_000
    assert all(each.valid for each in response.responses)


def test_reading_by_id(stub: SessionServiceStub) -> None:
    """The session, or NOT_FOUND for any text that is not the id of a live session."""
    created = stub.CreateSession(pb.CreateSessionRequest(user_id="u"), timeout=TIMEOUT_SECONDS)
    request = pb.GetSessionRequest(session_id=created.session.session_id)
    assert stub.GetSession(request, timeout=TIMEOUT_SECONDS).session == created.session
    assert refused(stub.GetSession, pb.GetSessionRequest()) == (*INVALID, ["session_id"])
    for session_id in ("0" * 22, "../../etc/passwd", "*", "é" * 22, created.token):
        outcome = refused(stub.GetSession, pb.GetSessionRequest(session_id=session_id))
        assert outcome == (grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND", [])


def test_revoking(stub: SessionServiceStub) -> None:
    """By token and by id; for what has ended or never existed the status is OK, and `revoked` is false."""
    for target in ("token", "session_id"):
        created = stub.CreateSession(pb.CreateSessionRequest(user_id="u"), timeout=TIMEOUT_SECONDS)
        name = created.token if target == "token" else created.session.session_id
        request = pb.RevokeSessionRequest(**{target: name})
        assert stub.RevokeSession(request, timeout=TIMEOUT_SECONDS).revoked
        assert not stub.RevokeSession(request, timeout=TIMEOUT_SECONDS).revoked
        assert not stub.ValidateSession(pb.ValidateSessionRequest(token=created.token), timeout=TIMEOUT_SECONDS).valid
        assert refused(
            stub.RevokeSession,
            pb.RevokeSessionRequest(**{target: ""}),
        ) == (*INVALID, [target])
    assert refused(stub.RevokeSession, pb.RevokeSessionRequest()) == (*INVALID, ["target"])
    for unknown in ("*", "é" * 22, "session:x"):
        assert not stub.RevokeSession(pb.RevokeSessionRequest(session_id=unknown), timeout=TIMEOUT_SECONDS).revoked
        assert not stub.RevokeSession(pb.RevokeSessionRequest(token=unknown), timeout=TIMEOUT_SECONDS).revoked


def test_neither_a_probe_nor_the_wrong_user_is_activity(stub: SessionServiceStub) -> None:
    """`skip_touch` and a user mismatch leave the idle deadline where it is; a validation moves it."""
    # A touch interval of 3 s, which a slow machine can still observe: polled until activity is recorded.
    created = stub.CreateSession(
        pb.CreateSessionRequest(user_id="u", idle_timeout=seconds(60)), timeout=TIMEOUT_SECONDS
    )
    first = created.session.last_active_time.ToMilliseconds()

    def active(**fields: Any) -> int:
        response = stub.ValidateSession(
            pb.ValidateSessionRequest(token=created.token, **fields), timeout=TIMEOUT_SECONDS
        )
        return response.session.last_active_time.ToMilliseconds() if response.valid else first

    moved = 0
    while not moved:
        assert active(skip_touch=True) == first
        assert active(user_id="another") == first
        seen = active()
        moved = seen if seen != first else 0
    assert moved - first >= 3000, "activity within the touch interval is not recorded"
    assert active(skip_touch=True) == moved


def test_a_method_that_does_not_exist(target: str) -> None:
    """UNIMPLEMENTED, from the engine."""
    with grpc.insecure_channel(target) as channel:
        call: Any = channel.unary_unary("/catraca.v1.SessionService/Nothing")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=TIMEOUT_SECONDS)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def test_sessions_that_do_not_exist(stub: SessionServiceStub, user: str) -> None:
    """NOT_FOUND to read, update and rotate what was revoked, never existed, or cannot exist."""
    created = create(stub, user)
    stub.RevokeSession(pb.RevokeSessionRequest(token=created.token), timeout=TIMEOUT_SECONDS)
    for session_id in (created.session.session_id, NOBODY, "*", "é" * 22, "x" * 10_000, created.token):
        assert refused(stub.GetSession, pb.GetSessionRequest(session_id=session_id)) == NOT_FOUND
        request = change(session_id, "attributes", attributes={"k": "v"}, etag="x")
        assert refused(stub.UpdateSession, request) == NOT_FOUND
    other = create(stub, user)
    wrong_secret = created.token[:4] + other.token[4:26] + created.token[26:]
    for token in (created.token, wrong_secret, other.token[:-1], other.session.session_id, "never-seen-before", "é"):
        assert refused(stub.RotateSession, pb.RotateSessionRequest(token=token)) == NOT_FOUND
    assert validate(stub, other.token).valid


def test_without_the_store_every_call_is_unavailable(own_valkey: Valkey) -> None:
    """Except those that break a rule, which are INVALID_ARGUMENT as always."""
    with serving_stub(own_valkey) as stub:
        created = create(stub, "u")
        session_id = created.session.session_id
        own_valkey.kill()
        for method, request in (
            (stub.CreateSession, pb.CreateSessionRequest(user_id="u")),
            (stub.ListSessions, pb.ListSessionsRequest(user_id="u")),
            (stub.UpdateSession, change(session_id, "attributes")),
            (stub.RotateSession, pb.RotateSessionRequest(token=created.token)),
            (stub.RevokeUserSessions, pb.RevokeUserSessionsRequest(user_id="u")),
        ):
            assert refused(method, request) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", [])
        assert refused(stub.UpdateSession, change(session_id)) == (*INVALID, ["update_mask"])
        assert refused(stub.ListSessions, pb.ListSessionsRequest(page_size=-1)) == (*INVALID, ["user_id"])
