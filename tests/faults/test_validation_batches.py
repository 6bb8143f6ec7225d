"""ValidateSession calls that came together while something goes wrong with one of them, or with the store."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import grpc
import pytest
from tests.support.backends import Operations, Stores, a_call
from tests.support.fake_redis import FakeRedis, bulk, integer
from tests.support.incoming import Incoming, answered, batches_over, validation
from tests.support.multiplexers import RunningMultiplexer, running_multiplexer
from tests.support.proxy import Proxy
from tests.support.valkey import Valkey
from tests.support.waiting import eventually_async

from catraca_server.api import validation_batches
from catraca_server.domain.call import Call
from catraca_server.domain.commands import NewSession
from catraca_server.domain.session import Session, StoredSession
from catraca_server.domain.tokens import Credential, Tokens
from catraca_server.domain.validation import Validation, ValidationRequest
from catraca_server.operations.ending import Ending
from catraca_server.operations.sessions import Sessions
from catraca_server.redis.errors import StoreProblem, StoreUnavailable
from catraca_server.redis.link import Server
from catraca_server.store import ReadResult, SessionStore
from catraca_server.store.records import encode

UNAVAILABLE, OK = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK
NOW, EXPIRY = 1_790_000_000_000, 1_790_001_800_000


@pytest.fixture
async def proxy(valkey: Valkey, tmp_path: Path) -> AsyncIterator[Proxy]:
    """A proxy in front of a real Valkey that is empty."""
    valkey.command("FLUSHALL")
    async with Proxy(valkey.socket, tmp_path / "proxy.sock") as made:
        yield made


def over(running: RunningMultiplexer) -> Operations:
    """Returns the operations over a multiplexer."""
    return Operations.over(Stores.over(Server(running.multiplexer)))


def record_of(number: int) -> tuple[str, bytes]:
    """Returns a token, and the record of its session."""
    token = Tokens(number.to_bytes).mint()
    credential = Tokens(bytes).read(token)
    assert credential is not None
    return token, encode(session_of(credential))


def session_of(credential: Credential) -> Session:
    """Returns the session that a credential opens."""
    return Session(
        session_id=credential.session_id,
        user_id="ana",
        digest=credential.digest,
        attributes={},
        create_time_ms=NOW - 3_600_000,
        absolute_expire_time_ms=NOW + 86_400_000,
        idle_timeout_ms=1_800_000,
    )


def redis_with(records: Sequence[bytes]) -> Callable[[list[bytes]], bytes | None]:
    """Returns how a fake Redis replies that has these records, and whose clock stands still."""
    by_key = {b"session:" + record[7:29]: record for record in records}

    def reply(command: list[bytes]) -> bytes | None:
        match command[0].upper():
            case b"TIME":
                return b"*2\r\n$10\r\n%d\r\n$1\r\n0\r\n" % (NOW // 1000)
            case b"GET":
                return bulk(by_key[command[1]])
            case b"PEXPIRETIME":
                return integer(EXPIRY)
        return None

    return reply


async def test_another_sessions_record_answers_nobody(tmp_path: Path) -> None:
    """Whatever else the same replies say, their connection is closed; the calls may be repeated, and are right then."""
    sessions = [record_of(number) for number in range(5)]
    right = redis_with([record for _, record in sessions])
    wrong_left = 1

    def reply(command: list[bytes]) -> bytes | None:
        nonlocal wrong_left
        if wrong_left and command[0] == b"GET" and command[1].endswith(sessions[2][1][7:29]):
            wrong_left -= 1
            return bulk(sessions[3][1])
        return right(command)

    async with FakeRedis(tmp_path / "fake.sock", reply) as fake, running_multiplexer(fake.url) as running:
        calls = [validation(token) for token, _ in sessions]
        await answered(over(running), *calls)
        assert {call.code for call in calls} == {UNAVAILABLE}
        await running.recovered()
        assert fake.connected == 2
        calls = [validation(token) for token, _ in sessions]
        await answered(over(running), *calls)
        assert all(call.response.valid for call in calls)


async def test_known_records_are_compared_with_what_was_asked_for(tmp_path: Path) -> None:
    """Once records are known, swapped replies are seen all the same."""
    sessions = [record_of(number) for number in range(2)]
    right = redis_with([record for _, record in sessions])
    swapped = False
    others = dict(zip((b"session:" + record[7:29] for _, record in sessions), reversed(sessions), strict=True))

    def reply(command: list[bytes]) -> bytes | None:
        if swapped and command[0] == b"GET":
            return bulk(others[command[1]][1])
        return right(command)

    async with FakeRedis(tmp_path / "fake.sock", reply) as fake, running_multiplexer(fake.url) as running:
        operations = over(running)
        for swapped, code in ((False, OK), (True, UNAVAILABLE)):  # noqa: B007  the fake Redis looks at it
            calls = [validation(token) for token, _ in sessions]
            await answered(operations, *calls)
            assert {call.code for call in calls} == {code}
        await running.recovered()
        assert fake.connected == 2


@pytest.mark.parametrize("name", [b"EVAL", b"GET", b"PEXPIRETIME"])
async def test_a_refused_command_answers_nobody_wrongly(name: bytes, tmp_path: Path) -> None:
    """If Redis refuses to read, nothing is known of any; if it refuses a touch, the others are answered."""
    sessions = [record_of(number) for number in range(4)]
    right = redis_with([record for _, record in sessions])
    key = b"session:" + sessions[1][1][7:29]

    def reply(command: list[bytes]) -> bytes | None:
        if command[0] == name and key in command:
            return b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"
        if name == b"EVAL" and command[0] == b"PEXPIRETIME" and command[1] == key:
            return integer(EXPIRY - 120_000)
        return right(command)

    async with FakeRedis(tmp_path / "fake.sock", reply) as fake, running_multiplexer(fake.url) as running:
        calls = [validation(token) for token, _ in sessions]
        await answered(over(running), *calls)
        expected = [OK, UNAVAILABLE, OK, OK] if name == b"EVAL" else [UNAVAILABLE] * 4
        assert [call.code for call in calls] == expected
        assert fake.connected == 1


@pytest.mark.parametrize("fault", ["reset", "hold", "refuse"])
async def test_a_store_that_dies_fails_all_that_asked_it(fault: str, proxy: Proxy) -> None:
    """Each hears that nothing is known, once and within the store's timeout; and it works again when the store does."""
    async with running_multiplexer(proxy.url, timeout_seconds=0.3) as running:
        operations = over(running)
        tokens = [(await operations.users.create(NewSession("ana"), a_call())).token for _ in range(20)]
        proxy.refuse(fault != "hold")
        proxy.hold()
        calls = [validation(token) for token in tokens]
        task = asyncio.create_task(answered(operations, *calls))
        await proxy.holding(b"GET")
        if fault != "hold":
            proxy.reset()
        before = asyncio.get_running_loop().time()
        await task
        assert asyncio.get_running_loop().time() - before < 2
        assert {call.code for call in calls} == {UNAVAILABLE}
        proxy.refuse(False)
        proxy.release()
        await running.recovered()
        calls = [validation(token) for token in tokens]
        await answered(operations, *calls)
        assert all(call.response.valid for call in calls)


