"""What catraca is made of: known vulnerabilities, licences, and the bill of materials (CycloneDX).

    python tools/supply.py audit [--required]     --required: fails also if nobody could be asked
    python tools/supply.py licences
    python tools/supply.py sbom FILE

All three go by requirements/run.txt, the lock of what runs.
"""

import json
import re
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements" / "run.txt"
ASK_SECONDS = 120

ALLOWED = frozenset({"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "MIT", "MPL-2.0", "PSF-2.0"})
"""MPL-2.0 asks only that changes to its own files stay open, and nobody changes them here."""

_SPELLINGS = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd license": "BSD-3-Clause",
    "mit": "MIT",
    "mit license": "MIT",
    "mit style": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
}
"""How packages say it that do not have a License-Expression yet."""


@dataclass(frozen=True, slots=True)
class Locked:
    """A package of the lock."""

    name: str
    version: str
    marker: str
    """Where it is installed; empty: everywhere."""
    hashes: tuple[str, ...]
    """SHA-256 of each of its files."""


def read_lock(text: str) -> list[Locked]:
    """Reads a lock. Raises ValueError for a line that is not locked."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        match = re.fullmatch(r"([a-z0-9.-]+)==(\S+)(?: ; (.*?))?((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*", line)
        if match is None:
            raise ValueError(f"not a locked package: {line[:60]}")
        found.append(Locked(match[1], match[2], match[3] or "", tuple(re.findall(r"[0-9a-f]{64}", match[4]))))
    return found


def audit_problems(report: Mapping[str, Any], locked: Sequence[Locked]) -> tuple[list[str], str]:
    """Returns known vulnerabilities in pip-audit's report, and why nothing is known if nobody could be asked.

    pip-audit itself ends well if it could ask about nothing.
    """
    dependencies = report["dependencies"]
    problems = [
        f"{each['name']} {each['version']} has {known['id']}: fixed in {', '.join(known['fix_versions']) or 'none'}"
        for each in dependencies
        for known in each.get("vulns", ())
    ]
    reasons = [each["skip_reason"] for each in dependencies if "skip_reason" in each]
    if reasons and len(reasons) == len(dependencies):
        return [], f"nothing is known about any of {len(reasons)} packages. Of the first one: {reasons[0]}"
    problems += [f"not audited: {reason}" for reason in reasons]
    asked = {each["name"] for each in dependencies}
    problems += [f"not audited: {each.name}" for each in locked if not each.marker and each.name not in asked]
    return problems, ""


def audit(arguments: Sequence[str]) -> int:
    """Fails for a known vulnerability. What could not be asked is said."""
    locked = read_lock(LOCK.read_text())
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--require-hashes", "--disable-pip"]
    problems: list[str] = []
    why_not = f"no answer within {ASK_SECONDS} s"
    with suppress(subprocess.TimeoutExpired):
        asked = subprocess.run(  # noqa: S603  our own command
            [*command, "--format", "json", "--progress-spinner", "off"],
            capture_output=True,
            text=True,
            timeout=ASK_SECONDS,
            check=False,
        )
        try:
            problems, why_not = audit_problems(json.loads(asked.stdout), locked)
        except ValueError:
            why_not = (asked.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]
    if why_not:
        print(f"audit: SKIPPED, the advisories could not be asked: {why_not}", file=sys.stderr)
        return int("--required" in arguments)
    return _tell("audit", problems, f"{len(locked)} packages, no known vulnerability")


def licences_of(metadata: Any) -> list[str]:
    """Returns the licences of a package as SPDX names them, where that is known; each may be chosen."""
    if expression := metadata.get("License-Expression"):
        return str(expression).split(" OR ")
    classifiers = [each for each in metadata.get_all("Classifier") or () if each.startswith("License :: ")]
    said = [each.rpartition(" :: ")[2] for each in classifiers] or [metadata.get("License") or "none"]
    return [_SPELLINGS.get(each.lower(), each) for each in said]


def licence_problems(locked: Sequence[Locked], find: Callable[[str], Distribution] = distribution) -> list[str]:
    """Returns packages whose licence is not allowed, or not known."""
    problems = []
    for each in locked:
        try:
            licences = licences_of(find(each.name).metadata)
        except PackageNotFoundError:
            if not each.marker:
                problems.append(f"{each.name} is not installed, so its licence is not known")
            continue
        # Several classifiers may mean "and" as well as "or".
        if not licences or not set(licences) <= ALLOWED:
            problems.append(f"{each.name} {each.version} has the licence {', '.join(licences)}: not allowed")
    return problems


def with_extras() -> list[Locked]:
    """Returns the lock of what runs, and what the extra `otel` adds to it, which the lock of development has."""
    everything = read_lock((LOCK.parent / "dev.txt").read_text())
    return [*read_lock(LOCK.read_text()), *(each for each in everything if each.name.startswith("opentelemetry-"))]


def licences(_arguments: Sequence[str]) -> int:
    """Fails for a licence that is not allowed."""
    locked = with_extras()
    return _tell("licences", licence_problems(locked), f"{len(locked)} packages, all allowed")


def bill_of_materials(locked: Sequence[Locked], version: str) -> dict[str, Any]:
    """Returns the SBOM. The same lock makes the same one."""
    own = f"pkg:pypi/catraca@{version}"
    components = [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{each.name}@{each.version}",
            "name": each.name,
            "version": each.version,
            "purl": f"pkg:pypi/{each.name}@{each.version}",
            "hashes": [{"alg": "SHA-256", "content": content} for content in each.hashes],
        }
        for each in locked
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, own + repr(locked)).urn,
        "version": 1,
        "metadata": {
            "component": {"type": "application", "bom-ref": own, "name": "catraca", "version": version, "purl": own}
        },
        "components": components,
        "dependencies": [{"ref": own, "dependsOn": [each["bom-ref"] for each in components]}],
    }


def sbom(arguments: Sequence[str]) -> int:
    """Writes the SBOM."""
    (name,) = arguments
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(bill_of_materials(read_lock(LOCK.read_text()), version), indent=2) + "\n")
    return 0


def _tell(what: str, problems: Sequence[str], fine: str) -> int:
    for problem in problems:
        print(f"{what}: {problem}", file=sys.stderr)
    if not problems:
        print(f"{what}: {fine}")
    return int(bool(problems))


if __name__ == "__main__":
    _command, *_rest = sys.argv[1:] or [""]
    _commands = {"audit": audit, "licences": licences, "sbom": sbom}
    if _command not in _commands:
        sys.exit(__doc__)
    sys.exit(_commands[_command](_rest))
