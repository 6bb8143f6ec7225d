"""The rows of the table "Answers" for all that happens to a session between its login and its end, through the wire."""

import contextlib
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status
from tests.server.test_wire import INVALID, LIMIT_BYTES, TIMEOUT, refused, seconds
from tests.support.curl import CURLS, Curl, Grpcurl
from tests.support.service import ServeProcess
from tests.support.valkey import Valkey

from catraca.v1 import session_pb2, session_service_pb2 as pb
from catraca.v1.session_service_pb2_grpc import SessionServiceStub

Refusal = tuple[grpc.StatusCode, str, list[str]]
NOT_FOUND: Refusal = (grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND", [])
TOKEN_REUSED: Refusal = (grpc.StatusCode.FAILED_PRECONDITION, "TOKEN_REUSED", [])
LIMIT_REACHED: Refusal = (grpc.StatusCode.RESOURCE_EXHAUSTED, "SESSION_LIMIT_REACHED", [])
ETAG_MISMATCH: Refusal = (grpc.StatusCode.ABORTED, "ETAG_MISMATCH", [])
MAX_TTL = 30 * 86_400
NOBODY = "0" * 22
"""An id that no session has."""

PAGE_TOKEN_OF_NOBODY = "A" * 24


@contextlib.contextmanager
def stub_of(target: str) -> Iterator[SessionServiceStub]:
    """Connects to a service; an error is told and not retried."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.enable_retries", 0)]
    with grpc.insecure_channel(target, options) as channel:
        yield SessionServiceStub(channel)


@contextlib.contextmanager
def service(valkey: Valkey, **variables: str) -> Iterator[SessionServiceStub]:
    """Runs a service of its own with these variables set."""
    process = ServeProcess(variables, store_url=valkey.url, store_timeout="5s")
    with process, stub_of(process.target) as stub:
        yield stub


@pytest.fixture(scope="module")
def stub(target: str) -> Iterator[SessionServiceStub]:
    """The service with the settings that it has by default."""
    with stub_of(target) as made:
        yield made


@pytest.fixture(scope="module")
def without_grace(valkey: Valkey) -> Iterator[SessionServiceStub]:
    """A service on the same store whose rotated-out tokens are past their grace at once."""
    with service(valkey, CATRACA_ROTATION_GRACE="0s") as made:
        yield made


@pytest.fixture
def user() -> str:
    """A user whom no other test knows."""
    return f"user-{secrets.token_hex(8)}"


def create(stub: SessionServiceStub, user: str, **fields: Any) -> pb.CreateSessionResponse:
    """Logs in."""
    return stub.CreateSession(pb.CreateSessionRequest(user_id=user, **fields), timeout=TIMEOUT)


def validate(stub: SessionServiceStub, token: str) -> pb.ValidateSessionResponse:
    """Validates a token."""
    return stub.ValidateSession(pb.ValidateSessionRequest(token=token), timeout=TIMEOUT)


def get(stub: SessionServiceStub, session_id: str) -> session_pb2.Session:
    """Reads a session."""
    return stub.GetSession(pb.GetSessionRequest(session_id=session_id), timeout=TIMEOUT).session


def rotate(stub: SessionServiceStub, token: str) -> pb.RotateSessionResponse:
    """Rotates a token."""
    return stub.RotateSession(pb.RotateSessionRequest(token=token), timeout=TIMEOUT)


def change(session_id: str, *paths: str, **fields: Any) -> pb.UpdateSessionRequest:
    """Returns a request to write these fields of a session, as far as the paths name them."""
    request = pb.UpdateSessionRequest(session=session_pb2.Session(session_id=session_id, **fields))
    request.update_mask.paths.extend(paths)
    return request


def update(stub: SessionServiceStub, session_id: str, *paths: str, **fields: Any) -> session_pb2.Session:
    """Updates a session."""
    return stub.UpdateSession(change(session_id, *paths, **fields), timeout=TIMEOUT).session


def page(stub: SessionServiceStub, user: str, **fields: Any) -> pb.ListSessionsResponse:
    """Reads a page of a user's sessions."""
    return stub.ListSessions(pb.ListSessionsRequest(user_id=user, **fields), timeout=TIMEOUT)


def revoke_all(stub: SessionServiceStub, user: str, **fields: Any) -> int:
    """Ends a user's sessions."""
    return stub.RevokeUserSessions(pb.RevokeUserSessionsRequest(user_id=user, **fields), timeout=TIMEOUT).revoked_count


def in_seconds(number: float) -> Timestamp:
    """Returns a time."""
    moment = Timestamp()
    moment.FromMilliseconds(int((time.time() + number) * 1000))
    return moment


# Requests that are none

NOT_A_USER: list[dict[str, Any]] = [
    {},
    {"user_id": "u" * (LIMIT_BYTES + 1)},
    {"user_id": "é" * (LIMIT_BYTES // 2 + 1)},
    {"user_id": "with\nnewline"},
]


@pytest.mark.parametrize("fields", NOT_A_USER, ids=["missing", "long", "long in bytes", "control character"])
def test_whose_sessions(stub: SessionServiceStub, fields: dict[str, Any]) -> None:
    """A user id that is missing, or that nobody could have."""
    assert refused(stub.ListSessions, pb.ListSessionsRequest(**fields)) == (*INVALID, ["user_id"])
    assert refused(stub.RevokeUserSessions, pb.RevokeUserSessionsRequest(**fields)) == (*INVALID, ["user_id"])


@pytest.mark.parametrize("size", [-1, -(2**31)])
def test_a_page_of_less_than_nothing(stub: SessionServiceStub, size: int) -> None:
    """A negative page size."""
    assert refused(stub.ListSessions, pb.ListSessionsRequest(user_id="u", page_size=size)) == (*INVALID, ["page_size"])


@pytest.mark.parametrize(
    "token", ["x", "!!!!", "é", "=" * 24, PAGE_TOKEN_OF_NOBODY, "A" * 10_000, "null", "0", "\0" * 24, " "]
)
def test_a_page_token_that_is_none(stub: SessionServiceStub, token: str) -> None:
    """Garbage for a page token."""
    request = pb.ListSessionsRequest(user_id="u", page_token=token)
    assert refused(stub.ListSessions, request) == (*INVALID, ["page_token"])


def test_a_token_to_rotate_is_missing(stub: SessionServiceStub) -> None:
    """Nothing to rotate."""
    assert refused(stub.RotateSession, pb.RotateSessionRequest()) == (*INVALID, ["token"])


def test_which_session_to_update_is_missing(stub: SessionServiceStub) -> None:
    """No session, or one without an id."""
    assert refused(stub.UpdateSession, pb.UpdateSessionRequest()) == (*INVALID, ["session.session_id"])
    assert refused(stub.UpdateSession, change("", "attributes")) == (*INVALID, ["session.session_id"])


@pytest.mark.parametrize(
    "path",
    [
        "",
        "*",
        ".",
        "session_id",
        "user_id",
        "etag",
        "create_time",
        "token",
        "session.attributes",
        "Attributes",
        "attribute",
        "attributes_",
        " attributes",
        "absolute_expire_time.seconds",
        "absoluteExpireTime",
        "idle_timeout.",
        "idle_timeout.seconds",
        "attributes.",
    ],
)
def test_a_path_that_cannot_be_updated(stub: SessionServiceStub, user: str, path: str) -> None:
    """A mask that names anything else is refused as a whole, whatever else is in it."""
    session = create(stub, user).session
    for paths in ([path], ["attributes", path], [path, "idle_timeout"]):
        answer = refused(stub.UpdateSession, change(session.session_id, *paths, attributes={"k": "v"}))
        assert answer == (*INVALID, ["update_mask"])
    assert get(stub, session.session_id) == session


def test_a_mask_is_missing(stub: SessionServiceStub, user: str) -> None:
    """Nothing to write."""
    session = create(stub, user).session
    assert refused(stub.UpdateSession, change(session.session_id, attributes={"k": "v"})) == (*INVALID, ["update_mask"])


END, IDLE, ATTRIBUTES = "absolute_expire_time", "idle_timeout", "attributes"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (END, None),
        (END, Timestamp()),
        (END, Timestamp(seconds=-1)),
        (END, Timestamp(seconds=-(2**62))),
        (END, Timestamp(seconds=2**62)),
        (END, in_seconds(-3600)),
        (END, in_seconds(MAX_TTL + 3600)),
        (END, Timestamp(seconds=in_seconds(3600).seconds, nanos=-1)),
        (END, Timestamp(seconds=in_seconds(3600).seconds, nanos=1_000_000_000)),
        (IDLE, seconds(-1)),
        (IDLE, Duration(nanos=-1)),
        (IDLE, Duration(seconds=1, nanos=-1)),
        (IDLE, Duration(seconds=-1, nanos=1)),
        (IDLE, Duration(nanos=1_000_000_000)),
        (IDLE, Duration(seconds=2**62)),
        (IDLE, Duration(seconds=-(2**62))),
        (IDLE, Duration(seconds=MAX_TTL, nanos=1)),
        (ATTRIBUTES, {"": "v"}),
        (ATTRIBUTES, {"k" * 129: "v"}),
        (ATTRIBUTES, {"é" * 65: "v"}),
        (ATTRIBUTES, {"k": "v" * 4097}),
        (ATTRIBUTES, {"k": "é" * 2049}),
        (ATTRIBUTES, {str(at): "" for at in range(65)}),
        (ATTRIBUTES, {f"{at:04}": "v" * 4093 for at in range(4)}),
    ],
    ids=lambda each: str(each).strip().replace("\n", " ")[:40],
)
def test_what_cannot_be_written(stub: SessionServiceStub, user: str, path: str, value: Any) -> None:
    """A value that breaks a rule is named, and the session stays as it was."""
    session = create(stub, user, attributes={"device": "phone"}).session
    fields = {} if value is None else {path: value}
    assert refused(stub.UpdateSession, change(session.session_id, path, **fields)) == (*INVALID, [f"session.{path}"])
    assert get(stub, session.session_id) == session


def test_all_that_is_wrong_is_named(stub: SessionServiceStub, user: str) -> None:
    """Several values that break rules are told at once."""
    session = create(stub, user).session
    wrong = change(
        session.session_id,
        *(ATTRIBUTES, END, IDLE),
        attributes={"": ""},
        absolute_expire_time=in_seconds(-1),
        idle_timeout=seconds(-1),
    )
    code, reason, fields = refused(stub.UpdateSession, wrong)
    assert (code, reason, sorted(fields)) == (*INVALID, [f"session.{path}" for path in (END, ATTRIBUTES, IDLE)])


def test_limits_hold_for_what_comes_of_it(stub: SessionServiceStub, user: str) -> None:
    """Attributes that are good by themselves are refused where they are too many or too long with those there are."""
    many = create(stub, user, attributes={str(at): "" for at in range(64)}).session.session_id
    one_more = change(many, "attributes.more", attributes={"more": ""})
    assert refused(stub.UpdateSession, one_more) == (*INVALID, ["session.attributes"])
    assert len(update(stub, many, "attributes.more", "attributes.0", attributes={"more": ""}).attributes) == 64
    long = create(stub, user, attributes={f"{at:04}": "v" * 4092 for at in range(4)}).session.session_id
    longer = change(long, "attributes.k", attributes={"k": ""})
    assert refused(stub.UpdateSession, longer) == (*INVALID, ["session.attributes"])
    assert update(stub, long, "attributes.0000", attributes={"0000": "v" * 4092}).attributes["0000"] == "v" * 4092


# Updates

BEFORE = {"device": "phone", "app": "shop"}


@pytest.mark.parametrize(
    ("paths", "attributes", "expected"),
    [
        (["attributes"], {"only": "this"}, {"only": "this"}),
        (["attributes"], {}, {}),
        (["attributes.device"], {"device": "tablet", "other": "ignored"}, {"device": "tablet", "app": "shop"}),
        (["attributes.device"], {}, {"app": "shop"}),
        (["attributes.never there"], {}, BEFORE),
        (["attributes.a.b"], {"a.b": "c", "a": "ignored"}, {**BEFORE, "a.b": "c"}),
        (["attributes..", "attributes.`*`"], {".": "1", "`*`": "2"}, {**BEFORE, ".": "1", "`*`": "2"}),
        (["attributes.é 😀"], {"é 😀": "v"}, {**BEFORE, "é 😀": "v"}),
        (["attributes.app"] * 3, {"app": "till"}, {"device": "phone", "app": "till"}),
        (["attributes"] * 2, {"k": "v"}, {"k": "v"}),
        (["attributes", "attributes.app"], {"k": "v"}, {"k": "v"}),
        (["attributes.app", "attributes"], {"k": "v", "app": "till"}, {"k": "v", "app": "till"}),
        (["attributes.app", "attributes.device"], {"app": "till"}, {"app": "till"}),
        (["idle_timeout"], {"k": "not in the mask"}, BEFORE),
    ],
)
def test_masks(
    stub: SessionServiceStub, user: str, paths: list[str], attributes: dict[str, str], expected: dict[str, str]
) -> None:
    """What the mask names is written and nothing else; a key is all that follows the first dot; twice is once."""
    created = create(stub, user, attributes=BEFORE)
    session = update(stub, created.session.session_id, *paths, attributes=attributes, user_id="ignored")
    assert session.attributes == expected
    assert session.user_id == user
    assert session.etag != created.session.etag
    assert get(stub, session.session_id) == session
    assert validate(stub, created.token).session == session


def test_the_end_is_moved(stub: SessionServiceStub, user: str) -> None:
    """Sooner and later, as far as the longest ttl; parts of a millisecond are cut off, so that none is added."""
    session_id = create(stub, user).session.session_id
    for end in (in_seconds(60), in_seconds(3600), in_seconds(MAX_TTL - 60)):
        exact = Timestamp(seconds=end.seconds, nanos=end.nanos + 999_999)
        assert update(stub, session_id, END, absolute_expire_time=exact).absolute_expire_time == end


def test_the_idle_timeout_is_changed(stub: SessionServiceStub, user: str) -> None:
    """To another, to the longest, and to none: by zero as by naming it and leaving it out."""
    session_id = create(stub, user).session.session_id
    for number in (60, MAX_TTL):
        assert update(stub, session_id, IDLE, idle_timeout=seconds(number)).idle_timeout == seconds(number)
    for none in ({"idle_timeout": Duration()}, {}):
        session = update(stub, session_id, IDLE, **none)
        assert not session.HasField("idle_timeout")
        assert session.expire_time == session.absolute_expire_time
        update(stub, session_id, IDLE, idle_timeout=seconds(600))


def test_an_idle_timeout_that_has_passed(stub: SessionServiceStub, user: str) -> None:
    """A session that has been idle for longer already is not ended by the way."""
    session = create(stub, user).session
    while get(stub, session.session_id).last_active_time.ToMilliseconds() + 2 > time.time() * 1000:
        pass
    request = change(session.session_id, IDLE, idle_timeout=Duration(nanos=1))
    assert refused(stub.UpdateSession, request) == (*INVALID, ["session.idle_timeout"])


def test_etags(stub: SessionServiceStub, user: str) -> None:
    """An update decided on another version is refused and writes nothing; on this one, or on any, it is done."""
    created = create(stub, user)
    first = created.session
    second = update(stub, first.session_id, "attributes", attributes={"k": "2"}, etag=first.etag)
    for etag in (first.etag, "x", second.etag + " ", second.etag.upper() + "A"):
        request = change(first.session_id, "attributes", attributes={"k": "3"}, etag=etag)
        assert refused(stub.UpdateSession, request) == ETAG_MISMATCH
    assert get(stub, first.session_id) == second
    third = rotate(stub, created.token).session
    request = change(first.session_id, "attributes", attributes={"k": "3"}, etag=second.etag)
    assert refused(stub.UpdateSession, request) == ETAG_MISMATCH
    fourth = update(stub, first.session_id, "attributes", attributes={"k": "4"})
    assert len({first.etag, second.etag, third.etag, fourth.etag}) == 4


def test_what_is_not_there(stub: SessionServiceStub, user: str) -> None:
    """NOT_FOUND for what was revoked, what never was, and what cannot be: to read, to update and to rotate."""
    created = create(stub, user)
    stub.RevokeSession(pb.RevokeSessionRequest(token=created.token), timeout=TIMEOUT)
    for session_id in (created.session.session_id, NOBODY, "*", "é" * 22, "x" * 10_000, created.token):
        assert refused(stub.GetSession, pb.GetSessionRequest(session_id=session_id)) == NOT_FOUND
        request = change(session_id, "attributes", attributes={"k": "v"}, etag="x")
        assert refused(stub.UpdateSession, request) == NOT_FOUND
    other = create(stub, user)
    wrong_secret = created.token[:4] + other.token[4:26] + created.token[26:]
    for token in (created.token, wrong_secret, other.token[:-1], other.session.session_id, "never-seen-before", "é"):
        assert refused(stub.RotateSession, pb.RotateSessionRequest(token=token)) == NOT_FOUND
    assert validate(stub, other.token).valid


# Rotation


def test_a_rotated_token(stub: SessionServiceStub, user: str) -> None:
    """The same session has another token; the old one says that it is old, and yields the new one again."""
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
    """Its session gets a minted one, and no other session can begin with it meanwhile."""
    token = f"a-token-brought-by-{user}"
    created = create(stub, user, token=token)
    rotation = rotate(stub, token)
    assert rotation.token.startswith("ctr_")
    assert rotation.session.session_id == created.session.session_id
    request = pb.CreateSessionRequest(user_id=user, token=token)
    assert refused(stub.CreateSession, request) == (grpc.StatusCode.ALREADY_EXISTS, "TOKEN_IN_USE", [])


def assert_gone(stub: SessionServiceStub, session_id: str, *tokens: str) -> None:
    """Asserts that a session has ended, for whoever asks about it by its id or by its tokens."""
    assert refused(stub.GetSession, pb.GetSessionRequest(session_id=session_id)) == NOT_FOUND
    for token in tokens:
        assert MessageToDict(validate(stub, token)) == {"invalidReason": "INVALID_REASON_NOT_FOUND"}
        assert refused(stub.RotateSession, pb.RotateSessionRequest(token=token)) == NOT_FOUND


def test_a_token_past_its_grace_is_rotated(without_grace: SessionServiceStub, user: str) -> None:
    """FAILED_PRECONDITION, and the session is gone, for the new token too."""
    created = create(without_grace, user)
    rotation = rotate(without_grace, created.token)
    assert validate(without_grace, rotation.token).valid
    request = pb.RotateSessionRequest(token=created.token)
    assert refused(without_grace.RotateSession, request) == TOKEN_REUSED
    assert_gone(without_grace, created.session.session_id, created.token, rotation.token)


@pytest.mark.parametrize("asked", [{}, {"skip_touch": True}, {"user_id": "another"}], ids=str)
def test_a_token_past_its_grace_is_validated(
    without_grace: SessionServiceStub, user: str, asked: dict[str, Any]
) -> None:
    """An answer like any other that is not valid, and the session is gone, also where it was only a probe."""
    created = create(without_grace, user)
    rotation = rotate(without_grace, created.token)
    request = pb.ValidateSessionRequest(token=created.token, **asked)
    answer = without_grace.ValidateSession(request, timeout=TIMEOUT)
    assert MessageToDict(answer) == {"invalidReason": "INVALID_REASON_TOKEN_REUSED"}
    assert_gone(without_grace, created.session.session_id, created.token, rotation.token)


def test_a_token_past_its_grace_in_a_batch(without_grace: SessionServiceStub, user: str) -> None:
    """Only its own session is gone."""
    thrown, kept = create(without_grace, user), create(without_grace, user)
    rotate(without_grace, thrown.token)
    each = [pb.ValidateSessionRequest(token=token) for token in (kept.token, thrown.token, kept.token)]
    batch = pb.BatchValidateSessionsRequest(requests=each)
    answers = without_grace.BatchValidateSessions(batch, timeout=TIMEOUT).responses
    assert [answer.valid for answer in answers] == [True, False, True]
    assert answers[1].invalid_reason == pb.INVALID_REASON_TOKEN_REUSED
    assert_gone(without_grace, thrown.session.session_id, thrown.token)


def test_a_grace_that_was_shortened(stub: SessionServiceStub, without_grace: SessionServiceStub, user: str) -> None:
    """A token inside its own grace, where a later one is past its shorter one: an answer, and not a defect."""
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


# All sessions of a user


def test_a_login_over_the_limit_is_rejected(valkey: Valkey, user: str) -> None:
    """RESOURCE_EXHAUSTED, which is no overload: nobody is told to try again soon; and nobody is logged out."""
    with service(valkey, CATRACA_MAX_SESSIONS_PER_USER="1", CATRACA_SESSION_LIMIT_POLICY="reject") as stub:
        first = create(stub, user)
        assert not first.evicted_session_ids
        request = pb.CreateSessionRequest(user_id=user)
        assert refused(stub.CreateSession, request) == LIMIT_REACHED
        with pytest.raises(grpc.RpcError) as caught:
            stub.CreateSession(request, timeout=TIMEOUT)
        error: Any = caught.value
        details = Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"]).details
        assert [each.type_url for each in details] == ["type.googleapis.com/google.rpc.ErrorInfo"]
        assert validate(stub, first.token).valid
        assert create(stub, f"{user}-and-another").token
        stub.RevokeSession(pb.RevokeSessionRequest(token=first.token), timeout=TIMEOUT)
        assert create(stub, user).token


def test_a_login_over_the_limit_evicts(valkey: Valkey, user: str) -> None:
    """The oldest is gone, and the response says so; a login that fails evicts nobody."""
    with service(valkey, CATRACA_MAX_SESSIONS_PER_USER="2", CATRACA_SESSION_LIMIT_POLICY="evict-oldest") as stub:
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
    """Newest first; no size is 50, and over 500 is 500; the last page says that it is."""
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
    """That of another user, a part of one, and one that was changed are refused; the page size may change."""
    sessions = [create(stub, user).session for _ in range(3)][::-1]
    token = page(stub, user, page_size=1).next_page_token
    assert list(page(stub, user, page_size=50, page_token=token).sessions) == sessions[1:]
    request = pb.ListSessionsRequest(user_id=f"{user}-and-another", page_token=token)
    assert refused(stub.ListSessions, request) == (*INVALID, ["page_token"])
    other = "B" if token[0] != "B" else "C"
    for wrong in (token[:-1], token[:-4], token[1:], token[:11], other + token[1:], token * 2, token.swapcase()):
        request = pb.ListSessionsRequest(user_id=user, page_token=wrong)
        assert refused(stub.ListSessions, request) == (*INVALID, ["page_token"])


def test_listing_is_no_activity(stub: SessionServiceStub, user: str) -> None:
    """What is listed is what is read one by one, without a token."""
    created = [create(stub, user, attributes={"device": name}) for name in ("phone", "tablet")]
    listed = page(stub, user)
    assert list(listed.sessions) == [get(stub, each.session.session_id) for each in reversed(created)]
    assert set(MessageToDict(listed)) == {"sessions"}
    assert not any(each.token in str(listed) for each in created)


def test_logging_out_everywhere(stub: SessionServiceStub, user: str) -> None:
    """All sessions of the user are gone, those of others are not; again, and for nobody, it is none."""
    mine = [create(stub, user) for _ in range(3)]
    other = create(stub, f"{user}-and-another")
    assert revoke_all(stub, user) == 3
    for each in mine:
        assert_gone(stub, each.session.session_id, each.token)
    assert revoke_all(stub, user) == 0
    assert revoke_all(stub, f"{user}-whom-nobody-knows") == 0
    assert validate(stub, other.token).valid


def test_logging_out_the_others(stub: SessionServiceStub, user: str) -> None:
    """The session that may stay stays; the id of another user's, or of none, lets none of them stay."""
    other = create(stub, f"{user}-and-another")
    for stays in (other.session.session_id, NOBODY):
        mine = [create(stub, user) for _ in range(3)]
        assert revoke_all(stub, user, except_session_id=mine[1].session.session_id) == 2
        assert [validate(stub, each.token).valid for each in mine] == [False, True, False]
        assert revoke_all(stub, user, except_session_id=stays) == 1
        assert not validate(stub, mine[1].token).valid
    assert validate(stub, other.token).valid


def test_what_can_be_no_session_cannot_stay(stub: SessionServiceStub, user: str) -> None:
    """What is no session id at all, a token for example, is a mistake that logs nobody out."""
    created = create(stub, user)
    for stays in ("*", "é" * 22, created.token, created.session.session_id + " "):
        request = pb.RevokeUserSessionsRequest(user_id=user, except_session_id=stays)
        assert refused(stub.RevokeUserSessions, request) == (*INVALID, ["except_session_id"])
    assert validate(stub, created.token).valid


# The store


def test_without_the_store_nothing_is_known(tmp_path: Path) -> None:
    """UNAVAILABLE, to whatever is asked; what breaks a rule is told all the same."""
    with contextlib.closing(Valkey(tmp_path)) as own:
        own.start()
        with service(own) as stub:
            created = create(stub, "u")
            session_id = created.session.session_id
            own.kill()
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


# By reflection alone

SERVICE = "catraca.v1.SessionService"


@pytest.fixture(params=CURLS, ids=lambda each: each.name)
def curl(request: pytest.FixtureRequest) -> Curl:
    """Each program there is for it."""
    made: Curl = request.param()
    if made.why_none:
        pytest.skip(made.why_none)
    return made


def mask(curl: Curl, *paths: str) -> object:
    """Returns a mask as a program takes it: grpcurl as the message that it is, all others as one text."""
    return {"paths": paths} if isinstance(curl, Grpcurl) else ",".join(paths)


def test_a_session_is_listed_updated_and_ended(target: str, user: str, curl: Curl) -> None:
    """The API's JSON."""
    created = curl.call(target, f"{SERVICE}/CreateSession", {"user_id": user, "attributes": {"app": "shop"}}).json
    session = created["session"]
    assert curl.call(target, f"{SERVICE}/ListSessions", {"user_id": user}).json == {"sessions": [session]}
    wanted = {"session_id": session["sessionId"], "etag": session["etag"], "attributes": {"device": "tablet"}}
    updated = curl.call(
        target,
        f"{SERVICE}/UpdateSession",
        {"session": wanted, "update_mask": mask(curl, "attributes.device", "attributes.app")},
    )
    assert updated.status == "OK"
    assert updated.json["session"]["attributes"] == {"device": "tablet"}
    rotated = curl.call(target, f"{SERVICE}/RotateSession", {"token": created["token"]}).json
    assert rotated["session"]["sessionId"] == session["sessionId"]
    assert curl.call(target, f"{SERVICE}/RevokeUserSessions", {"user_id": user}).json == {"revokedCount": 1}
    assert curl.call(target, f"{SERVICE}/RevokeUserSessions", {"user_id": user}).json == {}


def test_errors_by_reflection(target: str, curl: Curl) -> None:
    """Their status, and a message that names the field."""
    negative = curl.call(target, f"{SERVICE}/ListSessions", {"user_id": "u", "page_size": -1})
    assert (negative.status, negative.message) == ("INVALID_ARGUMENT", "page_size: must not be negative")
    request = {"session": {"session_id": NOBODY}, "update_mask": mask(curl, "attributes")}
    assert curl.call(target, f"{SERVICE}/UpdateSession", request).status == "NOT_FOUND"


@pytest.mark.parametrize(
    ("symbol", "told"),
    [
        (f"{SERVICE}.ListSessions", "Lists a user's live sessions, newest first"),
        (f"{SERVICE}.UpdateSession", "ABORTED / ETAG_MISMATCH"),
        (f"{SERVICE}.RotateSession", "FAILED_PRECONDITION / TOKEN_REUSED"),
        (f"{SERVICE}.RevokeUserSessions", "log out my other devices"),
        ("catraca.v1.UpdateSessionRequest", "Required. What to write"),
        ("catraca.v1.RevokeUserSessionsRequest", "A session to spare"),
        ("catraca.v1.ErrorReason", "The session no longer has the etag"),
    ],
)
def test_the_documentation(target: str, curl: Curl, symbol: str, told: str) -> None:
    """`describe` shows the comments of the API: what it does, what its fields mean and how it fails."""
    assert told in curl.documentation(target, symbol)