async def test_a_closed_connection_costs_nobody_an_answer(proxy: Proxy) -> None:
    """If it is closed in the middle of the replies, the batch is sent again on a new one."""
    async with running_multiplexer(proxy.url) as running:
        operations = over(running)
        tokens = [(await operations.users.create(NewSession("ana"), a_call())).token for _ in range(20)]
        proxy.hold()
        calls = [validation(token) for token in tokens]
        task = asyncio.create_task(answered(operations, *calls))
        await proxy.holding(b"GET")
        proxy.reset()
        proxy.release()
        await task
        assert all(call.response.valid for call in calls)


async def test_each_has_its_own_deadline(proxy: Proxy) -> None:
    """While the store is slow, calls past their deadlines fail, and the rest are answered."""
    async with running_multiplexer(proxy.url) as running:
        operations = over(running)
        token = (await operations.users.create(NewSession("ana"), a_call())).token
        batches = batches_over(operations)
        proxy.hold()
        good, late = validation(token), validation(token, within=0.02)
        batches.start([good, late])
        await proxy.holding(b"GET")
        await asyncio.sleep(0.05)  # lets the deadline pass
        proxy.release()

        async def has_answer() -> bool:
            return bool(good.answers)

        await eventually_async(has_answer, "the call with time is answered")
        assert good.response.valid
        assert late.code is UNAVAILABLE


async def test_the_whole_batch_gives_up_with_its_last_deadline(proxy: Proxy) -> None:
    """Nobody waits for a silent store beyond the latest deadline of the batch."""
    async with running_multiplexer(proxy.url) as running:
        operations = over(running)
        token = (await operations.users.create(NewSession("ana"), a_call())).token
        proxy.hold()
        calls = [validation(token, within=0.02), validation(token, within=0.1)]
        before = asyncio.get_running_loop().time()
        await answered(operations, *calls)
        assert 0.1 <= asyncio.get_running_loop().time() - before < 2
        assert {call.code for call in calls} == {UNAVAILABLE}
        proxy.release()


async def test_a_crowd_is_asked_for_in_several_requests(proxy: Proxy) -> None:
    """However many calls arrive together, no request to the store is larger than that of the largest batch call."""
    async with running_multiplexer(proxy.url) as running:
        operations = over(running)
        token = (await operations.users.create(NewSession("ana"), a_call())).token
        batches = batches_over(operations)
        proxy.hold()
        calls = [validation(token) for _ in range(2_500)]
        batches.start(calls)
        await proxy.holding(b"GET")
        exchange = running.multiplexer._exchange
        assert exchange is not None
        assert running.multiplexer.waiting_commands + exchange.commands == 5_000
        assert max(each.count for each in exchange.requests) == 2_000
        proxy.release()

        async def are_answered() -> bool:
            return all(call.answers for call in calls)

        await eventually_async(are_answered, "all are answered")
        assert all(call.response.valid for call in calls)


