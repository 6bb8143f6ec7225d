"""The audit in the log: a line says everything, nobody can forge one, and a flood is counted instead of written."""

import logging

import pytest

from catraca_server.domain.audit import CallerRefused, NoAudit
from catraca_server.observe.audit import LINES_PER_SECOND, LogAudit

REFUSED = CallerRefused("PERMISSION_DENIED", "/catraca.v1.SessionService/GetSession", "web", "", "ipv4:10.0.0.7:1")


def test_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """It has the reason, the method and who called from where; `-` stands for what is not known."""
    LogAudit().caller_refused(REFUSED)
    NoAudit().caller_refused(REFUSED)
    ((_, level, message),) = caplog.record_tuples
    assert level == logging.WARNING
    assert message == (
        "caller refused: reason=PERMISSION_DENIED method=/catraca.v1.SessionService/GetSession caller=web key_id=- "
        "peer=ipv4:10.0.0.7:1"
    )


def test_nobody_writes_lines_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    """The name comes from a certificate, so a caller may have chosen it."""
    name = "web peer=here\ncaller refused: \x1b[2Jé"
    LogAudit().caller_refused(CallerRefused("UNAUTHENTICATED", "/a", name, "", "unix:"))
    (message,) = caplog.messages
    assert message.isascii()
    assert message.isprintable()
    assert message.count(" peer=") == 1


def test_a_flood_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    """So many lines a second, and then how many more there were."""
    now = 5.0
    audit = LogAudit(now=lambda: now)
    for _ in range(LINES_PER_SECOND + 7):
        audit.caller_refused(REFUSED)
    assert len(caplog.messages) == LINES_PER_SECOND
    now = 6.0
    audit.caller_refused(REFUSED)
    assert caplog.messages[LINES_PER_SECOND] == "caller refused: 7 more, not logged one by one"
    assert len(caplog.messages) == LINES_PER_SECOND + 2
    now = 9.0
    audit.caller_refused(REFUSED)
    assert len(caplog.messages) == LINES_PER_SECOND + 3


def test_many_invalid_tokens(caplog: pytest.LogCaptureFixture) -> None:
    """One line a minute for a caller that presents too many, however they come."""
    now = 60.0
    audit = LogAudit(invalid_tokens_alarm=100, now=lambda: now)
    for count in (1, 98):
        audit.invalid_tokens("web", count)
        audit.invalid_tokens("ops", 1)
    assert caplog.messages == []
    for _ in range(5):
        audit.invalid_tokens("web", 1000)
    line = "many invalid tokens: caller=web, 100 or more within a minute"
    assert caplog.messages == [line]
    now = 120.0
    audit.invalid_tokens("web", 99)
    assert caplog.messages == [line]
    audit.invalid_tokens("web", 1)
    assert caplog.messages == [line] * 2


def test_nobody_is_told_of_invalid_tokens(caplog: pytest.LogCaptureFixture) -> None:
    """With an alarm of 0, and by the audit that tells nobody."""
    LogAudit().invalid_tokens("web", 10**9)
    NoAudit().invalid_tokens("web", 10**9)
    assert caplog.messages == []
