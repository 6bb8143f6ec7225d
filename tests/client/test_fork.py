"""A client in hosts that fork, as gunicorn does."""

import os
import subprocess
import sys

import pytest

_PROGRAM = """
import os, sys
from catraca import SessionClient

target, when = sys.argv[1:]
sessions = SessionClient(target, timeout=30)
token = sessions.create("parent").token if when == "used" else None

def child(number):
    own = token or sessions.create(f"child-{number}").token
    expected = "parent" if token else f"child-{number}"
    os._exit(0 if sessions.require(own).user_id == expected else 1)

children = []
for number in range(3):
    if not (pid := os.fork()):
        child(number)
    children.append(pid)
statuses = [os.waitpid(pid, 0)[1] for pid in children]
alive = token is None or bool(sessions.validate(token))
sessions.close()
sys.exit(0 if alive and not any(statuses) else f"children: {statuses}, parent: {alive}")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("when", ["fresh", "used"])
def test_forked_children_connect_for_themselves(target: str, when: str) -> None:
    """A client made before a fork, and even one used before it, works in every child and in the parent."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, target, when], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
