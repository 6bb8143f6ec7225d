"""The client of catraca, the session-validation service: is this token good, and whose is it?

`SessionClient` is for threads, `AsyncSessionClient` for asyncio. Both return the same plain dataclasses and raise the
same errors, which are in `catraca.errors`. The generated gRPC stubs are in `catraca.v1`.
"""

from catraca._events import (
    RevocationCause,
    SessionEvent,
    SessionEventType,
    WatchOpened,
    WatchReset,
    WatchResetReason,
)
from catraca._model import InvalidReason, Login, Rotation, Session, Validation
from catraca._near_cache import NearCache, NearCacheStats
from catraca.aio import AsyncSessionClient
from catraca.sync import SessionClient

__all__ = [
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
