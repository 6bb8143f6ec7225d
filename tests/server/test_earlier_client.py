"""A client that was written before WatchSessions: it works unchanged, with the messages that it knew.

`data/protos_4ae2abc.binpb` is the API at that commit, as `protoc --descriptor_set_out` writes it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, duration_pb2, field_mask_pb2, timestamp_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet
from tests.support.service import ServeProcess
from tests.support.valkey import Valkey
from tests.support.wire import (
    INVALID,
    LIMIT_REACHED,
    NOT_FOUND,
    TIMEOUT_SECONDS,
    TOKEN_REUSED,
    Refusal,
    refusal_of,
)

PROTOS = Path(__file__).with_name("data") / "protos_4ae2abc.binpb"
OF_THE_FUTURE = b"\x82\xf1\x04\x05hello"
"""A field that no version has: number 10000, of five bytes."""

Json = dict[str, Any]


class EarlierClient:
    """Calls a service with the API as it was."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        pool = descriptor_pool.DescriptorPool()
        for module in (duration_pb2, field_mask_pb2, timestamp_pb2):
            pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
        # In the order in which they import each other, as protoc writes them.
        for file in FileDescriptorSet.FromString(PROTOS.read_bytes()).file:
            pool.Add(file)
        self._service = pool.FindServiceByName("catraca.v1.SessionService")

    def call(self, method: str, more: bytes = b"", **request: Any) -> Json:
        """Makes a call, with these bytes in its request. Returns the response, of which it has to know everything."""
        rpc = self._service.methods_by_name[method]
        sent = ParseDict(request, GetMessageClass(rpc.input_type)()).SerializeToString() + more
        begin: Any = self._channel.unary_unary(f"/{self._service.full_name}/{method}")
        response: Message = GetMessageClass(rpc.output_type).FromString(begin(sent, timeout=TIMEOUT_SECONDS))
        assert len(UnknownFieldSet(response)) == 0
        return MessageToDict(response)

    def refused(self, method: str, **request: Any) -> Refusal:
        """Makes a call that fails. Returns how."""
        with pytest.raises(grpc.RpcError) as caught:
            self.call(method, **request)
        return refusal_of(caught.value)


@pytest.fixture
def client(valkey: Valkey) -> Iterator[EarlierClient]:
    """An earlier client of today's service, which lets a user log in twice and gives old tokens no grace."""
    valkey.command("FLUSHALL")
    process = ServeProcess(
        store_url=valkey.url,
        store_timeout="5s",
        max_sessions_per_user="2",
        session_limit_policy="reject",
        rotation_grace="0s",
    )
    with process, grpc.insecure_channel(process.target) as channel:
        yield EarlierClient(channel)


def test_a_session_lives(client: EarlierClient) -> None:
    """From its creation to its end, by every RPC that there was."""
    created = client.call("CreateSession", userId="ana", idleTimeout="600s", attributes={"device": "phone"})
    token, session = created["token"], created["session"]
    session_id = session["sessionId"]
    answer = client.call("ValidateSession", token=token, userId="ana", skipTouch=True)
    assert answer["valid"]
    assert answer["session"] == session
    assert answer["cacheTtl"]
    answers = client.call("BatchValidateSessions", requests=[{"token": token}, {"token": "short"}])["responses"]
    assert [answers[0]["valid"], answers[1]] == [True, {"invalidReason": "INVALID_REASON_MALFORMED"}]
    assert client.call("GetSession", sessionId=session_id)["session"]["attributes"] == {"device": "phone"}
    assert client.call("ListSessions", userId="ana", pageSize=10)["sessions"][0]["sessionId"] == session_id
    updated = client.call(
        "UpdateSession",
        session={"sessionId": session_id, "etag": session["etag"], "attributes": {"device": "tablet"}},
        updateMask="attributes.device",
    )
    assert updated["session"]["attributes"] == {"device": "tablet"}
    rotated = client.call("RotateSession", token=token)
    assert client.call("ValidateSession", token=rotated["token"])["valid"]
    assert client.call("RevokeSession", token=rotated["token"]) == {"revoked": True}
    assert client.call("ValidateSession", token=rotated["token"]) == {"invalidReason": "INVALID_REASON_NOT_FOUND"}
    for _ in range(2):
        client.call("CreateSession", userId="ana")
    assert client.call("RevokeUserSessions", userId="ana") == {"revokedCount": 2}


def test_calls_fail_as_they_did(client: EarlierClient) -> None:
    """With the same codes, reasons and fields."""
    assert client.refused("CreateSession") == (*INVALID, ["user_id"])
    assert client.refused("GetSession", sessionId="0" * 22) == NOT_FOUND
    created = client.call("CreateSession", userId="ana")
    rotated = client.call("RotateSession", token=created["token"])
    assert client.refused("RotateSession", token=created["token"]) == TOKEN_REUSED
    assert client.call("ValidateSession", token=rotated["token"]) == {"invalidReason": "INVALID_REASON_NOT_FOUND"}
    token = "a-token-that-was-brought"
    client.call("CreateSession", userId="ana", token=token)
    assert client.refused("CreateSession", userId="bia", token=token)[1] == "TOKEN_IN_USE"
    client.call("CreateSession", userId="ana")
    assert client.refused("CreateSession", userId="ana") == LIMIT_REACHED


def test_a_field_of_the_future_changes_nothing(client: EarlierClient) -> None:
    """A client that is newer than its server gets the answer to what the server knows."""
    created = client.call("CreateSession", OF_THE_FUTURE, userId="ana")
    assert client.call("ValidateSession", OF_THE_FUTURE, token=created["token"])["valid"]
    assert client.call("RevokeSession", OF_THE_FUTURE, token=created["token"]) == {"revoked": True}
