"""Millions of garbage tokens and requests: refused or answered, never a defect, and memory does not grow."""

import asyncio
import gc
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from math import inf
from typing import Any, cast

import grpc
import psutil
import pytest
from google.protobuf.message import Message
from tests.support.inprocess import METHODS
from tests.support.raw import field
from tests.support.service import ServeProcess

from catraca.v1 import session_service_pb2 as pb
from catraca_server.api.engine import BatchMethod, Status, StatusError, UnaryCall
from catraca_server.api.handlers import SERVICE_NAME, session_service_methods
from catraca_server.api.paging import write_page_token
from catraca_server.api.session_service import SessionService
from catraca_server.api.watch import Watches
from catraca_server.domain.call import Call
from catraca_server.domain.events import BEFORE_ALL, EntryId, Position, SessionEvent
from catraca_server.domain.limits import BATCH_MAX_REQUESTS, Policy
from catraca_server.domain.session import Session, StoredSession
from catraca_server.domain.tokens import Credential, Tokens
from catraca_server.operations.ending import Ending
from catraca_server.operations.sessions import Sessions
from catraca_server.operations.users import UserSessions
from catraca_server.operations.watching import Watching
from catraca_server.store import Creation, FeedReading, IndexEntries, IndexEntry, ReadResult, Replacement, Reservation

TOKENS = 1_000_000
BODIES = 1_000_000
WIRE_BODIES = 20_000
GROWTH_MAX_BYTES = 4 << 20
"""How much larger a process may be after the second half than after the first: noise, far below a leak."""

