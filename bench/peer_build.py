"""Builds the Go peer from `bench/peers/`, where Go is installed."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_SOURCE = _ROOT / "bench" / "peers"
_TOUCH_SCRIPT = _ROOT / "server" / "catraca_server" / "store" / "scripts" / "touch.lua"

_PLUGINS = ("google.golang.org/protobuf/cmd/protoc-gen-go", "google.golang.org/grpc/cmd/protoc-gen-go-grpc")

# The first build on a machine fetches and compiles grpc-go.
_TIMEOUT_SECONDS = 900


class PeerUnavailable(Exception):
    """The peer cannot be built here. The text says why."""


def build_peer(workdir: Path, *, progress: Callable[[str], None]) -> Path:
    """Returns the peer's program. Raises PeerUnavailable.

    Everything happens in a copy: the stubs are generated from protos/ each time, so that they cannot be stale, and the
    script that records activity is the server's own. For newer versions, `go get` them in the copy, then use its go.mod
    and go.sum.
    """
    go = shutil.which("go")
    if go is None:
        raise PeerUnavailable("Go is not installed")
    # In the bench's own environment, which need not be on PATH.
    buf = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
    if buf is None:
        raise PeerUnavailable("buf is not installed")
    progress("building the Go peer")
    copy = workdir.absolute() / "peers"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(_SOURCE, copy)
    shutil.copy(_TOUCH_SCRIPT, copy)
    (copy / "bin").mkdir()
    # Do not ask git for a revision: the copy is in no repository, or in an unrelated one.
    build = [go, "build", "-buildvcs=false", "-o"]
    _run([*build, "bin/", *_PLUGINS], copy)
    _run([buf, "generate", "--template", "buf.gen.yaml", str(_ROOT / "protos")], copy)
    _run([*build, "bin/peer", "."], copy)
    return copy / "bin" / "peer"


def _run(command: Sequence[str], directory: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=directory, check=False, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise PeerUnavailable(f"{' '.join(command)} took more than {_TIMEOUT_SECONDS} s") from None
    if done.returncode:
        raise PeerUnavailable(f"{' '.join(command)} failed: {done.stderr.strip() or 'it says nothing'}")
