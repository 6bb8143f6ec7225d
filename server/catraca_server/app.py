"""The composition root: settings become parts, the parts are put together, run, and drained. Nothing imports this."""

import asyncio
import logging
import secrets
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection import SERVICE_NAME as REFLECTION_NAME

from catraca_server import reflection
from catraca_server.health import Health
from catraca_server.requests import Policy
from catraca_server.rpc import SERVICE_NAME, session_service_handlers
from catraca_server.service import SessionService
from catraca_server.sessions import Sessions
from catraca_server.settings import Settings
from catraca_server.store import StoreUnavailable
from catraca_server.store.batcher import START_PATIENCE, Batcher
from catraca_server.store.connect import FIRST_VERSION_THAT_TELLS_EXPIRY, RedisConnector, memory_connector
from catraca_server.store.embedded import EmbeddedStore, default_data_dir, find_binary
from catraca_server.store.keys import Keys
from catraca_server.store.redis_store import RedisSessionStore
from catraca_server.store.user_index import RedisUserIndex
from catraca_server.tokens import Tokens
from catraca_server.users import UserSessions

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 8 << 20
"""A batch of 1,000 of the longest tokens and user ids takes 4.4 MB, over the engine's default of 4 MiB."""

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", -1),
    # A second server on the same port is a mistake to be told, not a partner to share it with.
    ("grpc.so_reuseport", 0),
    # Clients may keep idle connections alive.
    ("grpc.http2.min_ping_interval_without_data_ms", 5000),
    ("grpc.keepalive_permit_without_calls", 1),
)


class StartError(Exception):
    """The service cannot start: why, and what to do about it."""


async def serve(settings: Settings, environment: Mapping[str, str]) -> None:
    """Serves until SIGTERM or SIGINT, then drains. Raises StartError."""
    stop = asyncio.Event()
    serving = asyncio.current_task()
    assert serving is not None
    started = False

    def told_to_stop() -> None:
        # Starting may take as long as the store has to load, and is not waited for.
        if not started and not stop.is_set():
            serving.cancel()
        stop.set()

    for each in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(each, told_to_stop)
    try:
        async with running(settings, environment) as address:
            started = True
            logger.info("catraca %s listening on %s; Ctrl-C stops it", version("catraca"), address)
            await stop.wait()
            logger.info("draining: new calls are refused, calls in flight have %s to finish", settings.drain_timeout)
    except asyncio.CancelledError:
        if started or not stop.is_set():
            raise
    logger.info("stopped")


@asynccontextmanager
async def running(settings: Settings, environment: Mapping[str, str]) -> AsyncIterator[str]:
    """Runs the service and yields the address it listens on; drains it on the way out. Raises StartError."""
    server = grpc.aio.server(options=_OPTIONS)
    # Bound first: a port in use is the commonest mistake, and the cheapest to find.
    address = _bind(server, settings)
    health = Health(SERVICE_NAME)
    async with _store(settings, environment, health) as (store, index):
        _register(server, _service(store, index, settings), health, settings)
        await server.start()
        try:
            yield address
        finally:
            health.drain()
            started = asyncio.get_running_loop().time()
            await server.stop(settings.drain_timeout.seconds)
            logger.info("drained in %.2f s", asyncio.get_running_loop().time() - started)


def _service(store: RedisSessionStore, index: RedisUserIndex, settings: Settings) -> SessionService:
    tokens = Tokens(secrets.token_bytes, _pepper(settings))
    policy = Policy(
        default_ttl=settings.default_ttl.milliseconds,
        default_idle_timeout=settings.default_idle_timeout.milliseconds,
        max_ttl=settings.max_ttl.milliseconds,
        rotation_grace=settings.rotation_grace.milliseconds,
        max_sessions_per_user=settings.max_sessions_per_user,
        evict_oldest=settings.session_limit_policy == "evict-oldest",
    )
    return SessionService(Sessions(store, index, tokens, policy), UserSessions(store, index, tokens, policy))


