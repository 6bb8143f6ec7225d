"""`python -m bench peers`: catraca beside what an expert would write in Go, and beside empty handlers.

All of them run at the same time, on one core, over the same sessions in one store, and take turns.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bench.checkouts import THIS, Checkout, take_turns
from bench.closed_loop import Load
from bench.engines import EMPTY_LOAD, empty_engine, empty_handler
from bench.measure import Contestant, Plan, Row, measure
from bench.peer_build import PeerUnavailable, build_peer
from bench.peer_check import check_peer
from bench.processes import find_cores
from bench.report import COST, P50, P50_COMPARED, P99, P99_COMPARED, Results, Table, rate
from bench.sessions import log_in, single_validations
from bench.store import Store, temporary_store
from bench.validation import SESSIONS, batch_row, tutorial

_BATCHES = (100, 1_000)

_SHAPES = 3
"""The rows of each contestant that are not batches."""

# The kinds of the peer, and the names of their rows.
_KINDS = {"go-redis": "Go, go-redis", "rueidis": "Go, rueidis"}


def compare_peers(plan: Plan, *, workdir: Path, other: Checkout | None, progress: Callable[[str], None]) -> Results:
    """Measures one validation a call, and catraca's batches against single calls of the peer.

    The callers are 64 on 4 connections, one alone, and 64 on a connection each.
    If there is another checkout, it creates the sessions and is measured as well.
    """
    cores = find_cores()
    notes = []
    try:
        peer = build_peer(workdir, progress=progress)
    except PeerUnavailable as error:
        peer = None
        notes.append(f"No Go peer: {error}.")
    checkouts = [other, THIS] if other else [THIS]
    with temporary_store(core=cores.load) as store:
        progress("creating sessions")
        if peer:
            check_peer(peer, list(_KINDS), store, checkouts[0], core=cores.server)
        sessions = log_in(SESSIONS, checkouts[0], store.url, core=cores.server)
        tokens = [session.token for session in sessions]
        load = single_validations(tokens)
        batches = [batch_row(tokens, size) for size in _BATCHES]
        group = [
            *(_go_peer(peer, store, load) if peer else []),
            *_empty_handlers(),
            tutorial(store, sessions, _shapes("tutorial answer", load)),
            *take_turns(checkouts, store.url, [*_shapes("catraca", load), *batches]),
        ]
        measurements = measure([group], plan, cores=cores, store=store.running, progress=progress)
    return Results(plan, cores, store.version, _tables(group), measurements, notes=notes)


def _shapes(name: str, load: Load) -> list[Row]:
    return [
        Row(name, load),
        Row(f"{name}, one caller", load, connections=1, streams=1),
        Row(f"{name}, 64 connections", load, connections=64, streams=1),
    ]


def _go_peer(program: Path, store: Store, load: Load) -> list[Contestant]:
    # Go is told that it has one core: catraca's server is one process as well.
    environment = {"GOMAXPROCS": "1"}
    return [
        Contestant([str(program), kind, store.url.socket_path], _shapes(name, load), environment)
        for kind, name in {**_KINDS, "empty": "Go, empty handler"}.items()
    ]


def _empty_handlers() -> list[Contestant]:
    ours, grpc_aio = "empty handler, our engine", "empty handler, grpc.aio"
    return [
        replace(empty_engine(ours), rows=_shapes(ours, EMPTY_LOAD)),
        replace(empty_handler(grpc_aio, "--uvloop"), rows=_shapes(grpc_aio, EMPTY_LOAD)),
    ]


def _tables(group: Sequence[Contestant]) -> list[Table]:
    many, one, apart = ([each.rows[at].name for each in group] for at in range(_SHAPES))
    catraca = [row.name for each in group if each.rows[_SHAPES:] for row in (each.rows[0], *each.rows[_SHAPES:])]
    return [
        Table("One validation a call, 64 callers", many),
        Table(
            "One validation a call, one caller",
            one,
            (rate("calls"), COST, P50, P99, P50_COMPARED, P99_COMPARED),
            plotted=P50,
        ),
        Table("One validation a call, 64 connections of one caller", apart),
        Table("Many validations a call", [many[0], *catraca]),
    ]
