"""What each operation on one session does: the rules applied to what the store has. No messages and no Redis.

The operations on all sessions of a user, logging in among them, are in `users`.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from catraca_server.domain.call import Call
from catraca_server.domain.commands import Update
from catraca_server.domain.errors import EtagMismatch, SessionNotFound, TokenReused
from catraca_server.domain.events import EndCause, EventType, SessionEvent
from catraca_server.domain.limits import Policy
from catraca_server.domain.session import Session, StoredSession
from catraca_server.domain.tokens import Credential, Tokens, is_session_id
from catraca_server.domain.validation import TokenStatus, Validation, ValidationRequest, token_status
from catraca_server.operations.ending import Ending
from catraca_server.operations.validating import Validating
from catraca_server.store import (
    Appender,
    Replacement,
    SessionStore,
    StoreProblem,
    StoreUnavailable,
    UserIndex,
)


@dataclass(frozen=True, slots=True)
class Rotation:
    """A session and its new token."""

    token: str = field(repr=False)
    stored: StoredSession


class Sessions:
    """The operations on one session. Every method raises what the store's methods raise.

    Whoever is told of a change can rely on its event being in the feed, also if an earlier call made the change and
    perhaps could not tell.
    """

    def __init__(
        self, store: SessionStore, index: UserIndex, ending: Ending, tokens: Tokens, policy: Policy, *, feed: Appender
    ) -> None:
        self._store = store
        self._index = index
        self._feed = feed
        self._ending = ending
        self._tokens = tokens
        self._policy = policy
        self.validating = Validating(store, ending, tokens)

    async def validate(self, requests: Sequence[ValidationRequest], call: Call) -> list[Validation]:
        """Validates tokens; see `validating`."""
        return await self.validating.validate(requests, call)

    async def get(self, session_id: str, call: Call) -> StoredSession:
        """Reads a session. Raises SessionNotFound."""
        stored, _ = await self._read(session_id, call)
        return stored

    async def update(self, update: Update, call: Call) -> StoredSession:
        """Changes a session. Raises SessionNotFound, EtagMismatch, InvalidRequest."""
        while True:
            before, now_ms = await self._read(update.session_id, call)
            try:
                after = update.apply(before, now_ms, self._policy)
            except EtagMismatch:
                # It may be this very update that changed the etag, in a call that failed before it could tell.
                await self._tell(EventType.UPDATED, before, call, repeated=True)
                raise
            if after.session.absolute_expire_time_ms > before.session.absolute_expire_time_ms:
                # First, so that the index never ends before a session that it names.
                await self._index.extend(after.session, call)
            # If it was changed or touched meanwhile, decide again, until the deadline.
            exclusive = bool(update.etag)
            if written := await self._store.replace(Replacement(before, after), call, exclusive=exclusive):
                await self._tell(EventType.UPDATED, written, call)
                return written

    async def rotate(self, token: str, call: Call) -> Rotation:
        """Replaces a session's token. Raises SessionNotFound, TokenReused.

        A token inside its grace gets the token that its session has now, and nothing changes.
        """
        credential = self._tokens.read(token)
        if credential is None:
            raise SessionNotFound
        while True:
            stored, now_ms = await self._read(credential.session_id, call)
            match token_status(credential, stored, now_ms):
                case TokenStatus.UNKNOWN:
                    raise SessionNotFound
                case TokenStatus.REUSED:
                    await self._ending.end_session(stored.session, now_ms, EndCause.TOKEN_REUSE, call)
                    raise TokenReused
                case TokenStatus.IN_GRACE:
                    successor = self._successor(token, credential, stored.session)
                    await asyncio.gather(
                        self._tell(EventType.ROTATED, stored, call, repeated=True),
                        self._store.ensure_replicated([credential.session_id], call),
                    )
                    return Rotation(successor, stored)
                case TokenStatus.CURRENT:
                    salt = self._tokens.salt()
                    renewed = self._tokens.renew(token, salt)
                    grace_ms = self._policy.rotation_grace_ms
                    session = stored.session.rotate(self._digest(renewed), salt, grace_ms=grace_ms, now_ms=now_ms)
                    after = replace(stored, session=session)
                    # If it was changed meanwhile, perhaps by another rotation, this token is in its grace now.
                    if written := await self._store.replace(Replacement(stored, after), call):
                        await self._tell(EventType.ROTATED, written, call)
                        return Rotation(renewed, written)

    async def revoke(self, session_id: str, call: Call) -> bool:
        """Ends a session by its id. Whether there was one."""
        if not is_session_id(session_id):
            return False
        stored, now_ms = None, 0
        with contextlib.suppress(StoreUnavailable):
            ((now_ms, stored, _),) = await self._store.read([session_id], call)
        if stored is None:
            # There may be something that cannot be read as that session, and nothing else ends it.
            return bool(await self._ending.end_unreadable(session_id, EndCause.REQUEST, call))
        return bool(await self._ending.end_session(stored.session, now_ms, EndCause.REQUEST, call))

    async def revoke_token(self, token: str, call: Call) -> bool:
        """Ends the session that a token opens, or once opened. Whether there was one."""
        credential = self._tokens.read(token)
        if credential is None:
            return False
        ((now_ms, stored, _),) = await self._store.read([credential.session_id], call)
        if stored is None:
            await self._ending.tell_again(credential.session_id, EndCause.REQUEST, call)
            return False
        # The id is public: only who knows the secret may end the session by token.
        if token_status(credential, stored, now_ms) is TokenStatus.UNKNOWN:
            return False
        return bool(await self._ending.end_session(stored.session, now_ms, EndCause.REQUEST, call))

    async def _read(self, session_id: str, call: Call) -> tuple[StoredSession, int]:
        if is_session_id(session_id):
            ((now_ms, stored, _),) = await self._store.read([session_id], call)
            if stored is not None:
                return stored, now_ms
        raise SessionNotFound

    async def _tell(self, event_type: EventType, stored: StoredSession, call: Call, *, repeated: bool = False) -> None:
        session = stored.session
        event = SessionEvent(event_type, session.session_id, session.user_id, repeated=repeated)
        await self._feed.append([event], call)

    def _digest(self, token: str) -> str:
        credential = self._tokens.read(token)
        assert credential is not None, "a token that was just made"
        return credential.digest

    def _successor(self, token: str, credential: Credential, session: Session) -> str:
        """Returns the session's token, from a token inside its grace: by the salt of each rotation since."""
        digests = [each.digest for each in session.rotated_tokens]
        at = next(at for at, digest in enumerate(digests) if credential.opens(digest))
        for rotated in session.rotated_tokens[at:]:
            token = self._tokens.renew(token, rotated.salt)
        if self._digest(token) != session.digest:
            # Each token follows from the one before, unless somebody changed the record by hand.
            raise StoreUnavailable("a record's salts do not yield its token", StoreProblem.MALFORMED_REPLY)
        return token
