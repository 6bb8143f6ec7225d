"""What each operation on one session does: the rules applied to what the store has. No messages and no Redis in here.

The operations on all sessions of a user, logging in among them, are in `users`.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from catraca_server.domain.commands import Policy, SessionNotFound, TokenReused, Update
from catraca_server.domain.session import (
    MALFORMED,
    Check,
    InvalidReason,
    Live,
    Session,
    Standing,
    Verdict,
    judge,
    standing,
)
from catraca_server.domain.tokens import Credential, Tokens, is_session_id
from catraca_server.store import Entries, Overloaded, SessionStore, StoreProblem, StoreUnavailable, UserIndex


@dataclass(frozen=True, slots=True)
class Rotation:
    """A session and the token that it has now."""

    token: str = field(repr=False)
    live: Live


class _Due(NamedTuple):
    """A check whose session's activity has to be written down."""

    at: int
    credential: Credential
    now: int
    live: Live


class Sessions:
    """The operations on one session.

    Every `deadline` is a time of the event loop's clock; every method raises what the store's methods raise.
    """

    def __init__(self, store: SessionStore, index: UserIndex, tokens: Tokens, policy: Policy) -> None:
        self._store = store
        self._index = index
        self._tokens = tokens
        self._policy = policy

    async def validate(self, checks: Sequence[Check], deadline: float) -> list[Verdict]:
        """Judges tokens, in order, and writes activity down where that is due.

        A session that changes between being judged and being touched is judged again, so that a touch neither brings
        back what was revoked nor stretches what was shortened. One whose token was presented after its grace is revoked
        before that is told.
        """
        verdicts = [MALFORMED] * len(checks)
        credentials = [self._tokens.read(check.token) for check in checks]
        open_checks = [(at, credential) for at, credential in enumerate(credentials) if credential is not None]
        while open_checks:
            looks = await self._store.read([credential.session_id for _, credential in open_checks], deadline)
            due: list[_Due] = []
            for (at, credential), (now, live, _) in zip(open_checks, looks, strict=True):
                verdict = verdicts[at] = judge(checks[at], credential, live, now)
                if live is not None and live.session.retired:
                    await self._mind_rotation(verdict, live, now, deadline)
                if verdict.live and not checks[at].skip_touch and verdict.live.touch_due(now):
                    due.append(_Due(at, credential, now, verdict.live))
            open_checks = await self._touch(due, verdicts, deadline) if due else []
        return verdicts

    async def _mind_rotation(self, verdict: Verdict, live: Live, now: int, deadline: float) -> None:
        """Revokes a session whose rotated-out token came back too late, and drops salts whose time is over."""
        if verdict.reason is InvalidReason.TOKEN_REUSED:
            await self._revoke(live.session, now, deadline)
        elif (unsalted := live.session.unsalted(now)) is not live.session:
            # Here, because the next rotation may be far away, and a salt is kept for the grace only.
            await self._store.replace(live, replace(live, session=unsalted), deadline, durable=False)

    async def _touch(self, due: list[_Due], verdicts: list[Verdict], deadline: float) -> list[tuple[int, Credential]]:
        """Writes activity down, amends the verdicts, and returns what has to be judged again."""
        touched = [replace(live, expiry=live.session.expiry_if_active_at(now)) for _, _, now, live in due]
        again = []
        done = await self._store.touch([(live, live.expiry) for live in touched], deadline)
        for (at, credential, now, _), live, was_as_judged in zip(due, touched, done, strict=True):
            if was_as_judged:
                verdicts[at] = replace(
                    verdicts[at], live=live, cache_ttl=0 if verdicts[at].rotated else live.cache_ttl(now)
                )
            else:
                again.append((at, credential))
        return again

    async def get(self, session_id: str, deadline: float) -> Live:
        """Reads a session. Raises SessionNotFound."""
        live, _ = await self._read(session_id, deadline)
        return live

    async def update(self, update: Update, deadline: float) -> Live:
        """Changes a session. Raises SessionNotFound, EtagMismatch, InvalidRequest."""
        while True:
            before, now = await self._read(update.session_id, deadline)
            after = update.applied_to(before, now, self._policy)
            if after.session.absolute_expire_time > before.session.absolute_expire_time:
                # First, so that the index never ends before a session that it names.
                await self._index.extend(after.session, deadline)
            # Changed or touched meanwhile: decided anew, until the deadline.
            if written := await self._store.replace(before, after, deadline, exclusive=bool(update.etag)):
                return written

    async def rotate(self, token: str, deadline: float) -> Rotation:
        """Replaces a session's token. Raises SessionNotFound, TokenReused.

        A token inside its grace gets the token that its session has now, and nothing changes.
        """
        credential = self._tokens.read(token)
        if credential is None:
            raise SessionNotFound
        while True:
            live, now = await self._read(credential.session_id, deadline)
            match standing(credential, live, now):
                case Standing.UNKNOWN:
                    raise SessionNotFound
                case Standing.REUSED:
                    await self._revoke(live.session, now, deadline)
                    raise TokenReused
                case Standing.IN_GRACE:
                    await self._store.confirm([credential.session_id], deadline)
                    return Rotation(self._successor(token, credential, live.session), live)
                case Standing.CURRENT:
                    salt = self._tokens.salt()
                    renewed = self._tokens.renew(token, salt)
                    session = live.session.rotated(self._digest(renewed), salt, self._policy.rotation_grace, now)
                    after = Live(session, live.expiry, live.stored_as)
                    # Changed meanwhile, perhaps rotated by somebody else: then this token is in its grace now.
                    if written := await self._store.replace(live, after, deadline):
                        return Rotation(renewed, written)

    async def revoke(self, session_id: str, deadline: float) -> bool:
        """Ends a session by its id. Whether there was one."""
        if not is_session_id(session_id):
            return False
        live = None
        with contextlib.suppress(StoreUnavailable):
            ((now, live, _),) = await self._store.read([session_id], deadline)
        if live is not None:
            return await self._revoke(live.session, now, deadline)
        # There may be something that cannot be read as that session, and nothing else ends it.
        return await self._store.delete(session_id, deadline)

    async def revoke_token(self, token: str, deadline: float) -> bool:
        """Ends the session that a token opens, or once opened. Whether there was one."""
        credential = self._tokens.read(token)
        if credential is None:
            return False
        ((now, live, _),) = await self._store.read([credential.session_id], deadline)
        if live is None:
            await self._store.confirm([credential.session_id], deadline)
            return False
        # The id is public: only who knows the secret may end the session by token.
        if standing(credential, live, now) is Standing.UNKNOWN:
            return False
        return await self._revoke(live.session, now, deadline)

    async def _read(self, session_id: str, deadline: float) -> tuple[Live, int]:
        if is_session_id(session_id):
            ((now, live, _),) = await self._store.read([session_id], deadline)
            if live is not None:
                return live, now
        raise SessionNotFound

    async def _revoke(self, session: Session, now: int, deadline: float) -> bool:
        entry = None
        with contextlib.suppress(StoreUnavailable):
            # Read first: an entry that is made anew while the session ends has another number, and is not forgotten.
            # Where it cannot be read the session is to end all the same.
            entry = await self._index.entry(session.user_id, session.session_id, deadline)
        if entry is None:
            return await self._store.delete(session.session_id, deadline)
        ended = await self._store.kill(session.user_id, Entries(now, [entry]), deadline)
        # It is revoked; the index may name what has ended.
        with contextlib.suppress(StoreUnavailable, Overloaded):
            await self._index.forget(session.user_id, [entry], deadline)
        return bool(ended)

    def _digest(self, token: str) -> str:
        credential = self._tokens.read(token)
        assert credential is not None, "a token that was just made"
        return credential.digest

    def _successor(self, token: str, credential: Credential, session: Session) -> str:
        """Returns the session's token, from a token inside its grace: by the salt of each rotation since."""
        digests = [each.digest for each in session.retired]
        at = next(at for at, digest in enumerate(digests) if credential.opens(digest))
        for retired in session.retired[at:]:
            token = self._tokens.renew(token, retired.salt)
        if self._digest(token) != session.digest:
            # Each token follows from the one before, unless somebody changed the record by hand.
            raise StoreUnavailable("a record whose salts do not yield its token", StoreProblem.MALFORMED_REPLY)
        return token
