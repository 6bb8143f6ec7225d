"""What validations send and how their answers are read: the same bytes and results as with the API's messages."""

from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from catraca import InvalidReason, Validation, errors
from catraca._coalesce import is_refused
from catraca._core import Call
from catraca._validations import Answer, alone, batch, cache_ttl_seconds, request, together, validation
from catraca.v1 import session_pb2, session_service_pb2 as pb

SESSION = session_pb2.Session(session_id="session-1", user_id="12345", attributes={"device": "phone"})
SESSION.expire_time.FromDatetime(datetime(2030, 1, 2, tzinfo=UTC))
NO_DATE = session_pb2.Session(session_id="session-2")
NO_DATE.expire_time.seconds = 1 << 60
VALID = pb.ValidateSessionResponse(valid=True, session=SESSION, cache_ttl=Duration(seconds=59, nanos=250_000_000))


def read(response: pb.ValidateSessionResponse | bytes) -> Answer:
    """Returns the answer in a response."""
    written = response if isinstance(response, bytes) else response.SerializeToString()
    return alone(request("token", user_id=None, skip_touch=False)).result(written)


@pytest.mark.parametrize("token", ["", "t", "t" * 40, "t" * 127, "t" * 128, "t" * 5_000, "é" * 64, "日本"])
@pytest.mark.parametrize("user_id", [None, "", "12345"])
@pytest.mark.parametrize("skip_touch", [False, True])
def test_a_request(token: str, user_id: str | None, skip_touch: bool) -> None:
    """It is what protobuf writes."""
    message = pb.ValidateSessionRequest(token=token, user_id=user_id or "", skip_touch=skip_touch)
    written = request(token, user_id=user_id, skip_touch=skip_touch)
    assert written == message.SerializeToString()
    assert (
        together([written] * 2).request == pb.BatchValidateSessionsRequest(requests=[message] * 2).SerializeToString()
    )


@pytest.mark.parametrize(("token", "user_id"), [("a\ud800", None), ("token", "b\udfff")])
def test_text_that_no_message_can_carry(token: str, user_id: str | None) -> None:
    """The error does not quote it."""
    with pytest.raises(errors.InvalidRequest, match=r"^a value is not valid Unicode text$"):
        request(token, user_id=user_id, skip_touch=False)


WRONG_TYPES: dict[str, dict[str, Any]] = {
    "a number as the user": {"user_id": 0},
    "a flag as the user": {"user_id": False},
    "a number": {"token": 5},
    "a bytearray": {"token": bytearray(b"token")},
    "a text as the flag": {"skip_touch": ""},
}


@pytest.mark.parametrize("wrong", WRONG_TYPES.values(), ids=WRONG_TYPES)
def test_arguments_of_a_wrong_type(wrong: dict[str, Any]) -> None:
    """None of them is taken for a validation without it."""
    with pytest.raises(TypeError):
        request(**{"token": "token", "user_id": None, "skip_touch": False, **wrong})


def test_bytes_are_taken_as_text() -> None:
    """As in any message; and such a validation can be decided about, too."""
    given: dict[str, Any] = {"token": b"token", "user_id": b"12345"}
    assert request(**given, skip_touch=False) == request("token", user_id="12345", skip_touch=False)
    assert is_refused(**given)


def test_a_valid_token() -> None:
    """The answer has the session."""
    validated = validation(read(VALID))
    assert validated
    assert validated.session is not None
    assert validated.session.session_id == "session-1"
    assert validated.session.attributes == {"device": "phone"}
    assert validated.session.expire_time == datetime(2030, 1, 2, tzinfo=UTC)
    assert not validated.token_rotated
    assert cache_ttl_seconds(read(VALID)) == 59.25


