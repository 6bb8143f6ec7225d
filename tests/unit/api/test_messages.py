"""Responses put together from parts are what protobuf would have written."""

from hypothesis import given, strategies as st

from catraca.v1 import session_service_pb2 as pb
from catraca_server.api.messages import batch_response, validation_response, write_session
from catraca_server.domain.limits import LAST_MOMENT_MS
from catraca_server.domain.session import TOUCH_INTERVAL_MAX_MS, Session, StoredSession
from catraca_server.domain.validation import MALFORMED, InvalidReason, Validation

moments = st.integers(0, LAST_MOMENT_MS)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@st.composite
def stored_sessions(draw: st.DrawFn) -> StoredSession:
    """Any session, alive or not."""
    session = Session(
        session_id=draw(texts),
        user_id=draw(texts | st.just("u" * 2_000)),
        digest="d" * 43,
        attributes=draw(st.dictionaries(texts, texts, max_size=1)),
        create_time_ms=draw(moments),
        absolute_expire_time_ms=draw(moments),
        idle_timeout_ms=draw(st.just(0) | st.integers(0, LAST_MOMENT_MS)),
        version=draw(st.integers(1, LAST_MOMENT_MS)),
    )
    return StoredSession(session, draw(st.integers(0, session.absolute_expire_time_ms)), b"")


@st.composite
def validations(draw: st.DrawFn) -> Validation:
    """Any validation."""
    if draw(st.booleans()):
        return Validation(None, draw(st.sampled_from(InvalidReason)))
    interval = TOUCH_INTERVAL_MAX_MS
    edges = st.sampled_from([0, 1, 999, 1000, 1001, interval, interval + 999, interval + 1000])
    cache_ttl_ms = draw(edges | st.integers(0, interval) | moments)
    return Validation(draw(stored_sessions()), None, cache_ttl_ms, token_rotated=draw(st.booleans()))


def written_by_protobuf(validation: Validation) -> pb.ValidateSessionResponse:
    """Returns the response as a message."""
    if validation.stored is None:
        assert validation.reason is not None
        name = f"INVALID_REASON_{validation.reason.name}"
        return pb.ValidateSessionResponse(invalid_reason=pb.InvalidReason.Value(name))
    response = pb.ValidateSessionResponse(valid=True, token_rotated=validation.token_rotated)
    write_session(validation.stored, response.session)
    response.cache_ttl.FromMilliseconds(validation.cache_ttl_ms)
    response.cache_ttl.SetInParent()
    return response


@given(validations())
def test_a_response_is_what_protobuf_writes(validation: Validation) -> None:
    """Byte for byte, the first time that a session is told of and the next time."""
    expected = written_by_protobuf(validation).SerializeToString()
    assert validation_response(validation) == expected
    assert validation_response(validation) == expected


@given(st.lists(validations(), max_size=5))
def test_a_batch_is_what_protobuf_writes(several: list[Validation]) -> None:
    """Byte for byte, however large the responses in it are."""
    expected = pb.BatchValidateSessionsResponse(responses=map(written_by_protobuf, several))
    assert batch_response([*map(validation_response, several)]) == expected.SerializeToString()


def test_all_attributes_are_told() -> None:
    """Several attributes come in any order, so it is the message that has to be the same."""
    session = Session(
        session_id="id",
        user_id="ana",
        digest="",
        attributes={f"key {number}": f"value {number}" for number in range(64)},
        create_time_ms=1,
        absolute_expire_time_ms=9,
        idle_timeout_ms=0,
    )
    validation = Validation(StoredSession(session, 9, b""), None, 7)
    assert pb.ValidateSessionResponse.FromString(validation_response(validation)) == written_by_protobuf(validation)


def test_what_is_told_belongs_to_one_expiry() -> None:
    """A touched session is told of anew: with another activity and another end."""
    session = Session(
        session_id="id",
        user_id="ana",
        digest="",
        attributes={},
        create_time_ms=0,
        absolute_expire_time_ms=86_400_000,
        idle_timeout_ms=60_000,
    )
    stored = StoredSession(session, 60_000, b"")
    before = validation_response(Validation(stored))
    touched = Validation(stored.touched(30_000))
    assert validation_response(touched) != before
    assert pb.ValidateSessionResponse.FromString(validation_response(touched)) == written_by_protobuf(touched)


def test_a_malformed_token_is_told() -> None:
    """It has a reason and no session."""
    response = pb.ValidateSessionResponse.FromString(validation_response(MALFORMED))
    assert (response.valid, response.invalid_reason) == (False, pb.INVALID_REASON_MALFORMED)
    assert not response.HasField("session")
