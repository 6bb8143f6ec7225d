"""The composition root: settings become parts, and the parts a running server.

Only `runtime`, which runs it as a process, builds on this module (and the tests that serve within their own process).
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection import SERVICE_NAME as REFLECTION_NAME

from catraca_server.api import reflection
from catraca_server.api.callers import CallerGuard
from catraca_server.api.certificates import file_valid_until
from catraca_server.api.engine import Server, from_servicer
from catraca_server.api.handlers import METHOD_ROLES, SERVICE_NAME, session_service_methods
from catraca_server.api.health import Health
from catraca_server.api.limits import CallerLimits
from catraca_server.api.method_types import method_types
from catraca_server.api.session_service import SessionService
from catraca_server.api.statuses import REASONS
from catraca_server.api.tls import Certificate, CertificateError
from catraca_server.api.watch import Watches
from catraca_server.callers_file import CallersFileError
from catraca_server.core_options import core_options
from catraca_server.domain.audit import Audit, Audits
from catraca_server.domain.limits import Policy
from catraca_server.domain.tokens import Tokens
from catraca_server.listening import format_address, private_socket, socket_path, why_refused
from catraca_server.observe import otel
from catraca_server.observe.audit import LogAudit
from catraca_server.observe.metrics import Metrics
from catraca_server.operations.ending import Ending
from catraca_server.operations.sessions import Sessions
from catraca_server.operations.telling import Telling
from catraca_server.operations.users import UserSessions
from catraca_server.operations.watching import Watching
from catraca_server.redis.embedded import EmbeddedStore, default_data_dir, find_binary
from catraca_server.redis.errors import StoreUnavailable
from catraca_server.redis.link import Link
from catraca_server.redis.multiplexer import CONNECT_TIMEOUT_SECONDS
from catraca_server.redis.observed import ObservedLink
from catraca_server.redis.observer import NO_OBSERVER
from catraca_server.redis.open import open_link
from catraca_server.redis.url import StoreKind, StoreUrl
from catraca_server.settings import Settings
from catraca_server.store.feed import RedisFeed
from catraca_server.store.keys import Keys
from catraca_server.store.sessions import RedisSessionStore
from catraca_server.store.user_index import RedisUserIndex

if TYPE_CHECKING:
    from catraca_server.observe.tracing import Tracing

logger = logging.getLogger(__name__)

PEPPER_MIN_BYTES = 32


class StartError(Exception):
    """The service cannot start, or cannot go on: why, and what to do about it."""


@asynccontextmanager
async def running(
    settings: Settings, environment: Mapping[str, str], pepper: bytes | None, metrics: Metrics | None = None
) -> AsyncIterator[str]:
    """Runs a server and yields the address it listens on; drains it on the way out. Raises StartError, CannotListen.

    `metrics` gets everything that is counted.
    """
    async with (
        _tracing(settings, metrics) as tracing,
        _serving(settings, environment, pepper, metrics, tracing) as address,
    ):
        yield address


@asynccontextmanager
async def _serving(
    settings: Settings,
    environment: Mapping[str, str],
    pepper: bytes | None,
    metrics: Metrics | None,
    tracing: "Tracing | None",
) -> AsyncIterator[str]:
    server = Server(core_options(settings), observer=tracing or metrics)
    try:
        # Bound first: a port in use is the commonest mistake, and the cheapest to find. A port that workers share is
        # bound later: connections would arrive at once, and wait for the store.
        address = _bind(server, settings) if settings.workers == 1 else ""
        log_audit = LogAudit(sessions=settings.audit, invalid_tokens_alarm=settings.invalid_tokens_alarm)
        audit = log_audit if metrics is None else Audits(log_audit, metrics)
        health = Health(SERVICE_NAME, secure=not settings.missing_protection())
        async with (
            _guard(settings, audit) as guard,
            _store(settings, environment, health, metrics, tracing) as (store, index, feed),
            _watching(feed, settings) as watching,
        ):
            watches = Watches(watching, guard)
            service = _service(store, index, feed, settings, pepper, audit=audit)
            if metrics is not None:
                _read_from_parts(metrics, service, watching, health, settings)
                metrics.read_from("catraca_shedding_seconds_total", lambda: server.shedding.seconds)
            methods = session_service_methods(
                service, watches, store_timeout_seconds=settings.store_timeout.seconds, around=tracing
            )
            server.add_methods(methods, guard)
            _add_standard_methods(server, health, settings)
            address = address or _bind(server, settings)
            server.start()
            try:
                yield address
            finally:
                logger.info("draining: timeout %s", settings.drain_timeout)
                health.drain()
                # Before the server waits for the calls in flight: watches do not end unless they are ended.
                watches.drain()
                started = asyncio.get_running_loop().time()
                await server.stop(settings.drain_timeout.seconds)
                logger.info("drained: %.2f s", asyncio.get_running_loop().time() - started)
    finally:
        await server.stop(None)


@asynccontextmanager
async def embedded_store(settings: Settings, environment: Mapping[str, str]) -> AsyncIterator[EmbeddedStore | None]:
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


def read_pepper(settings: Settings) -> bytes | None:
    """Returns the pepper of all token digests, if there is one. Raises StartError."""
    path = settings.token_pepper_file
    if path is None:
        return None
    try:
        pepper = path.read_bytes().strip()
    except OSError as error:
        raise StartError(f"token_pepper_file {path} cannot be read: {error.strerror}") from error
    if len(pepper) < PEPPER_MIN_BYTES:
        raise StartError(f"token_pepper_file {path} must hold at least {PEPPER_MIN_BYTES} bytes")
    return pepper


def _service(
    store: RedisSessionStore,
    index: RedisUserIndex,
    feed: RedisFeed,
    settings: Settings,
    pepper: bytes | None,
    *,
    audit: Audit,
) -> SessionService:
    tokens = Tokens(secrets.token_bytes, pepper)
    policy = Policy(
        default_ttl_ms=settings.default_ttl.ms,
        default_idle_timeout_ms=settings.default_idle_timeout.ms,
        max_ttl_ms=settings.max_ttl.ms,
        rotation_grace_ms=settings.rotation_grace.ms,
        max_sessions_per_user=settings.max_sessions_per_user,
        evict_oldest=settings.session_limit_policy == "evict-oldest",
    )
    telling = Telling(feed, audit)
    ending = Ending(store, index, telling)
    return SessionService(
        Sessions(store, index, ending, tokens, policy, feed=telling),
        UserSessions(store, index, ending, tokens, policy, feed=telling),
        audit,
    )


@asynccontextmanager
async def _guard(settings: Settings, audit: Audit) -> AsyncIterator[CallerGuard | None]:
    """Yields a guard that follows the callers file; None if there is no file: then every caller may do everything."""
    if settings.callers_file is None:
        yield None
        return
    try:
        guard = CallerGuard(settings.callers_file, METHOD_ROLES, audit=audit, limits=_limits(settings))
    except CallersFileError as error:
        raise StartError(f"{error}. It is set by CATRACA_CALLERS_FILE; `catraca keys new` makes it") from error
    async with guard.following_file():
        yield guard


def _limits(settings: Settings) -> CallerLimits | None:
    max_calls, max_rate = settings.max_calls_per_caller, settings.max_rate_per_caller
    if not max_calls and not max_rate:
        return None
    return CallerLimits(max_calls=max_calls, max_rate=max_rate, now=time.monotonic)


def _add_standard_methods(server: Server, health: Health, settings: Settings) -> None:
    server.add_methods(from_servicer(health_pb2_grpc.add_HealthServicer_to_server, health))
    if settings.reflection:
        names = (SERVICE_NAME, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, REFLECTION_NAME)
        server.add_methods(
            from_servicer(reflection_pb2_grpc.add_ServerReflectionServicer_to_server, reflection.servicer(*names))
        )


@asynccontextmanager
async def _store(
    settings: Settings,
    environment: Mapping[str, str],
    health: Health,
    metrics: Metrics | None = None,
    tracing: "Tracing | None" = None,
) -> AsyncIterator[tuple[RedisSessionStore, RedisUserIndex, RedisFeed]]:
    async with AsyncExitStack() as stack:
        embedded = await stack.enter_async_context(embedded_store(settings, environment))
        if embedded is not None:
            url = embedded.url
        else:
            is_embedded = settings.store_url.kind is StoreKind.EMBEDDED
            url = StoreUrl.parse("memory:") if is_embedded else settings.store()
        try:
            opening = open_link(
                url,
                store_password=settings.store_password,
                sentinel_password=settings.sentinel_password,
                allow_eviction=settings.allow_eviction,
                timeout_seconds=settings.store_timeout.seconds,
                replica_acks=settings.replica_acks,
                on_change=health.store_changed,
                observer=metrics or NO_OBSERVER,
            )
            link: Link
            link, has_pexpiretime = await stack.enter_async_context(opening)
        except TimeoutError:
            raise StartError(
                f"no answer from the store within {CONNECT_TIMEOUT_SECONDS:g} s. The store is set by CATRACA_STORE_URL"
            ) from None
        except StoreUnavailable as error:
            raise StartError(f"{error}. The store is set by CATRACA_STORE_URL") from error
        if metrics is not None:
            metrics.read_from("catraca_store_waiting_commands", lambda: link.waiting_commands)
        if tracing is not None:
            link = ObservedLink(link, tracing)
        keys = Keys(settings.key_prefix)
        yield (
            RedisSessionStore(link, keys, has_pexpiretime=has_pexpiretime),
            RedisUserIndex(link, keys),
            RedisFeed(link, keys, has_info=url.kind is not StoreKind.MEMORY),
        )


def new_metrics(settings: Settings) -> Metrics | None:
    """Returns the counters of this process; None if they are not published."""
    return Metrics(method_types(), REASONS) if settings.metrics_port or settings.otel else None


def check_otel(settings: Settings, environment: Mapping[str, str]) -> None:
    """Raises StartError if OpenTelemetry is asked for and cannot be used as configured."""
    if settings.otel and (problems := otel.problems_with_otel(environment)):
        raise StartError("\n".join(problems))


def cannot_set_up_otel(error: Exception) -> StartError:
    """Returns why OTEL_ variables cannot be used. Their values may be secrets, so it says only where to look."""
    return StartError(f"OpenTelemetry cannot be set up: {type(error).__name__}. It is set up by OTEL_ variables")


@asynccontextmanager
async def _tracing(settings: Settings, metrics: Metrics | None) -> AsyncIterator["Tracing | None"]:
    async with AsyncExitStack() as stack:
        tracing = None
        if settings.otel and metrics is not None:
            address: dict[str, str | int] = {"server.address": settings.host.removeprefix("unix:")}
            if settings.port and not socket_path(settings.host):
                address["server.port"] = settings.port
            try:
                tracing = await stack.enter_async_context(otel.tracing(metrics, METHOD_ROLES, address))
            except (OSError, ValueError) as error:
                raise cannot_set_up_otel(error) from None
        yield tracing


def _read_from_parts(
    metrics: Metrics, service: SessionService, watching: Watching, health: Health, settings: Settings
) -> None:
    outcomes = service.validating.outcomes
    metrics.read_each_from(
        "catraca_validations_total",
        "outcome",
        lambda: {"valid" if reason is None else reason.name.lower(): count for reason, count in outcomes.items()},
    )
    metrics.read_from("catraca_watches", lambda: watching.watches)
    metrics.read_from("catraca_feed_age_seconds", lambda: watching.age_seconds)
    metrics.read_from("catraca_store_connected", lambda: health.store_connected)
    certificate = settings.tls_cert
    if certificate is not None:
        metrics.read_from("catraca_tls_certificate_expiry_timestamp_seconds", lambda: file_valid_until(certificate))


@asynccontextmanager
async def _watching(feed: RedisFeed, settings: Settings) -> AsyncIterator[Watching]:
    watching = Watching(feed, timeout_seconds=settings.store_timeout.seconds)
    try:
        yield watching
    finally:
        await watching.stop()


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
    try:
        data_dir = (settings.data_dir or default_data_dir(environment)).absolute()
    except (OSError, RuntimeError):
        # There is no home directory, or the working directory has gone.
        raise StartError("the embedded store has nowhere to keep its data: set --data-dir, an absolute path") from None
    logger.info("embedded store: data in %s, server %s", data_dir, binary.name)
    return EmbeddedStore(data_dir, binary)


def _bind(server: Server, settings: Settings) -> str:
    path, credentials = socket_path(settings.host), _credentials(settings)
    try:
        with private_socket(path) if path else nullcontext():
            port = server.listen(format_address(settings.host, settings.port), credentials)
    except OSError:
        raise why_refused(settings.host, settings.port) from None
    return format_address(settings.host, port)


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    try:
        return Certificate(settings.tls_cert, settings.tls_key, settings.tls_client_ca).credentials()
    except CertificateError as error:
        raise StartError(f"{error}. It is set by CATRACA_TLS_CERT, CATRACA_TLS_KEY, CATRACA_TLS_CLIENT_CA") from error
