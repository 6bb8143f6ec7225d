"""What a validation sends, and how its answer is read.

Both are bytes for as long as possible, because reading and writing messages would be most of a client's work. The bytes
of a session are looked up before they are read: most have been read already.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from catraca import _core, _model
from catraca._core import Call
from catraca._model import InvalidReason, Validation
from catraca.v1 import session_pb2, session_service_pb2 as pb

_VALIDATE = _core.path("ValidateSession")
_MEMO_SESSIONS = 1_000
_MEMO_BYTES = 1_000


class Answer(Protocol):
    """A ValidateSessionResponse whose parts have not been read."""

    valid: bool
    session: bytes
    invalid_reason: int
    cache_ttl: bytes
    token_rotated: bool


def _in_bytes(*names: str, fields: Iterable[str]) -> Iterable[Any]:
    """Returns copies of the API's message classes in which the fields with these names are bytes.

    On the wire a message field and a bytes field look the same.
    """
    api = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(api)
    file = FileDescriptorProto(name="catraca/validations.proto", package=api.package, syntax=api.syntax)
    file.enum_type.extend(each for each in api.enum_type if each.name == "InvalidReason")
    file.message_type.extend(each for each in api.message_type if each.name in names)
    for field in (field for message in file.message_type for field in message.field if field.name in fields):
        field.type = FieldDescriptorProto.TYPE_BYTES
        field.ClearField("type_name")
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return [GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{name}")) for name in names]


_Requests, _Answer, _Answers = _in_bytes(
    "BatchValidateSessionsRequest",
    "ValidateSessionResponse",
    "BatchValidateSessionsResponse",
    fields={"requests", "session", "cache_ttl"},
)
_TOKEN_HEADS = [pb.ValidateSessionRequest(token="t" * size).SerializeToString()[:-size] for size in range(1, 128)]
"""What comes before a token in a request, by the token's size."""


def request(token: str, *, user_id: str | None, skip_touch: bool) -> bytes:
    """Returns a ValidateSessionRequest. Raises InvalidRequest if a value is not valid Unicode text, or TypeError."""
    if (
        # Whatever else is given, a message takes or refuses.
        type(token) is str
        and (user_id is None or user_id == "")
        and skip_touch is False
        and 0 < len(token) <= len(_TOKEN_HEADS)
        and token.isascii()
    ):
        # This costs a quarter of what a message costs.
        return _TOKEN_HEADS[len(token) - 1] + token.encode()
    return _core.build(
        pb.ValidateSessionRequest, token=token, user_id=user_id, skip_touch=skip_touch
    ).SerializeToString()


def alone(request: bytes) -> Call[Answer]:
    """ValidateSession."""
    return Call(_VALIDATE, request, _Answer, lambda answer: answer)


def together(requests: Sequence[bytes]) -> Call[list[Answer]]:
    """BatchValidateSessions, for callers who each read their own answer."""

    def read(response: Any) -> list[Answer]:
        # As a plain list, because each access to the message's own would create an object.
        answers = list(response.responses)
        if len(answers) != len(requests):
            raise ValueError("not one answer for each request")
        return answers

    return Call(_core.path("BatchValidateSessions"), _Requests(requests=requests).SerializeToString(), _Answers, read)


def batch(tokens: Iterable[str], *, skip_touch: bool) -> Call[list[Validation]]:
    """BatchValidateSessions, for one caller."""
    call = together([request(token, user_id=None, skip_touch=skip_touch) for token in tokens])

    def read(response: Any) -> list[Validation]:
        return [validation(answer) for answer in call.read(response)]

    return Call(call.path, call.request, call.response_type, read)


def validation(answered: Answer) -> Validation:
    """Reads an answer. Whatever does not clearly say "valid" is not valid.

    Raises UnexpectedAnswer if the answer has a session that cannot be read.
    """
    session = answered.session
    if session:
        valid = _memo.read(session)
        if answered.valid:
            return replace(valid, token_rotated=True) if answered.token_rotated else valid
    try:
        reason = InvalidReason(answered.invalid_reason)
    except ValueError:
        reason = InvalidReason.UNSPECIFIED
    return Validation(session=None, reason=reason)


def cache_ttl_seconds(answered: Answer) -> float:
    """Returns how long a near cache may reuse an answer. Raises UnexpectedAnswer if that cannot be read."""
    try:
        cache_ttl = Duration.FromString(answered.cache_ttl)
    except DecodeError as error:
        raise _core.unreadable(_VALIDATE, error) from None
    return cache_ttl.seconds + cache_ttl.nanos / 1e9


class _Memo:
    """Answers about sessions as they were last read. A session that has not changed is not read again.

    Reading it takes ten times as long. Threads may share it: one that does not see another's entry reads the session
    itself.
    """

    def __init__(self) -> None:
        self._young: dict[bytes, Validation] = {}
        self._old: dict[bytes, Validation] = {}

    def read(self, session: bytes) -> Validation:
        """Returns the answer "valid" with this session. Raises UnexpectedAnswer if it cannot be read."""
        validation = self._young.get(session)
        if validation is None:
            validation = self._old.get(session) or _valid(session)
            if len(session) <= _MEMO_BYTES:
                if len(self._young) >= _MEMO_SESSIONS:
                    self._old, self._young = self._young, {}
                self._young[session] = validation
        return validation


def _valid(session: bytes) -> Validation:
    try:
        return Validation(session=_model.read_session(session_pb2.Session.FromString(session)), reason=None)
    except (DecodeError, ValueError, OverflowError) as error:
        raise _core.unreadable(_VALIDATE, error) from None


_memo = _Memo()
