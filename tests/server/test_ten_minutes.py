"""docs/operations.md, "In ten minutes": a shell runs what is written there, as it is written."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.command import clean_environment
from tests.support.metrics import free_port
from tests.support.waiting import TIMEOUT_SECONDS, eventually

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
PORT = "50051"


class Terminal:
    """A shell in a directory, with variables as they were exported there."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._environment = clean_environment({"PATH": path, **environment})
        self._directory = directory

    def run(self, script: str) -> str:
        """Runs a script to its end, whatever the commands in it return, and returns all that they say."""
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self._directory,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
        return done.stdout

    @contextmanager
    def serving(self, script: str) -> Iterator[None]:
        """Runs a script whose last command serves, for as long as the body lasts."""
        log = self._directory / "log"
        with log.open("w") as told:
            process = subprocess.Popen(
                ["bash", "-c", re.sub(r"^catraca serve", "exec catraca serve", script, flags=re.MULTILINE)],
                cwd=self._directory,
                env=self._environment,
                stdout=told,
                stderr=told,
            )
        try:
            eventually(lambda: "listening on" in log.read_text() or process.poll() is not None, "it listens")
            assert process.poll() is None, log.read_text()
            yield
        finally:
            process.terminate()
            process.wait(TIMEOUT_SECONDS)


@pytest.mark.skipif(not (shutil.which("openssl") and shutil.which("bash")), reason="it takes openssl and bash")
def test_in_ten_minutes(tmp_path: Path) -> None:
    """A server with TLS and a caller with a key; then mutual TLS, and a caller with a certificate."""
    text = OPERATIONS.read_text("utf-8")
    section = text[text.index("### In ten minutes") : text.index("### TLS\n")]
    port = str(free_port())
    blocks = [each.replace(PORT, port) for each in re.findall(r"```sh\n(.*?)```", section, re.DOTALL)]
    certificates, server, client, mutual_server, mutual_client = blocks
    common = {"CATRACA_STORE_URL": "memory:", "CATRACA_PORT": port, "CATRACA_TIMEOUT": "10s"}
    Terminal(tmp_path, {}).run(certificates)
    door = tmp_path / "door"

    with Terminal(door, common).serving(server):
        told = Terminal(door, common).run(client)
        assert "serving" in told
        assert "user      12345" in told
        assert told.rstrip().endswith("(PERMISSION_DENIED, PERMISSION_DENIED)")

    # The same terminals, so what was exported there is still set.
    with Terminal(door, {**common, "CATRACA_CALLERS_FILE": f"{door}/callers"}).serving(mutual_server):
        exported = "\n".join(line for line in client.splitlines() if line.startswith("export "))
        told = Terminal(door, common).run(f"{exported}\n{mutual_client}")
        assert told == "not valid: it cannot be a token of this service (MALFORMED)\n"
