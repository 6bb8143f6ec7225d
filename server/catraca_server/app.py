"""The composition root: settings become parts, the parts are put together, run, and drained. Nothing imports this."""

import asyncio
import logging
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from importlib.metadata import version

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection import SERVICE_NAME as REFLECTION_NAME

from catraca_server.api import accepting as admission, reflection
from catraca_server.api.handlers import SERVICE_NAME, session_service_handlers
from catraca_server.api.health import Health
from catraca_server.api.session_service import SessionService
from catraca_server.domain.limits import Policy
from catraca_server.domain.tokens import Tokens
from catraca_server.operations.ending import Ending
from catraca_server.operations.sessions import Sessions
from catraca_server.operations.users import UserSessions
from catraca_server.redis.embedded import EmbeddedStore, default_data_dir, find_binary
from catraca_server.redis.errors import StoreUnavailable
from catraca_server.redis.multiplexer import CONNECT_TIMEOUT_SECONDS
from catraca_server.redis.open import open_link
from catraca_server.redis.url import StoreKind, StoreUrl
from catraca_server.runtime.supervisor import Order, WorkersFailed, claim, working
from catraca_server.settings import Settings
from catraca_server.store.keys import Keys
from catraca_server.store.sessions import RedisSessionStore
from catraca_server.store.user_index import RedisUserIndex

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 8 << 20
"""A batch of 1,000 of the longest tokens and user ids takes 4.4 MB, over the engine's default of 4 MiB."""

LONGEST_WAIT = 1
"""Seconds for which a call may wait to be taken in. The engine knows no less, and more nobody waits for."""

CONNECTION_AGE_GRACE = 60_000
"""Milliseconds for the calls of a connection that has come of age: several times what the longest call takes."""


class StartError(Exception):
    """The service cannot start: why, and what to do about it."""


async def serve(settings: Settings, environment: Mapping[str, str]) -> None:
    """Serves until SIGTERM or SIGINT, then drains. Raises StartError."""

    def announce(address: str) -> None:
        logger.info("catraca %s listening on %s; Ctrl-C stops it", version("catraca"), address)

    run = running if settings.workers == 1 else supervising
    await _until_told_to_stop(run(settings, environment, _pepper(settings)), announce)


async def serve_as_worker(order: Order, serving: Callable[[], None]) -> None:
    """Serves as one of several workers, as `serve` does; tells when it serves. Raises StartError."""

    def announce(_: str) -> None:
        logger.info("serving, process %d", os.getpid())
        serving()

    await _until_told_to_stop(running(order.settings, {}, order.pepper), announce)


async def _until_told_to_stop(run: AbstractAsyncContextManager[str], announce: Callable[[str], None]) -> None:
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
        async with run as address:
            started = True
            announce(address)
            await stop.wait()
    except asyncio.CancelledError:
        if started or not stop.is_set():
            raise
    logger.info("stopped")


@asynccontextmanager
async def supervising(settings: Settings, environment: Mapping[str, str], pepper: bytes | None) -> AsyncIterator[str]:
    """Runs the service by several workers and yields the address they share; they drain on the way out.

    Raises StartError, also later on, when workers keep dying.
    """
    if sys.platform != "linux":
        raise StartError(
            f"--workers {settings.workers} takes Linux, which spreads connections over them: on other systems run "
            "several servers, each on a port of its own"
        )
    try:
        holder = claim(settings.host.strip("[]"), settings.port)
    except OSError:
        raise _cannot_listen(settings) from None
    with holder:
        port = holder.getsockname()[1]
        async with _embedded(settings, environment) as embedded:
            if embedded is not None:
                settings = replace(settings, store_url=embedded.url)
            try:
                async with working(replace(settings, port=port), pepper):
                    yield _address(settings.host, port)
            except WorkersFailed as error:
                raise StartError(str(error)) from error


@asynccontextmanager
async def running(settings: Settings, environment: Mapping[str, str], pepper: bytes | None) -> AsyncIterator[str]:
    """Runs the service and yields the address it listens on; drains it on the way out. Raises StartError."""
    server = admission.server(_options(settings))
    # Bound first: a port in use is the commonest mistake, and the cheapest to find. Not so one that workers share:
    # connections come to it at once, and would wait there for the store.
    address = _bind(server, settings) if settings.workers == 1 else ""
    health = Health(SERVICE_NAME)
    async with _store(settings, environment, health) as (store, index):
        _register(server, _service(store, index, settings, pepper), health, settings)
        address = address or _bind(server, settings)
        try:
            await server.start()
            yield address
        finally:
            logger.info("draining: new calls are refused, calls in flight have %s to finish", settings.drain_timeout)
            health.drain()
            started = asyncio.get_running_loop().time()
            await server.stop(settings.drain_timeout.seconds)
            logger.info("drained in %.2f s", asyncio.get_running_loop().time() - started)


