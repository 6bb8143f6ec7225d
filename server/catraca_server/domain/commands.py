"""What callers may ask to have created or changed."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from catraca_server.domain.errors import EtagMismatch, InvalidRequest, Violation
from catraca_server.domain.limits import (
    Policy,
    absolute_expire_time_fault,
    attributes_fault,
    end_fault,
    idle_timeout_fault,
    ttl_fault,
    user_id_fault,
)
from catraca_server.domain.session import Session, StoredSession
from catraca_server.domain.tokens import Credential, brought_token_fault


@dataclass(frozen=True, slots=True)
class NewSession:
    """A login: the session that a caller wants to have. None stands for the policy's default."""

    user_id: str
    ttl_ms: int | None = None
    idle_timeout_ms: int | None = None
    """Zero: no idle timeout."""
    attributes: Mapping[str, str] = field(default_factory=dict, repr=False)
    token: str = field(default="", repr=False)
    """Brought by the caller; empty: mint one."""

    def violations(self, policy: Policy) -> list[Violation]:
        """Returns everything that is wrong with it."""
        faults = {
            "user_id": user_id_fault(self.user_id),
            "ttl": None if self.ttl_ms is None else ttl_fault(self.ttl_ms, policy),
            "idle_timeout": None if self.idle_timeout_ms is None else idle_timeout_fault(self.idle_timeout_ms, policy),
            "attributes": attributes_fault(self.attributes),
            "token": brought_token_fault(self.token) if self.token else None,
        }
        return [Violation(name, fault) for name, fault in faults.items() if fault]

    def start(self, credential: Credential, now_ms: int, policy: Policy) -> Session:
        """Returns the session as it begins now. Raises InvalidRequest if it would outlast the API's time."""
        session = Session(
            session_id=credential.session_id,
            user_id=self.user_id,
            digest=credential.digest,
            attributes=self.attributes,
            create_time_ms=now_ms,
            absolute_expire_time_ms=now_ms + (policy.default_ttl_ms if self.ttl_ms is None else self.ttl_ms),
            idle_timeout_ms=policy.default_idle_timeout_ms if self.idle_timeout_ms is None else self.idle_timeout_ms,
        )
        if fault := end_fault(session.absolute_expire_time_ms):
            raise InvalidRequest(Violation("ttl", fault))
        return session


@dataclass(frozen=True, slots=True)
class Update:
    """What a caller wants to change of a session. None: leave it as it is."""

    session_id: str
    etag: str = ""
    """Empty: whatever version it has."""
    attributes: Mapping[str, str] | None = field(default=None, repr=False)
    """Replaces all attributes."""
    entries: Mapping[str, str | None] = field(default_factory=dict, repr=False)
    """Set one by one, after `attributes`; None removes an entry."""
    absolute_expire_time_ms: int | None = None
    idle_timeout_ms: int | None = None
    """Zero: no idle timeout."""

    def apply(self, before: StoredSession, now_ms: int, policy: Policy) -> StoredSession:
        """Returns a live session with these changes. Its last activity stays. Raises EtagMismatch, InvalidRequest."""
        session = before.session
        if self.etag and self.etag != session.etag:
            raise EtagMismatch
        attributes = dict(session.attributes if self.attributes is None else self.attributes)
        for key, value in self.entries.items():
            if value is None:
                attributes.pop(key, None)
            else:
                attributes[key] = value
        after = replace(
            session.without_expired_salts(now_ms),
            attributes=attributes,
            absolute_expire_time_ms=(
                session.absolute_expire_time_ms
                if self.absolute_expire_time_ms is None
                else self.absolute_expire_time_ms
            ),
            idle_timeout_ms=session.idle_timeout_ms if self.idle_timeout_ms is None else self.idle_timeout_ms,
            version=session.version + 1,
        )
        if violations := self._violations(before, after, now_ms, policy):
            raise InvalidRequest(*violations)
        keeps_times = self.absolute_expire_time_ms is None and self.idle_timeout_ms is None
        expiry_ms = before.expiry_ms if keeps_times else after.expiry_if_active_at(before.last_active_time_ms)
        return StoredSession(after, expiry_ms, before.record)

    def _violations(self, before: StoredSession, after: Session, now_ms: int, policy: Policy) -> list[Violation]:
        end_ms, idle_timeout_ms = self.absolute_expire_time_ms, self.idle_timeout_ms
        idle_fault = None if idle_timeout_ms is None else idle_timeout_fault(idle_timeout_ms, policy)
        if not idle_fault and idle_timeout_ms and before.last_active_time_ms + idle_timeout_ms <= now_ms:
            idle_fault = "must be longer than the session has been idle already; to end it, revoke it"
        faults = {
            "session.absolute_expire_time": (
                None if end_ms is None else absolute_expire_time_fault(end_ms, now_ms, policy)
            ),
            "session.idle_timeout": idle_fault,
            "session.attributes": attributes_fault(after.attributes),
        }
        return [Violation(name, fault) for name, fault in faults.items() if fault]
