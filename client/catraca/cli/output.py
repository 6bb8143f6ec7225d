"""How answers are shown: as text for people, or as JSON in the shape of the API."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from catraca import InvalidReason, Login, Session, Validation

_WHY_NOT = {
    InvalidReason.NOT_FOUND: "unknown, expired or revoked",
    InvalidReason.MALFORMED: "it cannot be a token of this service",
    InvalidReason.USER_MISMATCH: "it is another user's",
    InvalidReason.TOKEN_REUSED: "it was rotated out, and its session has now been revoked",
    InvalidReason.UNSPECIFIED: "for a reason that this client does not know",
}


class Output(Protocol):
    """Shows what a command found out."""

    def login(self, login: Login) -> None:
        """A session was created."""

    def validation(self, validation: Validation) -> None:
        """A token was judged."""

    def session(self, session: Session) -> None:
        """A session was found."""

    def revoked(self, revoked: bool) -> None:
        """A session was ended, or had ended already."""

    def health(self, *, serving: bool) -> None:
        """The service serves, or does not."""


class Text:
    """For people."""

    def login(self, login: Login) -> None:
        """Shows the session and its token."""
        self.session(login.session)
        print(f"token     {login.token}")
        print("          keep it: it is told this once")

    def validation(self, validation: Validation) -> None:
        """Shows whose it is, or why not."""
        if validation.session is not None:
            print("valid")
            self.session(validation.session)
        else:
            reason = validation.reason or InvalidReason.UNSPECIFIED
            print(f"not valid: {_WHY_NOT[reason]} ({reason.name})")

    def session(self, session: Session) -> None:
        """Shows a session, a line a fact."""
        print(f"session   {session.session_id}")
        print(f"user      {session.user_id}")
        print(f"login     {moment(session.create_time)}")
        print(f"active    {moment(session.last_active_time)}")
        print(f"expires   {moment(session.expire_time)}")
        for key, value in sorted(session.attributes.items()):
            print(f"          {key} = {value}")

    def revoked(self, revoked: bool) -> None:
        """Shows whether there was something to revoke."""
        print("revoked" if revoked else "nothing to revoke: it was gone already")

    def health(self, *, serving: bool) -> None:
        """Shows the health."""
        print("serving" if serving else "not serving")


class Json:
    """For programs: the API's own JSON."""

    def login(self, login: Login) -> None:
        """Shows a CreateSessionResponse."""
        _print_json(
            {
                "token": login.token,
                "session": _session(login.session),
                "evictedSessionIds": list(login.evicted_session_ids),
            }
        )

    def validation(self, validation: Validation) -> None:
        """Shows a ValidateSessionResponse."""
        if validation.session is not None:
            _print_json(
                {
                    "valid": True,
                    "session": _session(validation.session),
                    "tokenRotated": validation.token_rotated,
                }
            )
        else:
            reason = validation.reason or InvalidReason.UNSPECIFIED
            _print_json({"valid": False, "invalidReason": f"INVALID_REASON_{reason.name}"})

    def session(self, session: Session) -> None:
        """Shows a GetSessionResponse."""
        _print_json({"session": _session(session)})

    def revoked(self, revoked: bool) -> None:
        """Shows a RevokeSessionResponse."""
        _print_json({"revoked": revoked})

    def health(self, *, serving: bool) -> None:
        """Shows a HealthCheckResponse."""
        _print_json({"status": "SERVING" if serving else "NOT_SERVING"})


def moment(time: datetime) -> str:
    """Returns a time as people read it: local, and how far away."""
    seconds = (time - datetime.now(UTC)).total_seconds()
    distance = span(timedelta(seconds=abs(seconds)))
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S} ({f'in {distance}' if seconds > 0 else f'{distance} ago'})"


def span(length: timedelta) -> str:
    """Returns a span in its largest unit, such as `3 h`."""
    seconds = length.total_seconds()
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def _session(session: Session) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "sessionId": session.session_id,
        "userId": session.user_id,
        "attributes": dict(session.attributes),
        "createTime": _timestamp(session.create_time),
        "lastActiveTime": _timestamp(session.last_active_time),
        "expireTime": _timestamp(session.expire_time),
        "absoluteExpireTime": _timestamp(session.absolute_expire_time),
        "etag": session.etag,
    }
    if session.idle_timeout is not None:
        shown["idleTimeout"] = f"{session.idle_timeout.total_seconds():g}s"
    return shown


def _timestamp(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
