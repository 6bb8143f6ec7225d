"""Requests that are too large, not UTF-8, or from a later version."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from tests.support.inprocess import METHODS, serving
from tests.support.raw import field, varint

from catraca.v1 import session_service_pb2 as pb
from catraca_server.api.handlers import SERVICE_NAME
from catraca_server.domain.limits import BATCH_MAX_REQUESTS


class Wire:
    """Calls a running service with bytes for a body."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def call(self, method: str, body: bytes) -> tuple[str, Any]:
        """Returns the name of the status, and the response if it is OK."""
        call: Any = self._channel.unary_unary(f"/{SERVICE_NAME}/{method}")
        try:
            return "OK", METHODS[method][1].FromString(await call(body, timeout=30))
        except grpc.aio.AioRpcError as error:
            return error.code().name, None


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    """A running service."""
    async with (
        serving(store_url="memory:", store_timeout="20s") as target,
        grpc.aio.insecure_channel(target) as channel,
    ):
        yield Wire(channel)


async def test_large_requests(wire: Wire) -> None:
    """Up to 8 MiB a request is read, whatever is in it; above that it is refused; and the next one is answered."""
    token = b"ctr_" + b"0" * 71
    unknown = field(15, bytes(5 << 20))
    assert await wire.call("ValidateSession", field(1, b"t" * (5 << 20))) == (
        "OK",
        pb.ValidateSessionResponse(invalid_reason=pb.INVALID_REASON_MALFORMED),
    )
    assert (await wire.call("ValidateSession", field(1, token) + unknown))[0] == "OK"
    assert (await wire.call("CreateSession", field(1, b"u" * (5 << 20))))[0] == "INVALID_ARGUMENT"
    attribute = field(1, b"key") + field(2, bytes(5 << 20))
    assert (await wire.call("CreateSession", field(1, b"12345") + field(4, attribute)))[0] == "INVALID_ARGUMENT"
    many = field(1, field(1, token)) * (BATCH_MAX_REQUESTS + 1)
    assert (await wire.call("BatchValidateSessions", many))[0] == "INVALID_ARGUMENT"
    assert (await wire.call("BatchValidateSessions", field(1, b"") * (2 << 20)))[0] == "INVALID_ARGUMENT"
    assert (await wire.call("ListSessions", field(1, b"12345") + field(3, b"A" * (5 << 20))))[0] == "INVALID_ARGUMENT"
    assert (await wire.call("RotateSession", field(1, b"t" * (5 << 20))))[0] == "NOT_FOUND"
    long_id = field(2, b"0" * (5 << 20))
    assert (await wire.call("RevokeUserSessions", field(1, b"12345") + long_id))[0] == "INVALID_ARGUMENT"
    _, created = await wire.call("CreateSession", field(1, b"12345"))
    session_id = field(1, created.session.session_id.encode())
    whole = field(2, field(1, b"attributes"))
    assert (await wire.call("UpdateSession", field(1, session_id + field(3, attribute)) + whole))[0] == (
        "INVALID_ARGUMENT"
    )
    paths = b"".join(field(1, b"attributes.%d" % number) for number in range(200_000))
    assert (await wire.call("UpdateSession", field(1, session_id) + field(2, paths)))[0] == "INVALID_ARGUMENT"
    for method in METHODS:
        assert (await wire.call(method, field(15, bytes(9 << 20))))[0] == "RESOURCE_EXHAUSTED"
    assert (await wire.call("ValidateSession", field(1, token)))[0] == "OK"


TEXTS = {
    "CreateSession": [
        field(1, b"\xff"),
        field(1, b"u") + field(4, field(1, b"\xff")),
        field(1, b"u") + field(5, b"\xed\xa0\x80"),
    ],
    "ValidateSession": [field(1, b"\xc3"), field(1, b"token") + field(2, b"\xff")],
    "BatchValidateSessions": [field(1, field(1, b"\xff"))],
    "GetSession": [field(1, b"\xf8\x88\x80\x80\x80")],
    "ListSessions": [field(1, b"\xff"), field(1, b"u") + field(3, b"\xff")],
    "UpdateSession": [
        field(1, field(1, b"\xff")),
        field(1, field(3, field(1, b"\xff"))) + field(2, field(1, b"attributes")),
        field(1, field(9, b"\xff")) + field(2, field(1, b"attributes")),
        field(1, field(1, b"0" * 22)) + field(2, field(1, b"attributes.\xff")),
    ],
    "RotateSession": [field(1, b"\xff")],
    "RevokeSession": [field(1, b"\xff"), field(2, b"\xff")],
    "RevokeUserSessions": [field(1, b"\xff"), field(1, b"u") + field(2, b"\xed\xa0\x80")],
}


@pytest.mark.parametrize("method", METHODS)
async def test_text_that_is_not_utf8(method: str, wire: Wire) -> None:
    """Such a text field is INVALID_ARGUMENT."""
    for body in TEXTS[method]:
        assert (await wire.call(method, body))[0] == "INVALID_ARGUMENT", body


async def test_unknown_fields_are_ignored(wire: Wire) -> None:
    """Fields that a later version may add change nothing."""
    later = field(100, b"later") + varint(101 << 3) + varint(7)
    status, created = await wire.call("CreateSession", field(1, b"12345") + later)
    assert (status, created.session.user_id) == ("OK", "12345")
    token = field(1, created.token.encode())
    assert (await wire.call("ValidateSession", later + token))[1].valid
    batch = await wire.call("BatchValidateSessions", field(1, token + later) + later)
    assert batch[1].responses[0].valid
    session_id = field(1, created.session.session_id.encode())
    assert (await wire.call("GetSession", later + session_id + later))[1].session == created.session
    user = field(1, b"12345")
    assert (await wire.call("ListSessions", user + later))[1].sessions == [created.session]
    change = field(3, field(1, b"device") + field(2, b"phone"))
    update = later + field(1, session_id + change + later) + field(2, field(1, b"attributes.device") + later)
    assert (await wire.call("UpdateSession", update))[1].session.attributes == {"device": "phone"}
    rotation = (await wire.call("RotateSession", token + later))[1]
    assert rotation.session.session_id == created.session.session_id
    assert (await wire.call("RevokeSession", later + token))[1].revoked
    assert (await wire.call("RevokeUserSessions", later + user))[1].revoked_count == 0
