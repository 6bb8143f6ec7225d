"""Connections to Redis, and which server has which key. It knows no sessions and imports nothing of catraca."""
