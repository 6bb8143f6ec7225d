"""The client for threads."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from os import PathLike
from types import TracebackType
from typing import Self, TypeVar

import grpc

from catraca import _core, _settings, _validations
from catraca._access import access_or_default
from catraca._answering_sync import answering
from catraca._channel_sync import SyncChannel
from catraca._events import SessionEvent, SessionEventType, WatchOpened, WatchReset
from catraca._feed import Feed
from catraca._feed_sync import watch
from catraca._model import Login, Rotation, Session, Validation
from catraca._near_cache import NearCache, NearCacheStats

_Result = TypeVar("_Result")


class SessionClient:
    """A client of a catraca server. All threads of a process can share one.

    It connects at the first call. Every method takes a `timeout` in seconds for this call, retries included, and raises
    the exceptions of `catraca.errors`: Unavailable if there was no answer, which never means "not valid".

    When the process forks, the client closes its connection, and parent and child connect again at their next calls.
    docs/integrations.md says what that means for servers that fork their workers.

    Args:
        target: Where the server is, as gRPC writes it; default CATRACA_TARGET, else 127.0.0.1:50051.
        timeout: Seconds for a call that is given no timeout of its own.
        credentials: For TLS; default what CATRACA_TLS_CA, CATRACA_TLS_CERT and CATRACA_TLS_KEY name, else none, as the
            server on loopback expects.
        api_key: Says who calls; default CATRACA_API_KEY.
        api_key_file: A file with the key instead, read again when it changes; default CATRACA_API_KEY_FILE.
        insecure: Whether the key may be sent without TLS to another machine; default CATRACA_INSECURE, else not.
        use_proxy: Whether to connect through the proxy that http_proxy or https_proxy names; default CATRACA_USE_PROXY,
            else not.
        near_cache: Whether to keep answers in this process and reuse them, until at most 5 seconds after a revocation:
            True, or a `NearCache` with settings. docs/near-cache.md says what that promises. Default not.
        coalesce: Whether validations made at the same time share calls. Each keeps its own deadline,
            error and cancellation.

    Raises:
        InvalidSetting: An argument, or the environment variable in its place, cannot be used.
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
        self._channel = SyncChannel(self._target, access, use_proxy=proxied)
        self._answering = answering(self._channel, near_cache, coalesce=coalesce)
        self._near = self._answering.near
        self._closings = 0

    def create(
        self,
        user_id: str,
        *,
        ttl: timedelta | None = None,
        idle_timeout: timedelta | None = None,
        attributes: Mapping[str, str] | None = None,
        token: str | None = None,
        timeout: float | None = None,
    ) -> Login:
        """Starts a session for a user who has just logged in.

        Args:
            user_id: Whose it is: 1 to 256 bytes of UTF-8 without control characters.
            ttl: How long it lives at most; default the server's, 24 hours unless configured.
            idle_timeout: How long it survives without activity; zero for no idle timeout; default the server's, 30
                minutes unless configured.
            attributes: Your own data, returned by every validation: at most 64 entries and 16 KiB.
            token: A token of your own, 16 to 4096 printable ASCII characters; default: the server mints one.
            timeout: Seconds for this call.

        Raises:
            InvalidRequest: An argument breaks a rule; `violations` names it.
            TokenInUse: The token that you brought already belongs to a live session.
            SessionLimitReached: The user has as many sessions as allowed, and the service evicts none to make room.
            Unavailable: Unknown whether it was created; repeating is safe.
        """
        call = _core.create(user_id=user_id, ttl=ttl, idle_timeout=idle_timeout, attributes=attributes, token=token)
        login = self._make(call, timeout)
        self._answering.changed(session_ids=login.evicted_session_ids)
        return login

    def validate(
        self, token: str, *, user_id: str | None = None, skip_touch: bool = False, timeout: float | None = None
    ) -> Validation:
        """Tells whether a token is good and whose it is. The result is true if the token is valid.

        Args:
            token: What the end user presented.
            user_id: If given, the session must be this user's.
            skip_touch: Do not count this as activity of the user.
            timeout: Seconds for this call.

        Raises:
            InvalidRequest: The token is empty, or an argument breaks a rule.
            Unavailable: Unknown whether it is valid.
        """
        near = self._near
        if near is not None and (known := near.get(token, user_id)) is not None:
            return known
        return self._answering.validate(token, user_id, skip_touch, self._timeout if timeout is None else timeout)

    def validate_batch(
        self, tokens: Iterable[str], *, skip_touch: bool = False, timeout: float | None = None
    ) -> list[Validation]:
        """Validates 1 to 1,000 tokens in one call; the answers are in the order of the tokens."""
        return self._make(_validations.batch(tokens, skip_touch=skip_touch), timeout)

    def require(self, token: str, *, user_id: str | None = None, timeout: float | None = None) -> Session:
        """Returns the session of a token that must be valid.

        Raises:
            SessionInvalid: The token is not valid; `invalid_reason` says why.
            Unavailable: Unknown whether it is valid.
        """
        return _core.required(self.validate(token, user_id=user_id, timeout=timeout))

    def get(self, session_id: str, *, timeout: float | None = None) -> Session:
        """Reads a session by its public id. Raises SessionNotFound if there is none."""
        return self._make(_core.get(session_id), timeout)

    def list_sessions(self, user_id: str, *, page_size: int = 0, timeout: float | None = None) -> Iterator[Session]:
        """Yields a user's live sessions, newest first, and fetches each page when it is needed.

        Args:
            user_id: Whose sessions.
            page_size: How many sessions to fetch at once, at most 500; zero leaves it to the server.
            timeout: Seconds for each page.
        """
        page_token = ""
        while True:
            call = _core.page(user_id, page_size=page_size, page_token=page_token)
            sessions, page_token = self._make(call, timeout)
            yield from sessions
            if not page_token:
                return

    def update(
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
        """Changes a session and returns it as it is now.

        Args:
            session_id: Its public id.
            etag: Change it only if it still has this etag.
            attributes: Replace all attributes with these.
            set_attributes: Then set these one by one; None removes an attribute.
            absolute_expire_time: When it ends, whatever the activity; with a time zone.
            idle_timeout: How long it survives without activity; zero for no idle timeout.
            timeout: Seconds for this call.

        Raises:
            EtagMismatch: It has changed since it had that etag, perhaps by an earlier attempt of this same update.
            SessionNotFound: It has ended.
            InvalidRequest: A value breaks a rule.
            Unavailable: Unknown whether it was changed; repeating is safe.
        """
        call = _core.update(
            session_id,
            etag=etag,
            attributes=attributes,
            set_attributes=set_attributes,
            absolute_expire_time=absolute_expire_time,
            idle_timeout=idle_timeout,
        )
        with self._answering.changing(session_ids=[session_id]):
            return self._make(call, timeout)

    def rotate(self, token: str, *, timeout: float | None = None) -> Rotation:
        """Replaces a session's token; the old one stays valid for a short grace.

        Repeated within the grace, it returns the same new token.

        Raises:
            SessionNotFound: No live session has this token.
            TokenReused: It was rotated earlier and its grace is over; the session has just been revoked.
            Unavailable: Unknown whether it was rotated; repeating is safe.
        """
        with self._answering.changing(token=token):
            return self._make(_core.rotate(token), timeout)

    def revoke(self, *, token: str | None = None, session_id: str | None = None, timeout: float | None = None) -> bool:
        """Ends the session of a token or of a public id. Returns False if it had already ended."""
        with self._answering.changing(token=token, session_ids=[session_id or ""]):
            return self._make(_core.revoke(token=token, session_id=session_id), timeout)

    def revoke_user_sessions(
        self, user_id: str, *, except_session_id: str | None = None, timeout: float | None = None
    ) -> int:
        """Ends all sessions of a user, or all but one. Returns how many there were.

        Raises:
            Unavailable: Some may have ended; repeat the call. A user with tens of thousands of sessions takes longer
                than the default timeout.
        """
        with self._answering.changing(user_id=user_id):
            return self._make(_core.revoke_user_sessions(user_id, except_session_id=except_session_id), timeout)

    def watch(
        self, *, types: Iterable[SessionEventType] = (), cursor: str = "", timeout: float | None = None
    ) -> Iterator[SessionEvent | WatchOpened | WatchReset]:
        """Yields events about sessions as they happen, without end.

        After a lost connection the client reconnects and misses no event: the next stream continues after the last one.
        If it cannot, a WatchReset says so. Each stream begins with a WatchOpened.

        Args:
            types: Which events; default all.
            cursor: Where to begin: after the event, opening or reset that had this cursor; default now.
            timeout: Seconds for opening a stream; the events themselves may take any time.

        Raises:
            NotAllowed: The server does not allow this caller to watch, or is too old for it.
            InvalidRequest: The cursor is not one.
            Unavailable: The first stream was not opened, or the client was closed.
        """
        feed = Feed(types, cursor)
        return watch(self._channel, feed, self._timeout if timeout is None else timeout, lambda: self._closings)

    def near_cache_stats(self) -> NearCacheStats | None:
        """Returns the near cache's counters and state; None for a client without one."""
        return None if self._near is None else self._near.stats()

    def close(self) -> None:
        """Closes the connection. Calls under way end with Unavailable. A later call opens a new connection."""
        self._closings += 1
        self._answering.close()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._target!r})"

    def _make(self, call: _core.Call[_Result], timeout: float | None) -> _Result:
        return call.result(self._channel.call(call, self._timeout if timeout is None else timeout))
