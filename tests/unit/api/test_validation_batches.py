"""Which ValidateSession calls are asked about together, and when."""

import asyncio
import math
from collections.abc import Sequence
from typing import cast

import grpc
import pytest
from tests.support.incoming import Incoming, validation
from tests.support.waiting import eventually_async

from catraca_server.api import validation_batches
from catraca_server.api.validation_batches import ValidationBatches
from catraca_server.domain.call import Call
from catraca_server.domain.validation import MALFORMED, ValidationRequest
from catraca_server.operations.validating import Answers, Validating


class SlowValidating:
    """Validations by a store that replies when a test says so."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        """How many validations there were in each request to the store."""
        self.replies: list[asyncio.Future[None]] = []
        self.asked_when_answered: list[int] = []
        """How many requests had been sent by the time that each was answered."""

    async def validate_each(self, requests: Sequence[ValidationRequest], _call: Call, answers: Answers) -> None:
        """Waits for the reply, and answers."""
        reply = asyncio.get_running_loop().create_future()
        self.asked.append(len(requests))
        self.replies.append(reply)
        await reply
        answers.store_replied()
        self.asked_when_answered.append(len(self.asked))
        for at in range(len(requests)):
            answers.answer(at, MALFORMED)

    async def was_asked(self, *counts: int) -> None:
        """Waits until requests of these sizes have been sent."""

        async def were_sent() -> bool:
            return self.asked == list(counts)

        await eventually_async(were_sent, f"the requests {counts} are sent")


@pytest.fixture
def store() -> SlowValidating:
    """Validations by a store that waits."""
    return SlowValidating()


@pytest.fixture
def batches(store: SlowValidating) -> ValidationBatches:
    """Batches over that store."""
    return ValidationBatches(cast("Validating", store), store_timeout_seconds=60)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call is asked about before the store has replied to the batch before it."""
    monkeypatch.setattr(validation_batches, "SLOW_SECONDS", 1_000)


async def answered(calls: Sequence[Incoming]) -> None:
    """Waits until all calls have their one answer."""

    async def are_answered() -> bool:
        return [len(call.answers) for call in calls] == [1] * len(calls)

    await eventually_async(are_answered, "all calls are answered")


@pytest.mark.usefixtures("patient")
async def test_calls_that_come_meanwhile_go_together(store: SlowValidating, batches: ValidationBatches) -> None:
    """As soon as the store has replied, and before the calls that it replied about are answered."""
    calls = [validation(f"a-token-brought-{number}") for number in range(6)]
    batches.start(calls[:2])
    for call in calls[2:5]:
        batches.start([call])
    assert store.asked == [2]
    store.replies[0].set_result(None)
    await store.was_asked(2, 3)
    await answered(calls[:2])
    assert store.asked_when_answered == [2]
    batches.start(calls[5:])
    assert store.asked == [2, 3]
    store.replies[1].set_result(None)
    await store.was_asked(2, 3, 1)
    store.replies[2].set_result(None)
    await answered(calls)
    alone = validation("a-token-brought-6")
    batches.start([alone])
    assert store.asked == [2, 3, 1, 1], "no batch waits for the store, so this one need not wait"
    store.replies[3].set_result(None)
    await answered([alone])
    assert not any(call.watched for call in (*calls, alone))


async def test_a_slow_store_holds_no_call_for_long(store: SlowValidating, batches: ValidationBatches) -> None:
    """They are asked about while older batches still wait, whose callers are watched from then on."""
    calls = [validation(f"a-token-brought-{number}") for number in range(3)]
    for number, call in enumerate(calls, 1):
        batches.start([call])
        await store.was_asked(*[1] * number)
    assert all(call.watched for call in calls)
    for reply in store.replies:
        reply.set_result(None)
    await answered(calls)


def start_slow(batches: ValidationBatches, call: Incoming, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts a batch that is slow as soon as it waits; those after it are not."""
    monkeypatch.setattr(validation_batches, "SLOW_SECONDS", 0)
    batches.start([call])
    monkeypatch.setattr(validation_batches, "SLOW_SECONDS", 1_000)


@pytest.mark.usefixtures("patient")
async def test_calls_are_watched_until_a_batch_is_quick(
    store: SlowValidating, batches: ValidationBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From their arrival on, while the store is slow."""
    calls = [validation(f"a-token-brought-{number}") for number in range(4)]
    start_slow(batches, calls[0], monkeypatch)

    async def is_watched() -> bool:
        return calls[0].watched

    await eventually_async(is_watched, "the first call is watched")
    for number, call in enumerate(calls):
        if number:
            batches.start([call])
        store.replies[number].set_result(None)
        await answered([call])
    assert [call.watched for call in calls] == [True, True, False, False]


@pytest.mark.usefixtures("patient")
async def test_only_the_newest_batch_holds_calls(
    store: SlowValidating, batches: ValidationBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply to an older batch starts nothing."""
    calls = [validation(f"a-token-brought-{number}") for number in range(3)]
    start_slow(batches, calls[0], monkeypatch)
    batches.start(calls[1:2])
    await store.was_asked(1, 1)
    batches.start(calls[2:])
    store.replies[0].set_result(None)
    await answered(calls[:1])
    assert store.asked == [1, 1]
    store.replies[1].set_result(None)
    await store.was_asked(1, 1, 1)
    store.replies[2].set_result(None)
    await answered(calls)


@pytest.mark.usefixtures("patient")
async def test_a_batch_that_fails_holds_no_call(store: SlowValidating, batches: ValidationBatches) -> None:
    """The next one starts, also after a defect."""
    failing, held = validation("a-token-brought-0"), validation("a-token-brought-1")
    batches.start([failing])
    batches.start([held])
    store.replies[0].set_exception(ZeroDivisionError())
    await store.was_asked(1, 1)
    store.replies[1].set_result(None)
    await answered([failing, held])
    assert (failing.code, held.code) == (grpc.StatusCode.INTERNAL, grpc.StatusCode.OK)


@pytest.mark.usefixtures("patient")
async def test_a_batch_with_nothing_to_ask_holds_no_call(store: SlowValidating, batches: ValidationBatches) -> None:
    """Its calls are late, unreadable or refused."""
    batches.start([Incoming(b"\xff"), validation(""), validation("a-token-brought-0", within=-math.inf)])
    store.replies[0].set_result(None)
    await asyncio.sleep(0)
    held = validation("a-token-brought-1")
    batches.start([held])
    await store.was_asked(0, 1)
    store.replies[1].set_result(None)
    await answered([held])
