"""Handlers: the caller is handed down to the operations."""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pytest
from tests.support.incoming import Incoming

from catraca_server.api.engine import Method, StatusError, UnaryMethod
from catraca_server.api.handlers import METHOD_ROLES, session_service_methods
from catraca_server.api.validation_batches import ValidationBatches
from catraca_server.domain.call import ANONYMOUS, Call, Caller, Role

WEB = Caller("web", frozenset({Role.VALIDATE}))


@dataclass
class _Incoming:
    """What a handler looks at."""

    caller: Caller | None
    request: bytes = b""
    deadline: float = math.inf
    metadata: Sequence[tuple[str, str]] = ()
    initial_metadata: Sequence[tuple[str, str]] = ()


class _Operations:
    """Takes every call, and does nothing."""

    def __init__(self) -> None:
        self.callers: list[Caller] = []
        self.validating = self

    def __getattr__(self, name: str) -> Callable[[Any, Call], Awaitable[bytes]]:
        async def rpc(request: Any, call: Call) -> bytes:
            del request
            self.callers.append(call.caller)
            return b""

        return rpc

    async def validate_each(self, requests: Sequence[object], call: Call, batch: Any) -> None:
        """Notes who asks for each validation."""
        del call
        for at in range(len(requests)):
            self.callers.append(batch.call(at).caller)
        batch.fail_rest(ValueError())


def methods_over(operations: _Operations) -> dict[str, Method]:
    """Returns all methods; what they ask for are these operations."""
    anything = cast("Any", operations)
    return session_service_methods(anything, anything, store_timeout_seconds=1)


@pytest.mark.parametrize(("caller", "told"), [(WEB, WEB), (None, ANONYMOUS)])
async def test_operations_are_told_who_calls(caller: Caller | None, told: Caller) -> None:
    """By every unary method, and for each validation of a batch; on an open server it is the anonymous caller."""
    operations = _Operations()
    methods = methods_over(operations)
    unary = [each for each in methods.values() if isinstance(each, UnaryMethod)]
    for method in unary:
        await method._handler(cast("Any", _Incoming(caller)))
    assert operations.callers == [told] * len(unary)
    operations.callers.clear()
    batches = ValidationBatches(cast("Any", operations), store_timeout_seconds=1)
    await batches.answer([Incoming(b"\x0a\x01x", caller=caller), Incoming(b"\x0a\x01x", caller=ANONYMOUS)])
    assert operations.callers == [told, ANONYMOUS]


async def test_a_malformed_body_reaches_no_operation() -> None:
    """It is refused where the bytes come in."""
    operations = _Operations()
    methods = methods_over(operations)
    for method in methods.values():
        if isinstance(method, UnaryMethod):
            with pytest.raises(StatusError):
                await method._handler(cast("Any", _Incoming(WEB, b"\xff")))
    assert operations.callers == []


def test_every_method_has_a_role() -> None:
    """One without could be called by nobody."""
    methods = methods_over(_Operations())
    assert methods.keys() == METHOD_ROLES.keys()
