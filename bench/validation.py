"""`python -m bench`: what a validation costs, beside an empty handler and beside the tutorial answer.

All servers use one store. It shares the load generator's core, so that the server's core is the server's alone.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import redis

from bench.engines import empty_handler
from bench.measure import Contestant, Plan, Row, measure
from bench.processes import find_cores, serving
from bench.report import Results, Table
from bench.store import temporary_store
from bench.wire import Load
from catraca.v1.session_service_pb2 import (
    BatchValidateSessionsRequest,
    BatchValidateSessionsResponse,
    CreateSessionRequest,
    CreateSessionResponse,
    ValidateSessionRequest,
    ValidateSessionResponse,
)
from catraca.v1.session_service_pb2_grpc import SessionServiceStub

_SERVICE = "/catraca.v1.SessionService"
_SESSIONS = 1_000
_TUTORIAL = Path(__file__).parent / "servers" / "tutorial.py"

# Tokens in a call, and how many such calls to keep in flight on each connection.
_BATCHES = {1: 16, 10: 16, 100: 4, 1_000: 1}

# A stall of a shared machine shall show as a slow call, not end the run as a failed one.
_PATIENCE = ("--store-timeout", "5s")


def compare_validations(plan: Plan, *, progress: Callable[[str], None]) -> Results:
    """Measures single and batched validations of good tokens, spread over many sessions."""
    cores = find_cores()
    with temporary_store(core=cores.load) as store:
        catraca = [sys.executable, "-m", "catraca", "serve", "--port", "0", "--store-url", store.url, *_PATIENCE]
        with serving(catraca, core=cores.server) as server:
            progress("creating sessions")
            sessions = _create_sessions(server.port)
        _store_for_tutorial(store.url, sessions)
        requests = [ValidateSessionRequest(token=session.token) for session in sessions]
        single = _single(requests)
        batches = [_batch(requests, size) for size in _BATCHES]
        contestants = [
            empty_handler("empty handler", "--uvloop"),  # the engine as catraca uses it
            Contestant([sys.executable, str(_TUTORIAL), store.url], [Row("tutorial answer", single)]),
            Contestant(catraca, [Row("catraca", single), *batches]),
        ]
        measurements = measure(contestants, plan, cores=cores, store=store.running, progress=progress)
    tables = [
        Table("One validation a call", ["empty handler", "tutorial answer", "catraca"]),
        Table("Many validations a call", ["catraca", *(row.name for row in batches)]),
    ]
    return Results(plan, cores, store.version, tables, measurements)


def _create_sessions(port: int) -> list[CreateSessionResponse]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        service = SessionServiceStub(channel)
        return [
            service.CreateSession(
                CreateSessionRequest(user_id=f"user-{number}", attributes={"device": "phone", "plan": "family"})
            )
            for number in range(_SESSIONS)
        ]


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


def _single(requests: Sequence[ValidateSessionRequest]) -> Load:
    def check(response: bytes) -> bool:
        return ValidateSessionResponse.FromString(response).valid

    return Load(f"{_SERVICE}/ValidateSession", [request.SerializeToString() for request in requests], check)


def _batch(requests: Sequence[ValidateSessionRequest], size: int) -> Row:
    def check(response: bytes) -> bool:
        responses = BatchValidateSessionsResponse.FromString(response).responses
        return len(responses) == size and all(each.valid for each in responses)

    batches = [
        BatchValidateSessionsRequest(requests=requests[start : start + size]).SerializeToString()
        for start in range(0, len(requests), size)
    ]
    load = Load(f"{_SERVICE}/BatchValidateSessions", batches, check)
    return Row(f"catraca, {size:,} in a call", load, streams=_BATCHES[size], items=size)
