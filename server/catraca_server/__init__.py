"""The catraca server: session validation over gRPC, kept in Redis.

One request goes one way: `api` (bytes become a call, an exception becomes a status) → `operations` (what an operation
does) → `store` (keys and scripts) → `redis` (connections). `domain` has the rules, without I/O, and is used by all of
them except `redis`. `app` puts the parts together, and only `runtime` builds on it.
"""
