"""Redis: connections, and who has which key. It knows nothing of sessions and imports nothing of catraca."""
