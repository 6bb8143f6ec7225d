"""How answers are shown: as text for people, or as JSON in the shape of the API.

What users and callers wrote (user ids, attributes) is shown so that it cannot control a terminal.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from google.protobuf.duration_pb2 import Duration

from catraca import (
    InvalidReason,
    Login,
    Rotation,
    Session,
    SessionEvent,
    Validation,
    WatchOpened,
    WatchReset,
    WatchResetReason,
)
from catraca.cli import table
from catraca.cli.text import duration, moment, visible

_WHY_NOT = {
    InvalidReason.NOT_FOUND: "unknown, expired or revoked",
    InvalidReason.MALFORMED: "it cannot be a token of this service",
    InvalidReason.USER_MISMATCH: "it is another user's",
    InvalidReason.TOKEN_REUSED: "it was rotated and its grace is over, so its session has now been revoked",
    InvalidReason.UNSPECIFIED: "for a reason that this client does not know",
}
_WHY_RESET = {
    WatchResetReason.TRIMMED: "what follows the cursor is no longer in the feed",
    WatchResetReason.EPOCH_CHANGED: "the store's primary has changed",
    WatchResetReason.SLOW_CONSUMER: "they were read more slowly than they came",
    WatchResetReason.UNSPECIFIED: "for a reason that this client does not know",
}
_EVENT = "{:<23}  {:<8} {:<13} {:<22}  {}"


class Output(Protocol):
    """Shows the result of a command."""

    def login(self, login: Login) -> None:
        """A session was created."""

    def validation(self, validation: Validation) -> None:
        """A token was validated."""

    def session(self, session: Session) -> None:
        """A session was found, or changed."""

    def sessions(self, sessions: Sequence[Session]) -> None:
        """A user's sessions were listed; there may be none."""

    def rotation(self, rotation: Rotation) -> None:
        """A session got a new token."""

    def revoked(self, revoked: bool) -> None:
        """A session was ended, or had ended already."""

    def revoked_count(self, count: int) -> None:
        """This many sessions of a user were ended."""

    def happened(self, happening: SessionEvent | WatchOpened | WatchReset) -> None:
        """A watch yielded something."""

    def health(self, *, serving: bool) -> None:
        """The service is serving, or is not."""


class Text:
    """For people."""

    def login(self, login: Login) -> None:
        """Shows the session and its token."""
        self._with_token(login.session, login.token)
        for session_id in login.evicted_session_ids:
            print(f"evicted   {session_id}")

    def validation(self, validation: Validation) -> None:
        """Shows whose token it is, or why it is not valid."""
        if validation.session is not None:
            print("valid")
            self.session(validation.session)
            if validation.token_rotated:
                print("token     rotated: it stays valid only for a short grace")
        else:
            reason = validation.reason or InvalidReason.UNSPECIFIED
            print(f"not valid: {_WHY_NOT[reason]} ({reason.name})")

    def session(self, session: Session) -> None:
        """Shows a session, one fact per line."""
        print(f"session   {session.session_id}")
        print(f"user      {visible(session.user_id)}")
        print(f"login     {moment(session.create_time)}")
        print(f"active    {moment(session.last_active_time)}")
        print(f"expires   {moment(session.expire_time)}")
        if session.idle_timeout is not None:
            print(f"idle      for at most {duration(session.idle_timeout)}")
            print(f"at latest {moment(session.absolute_expire_time)}")
        for key, value in sorted(session.attributes.items()):
            print(f"          {visible(key)} = {visible(value)}")

    def sessions(self, sessions: Sequence[Session]) -> None:
        """Shows a table, at most as wide as the terminal if there is one."""
        if not sessions:
            print("no sessions")
            return
        terminal = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for line in table.lines(sessions, terminal):
            print(line)

    def rotation(self, rotation: Rotation) -> None:
        """Shows the session and its new token."""
        self._with_token(rotation.session, rotation.token)

    def _with_token(self, session: Session, token: str) -> None:
        self.session(session)
        print(f"token     {token}")
        print("          keep it: it is shown only once")

    def revoked(self, revoked: bool) -> None:
        """Shows whether there was a session to revoke."""
        print("revoked" if revoked else "nothing to revoke: it was gone already")

    def revoked_count(self, count: int) -> None:
        """Shows how many were ended."""
        print(f"revoked {count} {'session' if count == 1 else 'sessions'}")

    def happened(self, happening: SessionEvent | WatchOpened | WatchReset) -> None:
        """Shows an event as a line, in columns of the usual width."""
        match happening:
            case SessionEvent():
                line = _EVENT.format(
                    f"{happening.event_time.astimezone():%Y-%m-%d %H:%M:%S.%f}"[:-3],
                    happening.type.name.lower(),
                    happening.cause.name.lower() if happening.cause else "",
                    visible(happening.session_id) or "(all of the user's)",
                    visible(happening.user_id),
                ).rstrip()
            case WatchReset(reason=reason):
                line = f"reset: events may have been missed: {_WHY_RESET[reason]} ({reason.name})"
            case _:
                line = f"watching, after cursor {visible(happening.cursor)}"
        # At once, because the next one may be long in coming.
        print(line, flush=True)

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
        """Shows a GetSessionResponse; an UpdateSessionResponse looks the same."""
        _print_json({"session": _session(session)})

    def sessions(self, sessions: Sequence[Session]) -> None:
        """Shows a ListSessionsResponse with all sessions on one page."""
        _print_json({"sessions": [_session(each) for each in sessions]})

    def rotation(self, rotation: Rotation) -> None:
        """Shows a RotateSessionResponse."""
        _print_json({"token": rotation.token, "session": _session(rotation.session)})

    def revoked(self, revoked: bool) -> None:
        """Shows a RevokeSessionResponse."""
        _print_json({"revoked": revoked})

    def revoked_count(self, count: int) -> None:
        """Shows a RevokeUserSessionsResponse."""
        _print_json({"revokedCount": count})

    def happened(self, happening: SessionEvent | WatchOpened | WatchReset) -> None:
        """Shows a WatchSessionsResponse, on one line."""
        match happening:
            case SessionEvent():
                shown = {"event": _event(happening)}
            case WatchReset(reason=reason, cursor=cursor):
                shown = {"reset": {"cursor": cursor, "reason": f"WATCH_RESET_REASON_{reason.name}"}}
            case _:
                shown = {"opened": {"cursor": happening.cursor}}
        print(json.dumps(shown), flush=True)

    def health(self, *, serving: bool) -> None:
        """Shows a HealthCheckResponse."""
        _print_json({"status": "SERVING" if serving else "NOT_SERVING"})


def _print_json(value: dict[str, Any]) -> None:
    # In ASCII, because JSON does not have to escape U+007F to U+009F, which terminals obey.
    print(json.dumps(value, indent=2))


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
        idle_timeout = Duration()
        idle_timeout.FromTimedelta(session.idle_timeout)
        shown["idleTimeout"] = idle_timeout.ToJsonString()
    return shown


def _event(event: SessionEvent) -> dict[str, str]:
    shown = {
        "type": f"SESSION_EVENT_TYPE_{event.type.name}",
        "sessionId": event.session_id,
        "userId": event.user_id,
        "eventTime": _timestamp(event.event_time),
        "cursor": event.cursor,
    }
    if event.cause is not None:
        shown["cause"] = f"REVOCATION_CAUSE_{event.cause.name}"
    return shown


def _timestamp(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
