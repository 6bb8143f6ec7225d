"""What names a call in logs and traces: the caller's metadata `x-request-id`, and W3C's `traceparent`.

Callers choose these, so only short and harmless ones are used; anything else counts as not given. A request id may
not be as long as a token or a key, so that neither gets into the log this way.
"""

import re
import secrets
from typing import NamedTuple

from catraca_server.api.engine import Metadata

REQUEST_ID_HEADER = "x-request-id"
TRACE_HEADER = "traceparent"

_REQUEST_ID = re.compile(r"[0-9A-Za-z._-]{1,64}")
_TRACE = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_MADE_BYTES = 8


class CallIds(NamedTuple):
    """The names of a call; empty if it has none."""

    request_id: str = ""
    trace_id: str = ""

    def __str__(self) -> str:
        return "".join(f" {name}={value}" for name, value in self._asdict().items() if value)


def given_ids(metadata: Metadata) -> CallIds:
    """Returns the ids that the caller has given."""
    request_id = trace_id = ""
    for key, value in metadata:
        if key == REQUEST_ID_HEADER and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            request_id = value
        elif key == TRACE_HEADER and isinstance(value, str) and (match := _TRACE.fullmatch(value)):
            trace_id = match[1]
    return CallIds(request_id, trace_id)


def call_ids(metadata: Metadata) -> CallIds:
    """Returns the ids of a call, with a new request id if the caller gave none."""
    ids = given_ids(metadata)
    return ids if ids.request_id else CallIds(secrets.token_hex(_MADE_BYTES), ids.trace_id)
