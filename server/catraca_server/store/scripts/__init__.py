"""The Lua scripts, each one atomic step on one key.

They are sent whole each time (EVAL): they are short, and so a restarted store or a new primary needs no loading.
"""

from importlib.resources import files

_DIRECTORY = files(__name__)


def load(name: str, *, with_attempts: bool = False) -> bytes:
    """Returns a script as it is sent, without its comments. `with_attempts`: after `attempts.lua`."""
    names = ("attempts", name) if with_attempts else (name,)
    lines = [line for each in names for line in (_DIRECTORY / f"{each}.lua").read_text().splitlines()]
    return "\n".join(line for line in lines if not line.startswith("--")).encode()
