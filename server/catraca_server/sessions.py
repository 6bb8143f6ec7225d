"""What each operation does: the rules of `domain` applied to what the store has. No messages and no Redis in here."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from catraca_server.domain import (
    MALFORMED,
    Check,
    InvalidRequest,
    Live,
    NewSession,
    Policy,
    Session,
    SessionNotFound,
    TokenInUse,
    Verdict,
    judge,
    violations_of_login,
)
from catraca_server.store import SessionStore
from catraca_server.tokens import Credential, Tokens, is_session_id


@dataclass(frozen=True, slots=True)
class Login:
    """A created session and its token, which is told this once."""

    token: str = field(repr=False)
    live: Live


class Sessions:
    """The operations on sessions.

    Every `deadline` is a time of the event loop's clock; every method raises what `SessionStore` raises.
    """

    def __init__(self, store: SessionStore, tokens: Tokens, policy: Policy) -> None:
        self._store = store
        self._tokens = tokens
        self._policy = policy

    async def create(self, new: NewSession, deadline: float) -> Login:
        """Starts a session. Raises InvalidRequest; TokenInUse if the brought token names a live session."""
        if violations := violations_of_login(new, self._policy):
            raise InvalidRequest(*violations)
        token = new.token or self._tokens.mint()
        credential = self._tokens.read(token)
        assert credential is not None, "minted, or brought and found free of faults"
        now = await self._store.now(deadline)
        session = Session(
            session_id=credential.session_id,
            user_id=new.user_id,
            digest=credential.digest,
            attributes=new.attributes,
            create_time=now,
            absolute_expire_time=now + (self._policy.default_ttl if new.ttl is None else new.ttl),
            idle_timeout=self._policy.default_idle_timeout if new.idle_timeout is None else new.idle_timeout,
        )
        live = await self._store.create(session, session.expiry_if_active_at(now), deadline)
        if live is None:
            raise TokenInUse
        return Login(token, live)

    async def validate(self, checks: Sequence[Check], deadline: float) -> list[Verdict]:
        """Judges tokens, in order, and writes activity down where that is due.

        A session that changes between being judged and being touched is judged again, so that a touch neither brings
        back what was revoked nor stretches what was shortened.
        """
        verdicts = [MALFORMED] * len(checks)
        credentials = [self._tokens.read(check.token) for check in checks]
        open_checks = [(at, credential) for at, credential in enumerate(credentials) if credential is not None]
        while open_checks:
            reading = await self._store.read([credential.session_id for _, credential in open_checks], deadline)
            due: list[tuple[int, Credential, Live]] = []
            for (at, credential), live in zip(open_checks, reading.found, strict=True):
                verdict = verdicts[at] = judge(checks[at], credential, live, reading.now)
                if verdict.live and not checks[at].skip_touch and verdict.live.touch_due(reading.now):
                    due.append((at, credential, verdict.live))
            open_checks = await self._touch(due, verdicts, reading.now, deadline) if due else []
        return verdicts

    async def _touch(
        self, due: list[tuple[int, Credential, Live]], verdicts: list[Verdict], now: int, deadline: float
    ) -> list[tuple[int, Credential]]:
        """Writes activity down, amends the verdicts, and returns what has to be judged again."""
        touched = [Live(live.session, live.session.expiry_if_active_at(now), live.stored_as) for _, _, live in due]
        again = []
        done = await self._store.touch([(live, live.expiry) for live in touched], deadline)
        for (at, credential, _), live, was_as_judged in zip(due, touched, done, strict=True):
            if was_as_judged:
                verdicts[at] = Verdict(live, cache_ttl=live.cache_ttl(now))
            else:
                again.append((at, credential))
        return again

    async def get(self, session_id: str, deadline: float) -> Live:
        """Reads a session. Raises SessionNotFound."""
        if is_session_id(session_id):
            live = (await self._store.read([session_id], deadline)).found[0]
            if live is not None:
                return live
        raise SessionNotFound

    async def revoke(self, session_id: str, deadline: float) -> bool:
        """Ends a session by its id. Whether there was one."""
        return is_session_id(session_id) and await self._store.delete(session_id, deadline)

    async def revoke_token(self, token: str, deadline: float) -> bool:
        """Ends the session that a token opens. Whether there was one."""
        credential = self._tokens.read(token)
        if credential is None:
            return False
        live = (await self._store.read([credential.session_id], deadline)).found[0]
        # The id is public: only who knows the secret may end the session by token.
        if live is None or not credential.opens(live.session.digest):
            return False
        return await self._store.delete(credential.session_id, deadline)
