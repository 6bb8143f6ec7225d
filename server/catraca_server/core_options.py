"""What connections and calls may take of the server, as options of gRPC's core."""

from catraca_server.settings import Settings

MAX_REQUEST_BYTES = 8 << 20
"""A batch of 1,000 of the longest tokens and user ids takes 4.4 MB, over the engine's default of 4 MiB."""

ACCEPT_TIMEOUT_SECONDS = 1
"""How long a call may wait to be accepted. The engine takes no less, and no call waits longer."""

PENDING_CALLS_MAX = 100_000
"""Calls that may wait in the engine. What bounds them is the limit on the calls of each connection."""

CONNECTION_AGE_GRACE_MS = 60_000
"""For the calls of a connection that has reached its maximum age: several times what the longest call takes."""

HANDSHAKE_TIMEOUT_MS = 10_000
"""How long the handshake of a new connection may take. With the engine's default of two minutes, silent clients could
pile up connections."""

METADATA_MAX_BYTES = 16_384
"""For the headers of a call. An API key takes 100 bytes; tracing and proxies add some."""

KEEPALIVE_MIN_INTERVAL_MS = 5_000
"""How often clients may ping an idle connection to keep it alive."""

WATCH_WRITE_BYTES = 8 << 10
"""Of the events of a watch that are written together. The core keeps as much for a caller that does not read, in
messages that take several times their bytes; by default it would be 64 KiB."""


def core_options(settings: Settings) -> tuple[tuple[str, int], ...]:
    """Returns the options of the engine's core."""
    age_ms = settings.max_connection_age.ms
    calls = settings.max_calls_per_connection
    return (
        ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
        ("grpc.max_send_message_length", -1),
        # A second server on the same port is a mistake to report, not a partner to share the port with.
        ("grpc.so_reuseport", int(settings.workers > 1)),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        # The core refuses at random between the soft and the hard limit, so that there is only one.
        ("grpc.max_metadata_size", METADATA_MAX_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_MAX_BYTES),
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MIN_INTERVAL_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        *((("grpc.max_concurrent_streams", calls),) if calls else ()),
        ("grpc.server_max_unrequested_time_in_server", ACCEPT_TIMEOUT_SECONDS),
        ("grpc.http2.write_buffer_size", WATCH_WRITE_BYTES),
        # From 1.82 on the core refuses calls of any connection, at random, while more than 1,000 wait in it.
        ("grpc.server.max_pending_requests", PENDING_CALLS_MAX),
        ("grpc.server.max_pending_requests_hard_limit", 2 * PENDING_CALLS_MAX),
        *(
            (("grpc.max_connection_age_ms", age_ms), ("grpc.max_connection_age_grace_ms", CONNECTION_AGE_GRACE_MS))
            if age_ms
            else ()
        ),
    )
