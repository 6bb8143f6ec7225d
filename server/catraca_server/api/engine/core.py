"""All the private parts of grpcio that this package uses. grpcio's own synchronous server uses the same ones.

An operation belongs to one call of `start_server_batch`: sharing one frees its memory twice. The core keeps the tag of
an operation, and with it the call, until the operation is complete.
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
"""For an operation with no special behaviour."""
MORE_FOLLOWS = 1
"""For a message that need not be written to the connection before the next one (`GRPC_WRITE_BUFFER_HINT`)."""