def _options(settings: Settings) -> tuple[tuple[str, int], ...]:
    age = settings.max_connection_age.milliseconds
    calls = settings.max_calls_per_connection
    return (
        ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
        ("grpc.max_send_message_length", -1),
        # A second server on the same port is a mistake to be told, not a partner to share it with.
        ("grpc.so_reuseport", int(settings.workers > 1)),
        # Clients may keep idle connections alive.
        ("grpc.http2.min_ping_interval_without_data_ms", 5000),
        ("grpc.keepalive_permit_without_calls", 1),
        *((("grpc.max_concurrent_streams", calls),) if calls else ()),
        ("grpc.server_max_unrequested_time_in_server", LONGEST_WAIT),
        *(
            (("grpc.max_connection_age_ms", age), ("grpc.max_connection_age_grace_ms", CONNECTION_AGE_GRACE))
            if age
            else ()
        ),
    )


def _service(
    store: RedisSessionStore, index: RedisUserIndex, settings: Settings, pepper: bytes | None
) -> SessionService:
    tokens = Tokens(secrets.token_bytes, pepper)
    policy = Policy(
        default_ttl_ms=settings.default_ttl.milliseconds,
        default_idle_timeout_ms=settings.default_idle_timeout.milliseconds,
        max_ttl_ms=settings.max_ttl.milliseconds,
        rotation_grace_ms=settings.rotation_grace.milliseconds,
        max_sessions_per_user=settings.max_sessions_per_user,
        evict_oldest=settings.session_limit_policy == "evict-oldest",
    )
    ending = Ending(store, index)
    return SessionService(
        Sessions(store, index, ending, tokens, policy), UserSessions(store, index, ending, tokens, policy)
    )


def _register(server: grpc.aio.Server, service: SessionService, health: Health, settings: Settings) -> None:
    handlers = session_service_handlers(service, store_timeout_seconds=settings.store_timeout.seconds)
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
    async with AsyncExitStack() as stack:
        embedded = await stack.enter_async_context(_embedded(settings, environment))
        if embedded is not None:
            url = embedded.url
        else:
            is_embedded = settings.store_url.kind is StoreKind.EMBEDDED
            url = StoreUrl.parse("memory:") if is_embedded else settings.store_url
        try:
            opening = open_link(
                url,
                store_password=settings.store_password,
                sentinel_password=settings.sentinel_password,
                allow_eviction=settings.allow_eviction,
                timeout_seconds=settings.store_timeout.seconds,
                replica_acks=settings.replica_acks,
                on_change=health.store_changed,
            )
            link, has_pexpiretime = await stack.enter_async_context(opening)
        except TimeoutError:
            raise StartError(
                f"no answer from the store within {CONNECT_TIMEOUT_SECONDS:g} s. The store is set by CATRACA_STORE_URL"
            ) from None
        except StoreUnavailable as error:
            raise StartError(f"{error}. The store is set by CATRACA_STORE_URL") from error
        keys = Keys(settings.key_prefix)
        yield RedisSessionStore(link, keys, has_pexpiretime=has_pexpiretime), RedisUserIndex(link, keys)


@asynccontextmanager
async def _embedded(settings: Settings, environment: Mapping[str, str]) -> AsyncIterator[EmbeddedStore | None]:
    """Runs the embedded store if the settings ask for it and there is a binary. Raises StartError."""
    try:
        embedded = _find_embedded(settings, environment)
        if embedded is not None:
            await embedded.start()
    except StoreUnavailable as error:
        raise StartError(str(error)) from error
    try:
        yield embedded
    finally:
        if embedded is not None:
            await embedded.stop()


def _find_embedded(settings: Settings, environment: Mapping[str, str]) -> EmbeddedStore | None:
    if settings.store_url.kind is not StoreKind.EMBEDDED:
        return None
    binary = find_binary(environment)
    if binary is None:
        if settings.workers > 1:
            raise StartError(
                f"no valkey-server for this platform, and without one each of {settings.workers} workers would have a "
                "store of its own: install one (CATRACA_VALKEY_SERVER names it), or use a Redis, or --workers 1"
            )
        logger.warning("no valkey-server for this platform: falling back to memory:, see below")
        return None
    data_dir = settings.data_dir or default_data_dir(environment)
    logger.info("sessions are kept in %s by %s", data_dir, binary.name)
    return EmbeddedStore(data_dir.absolute(), binary)


def _bind(server: grpc.aio.Server, settings: Settings) -> str:
    try:
        port = server.add_insecure_port(_address(settings.host, settings.port))
    except RuntimeError:
        port = 0
    if not port:
        raise _cannot_listen(settings)
    return _address(settings.host, port)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _cannot_listen(settings: Settings) -> StartError:
    return StartError(
        f"cannot listen on {_address(settings.host, settings.port)}: another program has that port, or the address is "
        "not this machine's. Choose another with --port or --host"
    )


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
