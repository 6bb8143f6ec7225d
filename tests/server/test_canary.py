"""Canaries: secrets that are marked, a service that does everything with them, and a search of all that it puts out."""

import contextlib
import json
import logging
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.support.canary import ATTRIBUTE, BROUGHT, MADE_UP_KEY, PASSWORD, PEPPER, Canary, Outputs
from tests.support.command import catraca, clean_environment
from tests.support.door import CA, Door
from tests.support.inprocess import METHODS
from tests.support.metrics import free_port
from tests.support.service import ServeProcess
from tests.support.valkey import Valkey
from tests.support.waiting import TIMEOUT_SECONDS, eventually, eventually_async

from catraca import AsyncSessionClient, SessionClient
from catraca.v1 import session_event_pb2, session_pb2, session_service_pb2 as pb
from catraca.v1.session_service_pb2_grpc import SessionServiceStub
from catraca_server.domain.call import Role


@pytest.fixture
def canary(own_valkey: Valkey, door: Door, tmp_path: Path) -> Iterator[Canary]:
    """A service with everything switched on that puts something out."""
    own_valkey.command("CONFIG", "SET", "requirepass", PASSWORD)
    pepper = tmp_path / "pepper"
    pepper.write_text(PEPPER)
    outputs = Outputs()
    key = outputs.keep_secret(door.new_key(*Role))
    environment = {
        "CATRACA_STORE_URL": own_valkey.url,
        "CATRACA_STORE_PASSWORD": PASSWORD,
        "CATRACA_TOKEN_PEPPER_FILE": str(pepper),
        "CATRACA_CALLERS_FILE": str(door.callers),
        "CATRACA_TLS_CERT": str(door.certificate),
        "CATRACA_TLS_KEY": str(door.key),
        "CATRACA_LOG_LEVEL": "debug",
        "CATRACA_AUDIT": "true",
        "CATRACA_METRICS_PORT": str(free_port()),
        "CATRACA_ROTATION_GRACE": "0s",
        "CATRACA_STORE_TIMEOUT": "5s",
    }
    with (
        ServeProcess(environment) as process,
        grpc.secure_channel(process.target, CA.channel_credentials()) as channel,
    ):
        client = {
            "CATRACA_TARGET": process.target,
            "CATRACA_TLS_CA": str(door.ca),
            "CATRACA_API_KEY": key,
            "CATRACA_TIMEOUT": "10s",
        }
        yield Canary(process, outputs, key, environment | client, SessionServiceStub(channel))


def live(canary: Canary) -> list[session_pb2.Session]:
    """Has each RPC succeed and fail. Returns the sessions in answers, which alone may have attributes."""
    call, keep = canary.call, canary.outputs.keep_secret
    created = call("CreateSession", pb.CreateSessionRequest(user_id="ana", attributes={"note": ATTRIBUTE}))
    first = keep(created.token)
    brought = pb.CreateSessionRequest(user_id="ana", token=BROUGHT, attributes={"note": ATTRIBUTE})
    call("CreateSession", brought)
    call("CreateSession", brought)  # in use
    call("CreateSession", pb.CreateSessionRequest(user_id=BROUGHT * 9, attributes={"": ATTRIBUTE}, token=BROUGHT[:15]))
    session_id = created.session.session_id
    for token in (first, first[:-1], BROUGHT):
        call("ValidateSession", pb.ValidateSessionRequest(token=token))
    tokens = [pb.ValidateSessionRequest(token=token) for token in (first, BROUGHT, "")]
    call("BatchValidateSessions", pb.BatchValidateSessionsRequest(requests=tokens[:2]))
    call("BatchValidateSessions", pb.BatchValidateSessionsRequest(requests=tokens))
    found = call("GetSession", pb.GetSessionRequest(session_id=session_id)).session
    call("GetSession", pb.GetSessionRequest(session_id=BROUGHT))
    listed = call("ListSessions", pb.ListSessionsRequest(user_id="ana")).sessions
    call("ListSessions", pb.ListSessionsRequest(user_id="ana", page_token=BROUGHT))
    update = pb.UpdateSessionRequest(session=session_pb2.Session(session_id=session_id, attributes={"a": ATTRIBUTE}))
    call("UpdateSession", update)
    update.update_mask.paths.append("attributes")
    updated = call("UpdateSession", update).session
    second = keep(call("RotateSession", pb.RotateSessionRequest(token=first)).token)
    call("RotateSession", pb.RotateSessionRequest(token=first))  # reused
    call("RevokeSession", pb.RevokeSessionRequest(token=second))
    call("RevokeSession", pb.RevokeSessionRequest(session_id=BROUGHT))
    call("ValidateSession", pb.ValidateSessionRequest(token=BROUGHT), authorization=f"Bearer {MADE_UP_KEY}")
    call("ValidateSession", pb.ValidateSessionRequest(token=BROUGHT), authorization=MADE_UP_KEY)
    call("RevokeUserSessions", pb.RevokeUserSessionsRequest(user_id="ana"))
    return [found, *listed, updated]


