"""The audit in the log: a line says everything, nobody can forge one, and a flood is counted instead of written."""

import io
import json
import logging
import sys

import pytest

from catraca_server import logs
from catraca_server.domain.audit import Audits, CallerRefused, NoAudit
from catraca_server.domain.call import Call, Caller
from catraca_server.domain.events import EndCause, EventType, SessionEvent, revoked
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


CALL = Call(0, Caller("web"), "request-1", "4bf92f3577b34da6a3ce929d0e0e4736")
ENDED_LINE = (
    r"session ended: session_id=7U9ywncTXuWoMPAZlJdtRY user_id=ana\x20b caller=web request_id=request-1"
    " trace_id=4bf92f3577b34da6a3ce929d0e0e4736 cause=TOKEN_REUSE repeated=true"
)
ENDED = revoked("7U9ywncTXuWoMPAZlJdtRY", "ana b", EndCause.TOKEN_REUSE, repeated=True)


def test_a_line_about_a_session(caplog: pytest.LogCaptureFixture) -> None:
    """It says what happened to which session of whom, and who asked for it; a reused token is a warning."""
    LogAudit().session_changed(SessionEvent(EventType.CREATED, "7U9ywncTXuWoMPAZlJdtRY", "ana"), Call(0))
    Audits(LogAudit(), NoAudit(), LogAudit(sessions=False)).session_changed(ENDED, CALL)
    assert [(level, message) for _, level, message in caplog.record_tuples] == [
        (
            logging.INFO,
            "session created: session_id=7U9ywncTXuWoMPAZlJdtRY user_id=ana caller=anonymous request_id=- trace_id=-",
        ),
        (
            logging.WARNING,
            ENDED_LINE,
        ),
    ]


def test_a_line_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its words are fields. It is written also where the log has only errors, and in ASCII."""
    root = logging.getLogger()
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    logs.configure("json", "error")
    try:
        LogAudit().session_changed(revoked("7U9ywncTXuWoMPAZlJdtRY", "josé \u009b", EndCause.LIMIT), CALL)
    finally:
        root.setLevel(level)
    (line,) = written.getvalue().splitlines()
    assert line.isascii()
    entry = json.loads(line)
    del entry["time"]
    assert entry == {
        "level": "info",
        "logger": "catraca_server.observe.audit",
        "message": "session ended",
        "session_id": "7U9ywncTXuWoMPAZlJdtRY",
        "user_id": "josé \u009b",
        "caller": "web",
        "request_id": "request-1",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "cause": "LIMIT",
    }


def test_a_refused_call_has_its_ids(caplog: pytest.LogCaptureFixture) -> None:
    """If its caller has given them; and every audit is told."""
    refused = CallerRefused("UNAUTHENTICATED", "/a", "", "", "unix:", "request-1", CALL.trace_id)
    Audits(LogAudit(), NoAudit()).caller_refused(refused)
    (message,) = caplog.messages
    assert message.endswith("peer=unix: request_id=request-1 trace_id=4bf92f3577b34da6a3ce929d0e0e4736")


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
