"""The service as processes: signals, the supervisor and its workers. Builds on `app`; only `cli` builds on it."""
