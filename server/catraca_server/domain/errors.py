"""Why an operation is refused. `api/statuses.py` says which status each becomes."""

from dataclasses import dataclass

from catraca_server.domain.call import Role


@dataclass(frozen=True, slots=True)
class Violation:
    """A field that breaks its rule; the path is as in the API. It quotes no value, which may be a secret."""

    field: str
    description: str


class InvalidRequest(Exception):
    """The request breaks rules of the API. Without violations, its body is not a message at all."""

    def __init__(self, *violations: Violation) -> None:
        super().__init__()
        self.violations = violations


class SessionNotFound(Exception):
    """No session has this id: it never existed, has expired or was revoked."""


class TokenInUse(Exception):
    """The brought token already names a live session."""


class TokenReused(Exception):
    """The token was rotated out and its grace is over; its session has just been revoked."""


class EtagMismatch(Exception):
    """The session is no longer at the version that the request names."""


class SessionLimitReached(Exception):
    """The user is at the session limit, and the policy is to reject new logins."""


class Unauthenticated(Exception):
    """The caller is not known: it has neither a valid API key nor a certificate."""


class PermissionDenied(Exception):
    """The caller does not have the role that the call needs."""

    def __init__(self, role: Role) -> None:
        super().__init__()
        self.role = role


class Stopping(Exception):
    """The server is stopping; another one has to take over."""
