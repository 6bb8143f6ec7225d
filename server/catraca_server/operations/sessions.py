"""What each operation on one session does: the rules applied to what the store has. No messages and no Redis.

The operations on all sessions of a user, logging in among them, are in `users`.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from catraca_server.domain.call import Call
from catraca_server.domain.commands import Update
from catraca_server.domain.errors import SessionNotFound, TokenReused
from catraca_server.domain.events import EndCause
from catraca_server.domain.limits import Policy
from catraca_server.domain.session import Session, StoredSession
from catraca_server.domain.tokens import Credential, Tokens, is_session_id
from catraca_server.domain.validation import (
    MALFORMED,
    InvalidReason,
    TokenStatus,
    Validation,
    ValidationRequest,
    token_status,
    validate,
)
from catraca_server.operations.ending import Ending
from catraca_server.store import (
    Overloaded,
    ReadResult,
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


class _Touch(NamedTuple):
    """A validation whose session's activity has to be written down."""

    at: int
    """Its place in the batch."""
    now_ms: int
    touched: StoredSession


class Sessions:
    """The operations on one session. Every method raises what the store's methods raise."""

    def __init__(self, store: SessionStore, index: UserIndex, ending: Ending, tokens: Tokens, policy: Policy) -> None:
        self._store = store
        self._index = index
        self._ending = ending
        self._tokens = tokens
        self._policy = policy
        self._tidying: set[asyncio.Task[None]] = set()

    async def validate(self, requests: Sequence[ValidationRequest], call: Call) -> list[Validation]:
        """Validates tokens, in order, and touches the sessions whose activity has to be written down.

        A session that changes between being validated and being touched is validated again, so that a touch neither
        brings back what was revoked nor prolongs what was shortened. A session whose rotated-out token is presented
        after its grace is revoked before that is answered.
        """
        validations = [MALFORMED] * len(requests)
        credentials = [self._tokens.read(request.token) for request in requests]
        unanswered = [(at, credential) for at, credential in enumerate(credentials) if credential is not None]
        while unanswered:
            results = await self._store.read([credential.session_id for _, credential in unanswered], call)
            touches: list[_Touch] = []
            reused: dict[str, ReadResult] = {}
            stale: dict[str, Replacement] = {}
            for (at, credential), result in zip(unanswered, results, strict=True):
                now_ms, stored, _ = result
                validation = validations[at] = validate(requests[at], credential, stored, now_ms)
                if validation.reason is InvalidReason.TOKEN_REUSED:
                    reused[credential.session_id] = result
                elif stored is not None and stored.session.rotated_tokens:
                    tidied = stored.session.without_expired_salts(now_ms)
                    if tidied is not stored.session:
                        stale[credential.session_id] = Replacement(stored, replace(stored, session=tidied))
                if validation.stored and not requests[at].skip_touch and validation.stored.touch_due(now_ms):
                    touches.append(_Touch(at, now_ms, validation.stored.touched(now_ms)))
            if stale:
                self._tidy(list(stale.values()), call)
            if reused:
                await self._revoke_reused(list(reused.values()), call)
            changed = await self._touch(touches, validations, call) if touches else set()
            unanswered = [(at, credential) for at, credential in unanswered if at in changed]
        return validations

    async def _touch(self, touches: Sequence[_Touch], validations: list[Validation], call: Call) -> set[int]:
        """Writes activity down and amends the validations. Returns which have to be made again."""
        done = await self._store.touch([each.touched for each in touches], call)
        changed = set()
        for (at, now_ms, touched), unchanged in zip(touches, done, strict=True):
            if unchanged:
                cache_ttl_ms = 0 if validations[at].token_rotated else touched.cache_ttl_ms(now_ms)
                validations[at] = replace(validations[at], stored=touched, cache_ttl_ms=cache_ttl_ms)
            else:
                changed.add(at)
        return changed

    async def _revoke_reused(self, reused: Sequence[ReadResult], call: Call) -> None:
        """Ends sessions at the same time, so that the store gets them all in a few exchanges."""
        await asyncio.gather(
            *(
                self._ending.end_session(stored.session, now_ms, EndCause.TOKEN_REUSE, call)
                for now_ms, stored, _ in reused
                if stored is not None
            )
        )

    def _tidy(self, replacements: Sequence[Replacement], call: Call) -> None:
        """Drops salts whose grace is over: a salt is kept for the grace only, and the next rotation may be far away.

        The answer does not wait for it, and does not fail with it.
        """

        async def tidy() -> None:
            with contextlib.suppress(StoreUnavailable, Overloaded):
                await self._store.tidy(replacements, call)

        task = asyncio.create_task(tidy(), name="tidy")
        # The loop itself keeps only a weak reference.
        self._tidying.add(task)
        task.add_done_callback(self._tidying.discard)

    async def get(self, session_id: str, call: Call) -> StoredSession:
        """Reads a session. Raises SessionNotFound."""
        stored, _ = await self._read(session_id, call)
        return stored

    async def update(self, update: Update, call: Call) -> StoredSession:
        """Changes a session. Raises SessionNotFound, EtagMismatch, InvalidRequest."""
        while True:
            before, now_ms = await self._read(update.session_id, call)
            after = update.apply(before, now_ms, self._policy)
            if after.session.absolute_expire_time_ms > before.session.absolute_expire_time_ms:
                # First, so that the index never ends before a session that it names.
                await self._index.extend(after.session, call)
            # If it was changed or touched meanwhile, decide again, until the deadline.
            exclusive = bool(update.etag)
            if written := await self._store.replace(Replacement(before, after), call, exclusive=exclusive):
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
                    await self._store.ensure_replicated([credential.session_id], call)
                    return Rotation(self._successor(token, credential, stored.session), stored)
                case TokenStatus.CURRENT:
                    salt = self._tokens.salt()
                    renewed = self._tokens.renew(token, salt)
                    grace_ms = self._policy.rotation_grace_ms
                    session = stored.session.rotate(self._digest(renewed), salt, grace_ms=grace_ms, now_ms=now_ms)
                    after = replace(stored, session=session)
                    # If it was changed meanwhile, perhaps by another rotation, this token is in its grace now.
                    if written := await self._store.replace(Replacement(stored, after), call):
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
            await self._store.ensure_replicated([credential.session_id], call)
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
