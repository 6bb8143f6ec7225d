"""Clients in other languages: Go (grpc-go) and Node (grpc-js), written against the published protos alone."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from tests.support.service import ServeProcess

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
BUILD_SECONDS, RUN_SECONDS = 600, 60

Step = dict[str, Any]


def steps_of(*command: str) -> Sequence[Step]:
    """Runs a client and returns what it printed, a step a line."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def prepared(*command: str, where: Path) -> None:
    """Runs what fetches and builds a client; skips if that cannot be done here."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    if done.returncode:
        pytest.skip(f"{' '.join(command)} failed: {(done.stderr.strip() or 'it says nothing').splitlines()[-1]}")


def copied(language: str, where: Path) -> Path:
    """Returns a copy of a client's source, in which it may be built."""
    return Path(shutil.copytree(HERE / language, where / language))


def assert_lived(steps: Sequence[Step]) -> None:
    """Asserts that a session lived as it should, and that the stream told of it in order."""
    unary = [step for step in steps if step["rpc"] != "WatchSessions"]
    assert [(step["rpc"], step["code"].upper().replace("_", "")) for step in unary] == [
        ("CreateSession", "OK"),
        ("ValidateSession", "OK"),
        ("ValidateSession", "OK"),
        ("BatchValidateSessions", "OK"),
        ("GetSession", "OK"),
        ("ListSessions", "OK"),
        ("UpdateSession", "OK"),
        ("RotateSession", "OK"),
        ("ValidateSession", "OK"),
        ("RevokeSession", "OK"),
        ("ValidateSession", "OK"),
        ("RevokeUserSessions", "OK"),
        ("GetSession", "NOTFOUND"),
        ("CreateSession", "INVALIDARGUMENT"),
    ]
    created, valid, mismatch, batch, got, listed, updated, rotated, renewed, revoked, gone, _, *_ = (
        step.get("response") or {} for step in unary
    )
    session_id = created["session"]["sessionId"]
    assert created["token"].startswith("ctr_")
    assert valid["valid"]
    assert valid["session"]["attributes"] == {"device": "phone"}
    assert mismatch["invalidReason"] == "INVALID_REASON_USER_MISMATCH"
    assert [bool(each.get("valid")) for each in batch["responses"]] == [True, False]
    assert got["session"]["sessionId"] == listed["sessions"][0]["sessionId"] == session_id
    assert updated["session"]["attributes"] == {"device": "laptop"}
    assert rotated["session"]["sessionId"] == session_id
    assert rotated["token"] != created["token"]
    assert (renewed["valid"], revoked["revoked"]) == (True, True)
    assert gone["invalidReason"] == "INVALID_REASON_NOT_FOUND"
    told = [step["response"] for step in steps if step["rpc"] == "WatchSessions"]
    kinds = [next(kind for kind in ("opened", "event", "pong") if each.get(kind)) for each in told]
    events = [each["event"] for each in told if each.get("event")]
    assert kinds == ["opened", *["event"] * len(events), "pong"]
    assert [event["type"].removeprefix("SESSION_EVENT_TYPE_") for event in events] == [
        "CREATED",
        "UPDATED",
        "ROTATED",
        "REVOKED",
        "REVOKED",
    ]
    assert {event["sessionId"] for event in events[:4]} == {session_id}
    assert int(told[-1]["pong"]["nonce"]) == 7


@pytest.mark.timeout(BUILD_SECONDS + RUN_SECONDS)
def test_a_go_client(tmp_path: Path) -> None:
    """With dynamic messages of the descriptors that the Python package carries; it reads the details of errors."""
    source = copied("go", tmp_path)
    prepared("go", "build", "-buildvcs=false", "-o", "client", ".", where=source)
    with ServeProcess(store_url="memory:") as service:
        steps = steps_of(str(source / "client"), service.target, str(files("catraca.v1") / "descriptors.binpb"))
    assert_lived(steps)
    *_, missing, invalid = [step for step in steps if step["rpc"] != "WatchSessions"]
    assert missing["reason"] == "SESSION_NOT_FOUND"
    assert (invalid["reason"], invalid["field"]) == ("INVALID_REQUEST", "user_id")


@pytest.mark.timeout(BUILD_SECONDS + RUN_SECONDS)
def test_a_node_client(tmp_path: Path) -> None:
    """With messages of the protos, loaded as they are."""
    source = copied("node", tmp_path)
    prepared("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", where=source)
    with ServeProcess(store_url="memory:") as service:
        steps = steps_of("node", str(source / "main.js"), service.target, str(ROOT / "protos"))
    assert_lived(steps)
    *_, missing, invalid = [step for step in steps if step["rpc"] != "WatchSessions"]
    assert missing["hasDetails"]
    assert invalid["hasDetails"]
