"""`python -m bench validation`: what a validation costs, beside an empty handler and beside the tutorial answer.

All servers use one store. It shares the load generator's core, so that the server's core is the server's alone.
"""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import redis

from bench.engines import empty_handler
from bench.measure import Contestant, Plan, Row, measure
from bench.processes import find_cores, serving
from bench.report import Results, Table
from bench.sessions import ask, batched_validations, catraca, login, single_validations
from bench.store import temporary_store
from bench.wire import Client
from catraca.v1.session_service_pb2 import CreateSessionResponse

_SESSIONS = 1_000
_TUTORIAL = Path(__file__).parent / "servers" / "tutorial.py"

# Tokens in a call, and how many such calls to keep in flight on each connection.
_BATCHES = {1: 16, 10: 16, 100: 4, 1_000: 1}


def compare_validations(plan: Plan, *, progress: Callable[[str], None]) -> Results:
    """Measures single and batched validations of good tokens, spread over many sessions."""
    cores = find_cores()
    with temporary_store(core=cores.load) as store:
        progress("creating sessions")
        logins = [login(f"user-{number}") for number in range(_SESSIONS)]
        with (
            serving(catraca(store.url), core=cores.server) as server,
            closing(Client(server.port, connections=4)) as client,
        ):
            sessions = ask(client, logins, CreateSessionResponse)
        _store_for_tutorial(store.url, sessions)
        tokens = [session.token for session in sessions]
        single = single_validations(tokens)
        batches = [
            Row(f"catraca, {size:,} in a call", batched_validations(tokens, size), streams=streams, items=size)
            for size, streams in _BATCHES.items()
        ]
        contestants = [
            empty_handler("empty handler", "--uvloop"),  # the engine as catraca uses it
            Contestant([sys.executable, str(_TUTORIAL), store.url], [Row("tutorial answer", single)]),
            Contestant(catraca(store.url), [Row("catraca", single), *batches]),
        ]
        measurements = measure(contestants, plan, cores=cores, store=store.running, progress=progress)
    tables = [
        Table("One validation a call", ["empty handler", "tutorial answer", "catraca"]),
        Table("Many validations a call", ["catraca", *(row.name for row in batches)]),
    ]
    return Results(plan, cores, store.version, tables, measurements)


def _store_for_tutorial(store_url: str, sessions: Sequence[CreateSessionResponse]) -> None:
    with redis.Redis.from_url(store_url) as store:
        for created in sessions:
            session = created.session
            record = {
                "session_id": session.session_id,
                "user_id": session.user_id,
                "attributes": dict(session.attributes),
                "create_time": session.create_time.seconds,
                "expire_time": session.expire_time.seconds,
            }
            store.set(f"session:{created.token}", json.dumps(record))
