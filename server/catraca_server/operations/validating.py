"""Validates tokens, many at a time. Every validation comes through here, whether it was sent alone or in a batch.

`domain/validation.py` decides whether a token is good. This module reads sessions from the store and acts on the
decision: it touches a session whose activity must be recorded, and ends one whose rotated token is presented late. Most
validations need neither, and are answered from one read. The others are answered later, so that they delay no others.
"""

import asyncio
import contextlib
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from catraca_server.domain.call import Call
from catraca_server.domain.events import EndCause
from catraca_server.domain.session import Session, StoredSession
from catraca_server.domain.tokens import Credential, Tokens
from catraca_server.domain.validation import MALFORMED, InvalidReason, Validation, ValidationRequest, validate
from catraca_server.operations.ending import Ending
from catraca_server.store import Overloaded, Replacement, SessionStore, StoreUnavailable


class Answers(Protocol):
    """Where the answers to requests go, by the positions of the requests. Each request is answered or fails once."""

    def call(self, at: int) -> Call:
        """Returns the call that a request came with."""

    def store_replied(self) -> None:
        """The store has replied, or failed to; most answers follow at once. Called for each read from a server."""

    def answer(self, at: int, validation: Validation) -> None:
        """Answers a request."""

    def fail(self, at: int, error: Exception) -> None:
        """Fails a request: there is no answer, for this reason."""


class _Touch(NamedTuple):
    """A validation whose session must be touched."""

    at: int
    now_ms: int
    validation: Validation
    touched: StoredSession


class _Reuse(NamedTuple):
    """A validation of a reused token, whose session must be ended."""

    at: int
    now_ms: int
    validation: Validation
    session: Session


