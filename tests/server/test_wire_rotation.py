"""Rotating a token over the wire, and presenting one that was rotated."""

from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from tests.support.wire import INVALID, TIMEOUT_SECONDS, TOKEN_REUSED, assert_gone, create, refused, rotate, validate

from catraca.v1 import session_service_pb2 as pb
from catraca.v1.session_service_pb2_grpc import SessionServiceStub


def test_a_rotation_without_a_token(stub: SessionServiceStub) -> None:
    """It is refused, and the field is named."""
    assert refused(stub.RotateSession, pb.RotateSessionRequest()) == (*INVALID, ["token"])


def test_a_rotated_token(stub: SessionServiceStub, user: str) -> None:
    """The session gets another token; the old one is valid, marked as rotated, and yields the new one again."""
    created = create(stub, user, attributes={"device": "phone"})
    rotation = rotate(stub, created.token)
    assert set(MessageToDict(rotation)) == {"token", "session"}
    assert rotation.token != created.token
    changed = {each.name for each, _ in rotation.session.ListFields()}
    assert changed == {each.name for each, _ in created.session.ListFields()}
    assert rotation.session.etag != created.session.etag
    rotation.session.etag = created.session.etag
    assert rotation.session == created.session
    assert rotate(stub, created.token).token == rotation.token
    old, new = validate(stub, created.token), validate(stub, rotation.token)
    assert old.session == new.session
    assert (old.valid, old.token_rotated, old.cache_ttl.ToMilliseconds()) == (True, True, 0)
    assert (new.valid, new.token_rotated) == (True, False)
    assert new.cache_ttl.ToMilliseconds() > 0


def test_a_brought_token_is_rotated(stub: SessionServiceStub, user: str) -> None:
    """Its session gets a minted one, and the brought one stays in use."""
    token = f"a-token-brought-by-{user}"
    created = create(stub, user, token=token)
    rotation = rotate(stub, token)
    assert rotation.token.startswith("ctr_")
    assert rotation.session.session_id == created.session.session_id
    request = pb.CreateSessionRequest(user_id=user, token=token)
    assert refused(stub.CreateSession, request) == (grpc.StatusCode.ALREADY_EXISTS, "TOKEN_IN_USE", [])


def test_a_token_past_its_grace_is_rotated(without_grace: SessionServiceStub, user: str) -> None:
    """FAILED_PRECONDITION, and the session is gone, also for the new token."""
    created = create(without_grace, user)
    rotation = rotate(without_grace, created.token)
    assert validate(without_grace, rotation.token).valid
    request = pb.RotateSessionRequest(token=created.token)
    assert refused(without_grace.RotateSession, request) == TOKEN_REUSED
    assert_gone(without_grace, created.session.session_id, created.token, rotation.token)


@pytest.mark.parametrize("fields", [{}, {"skip_touch": True}, {"user_id": "another"}], ids=str)
def test_a_token_past_its_grace_is_validated(
    without_grace: SessionServiceStub, user: str, fields: dict[str, Any]
) -> None:
    """It is not valid, with a reason of its own, and the session is gone, also after a probe."""
    created = create(without_grace, user)
    rotation = rotate(without_grace, created.token)
    request = pb.ValidateSessionRequest(token=created.token, **fields)
    response = without_grace.ValidateSession(request, timeout=TIMEOUT_SECONDS)
    assert MessageToDict(response) == {"invalidReason": "INVALID_REASON_TOKEN_REUSED"}
    assert_gone(without_grace, created.session.session_id, created.token, rotation.token)


def test_a_token_past_its_grace_in_a_batch(without_grace: SessionServiceStub, user: str) -> None:
    """Only its own session ends."""
    reused, kept = create(without_grace, user), create(without_grace, user)
    rotate(without_grace, reused.token)
    each = [pb.ValidateSessionRequest(token=token) for token in (kept.token, reused.token, kept.token)]
    batch = pb.BatchValidateSessionsRequest(requests=each)
    responses = without_grace.BatchValidateSessions(batch, timeout=TIMEOUT_SECONDS).responses
    assert [response.valid for response in responses] == [True, False, True]
    assert responses[1].invalid_reason == pb.INVALID_REASON_TOKEN_REUSED
    assert_gone(without_grace, reused.session.session_id, reused.token)


def test_a_grace_that_was_shortened(stub: SessionServiceStub, without_grace: SessionServiceStub, user: str) -> None:
    """A token within its grace may be followed by one that is past its shorter grace: that is not a defect."""
    created = create(stub, user)
    second = rotate(stub, created.token).token
    third = rotate(without_grace, second).token
    assert validate(stub, third).valid
    assert validate(stub, created.token).token_rotated
    code = None
    try:
        assert rotate(stub, created.token).token == third
    except grpc.RpcError as error:
        refusal: Any = error
        code = refusal.code()
    assert code is not grpc.StatusCode.INTERNAL
