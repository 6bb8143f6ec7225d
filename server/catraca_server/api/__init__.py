"""What callers see: the engine that carries calls, and the services on it."""
