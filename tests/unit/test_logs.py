"""Which lines are logged."""

import logging
from collections.abc import Iterator

import pytest
from grpc.aio import AbortError

from catraca_server import logs


class ExecuteBatchError(Exception):
    """An exception of the engine, with its name."""


@pytest.fixture(autouse=True)
def configured(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """The server's logging, for the duration of a test."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    logs.configure("text", "info")
    capsys.readouterr()
    yield
    root.handlers[:], level = before
    root.setLevel(level)


@pytest.mark.parametrize(("error", "is_logged"), [(ExecuteBatchError, False), (AbortError, True)])
def test_callers_who_disconnect_are_not_logged(
    error: type[Exception], is_logged: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The engine logs an error with a traceback for each of them; its other errors stay in the log."""
    logging.getLogger("grpc._cython.cygrpc").error("raised in core by servicer method", exc_info=error())
    assert ("raised in core" in capsys.readouterr().err) is is_logged
