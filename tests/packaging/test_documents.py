"""The files and tests that the documents name are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
_NAMED = re.compile(r"`(tests/[\w/.]*?)(?:::(\w+))?`")
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_and_link_exists(document: Path) -> None:
    """Files, folders, functions in them, and headings."""
    text = document.read_text("utf-8")
    for path, function in _NAMED.findall(text):
        assert (ROOT / path).exists(), path
        if function:
            assert re.search(rf"^(async )?def {function}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE), function
    for path, heading in _LINK.findall(text):
        linked = document.parent / path if path else document
        assert linked.exists(), path
        if heading:
            assert heading in headings(linked), f"{path}#{heading}"


def headings(document: Path) -> set[str]:
    """Returns the headings of a document, as links have them."""
    found = re.findall(r"^#+ (.*)$", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in found}


def test_security_names_the_tests_behind_it() -> None:
    """Each "cannot" of the threat model has one, or says that it is the same as above."""
    rows = re.findall(r"^\| cannot \|.*$", (ROOT / "docs" / "security.md").read_text("utf-8"), re.MULTILINE)
    assert len(rows) > 10
    for row in rows:
        shown_by = row.rstrip(" |").rpartition("|")[2]
        assert "`tests/" in shown_by or "the same" in shown_by, row
