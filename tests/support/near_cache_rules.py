"""The code of the near cache, or of the modelled service, or either with a rule removed."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from catraca import _lease, _near_cache, _watching


@dataclass(frozen=True, slots=True)
class Rules:
    """The functions that create the parts of a near cache."""

    near_answers: Callable[[int, Callable[[], float]], _near_cache.NearAnswers]
    watch: Callable[[_near_cache.NearAnswers, Callable[[], float], random.Random], _watching.Watch]


Change = tuple[str, str, str]
"""A module, a piece of its code, which must occur once, and its replacement."""


def rules(*changes: Change) -> Rules:
    """Returns the rules, with these changes."""
    names: dict[str, Any] = {}
    last: dict[str, Any] = {}
    for each in (_lease, _near_cache, _watching):
        last = changed(each, [change for change in changes if each.__name__ == f"catraca.{change[0]}"])
        # Those before it, as they were made here.
        last.update({name: made for name, made in names.items() if name in last})
        names.update({name: last[name] for name in ("Lease", "NearAnswers", "NearCache") if name in last})
    return Rules(
        lambda max_entries, clock: names["NearAnswers"](names["NearCache"](max_entries=max_entries), clock),
        last["Watch"],
    )


def changed(module: ModuleType, changes: Iterable[Change]) -> dict[str, Any]:
    """Returns what a module defines, with these changes of its code."""
    assert module.__file__ is not None
    code = Path(module.__file__).read_text(encoding="utf-8")
    for name, there, instead in changes:
        assert code.count(there) == 1, f"{name} has {code.count(there)} times: {there}"
        code = code.replace(there, instead)
    scope: dict[str, Any] = {"__name__": module.__name__}
    exec(compile(code, module.__file__, "exec"), scope)  # noqa: S102  it is our own
    return scope
