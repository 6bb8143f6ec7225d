"""The attributes of a session, which callers share: nobody can change them, and they are used like a dict."""

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from catraca import Session
from catraca._model import read_session
from catraca.v1 import session_pb2

MESSAGE = session_pb2.Session(session_id="session-1", user_id="12345", attributes={"role": "user", "device": "phone"})
PLAIN = {"role": "user", "device": "phone"}


@pytest.fixture
def session() -> Session:
    """A session as a client returns it."""
    return read_session(MESSAGE)


CHANGES: dict[str, Callable[[Any], object]] = {
    "set": lambda attributes: attributes.__setitem__("role", "admin"),
    "delete": lambda attributes: attributes.__delitem__("role"),
    "merge": lambda attributes: attributes.__ior__({"role": "admin"}),
    "clear": lambda attributes: attributes.clear(),
    "pop": lambda attributes: attributes.pop("role"),
    "popitem": lambda attributes: attributes.popitem(),
    "setdefault": lambda attributes: attributes.setdefault("more", "1"),
    "update": lambda attributes: attributes.update(role="admin"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_no_caller_changes_what_others_get(session: Session, change: Callable[[Any], object]) -> None:
    """Those who validate a session that has not changed share it."""
    with pytest.raises(TypeError, match="cannot be changed"):
        change(session.attributes)
    assert session.attributes == PLAIN


def test_every_method_that_changes_a_dict_is_refused() -> None:
    """A Python with another one makes this fail."""
    reading = {"copy", "fromkeys", "get", "items", "keys", "values"}
    assert {name for name in vars(dict) if not name.startswith("_")} == reading | (CHANGES.keys() & vars(dict).keys())


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        lambda session: pickle.loads(pickle.dumps(session)),  # noqa: S301  our own
        lambda session: pickle.loads(pickle.dumps(session, protocol=2)),  # noqa: S301
        lambda session: dataclasses.replace(session, etag=session.etag),
    ],
    ids=["copy", "deepcopy", "pickle", "pickle 2", "replace"],
)
def test_a_copied_session(session: Session, copied: Callable[[Session], Session]) -> None:
    """It is equal, and as read-only."""
    copy_of_it = copied(session)
    assert copy_of_it == session
    assert hash(copy_of_it) == hash(session)
    with pytest.raises(TypeError, match="cannot be changed"):
        copy_of_it.attributes["role"] = "admin"  # type: ignore[index]  # what a caller without a type checker may do


def test_attributes_are_a_dict(session: Session) -> None:
    """For comparing, JSON, `asdict`, and a copy that can be changed."""
    assert session.attributes == PLAIN
    assert json.loads(json.dumps(session.attributes)) == PLAIN
    assert dataclasses.asdict(session)["attributes"] == PLAIN
    assert repr(session.attributes) == repr(dict(session.attributes))
    assert session.attributes | {"role": "admin"} == {**PLAIN, "role": "admin"}  # type: ignore[operator]  # declared as a Mapping
    mine = dict(session.attributes)
    mine["role"] = "admin"
    assert session.attributes == PLAIN


def test_attributes_stay_out_of_the_repr(session: Session) -> None:
    """They may be personal."""
    assert "phone" not in repr(session)