def send_garbage(canary: Canary, channel_call: Any) -> None:
    """Sends each method bodies that are not messages."""
    for method in METHODS:
        for body in (BROUGHT.encode(), b"\x0a\xff" + BROUGHT.encode(), canary.key.encode()):
            try:
                channel_call(method)(body, metadata=(("authorization", f"Bearer {canary.key}"),), timeout=10)
            except grpc.RpcError as error:
                failed: Any = error
                canary.outputs.add(f"error of {method}", failed, failed.trailing_metadata())


def run_commands(canary: Canary) -> None:
    """Runs the commands. What prints a token or a key because it is asked to is left out."""
    environment, keep = canary.environment, canary.outputs.keep_secret
    created = catraca("create", "--user-id", "bo", "--output", "json", environment=environment)
    token = keep(json.loads(created.stdout)["token"])
    for output in ("text", "json"):
        for words, stdin in (
            (("validate",), token),
            (("validate",), BROUGHT),
            (("list", "--user-id", "bo"), ""),
            (("get", token[4:26]), ""),
            (("revoke",), token + "x"),
            (("rotate",), BROUGHT),
            (("health",), ""),
        ):
            done = catraca(*words, "--output", output, environment=environment, stdin=stdin)
            canary.outputs.add("command", done.stdout, done.stderr)
    new = catraca("keys", "new", "--caller", "web2", "--roles", "validate", environment=environment)
    keep(new.stdout.strip())
    canary.outputs.add("command", new.stderr)
    for words in (("keys", "list"), ("config", "show"), ("config", "check"), ("keys", "revoke", token)):
        done = catraca(*words, environment=environment)
        canary.outputs.add("command", done.stdout, done.stderr)
    wrong = {**environment, "CATRACA_API_KEY": MADE_UP_KEY}
    for extra in ((), ("--debug",)):
        done = catraca("list", "--user-id", "bo", *extra, environment=wrong)
        canary.outputs.add("command", done.stdout, done.stderr)


