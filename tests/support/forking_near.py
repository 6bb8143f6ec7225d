"""A program that forks while threads use a near cache. Run by test_near_cache.py."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.support.forking import FORKS, fork, until

from catraca import SessionClient

TOKEN = "a-token-that-is-known"
AT_ONCE_SECONDS = 0.6
"""Less than the second that a fork takes if it waits for gRPC in vain."""


def hits(sessions: SessionClient) -> int:
    """How many validations were answered near."""
    stats = sessions.near_cache_stats()
    assert stats is not None
    return stats.hits


def until_hit(sessions: SessionClient) -> None:
    """Returns once a validation is answered near."""
    before = hits(sessions)
    until(lambda: bool(sessions.validate(TOKEN)) and hits(sessions) > before)


def child(sessions: SessionClient) -> None:
    """The inherited client opens a watch of its own, and the child ends well."""
    stats = sessions.near_cache_stats()
    assert stats is not None
    assert not stats.entries, "a child begins with nothing"
    assert not stats.watching
    until_hit(sessions)
    sessions.close()


def main(target: str) -> None:
    """Forks."""
    sessions = SessionClient(target, timeout=15, near_cache=True)
    until_hit(sessions)
    over = threading.Event()
    failures: list[Exception] = []

    def go_on() -> None:
        while not over.is_set():
            try:
                assert sessions.validate(TOKEN)
                assert not sessions.validate("a-token-that-is-unknown")
            except Exception as error:  # noqa: BLE001  all are reported below
                failures.append(error)

    threads = [threading.Thread(target=go_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    took = []
    for _ in range(FORKS):

        def fork_process() -> int:
            began = time.monotonic()
            pid = os.fork()
            took.append(time.monotonic() - began)
            return pid

        fork(lambda: child(sessions), fork_process=fork_process)
        until_hit(sessions)
    over.set()
    for thread in threads:
        thread.join()
    sessions.close()
    assert not failures, failures[0]
    assert sorted(took)[FORKS // 2] < AT_ONCE_SECONDS, took


if __name__ == "__main__":
    service = Path(__file__).with_name("fake_service.py")
    with subprocess.Popen(
        [sys.executable, str(service), TOKEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            main(process.stdout.readline().strip())
        finally:
            process.kill()
