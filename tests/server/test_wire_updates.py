"""Updating a session over the wire: masks, limits, etags, and what is refused."""

import time
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from tests.support.wire import (
    ETAG_MISMATCH,
    INVALID,
    MAX_TTL,
    change,
    create,
    get,
    in_seconds,
    refused,
    rotate,
    seconds,
    update,
    validate,
)

from catraca.v1 import session_service_pb2 as pb
from catraca.v1.session_service_pb2_grpc import SessionServiceStub


def test_an_update_without_a_session_id(stub: SessionServiceStub) -> None:
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
    """A mask with such a path is refused as a whole."""
    session = create(stub, user).session
    for paths in ([path], ["attributes", path], [path, "idle_timeout"]):
        outcome = refused(stub.UpdateSession, change(session.session_id, *paths, attributes={"k": "v"}))
        assert outcome == (*INVALID, ["update_mask"])
    assert get(stub, session.session_id) == session


def test_an_update_without_a_mask(stub: SessionServiceStub, user: str) -> None:
    """It is refused: there is nothing to write."""
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
)
def test_what_cannot_be_written(stub: SessionServiceStub, user: str, path: str, value: Any) -> None:
    """A value that breaks a rule is named, and the session stays as it was."""
    session = create(stub, user, attributes={"device": "phone"}).session
    fields = {} if value is None else {path: value}
    assert refused(stub.UpdateSession, change(session.session_id, path, **fields)) == (*INVALID, [f"session.{path}"])
    assert get(stub, session.session_id) == session


def test_every_violation_is_named(stub: SessionServiceStub, user: str) -> None:
    """Several values that break rules are reported at once."""
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


def test_limits_hold_for_the_updated_session(stub: SessionServiceStub, user: str) -> None:
    """Attributes that are within the limits by themselves are refused if they exceed them together with the others."""
    many = create(stub, user, attributes={str(at): "" for at in range(64)}).session.session_id
    one_more = change(many, "attributes.more", attributes={"more": ""})
    assert refused(stub.UpdateSession, one_more) == (*INVALID, ["session.attributes"])
    assert len(update(stub, many, "attributes.more", "attributes.0", attributes={"more": ""}).attributes) == 64
    long = create(stub, user, attributes={f"{at:04}": "v" * 4092 for at in range(4)}).session.session_id
    longer = change(long, "attributes.k", attributes={"k": ""})
    assert refused(stub.UpdateSession, longer) == (*INVALID, ["session.attributes"])
    assert update(stub, long, "attributes.0000", attributes={"0000": "v" * 4092}).attributes["0000"] == "v" * 4092


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
    """Only what the mask names is written; a key is all that follows the first dot; a path may occur twice."""
    created = create(stub, user, attributes=BEFORE)
    session = update(stub, created.session.session_id, *paths, attributes=attributes, user_id="ignored")
    assert session.attributes == expected
    assert session.user_id == user
    assert session.etag != created.session.etag
    assert get(stub, session.session_id) == session
    assert validate(stub, created.token).session == session


def test_the_absolute_deadline_is_moved(stub: SessionServiceStub, user: str) -> None:
    """Earlier and later, up to the longest ttl; parts of a millisecond are cut off, so that none is added."""
    session_id = create(stub, user).session.session_id
    for end in (in_seconds(60), in_seconds(3600), in_seconds(MAX_TTL - 60)):
        exact = Timestamp(seconds=end.seconds, nanos=end.nanos + 999_999)
        assert update(stub, session_id, END, absolute_expire_time=exact).absolute_expire_time == end


def test_the_idle_timeout_is_changed(stub: SessionServiceStub, user: str) -> None:
    """To another, to the longest, and to none: by zero, and by leaving out what the mask names."""
    session_id = create(stub, user).session.session_id
    for number in (60, MAX_TTL):
        assert update(stub, session_id, IDLE, idle_timeout=seconds(number)).idle_timeout == seconds(number)
    for none in ({"idle_timeout": Duration()}, {}):
        session = update(stub, session_id, IDLE, **none)
        assert not session.HasField("idle_timeout")
        assert session.expire_time == session.absolute_expire_time
        update(stub, session_id, IDLE, idle_timeout=seconds(600))


def test_an_idle_timeout_that_has_passed(stub: SessionServiceStub, user: str) -> None:
    """A session that has been idle for longer is not ended by an update; the update is refused."""
    session = create(stub, user).session
    while get(stub, session.session_id).last_active_time.ToMilliseconds() + 2 > time.time() * 1000:
        pass
    request = change(session.session_id, IDLE, idle_timeout=Duration(nanos=1))
    assert refused(stub.UpdateSession, request) == (*INVALID, ["session.idle_timeout"])


def test_etags(stub: SessionServiceStub, user: str) -> None:
    """With the etag of another version an update is refused; with the right one or none it succeeds."""
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
