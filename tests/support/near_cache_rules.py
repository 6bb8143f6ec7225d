"""The near cache's own code, or the same with one of its rules taken away."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catraca import _lease, _near_cache, _watching


@dataclass(frozen=True, slots=True)
class Rules:
    """What makes the parts of a near cache."""

    near_answers: Callable[[int, Callable[[], float]], _near_cache.NearAnswers]
    watch: Callable[[_near_cache.NearAnswers, Callable[[], float], random.Random], _watching.Watch]


Change = tuple[str, str, str]
"""A module, a piece of its code, which must be there once, and what to have instead."""


def rules(*changes: Change) -> Rules:
    """Returns the rules, with these changes."""
    names: dict[str, Any] = {}
    last: dict[str, Any] = {}
    for each in (_lease, _near_cache, _watching):
        assert each.__file__ is not None
        code = Path(each.__file__).read_text(encoding="utf-8")
        for module, there, instead in changes:
            if each.__name__ == f"catraca.{module}":
                assert code.count(there) == 1, f"{module} has {code.count(there)} times: {there}"
                code = code.replace(there, instead)
        scope: dict[str, Any] = {"__name__": each.__name__}
        exec(compile(code, each.__file__, "exec"), scope)  # noqa: S102  it is our own
        # Those before it, as they were made here.
        scope.update({name: made for name, made in names.items() if name in scope})
        names.update({name: scope[name] for name in ("Lease", "NearAnswers", "NearCache") if name in scope})
        last = scope
    return Rules(
        lambda max_entries, clock: names["NearAnswers"](names["NearCache"](max_entries=max_entries), clock),
        last["Watch"],
    )
