"""The API: bytes come in, become calls of the operations, and go out as messages and statuses."""
