"""The catraca server: session validation over gRPC, kept in Redis.

One request goes one way: `rpc` (bytes and statuses) → `service` (messages) → `sessions` (what an operation does)
→ `domain` and `tokens` (the rules, no I/O) and `store` (Redis). `app` puts the parts together and nothing imports it.
"""
