"""What each operation does: the rules of `domain` applied to what the store has. No messages and no Redis."""