def test_a_session_that_has_not_changed() -> None:
    """It is read once, whatever else the answers say."""
    later = pb.ValidateSessionResponse(valid=True, session=SESSION, cache_ttl=Duration(seconds=1), token_rotated=True)
    rotated = validation(read(later))
    assert rotated.session is validation(read(VALID)).session
    assert rotated.token_rotated
    changed = session_pb2.Session(session_id="session-1", user_id="12345", attributes={"device": "laptop"})
    other = validation(read(pb.ValidateSessionResponse(valid=True, session=changed))).session
    assert other is not None
    assert other.attributes == {"device": "laptop"}


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (pb.ValidateSessionResponse(invalid_reason=pb.INVALID_REASON_NOT_FOUND), InvalidReason.NOT_FOUND),
        (pb.ValidateSessionResponse(invalid_reason=pb.INVALID_REASON_TOKEN_REUSED), InvalidReason.TOKEN_REUSED),
        (pb.ValidateSessionResponse(invalid_reason=99), InvalidReason.UNSPECIFIED),  # type: ignore[arg-type]  # of a later API
        (pb.ValidateSessionResponse(session=SESSION), InvalidReason.UNSPECIFIED),
        (pb.ValidateSessionResponse(valid=True), InvalidReason.UNSPECIFIED),
        (pb.ValidateSessionResponse(), InvalidReason.UNSPECIFIED),
        (b"", InvalidReason.UNSPECIFIED),
    ],
)
def test_what_is_not_clearly_valid(response: pb.ValidateSessionResponse | bytes, reason: InvalidReason) -> None:
    """It is not valid."""
    assert validation(read(response)) == Validation(session=None, reason=reason)


def test_a_response_with_more_than_this_client_knows() -> None:
    """What a later API adds is skipped."""
    more = b"\xa2\x06\x03new"  # field 100
    extended = SESSION.SerializeToString() + more
    assert validation(read(VALID.SerializeToString() + more)).session == validation(read(VALID)).session
    written = b"\x08\x01\x12" + bytes([len(extended)]) + extended
    assert validation(read(written)).session == validation(read(VALID)).session


BROKEN = b"\x0a\x05no"


@pytest.mark.parametrize(
    "response",
    [
        BROKEN,
        b"\x08\x01\x12" + bytes([len(BROKEN)]) + BROKEN,
        b"\x12" + bytes([len(BROKEN)]) + BROKEN,
        pb.ValidateSessionResponse(valid=True, session=NO_DATE).SerializeToString(),
    ],
    ids=["the response", "the session", "the session of an invalid token", "a time"],
)
def test_an_answer_that_cannot_be_read(response: bytes) -> None:
    """It raises UnexpectedAnswer, whose text has none of the answer's bytes."""
    with pytest.raises(
        errors.UnexpectedAnswer,
        match=r"^the answer to /catraca\.v1\.SessionService/ValidateSession cannot be read: \w+$",
    ):
        validation(read(response))


def test_a_cache_ttl_that_cannot_be_read() -> None:
    """A near cache does not keep such an answer."""
    with pytest.raises(errors.UnexpectedAnswer):
        cache_ttl_seconds(read(b"\x08\x01\x22" + bytes([len(BROKEN)]) + BROKEN))


def test_answers_together() -> None:
    """Each as if it had come alone, in order."""
    responses = [VALID, pb.ValidateSessionResponse(invalid_reason=pb.INVALID_REASON_MALFORMED)]
    written = pb.BatchValidateSessionsResponse(responses=responses).SerializeToString()
    answers = together([b"", b""]).result(written)
    validations = [validation(answer) for answer in answers]
    assert validations == [validation(read(each)) for each in responses]
    assert batch(["a", "b"], skip_touch=False).result(written) == validations


@pytest.mark.parametrize("call", [together([b""]), batch(["a"], skip_touch=True)], ids=["shared", "one caller's"])
@pytest.mark.parametrize("count", [0, 2])
def test_another_number_of_answers(call: Call[object], count: int) -> None:
    """Nobody gets another's answer."""
    with pytest.raises(errors.UnexpectedAnswer):
        call.result(pb.BatchValidateSessionsResponse(responses=[VALID] * count).SerializeToString())
