"""Requests that are messages, with fields that no honest caller sends: answered, refused, and never a defect."""

import asyncio
import os
import random
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from tests.support.inprocess import METHODS, serving

from catraca_server.api.handlers import SERVICE_NAME

ROUNDS = 5_000 if os.environ.get("CATRACA_TEST_LONG") else 150
DEFECTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
TEXTS = ("", "12345", "\0", "é" * 200, "x" * 5_000, "ctr_" + "0" * 71, "0" * 22, "attributes.a", "absolute_expire_time")
NUMBERS = (0, 1, -1, 2**31 - 1, -(2**31), 999_999_999)


def value(field: Any, chance: random.Random) -> Any:
    """Returns a value of a scalar field, more often than not at an edge."""
    if field.type == FieldDescriptor.TYPE_STRING:
        return chance.choice(TEXTS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return chance.randbytes(chance.choice((0, 1, 100)))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return chance.random() < 0.5
    unsigned = field.type in (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return chance.choice((0, 1, 99))
    return abs(chance.choice(NUMBERS)) % 2**31 if unsigned else chance.choice(NUMBERS)


def fill(message: Message, chance: random.Random) -> None:
    """Sets some of the fields of a message, at every depth, to anything that its types allow."""
    fields: Any = message.DESCRIPTOR.fields
    for field in fields:
        if chance.random() < 0.4:
            continue
        there: Any = getattr(message, field.name)
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if is_map:
            for _ in range(chance.choice((1, 3, 100))):
                there[chance.choice(TEXTS) + str(chance.randrange(100))] = chance.choice(TEXTS)
        elif field.message_type is not None and field.is_repeated:
            for _ in range(chance.choice((1, 2, 50))):
                fill(there.add(), chance)
        elif field.message_type is not None:
            there.SetInParent()
            fill(there, chance)
        elif field.is_repeated:
            there.extend(value(field, chance) for _ in range(chance.choice((1, 3, 50))))
        else:
            setattr(message, field.name, value(field, chance))


@pytest.mark.parametrize("method", METHODS)
async def test_messages_of_anything(method: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each seed makes the same message in every run; 30 are in flight at a time."""
    request_type, _ = METHODS[method]
    async with (
        serving(store_url="memory:", store_timeout="5s") as target,
        grpc.aio.insecure_channel(target) as channel,
    ):
        stub: Any = channel.unary_unary(f"/{SERVICE_NAME}/{method}")

        async def ended(seed: int) -> grpc.StatusCode:
            request = request_type()
            fill(request, random.Random(f"{method} {seed}"))  # noqa: S311  it is to be the same in every run
            call = stub(request.SerializeToString(), timeout=20)
            code: grpc.StatusCode = await call.code()
            return code

        for start in range(0, ROUNDS, 30):
            seeds = range(start, start + 30)
            codes = await asyncio.gather(*map(ended, seeds))
            assert not DEFECTS & set(codes), dict(zip(seeds, codes, strict=True))
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]
