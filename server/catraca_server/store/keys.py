"""The names of keys in Redis. Every key here has an expiry at every instant."""


class Keys:
    """Key names under an optional prefix, which lets several services share one database.

    Every step of an operation is on one key, so it does not matter where in a cluster the other keys are.
    """

    def __init__(self, prefix: str = "") -> None:
        self._session = f"{prefix}session:"
        self._user = f"{prefix}user-sessions:"
        self._feed = f"{prefix}session-feed"

    def session(self, session_id: str) -> str:
        """Returns the key of a session's record."""
        return self._session + session_id

    def user_index(self, user_id: str) -> str:
        """Returns the key of the index of a user's sessions."""
        return self._user + user_id

    def feed(self) -> str:
        """Returns the key of the feed."""
        return self._feed
