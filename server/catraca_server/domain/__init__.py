"""What a session is, how long it lives and what a token is worth. No I/O, no clock, and nothing of catraca."""
