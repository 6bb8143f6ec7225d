"""All that this package uses of grpcio's private parts. grpcio's own synchronous server uses the same.

An operation belongs to one call of `start_server_batch`: sharing one frees its memory twice. The tag of an operation
is kept by the core until the operation is complete, and with it the call.
"""

from grpc._cython.cygrpc import (
    CompletionQueue,
    CompletionType,
    ReceiveCloseOnServerOperation,
    ReceiveMessageOperation,
    SendInitialMetadataOperation,
    SendMessageOperation,
    SendStatusFromServerOperation,
    Server,
    auth_context,
    peer_identities,
)

__all__ = [
    "NO_FLAGS",
    "CompletionQueue",
    "CompletionType",
    "ReceiveCloseOnServerOperation",
    "ReceiveMessageOperation",
    "SendInitialMetadataOperation",
    "SendMessageOperation",
    "SendStatusFromServerOperation",
    "Server",
    "auth_context",
    "peer_identities",
]

NO_FLAGS = 0
"""Of an operation: it has nothing special about it."""
