"""The names of things in Redis. Every key here has an expiry at every instant."""


class Keys:
    """Key names under an optional prefix, which lets several services share one database."""

    def __init__(self, prefix: str = "") -> None:
        self._session = f"{prefix}session:"

    def session(self, session_id: str) -> str:
        """Where a session's record is."""
        return self._session + session_id