HARMLESS = {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
"""The statuses that garbage may get; NOT_FOUND from GetSession, UpdateSession and RotateSession."""

Handler = Callable[[bytes], Awaitable[tuple[grpc.StatusCode, bytes]]]


NOW = 1_790_000_000_000
TOKEN = Tokens(bytes).mint()
LIVE = StoredSession(
    Session(
        session_id="0" * 22,
        user_id="12345",
        digest=cast("Credential", Tokens(bytes).read(TOKEN)).digest,
        attributes={"device": "phone"},
        create_time_ms=NOW,
        absolute_expire_time_ms=NOW + 3_600_000,
        idle_timeout_ms=1_800_000,
    ),
    NOW + 1_800_000,
    b"",
)
"""The session that well-formed requests are about."""


class EmptyStore:
    """A store that has this one session, and accepts every new one without keeping it."""

    async def create(self, session: Session, _entry: IndexEntry, _call: Call) -> tuple[Creation, StoredSession]:
        """Does not keep it."""
        return Creation.CREATED, StoredSession(session, session.absolute_expire_time_ms, b"")

    async def read(self, session_ids: Sequence[str], _call: Call) -> Sequence[ReadResult]:
        """Finds only that one."""
        there, absent = ReadResult(NOW, LIVE, absent=False), ReadResult(NOW, None, absent=True)
        return [there if each == LIVE.session.session_id else absent for each in session_ids]

    def together(self, session_ids: Sequence[str]) -> Sequence[Sequence[int]]:
        """Reads all at once."""
        return (range(len(session_ids)),)

    async def touch(self, touched: Sequence[StoredSession], _call: Call) -> Sequence[bool]:
        """Touches all."""
        return [True] * len(touched)

    async def replace(self, replacement: Replacement, _call: Call, *, exclusive: bool = False) -> StoredSession | None:
        """Does not keep it."""
        return replacement.after

    async def tidy(self, replacements: Sequence[Replacement], call: Call) -> None:
        """Tidies nothing."""

    async def delete(self, _session_id: str, _call: Call) -> bool:
        """Deletes none."""
        return False

    async def end(self, _user_id: str, _entries: IndexEntries, _call: Call) -> Sequence[str]:
        """Ends none."""
        return []

    async def ensure_replicated(self, session_ids: Sequence[str], call: Call) -> None:
        """Has no replicas."""


class EmptyIndex:
    """The index of such a store."""

    async def reserve(self, session: Session, *, limit: int, evict_oldest: bool, call: Call) -> Reservation:
        """Does not keep it."""
        nothing = IndexEntries(NOW, [])
        return Reservation(IndexEntry(session.session_id, 2), nothing, nothing)

    async def commit(self, user_id: str, entry: IndexEntry, call: Call) -> bool:
        """Commits nothing."""
        return True

    async def extend(self, session: Session, call: Call) -> None:
        """Extends nothing."""

    async def entry(self, _user_id: str, _session_id: str, _call: Call) -> IndexEntry | None:
        """Has nothing."""

    async def newest(self, _user_id: str, _before: int | None, _count: int, _call: Call) -> IndexEntries:
        """Has nothing."""
        return IndexEntries(NOW, [])

    async def session_ids(self, _user_id: str, _call: Call) -> Sequence[str]:
        """Has nothing."""
        return []

    async def entries(self, _user_id: str, _session_ids: Sequence[str], _call: Call) -> IndexEntries:
        """Has nothing."""
        return IndexEntries(NOW, [])

    async def remove(self, user_id: str, entries: Sequence[IndexEntry], call: Call) -> None:
        """Removes nothing."""


class EmptyFeed:
    """A feed that accepts every event without keeping it."""

    on_append: Callable[[], None]

    async def append(self, events: Sequence[SessionEvent], call: Call) -> None:
        """Does not keep them."""

    async def end(self, _call: Call) -> Position:
        """Is empty."""
        return Position(bytes(8), BEFORE_ALL)

    async def read(self, after: Position, _count: int, _call: Call, *, until: EntryId | None = None) -> FeedReading:
        """Has nothing."""
        return FeedReading(after, (), None, at_end=True)


class FakeCall:
    """What handlers use of a call."""

    deadline = inf
    caller = None
    method = b""
    metadata: Sequence[tuple[str, str | bytes]] = ()
    initial_metadata: Sequence[tuple[str, str | bytes]] = ()

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.answer: asyncio.Future[tuple[grpc.StatusCode, bytes]] = asyncio.get_running_loop().create_future()

    def watch(self) -> None:
        """Does nothing."""

    def reply(self, message: bytes) -> None:
        """Answers with a message."""
        self.answer.set_result((grpc.StatusCode.OK, message))

    def fail(self, status: Status) -> None:
        """Answers with a status."""
        self.answer.set_result((status.code, b""))


@pytest.fixture
def handlers() -> dict[str, Handler]:
    """The handlers as the engine calls them, over an empty store: bytes to a status and bytes."""
    policy = Policy(default_ttl_ms=86_400_000, default_idle_timeout_ms=1_800_000, max_ttl_ms=2_592_000_000)
    store, index, feed = EmptyStore(), EmptyIndex(), EmptyFeed()
    parts = store, index, Ending(store, index, feed), Tokens(os.urandom), policy
    service = SessionService(Sessions(*parts, feed=feed), UserSessions(*parts, feed=feed))
    watches = Watches(Watching(feed, timeout_seconds=1))
    methods: dict[str, Any] = dict(session_service_methods(service, watches, store_timeout_seconds=1))

    def handler(name: str) -> Handler:
        method = methods[f"/{SERVICE_NAME}/{name}"]

        async def answer(body: bytes) -> tuple[grpc.StatusCode, bytes]:
            call = FakeCall(body)
            if isinstance(method, BatchMethod):
                method._handler([cast("UnaryCall", call)])
                return await call.answer
            try:
                return grpc.StatusCode.OK, await method._handler(call)
            except StatusError as error:
                return error.status.code, b""

        return answer

    return {method: handler(method) for method in METHODS}


async def outcome(handler: Handler, body: bytes, response_type: type[Message]) -> str:
    """Calls a handler and returns the name of the status."""
    code, answer = await handler(body)
    response_type.FromString(answer)
    return code.name


def resident_bytes() -> int:
    """Returns the resident memory of this process, in bytes."""
    gc.collect()
    return psutil.Process().memory_info().rss


# Tokens


def random_tokens(chance: random.Random, count: int) -> list[bytes]:
    """Returns byte strings of one of four kinds; all but the last kind are UTF-8."""
    kind = chance.randrange(4)
    if kind == 0:
        return [chance.randbytes(chance.randrange(1, 100)).decode("latin-1").encode() for _ in range(count)]
    if kind == 1:
        return [b"ctr_" + chance.randbytes(36).hex()[: chance.randrange(68, 73)].encode() for _ in range(count)]
    if kind == 2:
        return [bytes(chance.choices(range(0x20, 0x7F), k=chance.randrange(1, 40))) for _ in range(count)]
    return [chance.randbytes(chance.randrange(1, 100)) for _ in range(count)]


async def test_a_million_random_tokens(handlers: dict[str, Handler]) -> None:
    """In batches of 1,000: none is valid, a batch that is not UTF-8 is refused as a whole, and memory does not grow."""
    chance = random.Random(1)  # noqa: S311
    outcomes: Counter[str] = Counter()
    sizes = []
    for _ in range(2):
        for _ in range(TOKENS // BATCH_MAX_REQUESTS // 2):
            body = b"".join(field(1, field(1, token)) for token in random_tokens(chance, BATCH_MAX_REQUESTS))
            code, response = await handlers["BatchValidateSessions"](body)
            if code is not grpc.StatusCode.OK:
                outcomes[code.name] += BATCH_MAX_REQUESTS
            else:
                for each in pb.BatchValidateSessionsResponse.FromString(response).responses:
                    outcomes["VALID" if each.valid else pb.InvalidReason.Name(each.invalid_reason)] += 1
        sizes.append(resident_bytes())
    assert outcomes.total() == TOKENS
    refused = {"INVALID_REASON_NOT_FOUND", "INVALID_REASON_MALFORMED", "INVALID_ARGUMENT"}
    assert outcomes.keys() == refused, outcomes
    assert all(outcomes[name] > TOKENS // 20 for name in refused), outcomes
    assert sizes[1] - sizes[0] < GROWTH_MAX_BYTES, sizes


# Request bodies


def good_bodies() -> dict[str, list[bytes]]:
    """Returns well-formed requests of each method with all fields set, from which garbage is made."""
    create = pb.CreateSessionRequest(user_id="12345", attributes={"device": "phone", "app": "shop"}, token="t" * 40)
    create.ttl.FromSeconds(60)
    create.idle_timeout.FromSeconds(30)
    validate = pb.ValidateSessionRequest(token=TOKEN, user_id="12345", skip_touch=True)
    page = pb.ListSessionsRequest(user_id="12345", page_size=10, page_token=write_page_token(2, "12345"))
    update = pb.UpdateSessionRequest()
    update.session.session_id = LIVE.session.session_id
    update.session.attributes.update({"device": "tablet", "app": "shop"})
    update.session.absolute_expire_time.FromMilliseconds(NOW + 7_200_000)
    update.session.idle_timeout.FromSeconds(3600)
    update.update_mask.paths.extend(["attributes", "attributes.place", "absolute_expire_time", "idle_timeout"])
    session_id = LIVE.session.session_id
    return {
        "CreateSession": [create.SerializeToString()],
        "ValidateSession": [validate.SerializeToString()],
        "BatchValidateSessions": [pb.BatchValidateSessionsRequest(requests=[validate] * 3).SerializeToString()],
        "GetSession": [pb.GetSessionRequest(session_id=session_id).SerializeToString()],
        "ListSessions": [page.SerializeToString()],
        "UpdateSession": [update.SerializeToString()],
        "RotateSession": [pb.RotateSessionRequest(token=TOKEN).SerializeToString()],
        "RevokeSession": [
            pb.RevokeSessionRequest(token=TOKEN).SerializeToString(),
            pb.RevokeSessionRequest(session_id=session_id).SerializeToString(),
        ],
        "RevokeUserSessions": [
            pb.RevokeUserSessionsRequest(user_id="12345", except_session_id=session_id).SerializeToString()
        ],
    }


def random_bodies(seed: int) -> Iterator[tuple[str, bytes]]:
    """Yields methods and bodies for them without end: noise, and requests with a few bytes changed or cut off."""
    chance = random.Random(seed)  # noqa: S311
    good = good_bodies()
    methods = list(METHODS)
    while True:
        method = chance.choice(methods)
        if chance.random() < 0.3:
            yield method, chance.randbytes(chance.randrange(64))
            continue
        body = bytearray(chance.choice(good[method]))
        for _ in range(chance.randrange(1, 4)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        if chance.random() < 0.3:
            del body[chance.randrange(len(body)) :]
        elif chance.random() < 0.3:
            at = chance.randrange(len(body))
            body[at:at] = chance.randbytes(chance.randrange(8))
        yield method, bytes(body)


async def test_random_request_bodies(handlers: dict[str, Handler]) -> None:
    """Whatever the body, it is answered or INVALID_ARGUMENT, and memory does not grow."""
    outcomes: Counter[str] = Counter()
    accepted: set[str] = set()
    bodies = random_bodies(2)
    sizes = []
    for _ in range(2):
        for _ in range(BODIES // 2):
            method, body = next(bodies)
            status = await outcome(handlers[method], body, METHODS[method][1])
            assert status in HARMLESS, (method, body.hex())
            outcomes[status] += 1
            if status == "OK":
                accepted.add(method)
        sizes.append(resident_bytes())
    assert all(outcomes[status] > BODIES // 100 for status in HARMLESS), outcomes
    assert accepted == METHODS.keys()
    assert sizes[1] - sizes[0] < GROWTH_MAX_BYTES, sizes


async def test_random_request_bodies_over_the_wire() -> None:
    """The same through a running server, 64 at a time: it goes on, as large as it was, and its log has no defect."""
    outcomes: Counter[str] = Counter()
    bodies = random_bodies(3)
    async with ServeProcess(store_url="memory:", store_timeout="20s") as process:
        async with grpc.aio.insecure_channel(process.target) as channel:
            calls: dict[str, Any] = {method: channel.unary_unary(f"/{SERVICE_NAME}/{method}") for method in METHODS}

            async def caller(numbers: Iterator[int]) -> None:
                for _ in numbers:
                    method, body = next(bodies)
                    try:
                        METHODS[method][1].FromString(await calls[method](body, timeout=30))
                        outcomes["OK"] += 1
                    except grpc.aio.AioRpcError as error:
                        outcomes[error.code().name] += 1

            sizes = []
            for _ in range(2):
                numbers = iter(range(WIRE_BODIES // 2))
                await asyncio.gather(*(caller(numbers) for _ in range(64)))
                sizes.append(psutil.Process(process.pid).memory_info().rss)
        assert process.stop() == 0
    # ALREADY_EXISTS: a good request was changed, but not in its token.
    assert HARMLESS <= outcomes.keys() <= HARMLESS | {"ALREADY_EXISTS"}, outcomes
    assert sizes[1] - sizes[0] < 2 * GROWTH_MAX_BYTES, sizes
    assert "defect" not in process.log
    assert "Traceback" not in process.log
