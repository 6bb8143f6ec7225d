"""`python -m bench validation`: what a validation costs, beside an empty handler and beside the tutorial answer.

All servers use one store. It shares the load generator's core, so that the server's core is the server's alone.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.checkouts import THIS, Checkout, comparison, take_turns
from bench.engines import empty_engine
from bench.measure import Contestant, Plan, Row, measure
from bench.processes import find_cores
from bench.report import Results, Table
from bench.sessions import batched_validations, log_in, single_validations
from bench.store import Store, connect, temporary_store
from catraca.v1.session_service_pb2 import CreateSessionResponse

SESSIONS = 1_000
"""The validations are spread over this many sessions."""

_TUTORIAL = Path(__file__).parent / "servers" / "tutorial.py"

# Tokens in a call, and how many such calls to keep in flight on each connection.
_STREAMS = {1: 16, 10: 16, 100: 4, 1_000: 1}


def compare_validations(plan: Plan, *, other: Checkout | None, progress: Callable[[str], None]) -> Results:
    """Measures single and batched validations of good tokens, spread over many sessions.

    If there is another checkout, it creates the sessions: a new version must read the records of the one before.
    """
    cores = find_cores()
    checkouts = [other, THIS] if other else [THIS]
    with temporary_store(core=cores.load) as store:
        progress("creating sessions")
        sessions = log_in(SESSIONS, checkouts[0], store.url, core=cores.server)
        tokens = [session.token for session in sessions]
        single = single_validations(tokens)
        batches = [batch_row(tokens, size) for size in _STREAMS]
        group = [
            empty_engine("empty handler"),
            tutorial(store, sessions, [Row("tutorial answer", single)]),
            *take_turns(checkouts, store.url, [Row("catraca", single), *batches]),
        ]
        measurements = measure([group], plan, cores=cores, store=store.running, progress=progress)
    tables = [
        Table("One validation a call", ["empty handler", "tutorial answer", "catraca"]),
        Table("Many validations a call", ["catraca", *(row.name for row in batches)]),
    ]
    if other:
        rows = ["catraca", *(row.name for row in batches)]
        tables.append(comparison("Validations", rows, other, items="validations"))
    return Results(plan, cores, store.version, tables, measurements)


def batch_row(tokens: Sequence[str], size: int) -> Row:
    """Describes calls with this many tokens each."""
    return Row(f"catraca, {size:,} in a call", batched_validations(tokens, size), streams=_STREAMS[size], items=size)


def tutorial(store: Store, sessions: Sequence[CreateSessionResponse], rows: Sequence[Row]) -> Contestant:
    """Describes the tutorial answer, and writes these sessions to the store in its format."""
    with connect(store.url) as client:
        for created in sessions:
            session = created.session
            record = {
                "session_id": session.session_id,
                "user_id": session.user_id,
                "attributes": dict(session.attributes),
                "create_time": session.create_time.seconds,
                "expire_time": session.expire_time.seconds,
            }
            client.set(f"session:{created.token}", json.dumps(record))
    return Contestant([sys.executable, str(_TUTORIAL), store.url.socket_path], rows)
