"""Canaries: secrets that are marked, a service that does everything with them, and a search of all that it puts out."""

import contextlib
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from tests.support.command import catraca
from tests.support.door import Door
from tests.support.inprocess import METHODS
from tests.support.metrics import free_port
from tests.support.service import ServeProcess
from tests.support.valkey import Valkey
from tests.support.waiting import TIMEOUT_SECONDS, eventually

from catraca import SessionClient
from catraca.v1 import session_pb2, session_service_pb2 as pb
from catraca.v1.session_service_pb2_grpc import SessionServiceStub
from catraca_server.domain.call import Role

MARK = "canary"
PEPPER = f"{MARK}-pepper-{secrets.token_hex(16)}"
PASSWORD = f"{MARK}-password-{secrets.token_hex(8)}"
ATTRIBUTE = f"{MARK}-attribute-{secrets.token_hex(8)}"
BROUGHT = f"{MARK}-brought-{secrets.token_hex(16)}"
MADE_UP_KEY = f"ctrk_{MARK}{secrets.token_hex(32)}"


@dataclass
class Outputs:
    """All that was put out, by where it was found, and all that is secret."""

    texts: dict[str, str] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=lambda: [PEPPER, PASSWORD, BROUGHT, MADE_UP_KEY])

    def add(self, where: str, *what: object) -> None:
        """Takes an output: text, bytes, or something whose `str` and `repr` are."""
        texts = [each.decode(errors="replace") if isinstance(each, bytes) else f"{each}\n{each!r}" for each in what]
        self.texts[where] = self.texts.get(where, "") + "\n".join(texts)

    def keep_secret(self, token: str) -> str:
        """Adds a token or a key, whole and only its secret."""
        secret = token[token.index("_") + 1 + 22 : -6]
        self.secrets += [token, secret]
        return token

    def found(self, *more: str, but_for: tuple[str, ...] = ()) -> list[tuple[str, str]]:
        """Returns which secrets are where."""
        return [
            (where, secret)
            for where, text in self.texts.items()
            if not where.startswith(but_for or ("\0",))
            for secret in (*self.secrets, *more)
            if secret in text
        ]


@dataclass
class Canary:
    """A service with secrets, and the way to it."""

    process: ServeProcess
    outputs: Outputs
    key: str
    environment: Mapping[str, str]
    stub: SessionServiceStub

    def call(self, method: str, request: Message, **metadata: str) -> Any:
        """Calls, notes the metadata and what fails, and returns the response or the error."""
        sent = {"authorization": f"Bearer {self.key}", "x-request-id": BROUGHT * 2, "traceparent": BROUGHT, **metadata}
        try:
            response, call = getattr(self.stub, method).with_call(
                request, metadata=tuple(sent.items()), timeout=TIMEOUT_SECONDS
            )
        except grpc.RpcError as error:
            failed: Any = error
            self.outputs.add(f"error of {method}", failed, failed.initial_metadata(), failed.trailing_metadata())
            return failed
        self.outputs.add(f"metadata of {method}", call.initial_metadata(), call.trailing_metadata())
        return response


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
    }
    with ServeProcess(environment) as process:
        credentials = grpc.ssl_channel_credentials(door.ca.read_bytes())
        with grpc.secure_channel(process.target, credentials) as channel:
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


def watch_client(canary: Canary) -> None:
    """Shows the client and what it returns and raises."""
    ca = Path(canary.environment["CATRACA_TLS_CA"]).read_bytes()
    with SessionClient(
        canary.process.target, credentials=grpc.ssl_channel_credentials(ca), api_key=canary.key, timeout=10
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
    import urllib.request  # noqa: PLC0415  used here only

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as response:
        text: str = response.read().decode()
    return text


def test_no_secret_gets_out(canary: Canary, own_valkey: Valkey) -> None:
    """Tokens, keys, pepper and password are nowhere; attributes are in records and in the answers about sessions."""
    outputs = canary.outputs
    answers = live(canary)
    ca = Path(canary.environment["CATRACA_TLS_CA"]).read_bytes()
    with grpc.secure_channel(canary.process.target, grpc.ssl_channel_credentials(ca)) as channel:
        send_garbage(canary, lambda method: channel.unary_unary(f"/catraca.v1.SessionService/{method}"))
    run_commands(canary)
    watch_client(canary)
    dump(canary, own_valkey)
    outputs.add("metrics", read_page(canary.environment["CATRACA_METRICS_PORT"]))
    outputs.add("answers", *answers)
    own_valkey.kill()
    canary.call("ValidateSession", pb.ValidateSessionRequest(token=BROUGHT))
    eventually(lambda: "store disconnected" in canary.process.log, "the store is missed")
    assert canary.process.stop() == 0
    outputs.add("log", canary.process.log)
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
    for planted in (PEPPER, PASSWORD, BROUGHT, MADE_UP_KEY, token, "S" * 43, ATTRIBUTE):
        outputs = Outputs()
        outputs.keep_secret(token)
        outputs.add("log", "nothing")
        assert outputs.found(ATTRIBUTE) == []
        outputs.add(where, b"before " + planted.encode() + b" after")
        assert (where, planted) in outputs.found(ATTRIBUTE)
