"""What catraca is made of: the lock, its licences, its vulnerabilities and its bill of materials."""

import json
import re
import subprocess
import sys
from email.message import Message
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cyclonedx.model.bom import Bom
from tools import supply

HASH = "a" * 64
LOCKED = supply.Locked("thing", "1.0", "", (HASH,))


def test_the_bill_is_the_lock(tmp_path: Path) -> None:
    """It lists exactly the locked packages, with versions and the hashes of all files; others can read it."""
    path = tmp_path / "build" / "sbom.json"
    subprocess.run([sys.executable, supply.ROOT / "tools/supply.py", "sbom", str(path)], check=True)
    bill = json.loads(path.read_text())
    listed = {
        (each["name"], each["version"], tuple(hashed["content"] for hashed in each["hashes"]))
        for each in bill["components"]
    }
    # Read by hand, and not by what wrote it.
    text = (supply.ROOT / "requirements/run.txt").read_text()
    parts = re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:]
    wanted = {(*re.split(r"==| ", part)[:2], tuple(re.findall(r"--hash=sha256:([0-9a-f]+)", part))) for part in parts}
    assert listed == wanted
    assert len(listed) > 15
    read: Any = Bom.from_json(bill)  # type: ignore[attr-defined]  # added by a decorator
    assert {each.name for each in read.components} == {name for name, *_ in wanted}


def test_a_line_without_a_hash_is_not_locked() -> None:
    """Whoever reads the lock is told."""
    (found,) = supply.read_lock(f"a-b==1.0 ; python_version < '3.12' \\\n    --hash=sha256:{HASH}\n")
    assert found == supply.Locked("a-b", "1.0", "python_version < '3.12'", (HASH,))
    for line in ("thing==1.0", "thing>=1.0", f"thing --hash=sha256:{HASH}"):
        with pytest.raises(ValueError, match="not a locked package"):
            supply.read_lock(line)


def test_all_licences_are_allowed() -> None:
    """Of what is locked and installed here."""
    assert supply.licence_problems(supply.with_extras()) == []
    assert "opentelemetry-sdk" in {each.name for each in supply.with_extras()}


@pytest.mark.parametrize(
    ("said", "allowed"),
    [
        ({"License-Expression": "MIT"}, True),
        ({"License-Expression": "Apache-2.0 OR BSD-2-Clause"}, True),
        ({"License-Expression": "GPL-3.0-only"}, False),
        ({"License-Expression": "MIT AND GPL-3.0-only"}, False),
        ({"Classifier": "License :: OSI Approved :: MIT License"}, True),
        ({"Classifier": "License :: OSI Approved :: GNU Affero General Public License v3"}, False),
        ({"License": "MIT style"}, True),
        ({"License": "ask us"}, False),
        ({}, False),
    ],
)
def test_licences(said: dict[str, str], allowed: bool) -> None:
    """Only those on the list are, however a package says it; one that says nothing is not."""
    metadata = Message()
    for key, value in said.items():
        metadata[key] = value
    found: Any = SimpleNamespace(metadata=metadata)
    assert (supply.licence_problems([LOCKED], lambda _: found) == []) is allowed


def test_a_package_that_is_not_installed() -> None:
    """Nothing is known about it, which is all right only where it need not be installed."""

    def find(_: str) -> Any:
        raise PackageNotFoundError

    assert len(supply.licence_problems([LOCKED], find)) == 1
    assert supply.licence_problems([supply.Locked("thing", "1.0", "sys_platform == 'darwin'", (HASH,))], find) == []


def test_vulnerabilities() -> None:
    """A known one is a problem, and so is a package that was left out; if nobody could be asked, that is said."""
    fine = {"name": "thing", "version": "1.0", "vulns": []}
    bad = {"name": "thing", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]}
    skipped = {"name": "other", "skip_reason": "not found"}
    assert supply.audit_problems({"dependencies": [fine]}, [LOCKED]) == ([], "")
    assert supply.audit_problems({"dependencies": [bad]}, [LOCKED]) == (
        ["thing 1.0 has PYSEC-1: fixed in 1.1"],
        "",
    )
    assert supply.audit_problems({"dependencies": [fine, skipped]}, [LOCKED]) == (["not audited: not found"], "")
    assert supply.audit_problems({"dependencies": []}, [LOCKED]) == (["not audited: thing"], "")
    problems, why_not = supply.audit_problems({"dependencies": [skipped]}, [LOCKED])
    assert (problems, why_not) == ([], "nothing is known about any of 1 packages. Of the first one: not found")


@pytest.mark.parametrize(("arguments", "status"), [((), 0), (("--required",), 1)])
def test_an_audit_that_cannot_ask(
    arguments: tuple[str, ...], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says so, and does not look like one that found nothing; where it is required, that is a failure."""
    failed = SimpleNamespace(stdout="", stderr="traceback\nno route to host\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    assert supply.audit(arguments) == status
    out, err = capsys.readouterr()
    assert (out, err) == ("", "audit: SKIPPED, the advisories could not be asked: no route to host\n")
