"""HTTP/2 conformance by h2spec: nothing fails here that grpcio's own synchronous server passes."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import grpc
import pytest
from tests.support.engine import echo_all, serving
from tests.support.waiting import TIMEOUT_SECONDS

from catraca_server.api.engine import BatchMethod

H2SPEC = shutil.which("h2spec", path=str(Path(sys.executable).parent)) or shutil.which("h2spec")
LONG = "CATRACA_TEST_LONG" in os.environ


def failures(port: int, report: Path) -> set[str]:
    """Runs h2spec against a server and returns the cases that fail."""
    done = subprocess.run(
        [
            str(H2SPEC),
            "--port",
            str(port),
            "--path",
            "/test.Service/Echo",
            "--timeout",
            "2",
            "--junit-report",
            str(report),
        ],
        capture_output=True,
        text=True,
        timeout=20 * TIMEOUT_SECONDS,
        check=False,
    )
    assert report.exists(), done.stdout + done.stderr
    cases = ET.parse(report).iter("testcase")  # noqa: S314  h2spec wrote it
    failed = {
        f"{case.get('package')}: {case.get('classname')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    }
    found = re.search(r"(\d+) tests, (\d+) passed", done.stdout)
    assert found, done.stdout
    assert int(found[1]) > 100
    return failed


@pytest.mark.skipif(H2SPEC is None, reason="no h2spec: tools/optional.sh installs it where Go is")
@pytest.mark.skipif(not LONG, reason="h2spec takes two minutes: CATRACA_TEST_LONG=1 runs it")
@pytest.mark.timeout(600)
@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_conformance(tmp_path: Path) -> None:
    """What fails, fails in the core, which both servers have."""
    server = grpc.server(ThreadPoolExecutor(4))
    echo: dict[str, Any] = {"Echo": grpc.unary_unary_rpc_method_handler(lambda request, _: request)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", echo),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    async with serving({"Echo": BatchMethod(echo_all)}) as served:
        theirs, ours = await asyncio.gather(
            asyncio.to_thread(failures, port, tmp_path / "theirs.xml"),
            asyncio.to_thread(failures, served.port, tmp_path / "ours.xml"),
        )
    server.stop(None)
    assert ours <= theirs
