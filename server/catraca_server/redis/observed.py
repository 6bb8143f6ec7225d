"""A link that tells of each request: from when it is made until its replies are there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from catraca_server.redis.errors import StoreUnavailable
from catraca_server.redis.link import KeyReads, Link, Part, Request
from catraca_server.redis.replies import Replies


class RequestObserver(Protocol):
    """Is told of requests whose makers want to know. It may take no time, and raises nothing."""

    def is_asked_for(self) -> bool:
        """Whether the one who makes a request now wants it told."""

    def request_began(self, operation: str, commands: int) -> Any:
        """So many commands are asked for. What it returns comes back when they have ended."""

    def request_ended(self, began: Any, error: str) -> None:
        """They have replies, or have failed: then `error` is the kind of failure. It holds no text of the store."""


class ObservedLink(Link):
    """Asks the link that it is made around, and tells of it. No key and no argument gets to the observer."""

    def __init__(self, link: Link, observer: RequestObserver) -> None:
        self._link = link
        self._observer = observer
        self.replicates = link.replicates

    @property
    def waiting_commands(self) -> int:
        """As the link itself has it."""
        return self._link.waiting_commands

    async def execute(
        self, requests: Sequence[Request], deadline: float, *, durable: bool = False
    ) -> Sequence[Replies]:
        """Asks the link."""
        if not self._observer.is_asked_for():
            return await self._link.execute(requests, deadline, durable=durable)
        names = [str(command[0]) for _, commands in requests for command in commands]
        with self._telling(names, len(names)):
            return await self._link.execute(requests, deadline, durable=durable)

    def together(self, keys: Sequence[str]) -> Sequence[Sequence[int]]:
        """As the link itself has it."""
        return self._link.together(keys)

    async def read(self, keys: Sequence[str], reads: KeyReads, deadline: float) -> Sequence[Part]:
        """Asks the link."""
        if not self._observer.is_asked_for():
            return await self._link.read(keys, reads, deadline)
        names = [str(name) for name, *_ in reads.commands("")]
        with self._telling(names, reads.count * len(keys)):
            return await self._link.read(keys, reads, deadline)

    @contextmanager
    def _telling(self, names: Sequence[str], commands: int) -> Iterator[None]:
        began = self._observer.request_began(_operation(names), commands)
        error = ""
        try:
            yield
        except BaseException as failure:
            error = _kind(failure)
            raise
        finally:
            self._observer.request_ended(began, error)


def _operation(names: Sequence[str]) -> str:
    """Returns what commands are called together, as OpenTelemetry has it."""
    if len(names) == 1:
        return names[0]
    return f"PIPELINE {names[0]}" if len(set(names)) == 1 else "PIPELINE"


def _kind(failure: BaseException) -> str:
    return failure.problem.name if isinstance(failure, StoreUnavailable) else type(failure).__name__
