"""The API by reflection alone, as grpcurl and `buf curl` use it."""

import pytest
from tests.support.curl import Curl, Grpcurl
from tests.support.wire import NOBODY

SERVICE = "catraca.v1.SessionService"


def mask(curl: Curl, *paths: str) -> object:
    """Returns a field mask as a program takes it: grpcurl as a message, others as one text."""
    return {"paths": paths} if isinstance(curl, Grpcurl) else ",".join(paths)


def test_a_session_is_listed_updated_and_ended(target: str, user: str, curl: Curl) -> None:
    """With the API's JSON."""
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
    """They have their status, and a message that names the field."""
    negative = curl.call(target, f"{SERVICE}/ListSessions", {"user_id": "u", "page_size": -1})
    assert (negative.status, negative.message) == ("INVALID_ARGUMENT", "page_size: must not be negative")
    request = {"session": {"session_id": NOBODY}, "update_mask": mask(curl, "attributes")}
    assert curl.call(target, f"{SERVICE}/UpdateSession", request).status == "NOT_FOUND"


@pytest.mark.parametrize(
    ("symbol", "comment"),
    [
        (f"{SERVICE}.ListSessions", "Lists a user's live sessions, newest first"),
        (f"{SERVICE}.UpdateSession", "ABORTED / ETAG_MISMATCH"),
        (f"{SERVICE}.RotateSession", "FAILED_PRECONDITION / TOKEN_REUSED"),
        (f"{SERVICE}.RevokeUserSessions", "log out my other devices"),
        ("catraca.v1.UpdateSessionRequest", "Required. What to write"),
        ("catraca.v1.RevokeUserSessionsRequest", "A session to spare, for example the caller's own"),
        ("catraca.v1.ErrorReason", "The session no longer has the etag"),
    ],
)
def test_the_documentation(target: str, curl: Curl, symbol: str, comment: str) -> None:
    """`describe` shows the comments of the API: what it does, what its fields mean and how it fails."""
    assert comment in curl.documentation(target, symbol)
