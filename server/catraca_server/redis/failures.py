"""What went wrong with a connection, in words for callers and the log."""

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ConnectionError as RedisConnectionError,
    RedisError,
    TimeoutError as RedisTimeoutError,
)

from catraca_server.redis.errors import StoreProblem, StoreUnavailable


def again(error: StoreUnavailable) -> StoreUnavailable:
    """Returns a copy of an error for one of several callers, because each raise adds frames to the exception."""
    return StoreUnavailable(error.detail, error.problem)


def failure_of(error: RedisError | OSError | StoreUnavailable) -> StoreUnavailable:
    """Returns what ended a connection. redis-py's exceptions may quote a reply, so only their types are used."""
    match error:
        case StoreUnavailable():
            return again(error)
        case TimeoutError() | RedisTimeoutError():
            return StoreUnavailable("no reply within the timeout", StoreProblem.NOT_IN_TIME)
        case AuthenticationError() | AuthorizationError():
            return StoreUnavailable("the store no longer accepts the user or password", StoreProblem.REFUSED)
        case BusyLoadingError():
            return StoreUnavailable("the store is loading its data", StoreProblem.LOADING)
        case OSError() | RedisConnectionError():
            return StoreUnavailable("the connection was closed before the reply", StoreProblem.DISCONNECTED)
        case _:
            return StoreUnavailable(f"malformed reply ({type(error).__name__})", StoreProblem.MALFORMED_REPLY)


def failure_to_connect(error: Exception) -> StoreUnavailable:
    """Returns why there is no connection."""
    match error:
        case StoreUnavailable():
            return again(error)
        case TimeoutError():
            return StoreUnavailable("not connected within the timeout", StoreProblem.CANNOT_CONNECT)
        case _:
            return StoreUnavailable(f"{type(error).__name__}: {error}", StoreProblem.CANNOT_CONNECT)
