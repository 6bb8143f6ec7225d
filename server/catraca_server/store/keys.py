"""The names of things in Redis. Every key here has an expiry at every instant."""


class Keys:
    """Key names under an optional prefix, which lets several services share one database.

    Each operation's every step is on one key, so that it does not matter where in a cluster the others are.
    """

    def __init__(self, prefix: str = "") -> None:
        self._session = f"{prefix}session:"
        self._user = f"{prefix}user-sessions:"

    def session(self, session_id: str) -> str:
        """Where a session's record is."""
        return self._session + session_id

    def user_index(self, user_id: str) -> str:
        """Where the index of a user's sessions is."""
        return self._user + user_id
