"""The client for asyncio. It has the methods of `SessionClient`, to be awaited; that class documents them."""

from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import datetime, timedelta
from os import PathLike
from types import TracebackType
from typing import Self, TypeVar

import grpc

from catraca import _core, _settings, _validations
from catraca._access import access_or_default
from catraca._answering_aio import answering
from catraca._channel_aio import AsyncChannel
from catraca._events import SessionEvent, SessionEventType, WatchOpened, WatchReset
from catraca._feed import Feed
from catraca._feed_aio import watch
from catraca._model import Login, Rotation, Session, Validation
from catraca._near_cache import NearCache, NearCacheStats

_Result = TypeVar("_Result")


class AsyncSessionClient:
    """A client of a catraca server. All tasks of an event loop can share one; in another loop it connects again.

    Arguments, methods and errors are those of `SessionClient`. If the process forks while calls of this client are
    under way, or from another thread than its event loop's, every call in the child raises UnusableAfterFork.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        timeout: float = _core.DEFAULT_TIMEOUT_SECONDS,
        credentials: grpc.ChannelCredentials | None = None,
        api_key: str | None = None,
        api_key_file: str | PathLike[str] | None = None,
        insecure: bool | None = None,
        use_proxy: bool | None = None,
        near_cache: bool | NearCache = False,
        coalesce: bool = True,
    ) -> None:
        self._target = _settings.target_or_default(target)
        self._timeout = timeout
        proxied = _settings.use_proxy_or_default(use_proxy)
        access = access_or_default(
            self._target,
            credentials=credentials,
            api_key=api_key,
            api_key_file=api_key_file,
            insecure=insecure,
            use_proxy=proxied,
        )
        self._channel = AsyncChannel(self._target, access, use_proxy=proxied)
        self._answering = answering(self._channel, near_cache, coalesce=coalesce)
        self._near = self._answering.near
        self._closings = 0

    async def create(
        self,
        user_id: str,
        *,
        ttl: timedelta | None = None,
        idle_timeout: timedelta | None = None,
        attributes: Mapping[str, str] | None = None,
        token: str | None = None,
        timeout: float | None = None,
    ) -> Login:
        """Starts a session for a user who has just logged in. See `SessionClient.create`."""
        call = _core.create(user_id=user_id, ttl=ttl, idle_timeout=idle_timeout, attributes=attributes, token=token)
        login = await self._make(call, timeout)
        self._answering.changed(session_ids=login.evicted_session_ids)
        return login

    async def validate(
        self,
        token: str,
        *,
        user_id: str | None = None,
        skip_touch: bool = False,
        timeout: float | None = None,
    ) -> Validation:
        """Tells whether a token is good and whose it is. See `SessionClient.validate`."""
        near = self._near
        if near is not None and (known := near.get(token, user_id)) is not None:
            return known
        return await self._answering.validate(token, user_id, skip_touch, self._timeout if timeout is None else timeout)

    async def validate_batch(
        self,
        tokens: Iterable[str],
        *,
        skip_touch: bool = False,
        timeout: float | None = None,
    ) -> list[Validation]:
        """Validates 1 to 1,000 tokens in one call; the answers are in the order of the tokens."""
        return await self._make(_validations.batch(tokens, skip_touch=skip_touch), timeout)

    async def require(
        self,
        token: str,
        *,
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> Session:
        """Returns the session of a token that must be valid. Raises SessionInvalid if it is not."""
        return _core.required(await self.validate(token, user_id=user_id, timeout=timeout))

    async def get(
        self,
        session_id: str,
        *,
        timeout: float | None = None,
    ) -> Session:
        """Reads a session by its public id. Raises SessionNotFound if there is none."""
        return await self._make(_core.get(session_id), timeout)

    async def list_sessions(
        self, user_id: str, *, page_size: int = 0, timeout: float | None = None
    ) -> AsyncIterator[Session]:
        """Yields a user's live sessions, newest first. See `SessionClient.list_sessions`."""
        page_token = ""
        while True:
            call = _core.page(user_id, page_size=page_size, page_token=page_token)
            sessions, page_token = await self._make(call, timeout)
            for session in sessions:
                yield session
            if not page_token:
                return

    async def update(
        self,
        session_id: str,
        *,
        etag: str | None = None,
        attributes: Mapping[str, str] | None = None,
        set_attributes: Mapping[str, str | None] | None = None,
        absolute_expire_time: datetime | None = None,
        idle_timeout: timedelta | None = None,
        timeout: float | None = None,
    ) -> Session:
        """Changes a session and returns it as it is now. See `SessionClient.update`."""
        call = _core.update(
            session_id,
            etag=etag,
            attributes=attributes,
            set_attributes=set_attributes,
            absolute_expire_time=absolute_expire_time,
            idle_timeout=idle_timeout,
        )
        with self._answering.changing(session_ids=[session_id]):
            return await self._make(call, timeout)

    async def rotate(self, token: str, *, timeout: float | None = None) -> Rotation:
        """Replaces a session's token; the old one stays valid for a short grace. See `SessionClient.rotate`."""
        with self._answering.changing(token=token):
            return await self._make(_core.rotate(token), timeout)

    async def revoke(
        self,
        *,
        token: str | None = None,
        session_id: str | None = None,
        timeout: float | None = None,
    ) -> bool:
        """Ends the session of a token or of a public id. Returns False if it had already ended."""
        with self._answering.changing(token=token, session_ids=[session_id or ""]):
            return await self._make(_core.revoke(token=token, session_id=session_id), timeout)

    async def revoke_user_sessions(
        self, user_id: str, *, except_session_id: str | None = None, timeout: float | None = None
    ) -> int:
        """Ends all sessions of a user, or all but one. See `SessionClient.revoke_user_sessions`."""
        with self._answering.changing(user_id=user_id):
            return await self._make(_core.revoke_user_sessions(user_id, except_session_id=except_session_id), timeout)

    def watch(
        self, *, types: Iterable[SessionEventType] = (), cursor: str = "", timeout: float | None = None
    ) -> AsyncIterator[SessionEvent | WatchOpened | WatchReset]:
        """Yields events about sessions as they happen, without end. See `SessionClient.watch`."""
        feed = Feed(types, cursor)
        return watch(self._channel, feed, self._timeout if timeout is None else timeout, lambda: self._closings)

    def near_cache_stats(self) -> NearCacheStats | None:
        """Returns the near cache's counters and state; None for a client without one."""
        return None if self._near is None else self._near.stats()

    async def close(self) -> None:
        """Closes the connection. Calls under way end with Unavailable. A later call opens a new connection."""
        self._closings += 1
        await self._answering.close()
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._target!r})"

    async def _make(self, call: _core.Call[_Result], timeout: float | None) -> _Result:
        return call.result(await self._channel.call(call, self._timeout if timeout is None else timeout))