class Validating:
    """Validates tokens."""

    def __init__(self, store: SessionStore, ending: Ending, tokens: Tokens) -> None:
        self._store = store
        self._ending = ending
        self._tokens = tokens
        self._tidying: set[asyncio.Task[None]] = set()
        self.outcomes: dict[InvalidReason | None, int] = dict.fromkeys((None, *InvalidReason), 0)
        """How many validations had each answer; None: valid. Validations that failed are not counted."""

    async def validate(self, requests: Sequence[ValidationRequest], call: Call) -> list[Validation]:
        """Validates the tokens of one call, in order. Raises what the store's methods raise."""
        answers = _OneCall(call, len(requests))
        await self.validate_each(requests, call, answers)
        error, answers.error = answers.error, None
        try:
            if error is not None:
                raise error
        finally:
            # The error refers to this frame. Without this, the frame and the whole call would be a garbage cycle.
            del error
        return answers.validations

    async def validate_each(self, requests: Sequence[ValidationRequest], call: Call, answers: Answers) -> None:
        """Validates tokens of one or many calls. A failure of one fails no other, unless the store itself fails.

        `call` has the latest of their deadlines. Sessions on different servers are read independently, so that a server
        that is down or slow fails only the validations of its own sessions.
        """
        read = self._tokens.read
        credentials: dict[int, Credential] = {}
        for at, request in enumerate(requests):
            credential = read(request.token)
            if credential is None:
                self.outcomes[InvalidReason.MALFORMED] += 1
                answers.answer(at, MALFORMED)
            else:
                credentials[at] = credential
        asked = [*credentials]
        if not asked:
            return
        try:
            groups = self._store.together([credential.session_id for credential in credentials.values()])
        except StoreUnavailable as error:
            _fail(asked, error, answers)
            return
        by_server = [[asked[position] for position in group] for group in groups] if len(groups) > 1 else [asked]
        await _all(*(self._validate_group(group, requests, credentials, call, answers) for group in by_server))

    async def _validate_group(
        self,
        asked: Sequence[int],
        requests: Sequence[ValidationRequest],
        credentials: dict[int, Credential],
        call: Call,
        answers: Answers,
    ) -> None:
        """Answers the validations that one read can answer, and then the rest.

        A session that changes between its validation and its touch is validated again, so that a touch neither brings
        back a revoked session nor prolongs a shortened one.
        """
        answer, outcomes = answers.answer, self.outcomes
        while asked:
            try:
                results = await self._store.read([credentials[at].session_id for at in asked], call)
            except Exception as error:  # noqa: BLE001  whatever it is, each call fails with it
                _fail(asked, error, answers)
                return
            finally:
                answers.store_replied()
            touches: list[_Touch] = []
            reuses: list[_Reuse] = []
            stale: dict[str, Replacement] = {}
            for at, (now_ms, stored, _) in zip(asked, results, strict=True):
                validation = validate(requests[at], credentials[at], stored, now_ms)
                if stored is not None and stored.session.rotated_tokens:
                    if validation.reason is InvalidReason.TOKEN_REUSED:
                        reuses.append(_Reuse(at, now_ms, validation, stored.session))
                        continue
                    tidied = stored.session.without_expired_salts(now_ms)
                    if tidied is not stored.session:
                        stale[tidied.session_id] = Replacement(stored, replace(stored, session=tidied))
                if (
                    # While near caches may reuse an answer, no touch is due.
                    not validation.cache_ttl_ms
                    and validation.stored is not None
                    and validation.stored.touch_due(now_ms)
                    and not requests[at].skip_touch
                ):
                    touches.append(_Touch(at, now_ms, validation, validation.stored.touched(now_ms)))
                    continue
                outcomes[validation.reason] += 1
                answer(at, validation)
            if stale:
                self._tidy(list(stale.values()), call)
            if not (reuses or touches):
                return
            asked = await self._act(reuses, touches, call, answers)

    async def _act(
        self, reuses: Sequence[_Reuse], touches: Sequence[_Touch], call: Call, answers: Answers
    ) -> Sequence[int]:
        """Ends and touches sessions, and then answers. Returns the positions of validations that must be repeated."""
        again: list[int] = []
        by_session: dict[str, list[_Reuse]] = {}
        for reuse in reuses:
            by_session.setdefault(reuse.session.session_id, []).append(reuse)
        await _all(
            *(self._end_reused(same, answers) for same in by_session.values()),
            *([self._touch(touches, call, answers, again)] if touches else []),
        )
        return again

    async def _touch(self, touches: Sequence[_Touch], call: Call, answers: Answers, again: list[int]) -> None:
        """Records activity, and answers with it."""
        try:
            done = await self._store.touch([each.touched for each in touches], call)
        except Exception as error:  # noqa: BLE001  as above
            _fail([touch.at for touch in touches], error, answers)
            return
        for (at, now_ms, validation, touched), unchanged in zip(touches, done, strict=True):
            if unchanged:
                self.outcomes[None] += 1
                cache_ttl_ms = 0 if validation.token_rotated else touched.cache_ttl_ms(now_ms)
                answers.answer(at, replace(validation, stored=touched, cache_ttl_ms=cache_ttl_ms))
            else:
                again.append(at)

    async def _end_reused(self, reuses: Sequence[_Reuse], answers: Answers) -> None:
        """Ends a session, and then answers that its token was reused."""
        first = reuses[0]
        try:
            await self._ending.end_session(first.session, first.now_ms, EndCause.TOKEN_REUSE, answers.call(first.at))
        except Exception as error:  # noqa: BLE001  as above
            _fail([reuse.at for reuse in reuses], error, answers)
            return
        self.outcomes[InvalidReason.TOKEN_REUSED] += len(reuses)
        for reuse in reuses:
            answers.answer(reuse.at, reuse.validation)

    def _tidy(self, replacements: Sequence[Replacement], call: Call) -> None:
        """Drops salts whose grace is over. A salt is kept for the grace only, and the next rotation may be far away.

        Answers do not wait for this, and do not fail with it.
        """

        async def tidy() -> None:
            with contextlib.suppress(StoreUnavailable, Overloaded):
                await self._store.tidy(replacements, call)

        task = asyncio.create_task(tidy(), name="tidy")
        # The loop itself keeps only a weak reference.
        self._tidying.add(task)
        task.add_done_callback(self._tidying.discard)


class _OneCall:
    """The answers to one call."""

    def __init__(self, call: Call, count: int) -> None:
        self._call = call
        self.validations = [MALFORMED] * count
        self.answer = self.validations.__setitem__
        self.error: Exception | None = None

    def call(self, _at: int) -> Call:
        return self._call

    def store_replied(self) -> None:
        """Does nothing: a single call does not wait for this."""

    def fail(self, _at: int, error: Exception) -> None:
        self.error = self.error or error


def _fail(positions: Iterable[int], error: Exception, answers: Answers) -> None:
    for at in positions:
        answers.fail(at, error)


async def _all(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Awaits all at once; a single one without the cost of `gather`."""
    if len(coroutines) == 1:
        await coroutines[0]
    else:
        await asyncio.gather(*coroutines)
