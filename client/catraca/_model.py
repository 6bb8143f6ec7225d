"""What callers get: plain frozen dataclasses, built from messages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import NoReturn, Self

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from catraca.v1 import session_pb2, session_service_pb2 as pb

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class InvalidReason(Enum):
    """Why a token is not valid."""

    UNSPECIFIED = 0
    """A reason this client does not know yet."""
    NOT_FOUND = 1
    """Unknown, expired or revoked."""
    MALFORMED = 2
    """It cannot be a token of this service."""
    USER_MISMATCH = 3
    """A good token, but another user's."""
    TOKEN_REUSED = 4
    """A rotated token, presented after its grace. Its session has just been revoked."""


class _Attributes(dict[str, str]):
    """A session's attributes. Callers share them, so nobody can change them; `copy` returns a dict of one's own.

    It is a dict and not a MappingProxyType, which neither `json.dumps` nor `pickle` takes.
    """

    __slots__ = ()

    def _refuse(self, *_args: object, **_named: object) -> NoReturn:
        raise TypeError("attributes cannot be changed here: `update` of a client changes those of the session")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[Self], tuple[dict[str, str]]]:
        # Unpickling and deepcopy would fill an empty one, item by item.
        return type(self), (dict(self),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A login that has not ended. Carries no token. All times are in UTC.

    It is read-only, attributes included, because several callers may get the same session.
    """

    session_id: str
    """The public handle: safe to log, worthless as a token."""
    user_id: str
    attributes: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)
    create_time: datetime
    """The login time."""
    last_active_time: datetime
    """The last validation that counted as activity, accurate to the touch interval."""
    expire_time: datetime
    """When it ends without further activity."""
    absolute_expire_time: datetime
    """When it ends, whatever the activity."""
    idle_timeout: timedelta | None
    """How long it survives without activity; None if it has no idle timeout."""
    etag: str
    """Changes with every update and rotation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A new session and its token. The token is returned only here, and is left out of the repr."""

    token: str = field(repr=False)
    session: Session
    evicted_session_ids: tuple[str, ...] = ()
    """Sessions of the same user that were revoked to make room for this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """A session and its new token. The token is left out of the repr."""

    token: str = field(repr=False)
    session: Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """The result of a validation. True if the token is valid."""

    session: Session | None
    """The session, if the token is valid."""
    reason: InvalidReason | None
    """Why the token is not valid, if it is not."""
    token_rotated: bool = False
    """The token has been rotated and is still within its grace."""

    def __bool__(self) -> bool:
        return self.session is not None


def read_session(message: session_pb2.Session) -> Session:
    """Returns the session in a message."""
    return Session(
        session_id=message.session_id,
        user_id=message.user_id,
        attributes=_Attributes(message.attributes),
        create_time=_datetime(message.create_time),
        last_active_time=_datetime(message.last_active_time),
        expire_time=_datetime(message.expire_time),
        absolute_expire_time=_datetime(message.absolute_expire_time),
        idle_timeout=_timedelta(message.idle_timeout) if message.HasField("idle_timeout") else None,
        etag=message.etag,
    )


# A third of the cost of ToDatetime and ToTimedelta, which would be most of the cost of reading a session.
def _datetime(timestamp: Timestamp) -> datetime:
    return _EPOCH + timedelta(0, timestamp.seconds, timestamp.nanos // 1000)


def _timedelta(duration: Duration) -> timedelta:
    return timedelta(0, duration.seconds, duration.nanos // 1000)


def read_login(message: pb.CreateSessionResponse) -> Login:
    """Returns the login in a message."""
    return Login(
        token=message.token,
        session=read_session(message.session),
        evicted_session_ids=tuple(message.evicted_session_ids),
    )


def read_rotation(message: pb.RotateSessionResponse) -> Rotation:
    """Returns the rotation in a message."""
    return Rotation(token=message.token, session=read_session(message.session))
