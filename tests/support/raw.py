"""Requests as bytes, written by hand: also those that no generated code would send."""

from google.protobuf.message import Message

from catraca.v1 import session_service_pb2 as pb

METHODS: dict[str, tuple[type[Message], type[Message]]] = {
    "CreateSession": (pb.CreateSessionRequest, pb.CreateSessionResponse),
    "ValidateSession": (pb.ValidateSessionRequest, pb.ValidateSessionResponse),
    "BatchValidateSessions": (pb.BatchValidateSessionsRequest, pb.BatchValidateSessionsResponse),
    "GetSession": (pb.GetSessionRequest, pb.GetSessionResponse),
    "RevokeSession": (pb.RevokeSessionRequest, pb.RevokeSessionResponse),
}
"""Request and response of each method of SessionService."""


def varint(number: int) -> bytes:
    """Returns a number as protobuf writes it."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, content: bytes) -> bytes:
    """Returns a length-delimited field as protobuf writes it."""
    return varint(number << 3 | 2) + varint(len(content)) + content
