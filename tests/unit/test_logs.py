"""What is worth a line in the log."""

import logging
from collections.abc import Iterator

import pytest
from grpc.aio import AbortError

from catraca_server import logs


class ExecuteBatchError(Exception):
    """As the engine calls it."""


@pytest.fixture(autouse=True)
def configured(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """The server's logging, for the time of a test."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    logs.configure("text", "info")
    capsys.readouterr()
    yield
    root.handlers[:], level = before
    root.setLevel(level)


@pytest.mark.parametrize(("error", "is_told"), [(ExecuteBatchError, False), (AbortError, True)])
def test_callers_who_have_gone_are_no_news(
    error: type[Exception], is_told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The engine logs an error with a traceback for each of them; other errors of the engine are told."""
    logging.getLogger("grpc._cython.cygrpc").error("raised in core by servicer method", exc_info=error())
    assert ("raised in core" in capsys.readouterr().err) is is_told
