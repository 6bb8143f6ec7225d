"""The names that users may rely on. Adding or removing one is a decision: this list changes with it."""

import importlib
import inspect
import pkgutil

import pytest

import catraca
from catraca import errors

AWAITED = (
    "create",
    "validate",
    "validate_batch",
    "require",
    "get",
    "update",
    "rotate",
    "revoke",
    "revoke_user_sessions",
    "close",
)
ITERATED = ("list_sessions",)
PLAIN = ("near_cache_stats", "watch")


def test_the_names_of_the_client() -> None:
    """`catraca` exports these and no others, and all exist."""
    assert sorted(catraca.__all__) == [
        "AsyncSessionClient",
        "InvalidReason",
        "Login",
        "NearCache",
        "NearCacheStats",
        "RevocationCause",
        "Rotation",
        "Session",
        "SessionClient",
        "SessionEvent",
        "SessionEventType",
        "Validation",
        "WatchOpened",
        "WatchReset",
        "WatchResetReason",
    ]
    for name in catraca.__all__:
        assert inspect.isclass(getattr(catraca, name))


def test_the_errors() -> None:
    """`catraca.errors` has these classes: all exceptions are CatracaError, and those to retry are Unavailable."""
    classes = {name: each for name, each in vars(errors).items() if inspect.isclass(each)}
    own = {name: each for name, each in classes.items() if each.__module__ == errors.__name__}
    tree = {name: each.__bases__[0].__name__ for name, each in own.items() if issubclass(each, Exception)}
    assert tree == {
        "CatracaError": "Exception",
        "EtagMismatch": "CatracaError",
        "InvalidRequest": "CatracaError",
        "InvalidSetting": "CatracaError",
        "NotAllowed": "CatracaError",
        "Overloaded": "Unavailable",
        "SessionInvalid": "CatracaError",
        "SessionLimitReached": "CatracaError",
        "SessionNotFound": "CatracaError",
        "TokenInUse": "CatracaError",
        "TokenReused": "CatracaError",
        "Unavailable": "CatracaError",
        "UnexpectedAnswer": "CatracaError",
        "UnusableAfterFork": "Unavailable",
    }
    assert own.keys() - tree.keys() == {"FieldViolation"}


def test_the_modules() -> None:
    """All other modules of the client are private, by their name."""
    found = {module.name for module in pkgutil.iter_modules(catraca.__path__)}
    assert {name for name in found if not name.startswith("_")} == {"aio", "cli", "errors", "sync", "v1"}


def test_the_methods() -> None:
    """A client has these methods."""
    assert {name for name in dir(catraca.SessionClient) if not name.startswith("_")} == {
        *AWAITED,
        *ITERATED,
        *PLAIN,
    }


@pytest.mark.parametrize("method", [*AWAITED, *ITERATED, *PLAIN])
def test_the_two_clients_are_alike(method: str) -> None:
    """Each method has the same parameters in both; only in one of them it is awaited or iterated asynchronously."""
    sync, other = getattr(catraca.SessionClient, method), getattr(catraca.AsyncSessionClient, method)
    assert inspect.iscoroutinefunction(other) == (method in AWAITED)
    assert inspect.isasyncgenfunction(other) == (method in ITERATED)
    assert not inspect.iscoroutinefunction(sync)
    assert inspect.isgeneratorfunction(sync) == (method in ITERATED)
    parameters = [list(inspect.signature(each).parameters.values())[1:] for each in (sync, other)]
    assert parameters[0] == parameters[1]


def test_the_two_clients_have_the_same_methods() -> None:
    """Neither has one more."""
    names = [
        {name for name in dir(client) if not name.startswith("_")}
        for client in (catraca.SessionClient, catraca.AsyncSessionClient)
    ]
    assert names[0] == names[1]


def test_what_is_exported_is_documented() -> None:
    """Every exported class has a docstring."""
    for module in (catraca, importlib.import_module("catraca.errors")):
        for name in dir(module):
            each = getattr(module, name)
            if inspect.isclass(each) and each.__module__.startswith("catraca"):
                assert each.__doc__, name