def _register(server: grpc.aio.Server, service: SessionService, health: Health, settings: Settings) -> None:
    handlers = session_service_handlers(service, store_timeout=settings.store_timeout.seconds)
    server.add_generic_rpc_handlers((handlers,))
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    if settings.reflection:
        names = (SERVICE_NAME, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, REFLECTION_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(  # type: ignore[no-untyped-call]  # it has no types
            reflection.servicer(*names), server
        )


@asynccontextmanager
async def _store(
    settings: Settings, environment: Mapping[str, str], health: Health
) -> AsyncIterator[tuple[RedisSessionStore, RedisUserIndex]]:
    try:
        embedded = _embedded(settings, environment)
        if embedded is not None:
            await embedded.start()
    except StoreUnavailable as error:
        raise StartError(str(error)) from error
    try:
        batcher, tells_expiry = await _connect(settings, embedded, health)
        try:
            keys = Keys(settings.key_prefix)
            yield RedisSessionStore(batcher, keys, tells_expiry=tells_expiry), RedisUserIndex(batcher, keys)
        finally:
            await batcher.stop()
    finally:
        if embedded is not None:
            await embedded.stop()


def _embedded(settings: Settings, environment: Mapping[str, str]) -> EmbeddedStore | None:
    if settings.store_url != "embedded:":
        return None
    binary = find_binary(environment)
    if binary is None:
        logger.warning("no valkey-server for this platform: falling back to memory:, see below")
        return None
    data_dir = settings.data_dir or default_data_dir(environment)
    logger.info("sessions are kept in %s by %s", data_dir, binary.name)
    return EmbeddedStore(data_dir.absolute(), binary)


async def _connect(settings: Settings, embedded: EmbeddedStore | None, health: Health) -> tuple[Batcher, bool]:
    """Returns a batcher that has found the store, and whether the store tells expiries."""
    timeout = settings.store_timeout.seconds
    if embedded is None and settings.store_url in ("embedded:", "memory:"):
        logger.warning("SESSIONS ARE KEPT IN MEMORY and forgotten when this process ends; not for production")
        batcher = Batcher(memory_connector(), timeout=timeout, on_change=health.store_changed)
        await batcher.start()
        return batcher, True
    try:
        connector = RedisConnector(
            embedded.url if embedded else settings.store_url,
            password=settings.store_password,
            allow_eviction=settings.allow_eviction,
        )
        batcher = Batcher(connector, timeout=timeout, on_change=health.store_changed)
        await batcher.start()
    except TimeoutError:
        raise StartError(
            f"no answer from the store within {START_PATIENCE:g} s. The store is set by CATRACA_STORE_URL"
        ) from None
    except StoreUnavailable as error:
        raise StartError(f"{error}. The store is set by CATRACA_STORE_URL") from error
    return batcher, connector.version >= FIRST_VERSION_THAT_TELLS_EXPIRY


def _bind(server: grpc.aio.Server, settings: Settings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host and not settings.host.startswith("[") else settings.host
    try:
        port = server.add_insecure_port(f"{host}:{settings.port}")
    except RuntimeError:
        port = 0
    if not port:
        raise StartError(
            f"cannot listen on {host}:{settings.port}: another program has that port, or the address is not this "
            "machine's. Choose another with --port or --host"
        )
    return f"{host}:{port}"


def _pepper(settings: Settings) -> bytes | None:
    if settings.token_pepper_file is None:
        return None
    try:
        pepper = settings.token_pepper_file.read_bytes().strip()
    except OSError as error:
        raise StartError(f"token_pepper_file {settings.token_pepper_file} cannot be read: {error.strerror}") from error
    if len(pepper) < 32:
        raise StartError(f"token_pepper_file {settings.token_pepper_file} must hold at least 32 bytes")
    return pepper
