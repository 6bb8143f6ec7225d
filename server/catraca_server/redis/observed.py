"""A link that notifies an observer when a request is made and when its replies are there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from catraca_server.redis.errors import StoreUnavailable
from catraca_server.redis.link import KeyReads, Link, Part, Request
from catraca_server.redis.replies import Replies


class RequestObserver(Protocol):
    """Is notified of the requests that it asks for. It must not block or raise."""

    def is_asked_for(self) -> bool:
        """Whether to notify it of a request that is made now."""

    def request_began(self, operation: str, commands: int) -> Any:
        """A request with this many commands begins. The return value is passed to `request_ended`."""

    def request_ended(self, began: Any, error: str) -> None:
        """The request was answered, or failed: then `error` is the kind of failure, without any text from the store."""


class ObservedLink(Link):
    """Passes requests to another link, and notifies the observer. No key and no argument gets to the observer."""

    def __init__(self, link: Link, observer: RequestObserver) -> None:
        self._link = link
        self._observer = observer
        self.replicates = link.replicates

    @property
    def waiting_commands(self) -> int:
        """How many commands wait in the other link."""
        return self._link.waiting_commands

    async def execute(
        self, requests: Sequence[Request], deadline: float, *, durable: bool = False
    ) -> Sequence[Replies]:
        """Passes the requests on."""
        if not self._observer.is_asked_for():
            return await self._link.execute(requests, deadline, durable=durable)
        names = [str(command[0]) for _, commands in requests for command in commands]
        with self._telling(names, len(names)):
            return await self._link.execute(requests, deadline, durable=durable)

    def together(self, keys: Sequence[str]) -> Sequence[Sequence[int]]:
        """Returns what the other link does."""
        return self._link.together(keys)

    async def read(self, keys: Sequence[str], reads: KeyReads, deadline: float) -> Sequence[Part]:
        """Passes the reads on."""
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
    """Returns OpenTelemetry's name for commands that are sent together."""
    if len(names) == 1:
        return names[0]
    return f"PIPELINE {names[0]}" if len(set(names)) == 1 else "PIPELINE"


def _kind(failure: BaseException) -> str:
    return failure.problem.name if isinstance(failure, StoreUnavailable) else type(failure).__name__
