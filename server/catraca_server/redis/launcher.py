"""Starts a program that must not outlive its parent: `python launcher.py PARENT PROGRAM ARGUMENT…`.

On Linux the kernel sends the program SIGTERM when its parent ends, however that ends. It is asked for here, between
the fork and the program, because running Python between the two in the parent's own process is not safe beside its
threads. This file runs by itself and imports nothing of ours.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, program: str, *arguments: str) -> None:
    """Becomes the program, unless the parent has gone meanwhile."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    os.umask(0o077)
    if os.getppid() == parent:
        os.execv(program, [program, *arguments])  # noqa: S606  no shell is wanted


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
