"""Makes a Python process with this on its path report, on SIGUSR1, how many objects it has."""

import gc
import signal
import sys
from types import FrameType


def tell(_signal: int, _frame: FrameType | None) -> None:
    """Writes a line to standard error."""
    gc.collect()
    sys.stderr.write(f"objects: {len(gc.get_objects())}\n")
    sys.stderr.flush()


signal.signal(signal.SIGUSR1, tell)
