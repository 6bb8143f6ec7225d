"""The checker of histories, on histories written by hand."""

from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from tests.support.session_history import BEGUN, OK, REUSED, UNAVAILABLE, Breach, History, Record, read

CREATED = Record(
    client="a",
    near=True,
    operation="create",
    session_id="s",
    user_id="u",
    began=0,
    ended=1,
    result=OK,
    found=("s", "u"),
)


def made(operation: str, began: float, result: str = OK, *, client: str = "a", ended: float | None = None) -> Record:
    """Returns a record about the session."""
    return replace(
        CREATED,
        client=client,
        operation=operation,
        session_id="" if operation == "revoke_user" else "s",
        token="t" if operation in {"validate", "rotate"} else "",
        began=began,
        ended=began + 0.1 if ended is None else ended,
        result=result,
        found=("s", "u") if result == OK else ("", ""),
    )


def breaches(*records: Record) -> list[Breach]:
    """Returns what a history breaks, with the creation before it."""
    history = History([CREATED, *records], grace_seconds=2)
    return [each.breach for each in history.violations()]


VALID = made("validate", 2, client="b")


@pytest.mark.parametrize(
    "records",
    [
        [VALID],
        # Just within the bound of 5 s after 10.1.
        [made("revoke", 10), made("validate", 15.05, client="b")],
        # Not acknowledged: nothing is promised.
        [made("revoke", 10, UNAVAILABLE), made("validate", 30, client="b")],
        [made("revoke", 10, BEGUN, ended=inf), made("validate", 30, client="b")],
        # Stopped within a call that began in time.
        [made("revoke", 10), made("validate", 9, client="b", ended=60)],
        [made("validate", 3, UNAVAILABLE)],
        [made("revoke", 10, BEGUN, ended=inf), made("validate", 10.05, "invalid")],
        # A creation that was not acknowledged before a user's sessions were ended.
        [made("revoke_user", 0.5), made("validate", 30)],
        [made("rotate", 10), made("validate", 17)],
        [made("revoke_user", 2, BEGUN, ended=inf), made("validate", 3, "invalid", client="b")],
        # By an older token, own revocations wait for the event.
        [replace(made("revoke", 10), token="old"), made("validate", 11)],
    ],
)
def test_good_histories(records: list[Record]) -> None:
    """Nothing is held against them."""
    assert breaches(*records) == []


@pytest.mark.parametrize(
    ("breach", "records"),
    [
        (Breach.LATE, [made("revoke", 10), made("validate", 15.2, client="b")]),
        (Breach.LATE, [made("revoke_user", 10), made("validate", 15.2, client="b")]),
        (Breach.LATE, [made("validate", 10, REUSED), made("validate", 15.2, client="b")]),
        (Breach.LATE, [made("revoke", 10), replace(made("validate", 10.2, client="b"), near=False)]),
        (Breach.LATE, [made("revoke", 10), made("update", 10.2, client="b")]),
        (Breach.OWN, [made("revoke", 10), made("validate", 10.2)]),
        (Breach.OTHERS, [replace(VALID, found=("s", "other"))]),
        (Breach.OTHERS, [replace(VALID, found=("other", "u"))]),
        (Breach.ROTATED, [made("rotate", 10), made("validate", 17.2)]),
        (Breach.LOST, [made("validate", 3, "invalid")]),
        (Breach.LOST, [made("validate", 3, "invalid"), made("revoke", 4)]),
        (Breach.FAILED, [made("validate", 3, "UnexpectedAnswer: ?")]),
        (Breach.FAILED, [made("revoke", 3, "UnexpectedAnswer: ?")]),
    ],
)
def test_bad_histories(breach: Breach, records: list[Record]) -> None:
    """Each is caught. A reused token is also told as LOST here, because nobody had rotated it."""
    found = breaches(*records)
    assert breach in found
    assert set(found) <= {breach, Breach.LOST}


def test_records_survive_a_killed_writer(tmp_path: Path) -> None:
    """What it wrote as a whole is read, and the rest is left out."""
    file = tmp_path / "log"
    file.write_bytes(CREATED.line() + made("revoke", 3, BEGUN, ended=inf).line() + CREATED.line()[:20])
    assert read(file) == [CREATED, made("revoke", 3, BEGUN, ended=inf)]


def test_lags_are_those_of_near_caches_that_refused() -> None:
    """Counted from the acknowledgement to the last "valid" that began after it."""
    late = made("validate", 11, client="b")
    history = History(
        [CREATED, VALID, made("revoke", 10), late, made("validate", 12, "invalid", client="b")], grace_seconds=2
    )
    assert history.lags() == [pytest.approx(0.9)]