@contextlib.contextmanager
def watched(canary: Canary, channel: grpc.Channel) -> Iterator[None]:
    """Notes what the feed says of what happens in the body: on the wire, and as the command shows it."""
    begin: Any = channel.stream_stream("/catraca.v1.SessionService/WatchSessions")
    start = pb.WatchSessionsRequest(start=pb.WatchStart()).SerializeToString()
    call = begin(iter([start]), metadata=(("authorization", f"Bearer {canary.key}"),))
    assert pb.WatchSessionsResponse.FromString(next(call)).HasField("opened")
    commands = {
        output: subprocess.Popen(
            [sys.executable, "-m", "catraca", "watch", "--output", output],
            env=clean_environment(canary.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for output in ("text", "json")
    }
    shown = {}
    for output, command in commands.items():
        assert command.stdout is not None
        shown[output] = command.stdout.readline()  # that it is open
    try:
        yield
        while True:
            message = next(call)
            canary.outputs.add("feed", message)
            event = pb.WatchSessionsResponse.FromString(message).event
            if event.type == session_event_pb2.SESSION_EVENT_TYPE_REVOKED and not event.session_id:
                break  # the last thing that happened
    finally:
        call.cancel()
        for output, command in commands.items():
            command.send_signal(signal.SIGINT)
            rest, told = command.communicate(timeout=TIMEOUT_SECONDS)
            canary.outputs.add("watch command", shown[output] + rest, told)


def measure(canary: Canary) -> None:
    """Runs `catraca bench`, whose tokens nobody else knows, with a good key and a bad one."""
    words = ("bench", "--sessions", "3", "--duration", "200ms", "--concurrency", "4")
    for output in ("text", "json"):
        done = catraca(*words, "--output", output, environment=canary.environment)
        assert done.returncode == 0, done.stderr
        canary.outputs.add("bench", done.stdout, done.stderr)
    done = catraca(*words, "--debug", environment={**canary.environment, "CATRACA_API_KEY": MADE_UP_KEY})
    canary.outputs.add("bench", done.stdout, done.stderr)


async def watch_async_client(canary: Canary, caplog: pytest.LogCaptureFixture) -> None:
    """Shows the client for asyncio, with a near cache, and what it returns, raises and has kept."""
    credentials = CA.channel_credentials()
    async with AsyncSessionClient(
        canary.process.target, credentials=credentials, api_key=canary.key, near_cache=True, timeout=10
    ) as sessions:
        login = await sessions.create("di", attributes={"note": ATTRIBUTE})
        canary.outputs.keep_secret(login.token)

        async def is_hit() -> bool:
            validation = await sessions.validate(login.token)
            canary.outputs.add("async client", validation)
            stats = sessions.near_cache_stats()
            return stats is not None and stats.hits > 0

        await eventually_async(is_hit, "the near cache answers")
        canary.outputs.add("async client", sessions, vars(sessions), login, sessions.near_cache_stats())
        for kept in vars(sessions).values():
            canary.outputs.add("near cache", kept, getattr(kept, "__dict__", ""))
        for fails in (
            sessions.require(BROUGHT),
            sessions.rotate(BROUGHT),
            sessions.create("", token=BROUGHT[:15], attributes={"": ATTRIBUTE}),
            sessions.validate(login.token, user_id=BROUGHT * 9),
        ):
            with contextlib.suppress(Exception):
                try:
                    await fails
                except Exception as error:
                    canary.outputs.add("async client", error, error.args)
                    raise
    async with AsyncSessionClient(
        canary.process.target, credentials=credentials, api_key=MADE_UP_KEY, near_cache=True, timeout=10
    ) as stranger:
        with contextlib.suppress(Exception):
            try:
                await stranger.validate(login.token)
            except Exception as error:
                canary.outputs.add("async client", error, vars(stranger))
                raise

        async def is_told() -> bool:
            return "near cache off" in caplog.text

        await eventually_async(is_told, "the near cache is off")


def watch_client(canary: Canary) -> None:
    """Shows the client and what it returns and raises."""
    with SessionClient(
        canary.process.target, credentials=CA.channel_credentials(), api_key=canary.key, timeout=10
    ) as sessions:
        login = sessions.create("cy", attributes={"note": ATTRIBUTE})
        canary.outputs.keep_secret(login.token)
        canary.outputs.add("client", sessions, vars(sessions), login, sessions.validate(login.token))
        rotation = sessions.rotate(login.token)
        canary.outputs.keep_secret(rotation.token)
        canary.outputs.add("client", rotation)
        for fails in (
            lambda: sessions.require(BROUGHT),
            lambda: sessions.rotate(BROUGHT),
            lambda: sessions.create("", token=BROUGHT[:15], attributes={"": ATTRIBUTE}),
        ):
            with contextlib.suppress(Exception):
                try:
                    fails()
                except Exception as error:
                    canary.outputs.add("client", error, error.args)
                    raise


def dump(canary: Canary, valkey: Valkey) -> None:
    """Reads every key of the store while sessions are there."""
    for key in valkey.command("KEYS", "*"):
        kind = valkey.command("TYPE", key)
        read: dict[bytes, tuple[Any, ...]] = {
            b"string": ("GET", key),
            b"zset": ("ZRANGE", key, 0, -1, "WITHSCORES"),
            b"stream": ("XRANGE", key, "-", "+"),
        }
        where = "records" if key.startswith(b"session:") else "store"
        canary.outputs.add(where, key, str(valkey.command(*read[kind])))


def read_page(port: str) -> str:
    """Returns the page of metrics as it is."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as response:
        text: str = response.read().decode()
    return text


async def test_no_secret_gets_out(canary: Canary, own_valkey: Valkey, caplog: pytest.LogCaptureFixture) -> None:
    """Tokens, keys, pepper and password are nowhere; attributes are in records and in the answers about sessions."""
    caplog.set_level(logging.DEBUG)
    outputs = canary.outputs
    with grpc.secure_channel(canary.process.target, CA.channel_credentials()) as channel:
        with watched(canary, channel):
            answers = live(canary)
        send_garbage(canary, lambda method: channel.unary_unary(f"/catraca.v1.SessionService/{method}"))
    run_commands(canary)
    watch_client(canary)
    await watch_async_client(canary, caplog)
    measure(canary)
    dump(canary, own_valkey)
    outputs.add("metrics", read_page(canary.environment["CATRACA_METRICS_PORT"]))
    outputs.add("answers", *answers)
    own_valkey.kill()
    canary.call("ValidateSession", pb.ValidateSessionRequest(token=BROUGHT))
    eventually(lambda: "store disconnected" in canary.process.log, "the store is missed")
    assert canary.process.stop() == 0
    outputs.add("log", canary.process.log)
    outputs.add("client's log", caplog.text)
    # It has looked at what it was to look at.
    assert len(outputs.secrets) > 10
    for where, shown in (
        ("log", "session ended: "),
        ("log", "caller refused: "),
        ("metrics", "catraca_sessions_created_total"),
        ("records", "digest"),
        ("store", "prev"),
        ("command", "CATRACA_STORE_URL="),
        ("client", "SessionNotFound"),
        ("async client", "SessionNotFound"),
        ("near cache", "NearAnswers"),
        ("client's log", "near cache off"),
        ("feed", "ana"),
        ("watch command", "ana"),
        ("bench", "near-cache"),
        ("error of CreateSession", "TOKEN_IN_USE"),
        ("error of ValidateSession", "UNAUTHENTICATED"),
    ):
        assert shown in outputs.texts[where], (where, shown)
    assert ATTRIBUTE in outputs.texts["records"]
    assert ATTRIBUTE in outputs.texts["answers"]
    assert outputs.found() == []
    assert outputs.found(ATTRIBUTE, but_for=("records", "answers")) == []


@pytest.mark.parametrize("where", ["log", "metrics", "records", "error of CreateSession"])
def test_the_search_finds_what_is_planted(where: str) -> None:
    """Each secret, in the middle of anything, also only the secret part of a token."""
    token = "ctr_" + "i" * 22 + "S" * 43 + "c" * 6
    for planted in (PEPPER, PASSWORD, BROUGHT, MADE_UP_KEY, token, "S" * 43, ATTRIBUTE, "ctr_" + "u" * 71):
        outputs = Outputs()
        outputs.keep_secret(token)
        outputs.add("log", "nothing")
        assert outputs.found(ATTRIBUTE) == []
        outputs.add(where, b"before " + planted.encode() + b" after")
        assert (where, planted) in outputs.found(ATTRIBUTE)