class TwoServers:
    """A store whose sessions are on two servers, of which the second is disconnected, or a defect."""

    def __init__(self, fault: Exception) -> None:
        self._fault = fault

    def together(self, session_ids: Sequence[str]) -> Sequence[Sequence[int]]:
        """Returns the even positions and the odd ones."""
        return range(0, len(session_ids), 2), range(1, len(session_ids), 2)

    async def read(self, session_ids: Sequence[str], _call: Call) -> Sequence[ReadResult]:
        """Reads sessions that are on one server."""
        results = []
        for number in range(6):
            token, record = record_of(number)
            credential = Tokens(bytes).read(token)
            assert credential is not None
            if credential.session_id in session_ids:
                if number % 2:
                    raise self._fault
                results.append(ReadResult(NOW, StoredSession(session_of(credential), EXPIRY, record), absent=False))
        return results


def operations_of(store: object) -> Sessions:
    """Returns the operations on a store that only reads."""
    reading: SessionStore = store  # type: ignore[assignment]  # what it lacks is not used
    index: object = None
    ending = Ending(reading, index, None)  # type: ignore[arg-type]  # as above
    return Sessions(reading, index, ending, Tokens(bytes), None, feed=None)  # type: ignore[arg-type]  # as above


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (StoreUnavailable("down", StoreProblem.CANNOT_CONNECT), UNAVAILABLE),
        (ZeroDivisionError("quotes a token"), grpc.StatusCode.INTERNAL),
    ],
    ids=["down", "defect"],
)
async def test_a_server_that_is_down_fails_only_what_it_has(fault: Exception, code: grpc.StatusCode) -> None:
    """In a cluster, calls about sessions on other nodes are answered; a defect is no answer either, and told."""
    calls = [validation(record_of(number)[0]) for number in range(6)]
    sessions = operations_of(TwoServers(fault))
    operations = Operations(sessions, None, None)  # type: ignore[arg-type]  # as above
    await answered(operations, *calls)
    assert [call.code for call in calls] == [OK, code] * 3


async def test_calls_past_their_deadline_are_not_asked_about() -> None:
    """Calls whose deadline has passed before it was their turn never reach the store."""
    store = TwoServers(AssertionError("it was asked for"))
    calls = [validation(record_of(1)[0], within=0), validation(record_of(0)[0])]
    await answered(Operations(operations_of(store), None, None), *calls)  # type: ignore[arg-type]  # as above
    assert [call.code for call in calls] == [UNAVAILABLE, OK]


async def test_an_answer_that_cannot_be_written_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect in writing down one session costs no other call its answer, and the caller of that one hears of it."""
    calls = [validation(record_of(number)[0]) for number in (0, 2, 4)]
    written = 0

    def write(_validation: Validation) -> bytes:
        nonlocal written
        written += 1
        if written == 2:
            raise ValueError
        return b"\x08\x01"

    monkeypatch.setattr("catraca_server.api.validation_batches.validation_response", write)
    operations = Operations(operations_of(TwoServers(ValueError())), None, None)  # type: ignore[arg-type]  # as above
    await answered(operations, *calls[:1], *calls[1:])
    assert sorted(call.code.name for call in calls) == ["INTERNAL", "OK", "OK"]


async def test_nothing_is_left_behind(proxy: Proxy) -> None:
    """After batches that failed in every way no task, call or exception remains, not even for the collector."""

    def raised() -> int:
        return sum(isinstance(each, StoreUnavailable) and each.__traceback__ is not None for each in gc.get_objects())

    async with running_multiplexer(proxy.url, timeout_seconds=0.1) as running:
        operations = over(running)
        token = (await operations.users.create(NewSession("ana"), a_call())).token
        batches = batches_over(operations)
        gc.collect()
        gc.disable()
        try:
            tasks, before = len(asyncio.all_tasks()), raised()
            proxy.hold()
            calls = [validation(token, within=0.05), Incoming(b"\xff"), validation("")]
            await batches.answer(calls)
            assert {call.code for call in calls} == {UNAVAILABLE, grpc.StatusCode.INVALID_ARGUMENT}
            assert len(asyncio.all_tasks()) == tasks
            del calls
            await asyncio.sleep(0)  # from Python 3.13 on, asyncio keeps the error until its turn is over
            assert not [each for each in gc.get_objects() if isinstance(each, Incoming)]
            assert raised() == before
        finally:
            gc.enable()
            proxy.release()


async def test_a_defect_in_reading_one_request_fails_that_call_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is INTERNAL, and every other call that came with it has its answer."""
    read = validation_batches._read

    def defective(body: bytes) -> ValidationRequest:
        if b"defect" in body:
            raise RuntimeError("a defect")
        return read(body)

    monkeypatch.setattr(validation_batches, "_read", defective)
    sessions = [record_of(number) for number in range(3)]
    async with (
        FakeRedis(tmp_path / "fake.sock", redis_with([record for _, record in sessions])) as fake,
        running_multiplexer(fake.url) as running,
    ):
        calls = [validation(token) for token, _ in sessions]
        broken = validation(sessions[0][0], user_id="defect")
        await answered(over(running), calls[0], broken, *calls[1:])
        assert broken.code is grpc.StatusCode.INTERNAL
        assert all(call.response.valid for call in calls)
