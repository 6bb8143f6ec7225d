"""A small linearizability checker.

A history is linearizable if there is an order of its operations, each at one moment between its call and its return, in
which a plain sequential model gives every result that was seen. A history over several objects is, if each object's
own part is (Herlihy and Wing, 1990), so parts stay small.

This is Wing and Gong's search with two savings: the same calls that lead to the same state are tried once (Lowe), and a
read that fits is taken at once, because taking it later allows for nothing more.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

_State = TypeVar("_State", bound=Hashable)


@dataclass(frozen=True)
class Call:
    """An operation as its caller saw it."""

    name: str
    argument: Any
    result: Any
    called: float
    returned: float


Model = Callable[[_State, Call], "_State | None"]
"""Returns the state after a call, or None if its result contradicts the model."""


class Checker(Generic[_State]):
    """Checks the history of one object against a model.

    `is_read` says of a call, by its name and result, that it changed nothing, whatever the state was.
    """

    def __init__(self, model: Model[_State], start: _State, is_read: Callable[[Call], bool]) -> None:
        self._model = model
        self._start = start
        self._is_read = is_read

    def is_linearizable(self, history: Sequence[Call]) -> bool:
        """Whether there is such an order."""
        everything = (1 << len(history)) - 1
        tried: set[tuple[int, _State]] = set()
        todo = [(0, self._start)]
        while todo:
            done, state = todo.pop()
            if done == everything:
                return True
            if (done, state) in tried:
                continue
            tried.add((done, state))
            left = [at for at in range(len(history)) if not done >> at & 1]
            # A call that began after another had returned cannot come before it.
            horizon = min(history[at].returned for at in left)
            nexts = {
                at: after
                for at in left
                if history[at].called <= horizon and (after := self._model(state, history[at])) is not None
            }
            reads = [at for at in nexts if self._is_read(history[at])]
            todo += [(done | 1 << at, nexts[at]) for at in reads[:1] or nexts]
        return False
