"""A process that makes random calls about sessions and logs what it did: `python history_client.py JSON`.

All such processes of a run share a pool, a file of sessions, so that each has answers about sessions that others end.
SIGTERM ends it, SIGUSR1 stalls its main thread (of an async client: its event loop), and SIGUSR2 forks it.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from tests.support.session_history import BEGUN, OK, REUSED, UNAVAILABLE, Record

from catraca import AsyncSessionClient, InvalidReason, Login, Rotation, Session, SessionClient, Validation, errors
from catraca._lease import Lease
from catraca._near_cache import NearAnswers

WINDOW_SECONDS = 14.0
"""How long sessions are of interest: well past the bound after the end of most."""
_USERS = 300
_WORKERS = 3
_PAUSE_SECONDS = 0.004
_TIMEOUT_SECONDS = 0.7
_WEIGHTS = {"validate": 300, "create": 24, "revoke": 17, "revoke_user": 3, "rotate": 6, "update": 6}
_WRITES = ("revoke", "revoke_user", "rotate")
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Returns the time by the clock of records."""
    return time.clock_gettime(_CLOCK)


@dataclass(frozen=True)
class Plan:
    """The instructions for a process."""

    target: str
    log: str
    pool: str
    seed: int
    kind: str
    """sync or async"""
    near: bool = True
    jumps: bool = False
    """Whether the wall clock jumps by up to an hour at every reading."""
    broken: str = ""
    """"lease": its lease never ends; "events": it takes no events. Such a client must be caught."""
    watches_only: bool = False
    """Whether it only validates."""


@dataclass(frozen=True, slots=True)
class Known:
    """A session in the pool."""

    session_id: str
    user_id: str
    token: str
    since: float


class Pool:
    """The sessions of the last seconds, of all processes."""

    def __init__(self, file: Path) -> None:
        self._descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        self._offset = 0
        self._lock = threading.Lock()
        self._known: deque[Known] = deque()
        self._valid: deque[Known] = deque(maxlen=100)
        self._dead: set[str] = set()

    def add(self, known: Known) -> None:
        """Adds a session, for all processes."""
        line = json.dumps([known.session_id, known.user_id, known.token, known.since]) + "\n"
        os.write(self._descriptor, line.encode())

    def choose(self, dice: random.Random) -> Known | None:
        """Returns a session, mostly one that was alive when it was last looked at."""
        with self._lock:
            self._read()
            # Sessions that were found valid before: the near cache may have answers about them.
            known = dice.choice(self._valid if self._valid and dice.random() < 0.8 else self._known or [None])
            for _ in range(20):
                if known is None or known.token not in self._dead or dice.random() < 0.1:
                    break
                known = dice.choice(self._known or [None])
            return known

    def valid(self, known: Known) -> None:
        """Notes that a session was found valid."""
        with self._lock:
            self._valid.append(known)

    def refused(self, token: str) -> None:
        """Notes that a session was refused."""
        self._dead.add(token)

    def _read(self) -> None:
        lines = os.pread(self._descriptor, 1 << 16, self._offset).rpartition(b"\n")[0]
        if lines:
            self._offset += len(lines) + 1
            self._known.extend(Known(*json.loads(line)) for line in lines.splitlines())
        while self._known and self._known[0].since < now() - WINDOW_SECONDS:
            self._dead.discard(self._known.popleft().token)


