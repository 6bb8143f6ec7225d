"""`python -m bench life`: what every other RPC costs beside a validation, and what a user with 10,000 sessions costs.

Revoking uses sessions up, rotating changes their tokens, logging in adds sessions. So the sessions are created once,
and all of them are restored before each run: no run finds what another has left.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from math import inf

from google.protobuf.field_mask_pb2 import FieldMask

from bench.checkouts import THIS, Checkout, comparison, take_turns
from bench.closed_loop import Client, Load
from bench.measure import Plan, Row, measure
from bench.processes import find_cores, serving
from bench.report import (
    COST,
    COST_COMPARED,
    P50,
    P99,
    P99_COMPARED,
    RATE_COMPARED,
    SECONDS,
    SLOWEST,
    Results,
    Table,
    rate,
)
from bench.sessions import ask, asking, batched_validations, login, single_validations
from bench.store import Store, connect, temporary_store
from catraca.v1.session_pb2 import Session
from catraca.v1.session_service_pb2 import (
    CreateSessionResponse,
    GetSessionRequest,
    GetSessionResponse,
    ListSessionsRequest,
    ListSessionsResponse,
    RevokeSessionRequest,
    RevokeSessionResponse,
    RevokeUserSessionsRequest,
    RevokeUserSessionsResponse,
    RotateSessionRequest,
    RotateSessionResponse,
    UpdateSessionRequest,
    UpdateSessionResponse,
)

_USERS = [f"user-{number}" for number in range(1_000)]
_EACH = 5
_HEAVY_USER = "heavy"
_HEAVY = 10_000
_PAGES = (50, 500)
_VALIDATED = 1_000

# The callers that validate meanwhile: a few, whose calls show even a short wait, or enough to keep the server busy.
_CALLERS = (4, 64)

# Copies all of this database into database 0, with the remaining time to live of each key.
_COPY = "for _, key in ipairs(redis.call('KEYS', '*')) do redis.call('COPY', key, key, 'DB', 0) end return 0"


@dataclass(frozen=True)
class _Stock:
    """Sessions in database 1, to be copied into database 0, where they are measured."""

    store: Store
    sessions: Sequence[CreateSessionResponse]
    """The sessions of the users that have a few each."""
    page_tokens: dict[int, list[str]]
    """The page tokens for all pages of the heavy user, by page size."""

    @property
    def validated(self) -> list[str]:
        """Tokens to validate."""
        return [session.token for session in self.sessions[:_VALIDATED]]

    def restore(self, client: Client) -> None:
        """Restores all sessions. Those to be validated have recorded activity just now, as in busy use."""
        with connect(self.store.url) as store:
            store.flushdb()
        with connect(self.store.database(1)) as store:
            store.eval(_COPY, 0)
        client.run(batched_validations(self.validated, _VALIDATED, once=True), streams=1, seconds=inf)


def _make_stock(store: Store, checkout: Checkout, core: int | None) -> _Stock:
    logins = [*map(login, _USERS * _EACH), *[login(_HEAVY_USER)] * _HEAVY]
    with (
        serving(checkout.serve(store.database(1)), core=core) as server,
        closing(Client(server.port, connections=4)) as client,
    ):
        created = ask(client, logins, CreateSessionResponse)
        page_tokens = {size: _walk(client, size) for size in _PAGES}
    return _Stock(store, [each for each in created if each.session.user_id != _HEAVY_USER], page_tokens)


def _walk(client: Client, size: int) -> list[str]:
    tokens = [""]
    for _ in range(_HEAVY // size - 1):
        (page,) = ask(client, [_page(size, tokens[-1])], ListSessionsResponse)
        tokens.append(page.next_page_token)
    return tokens


def _page(size: int, token: str) -> ListSessionsRequest:
    return ListSessionsRequest(user_id=_HEAVY_USER, page_size=size, page_token=token)


def compare_life(plan: Plan, *, other: Checkout | None, progress: Callable[[str], None]) -> Results:
    """Measures every RPC of a session's life, a user with many sessions, and callers that validate meanwhile.

    If there is another checkout, it creates the sessions: a new version must read the records of the one before.
    """
    checkouts = [other, THIS] if other else [THIS]
    cores = find_cores()
    with temporary_store(core=cores.load) as store:
        progress("creating sessions")
        stock = _make_stock(store, checkouts[0], cores.server)
        at_limit = _row(stock, f"CreateSession at a limit of {_EACH}", _logins(evicted=1))
        rpcs, heavy = _each_rpc(stock), _heavy_user(stock)
        meanwhile = {callers: _meanwhile(stock, callers) for callers in _CALLERS}
        groups = [
            take_turns(checkouts, store.url, rpcs),
            take_turns(checkouts, store.url, [at_limit], "--max-sessions-per-user", str(_EACH)),
            take_turns(checkouts, store.url, [*heavy, *chain.from_iterable(meanwhile.values())]),
        ]
        measurements = measure(groups, plan, cores=cores, store=store.running, progress=progress)
    tables = [
        Table(
            "A session's life",
            _names([*rpcs[:2], at_limit, *rpcs[2:]]),
            (rate("calls"), COST, P50, P99, RATE_COMPARED, COST_COMPARED),
        ),
        Table(f"All of a user's {_HEAVY:,} sessions, one caller", _names(heavy), (rate("sessions"), COST, P50, P99)),
        *(
            Table(
                f"ValidateSession by {callers} others meanwhile",
                _names(rows),
                (SECONDS, rate("calls"), P50, P99, SLOWEST, P99_COMPARED),
                plotted=P99,
            )
            for callers, rows in meanwhile.items()
        ),
    ]
    if other:
        rows = [*rpcs[:2], at_limit, *rpcs[2:], *chain.from_iterable(meanwhile.values())]
        tables += [
            comparison("A session's life", _names(rows), other, items="calls"),
            comparison(f"All of a user's {_HEAVY:,} sessions", _names(heavy), other, items="sessions"),
        ]
    return Results(plan, cores, store.version, tables, measurements)


def _names(rows: Sequence[Row]) -> list[str]:
    return [row.name for row in rows]


def _row(stock: _Stock, name: str, load: Load) -> Row:
    return Row(name, load, prepare=stock.restore)


def _each_rpc(stock: _Stock) -> list[Row]:
    sessions = stock.sessions
    ids = [each.session.session_id for each in sessions]
    loads = {
        "ValidateSession": single_validations(stock.validated),
        "CreateSession": _logins(evicted=0),
        "GetSession": asking(
            [GetSessionRequest(session_id=each) for each in ids],
            GetSessionResponse,
            lambda response: bool(response.session.user_id),
        ),
        f"ListSessions of {_EACH}": asking(
            [ListSessionsRequest(user_id=user) for user in _USERS],
            ListSessionsResponse,
            lambda response: len(response.sessions) == _EACH,
        ),
        "UpdateSession": asking(
            [
                UpdateSessionRequest(
                    session=Session(session_id=each, attributes={"device": "tablet"}),
                    update_mask=FieldMask(paths=["attributes.device"]),
                )
                for each in ids
            ],
            UpdateSessionResponse,
            lambda response: response.session.attributes["device"] == "tablet",
        ),
        # Once each: a second rotation of a token would be answered within its grace, and write nothing.
        "RotateSession": asking(
            [RotateSessionRequest(token=each.token) for each in sessions],
            RotateSessionResponse,
            lambda response: bool(response.token),
            once=True,
        ),
        "RevokeSession": asking(
            [RevokeSessionRequest(token=each.token) for each in sessions],
            RevokeSessionResponse,
            lambda response: response.revoked,
            once=True,
        ),
        f"RevokeUserSessions of {_EACH}": asking(
            [RevokeUserSessionsRequest(user_id=user) for user in _USERS],
            RevokeUserSessionsResponse,
            lambda response: response.revoked_count == _EACH,
            once=True,
        ),
    }
    return [_row(stock, name, load) for name, load in loads.items()]


def _logins(*, evicted: int) -> Load:
    return asking(map(login, _USERS), CreateSessionResponse, lambda each: len(each.evicted_session_ids) == evicted)


def _pages(stock: _Stock, size: int, *, once: bool = False) -> Load:
    return asking(
        [_page(size, token) for token in stock.page_tokens[size]],
        ListSessionsResponse,
        lambda response: len(response.sessions) == size,
        once=once,
    )


def _revocation_of_all() -> Load:
    return asking(
        [RevokeUserSessionsRequest(user_id=_HEAVY_USER)],
        RevokeUserSessionsResponse,
        lambda response: response.revoked_count == _HEAVY,
        once=True,
    )


def _heavy_user(stock: _Stock) -> list[Row]:
    def row(name: str, load: Load, items: int) -> Row:
        return Row(name, load, connections=1, streams=1, items=items, prepare=stock.restore)

    return [
        *(row(f"ListSessions, {size} a page", _pages(stock, size), size) for size in _PAGES),
        row("RevokeUserSessions", _revocation_of_all(), _HEAVY),
    ]


def _meanwhile(stock: _Stock, callers: int) -> list[Row]:
    validations = single_validations(stock.validated)
    events = {
        "nothing else going on": None,
        f"all {_HEAVY:,} being listed": _pages(stock, max(_PAGES), once=True),
        f"all {_HEAVY:,} being revoked": _revocation_of_all(),
    }
    return [
        Row(
            f"{name}, {callers} callers",
            validations,
            connections=4,
            streams=callers // 4,
            prepare=stock.restore,
            event=event,
        )
        for name, event in events.items()
    ]