class Caller:
    """Decides what to do next, and records the results. All threads or tasks of a process share one."""

    def __init__(self, plan: Plan, name: str, seed: int) -> None:
        self.plan = plan
        self.over = threading.Event()
        self._name = name
        self._dice = random.Random(seed)  # noqa: S311  no secret
        self.pool = Pool(Path(plan.pool))
        self._log = os.open(f"{plan.log}-{name}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def next_step(self) -> "Step | None":
        """Returns what to do next; None if there is nothing to do it to."""
        (operation,) = self._dice.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
        if self.plan.watches_only:
            operation = "validate"
        if operation == "create":
            return Step(self, operation, Known("", f"user-{self._dice.randrange(_USERS)}", "", 0.0), by_token=False)
        known = self.pool.choose(self._dice)
        return None if known is None else Step(self, operation, known, by_token=self._dice.random() < 0.4)

    def write(self, **values: Any) -> None:
        """Writes a record."""
        record = Record(client=self._name, near=self.plan.near, **values)
        os.write(self._log, record.line())


class Step:
    """One operation: `arguments` for the client's method `method`, and then `done`."""

    def __init__(self, caller: Caller, operation: str, known: Known, *, by_token: bool) -> None:
        self._caller = caller
        self._operation = operation
        self._known = known
        self._shown = known.token if operation in {"validate", "rotate"} or by_token else ""
        self.method = "revoke_user_sessions" if operation == "revoke_user" else operation
        arguments: dict[str, dict[str, Any]] = {
            "create": {"user_id": known.user_id},
            "validate": {"token": known.token},
            "rotate": {"token": known.token},
            "update": {"session_id": known.session_id, "set_attributes": {"a": "b"}},
            "revoke": {"token": known.token} if by_token else {"session_id": known.session_id},
            "revoke_user": {"user_id": known.user_id},
        }
        self.arguments = arguments[operation]
        self._began = now()
        if operation in _WRITES:
            self._write(BEGUN, ended=inf)
            self._began = now()

    def done(self, answer: object) -> None:
        """Takes the answer, or what was raised."""
        ended = now()
        match answer:
            case errors.Unavailable():
                self._write(UNAVAILABLE, ended)
            case Validation(session=None, reason=InvalidReason.TOKEN_REUSED) | errors.TokenReused():
                self._refused(REUSED, ended)
            case Validation(session=None) | errors.SessionNotFound():
                self._refused("invalid", ended)
            case Exception():
                self._write(f"{type(answer).__name__}: {answer}", ended)
            case Validation(session=Session() as session) | (Session() as session):
                self._write(OK, ended, found=(session.session_id, session.user_id))
                self._caller.pool.valid(self._known)
            case Login(token=token, session=session):
                self._known = Known(session.session_id, self._known.user_id, token, ended)
                self._write(OK, ended, found=(session.session_id, session.user_id))
                self._caller.pool.add(self._known)
            case Rotation(token=token, session=session):
                found = (session.session_id, session.user_id)
                self._write(OK, ended, found=found, new_token=stand_in(token))
                self._caller.pool.add(Known(self._known.session_id, self._known.user_id, token, ended))
            case _:
                self._write(OK, ended)

    def _refused(self, result: str, ended: float) -> None:
        self._write(result, ended)
        self._caller.pool.refused(self._known.token)

    def _write(self, result: str, ended: float, **more: Any) -> None:
        self._caller.write(
            operation=self._operation,
            session_id=self._known.session_id if self._operation != "revoke_user" else "",
            user_id=self._known.user_id,
            token=stand_in(self._shown),
            began=self._began,
            ended=ended,
            result=result,
            **more,
        )


def stand_in(token: str) -> str:
    """Returns what stands for a token in records."""
    return token and hashlib.sha256(token.encode()).hexdigest()[:16]


def run_sync(client: SessionClient, caller: Caller) -> None:
    """Does one thing after the other."""
    while not caller.over.is_set():
        if step := caller.next_step():
            try:
                answer = getattr(client, step.method)(**step.arguments)
            except errors.CatracaError as error:
                answer = error
            step.done(answer)
        time.sleep(_PAUSE_SECONDS)


async def run_async(client: AsyncSessionClient, caller: Caller) -> None:
    """Does one thing after the other."""
    while not caller.over.is_set():
        if step := caller.next_step():
            try:
                answer = await getattr(client, step.method)(**step.arguments)
            except errors.CatracaError as error:
                answer = error
            step.done(answer)
        await asyncio.sleep(_PAUSE_SECONDS)


class SyncProcess:
    """A client for threads, which a signal forks."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._forks = False
        self._children: list[int] = []
        self._client = SessionClient(caller.plan.target, timeout=_TIMEOUT_SECONDS, near_cache=caller.plan.near)

    def run(self) -> None:
        """Runs until SIGTERM."""
        signal.signal(signal.SIGUSR2, lambda *_: setattr(self, "_forks", True))
        while not self._caller.over.is_set():
            threads = [threading.Thread(target=run_sync, args=(self._client, self._caller)) for _ in range(_WORKERS)]
            for thread in threads:
                thread.start()
            while not self._caller.over.is_set():
                if self._forks and self._fork():
                    break  # a child has no threads yet
                time.sleep(0.02)
            else:
                for thread in threads:
                    thread.join()
        self._client.close()
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)

    def _fork(self) -> bool:
        """Forks. Returns whether this is the child."""
        self._forks = False
        seed = random.randrange(1 << 30)  # noqa: S311  no secret
        child = os.fork()
        if child:
            self._children.append(child)
            return False
        self._children = []
        self._caller = Caller(self._caller.plan, str(os.getpid()), seed)
        handle_signals(self._caller.over.set)
        return True


async def run_loop(caller: Caller) -> None:
    """Runs an async client until SIGTERM."""
    client = AsyncSessionClient(caller.plan.target, timeout=_TIMEOUT_SECONDS, near_cache=caller.plan.near)
    async with client, asyncio.TaskGroup() as tasks:
        for _ in range(_WORKERS):
            tasks.create_task(run_async(client, caller))


def handle_signals(end: Callable[[], None]) -> None:
    """Makes SIGTERM end it and SIGUSR1 stall it."""
    signal.signal(signal.SIGTERM, lambda *_: end())
    signal.signal(signal.SIGUSR1, lambda *_: time.sleep(random.uniform(1, 7)))  # noqa: S311  no secret


def jumping(right: Callable[[], float]) -> Callable[[], float]:
    """Returns a wall clock that jumps by up to an hour at every reading.

    Not for gRPC, which compares what it reads in Python with what it reads in C.
    """

    def read() -> float:
        is_grpc = sys._getframe(1).f_globals["__name__"].startswith("grpc")
        return right() + (0 if is_grpc else random.uniform(-3600, 3600))  # noqa: S311  no secret

    return read


def break_rule(name: str) -> None:
    """Takes a rule from the clients of this process: that leases end, or that events make answers outdated."""

    def pong(lease: Lease, nonce: int, age_seconds: float) -> None:
        lease.until = inf

    # Not as plain assignments, which type checkers refuse for methods.
    if name == "lease":
        setattr(Lease, "pong", pong)  # noqa: B010
    elif name == "events":
        setattr(NearAnswers, "drop_for_event", lambda *_: None)  # noqa: B010


def main(plan: Plan) -> None:
    """Runs one process."""
    if plan.jumps:
        time.time = jumping(time.time)
    break_rule(plan.broken)
    caller = Caller(plan, str(os.getpid()), plan.seed)
    handle_signals(caller.over.set)
    if plan.kind == "sync":
        SyncProcess(caller).run()
    else:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        asyncio.run(run_loop(caller))


if __name__ == "__main__":
    main(Plan(**json.loads(sys.argv[1])))
