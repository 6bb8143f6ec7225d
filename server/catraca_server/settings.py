"""What an operator can set: read once, checked as a whole, frozen, and shown without secrets.

Each setting has a flag (`--store-url`), an environment twin (`CATRACA_STORE_URL`) and a key in the configuration file
(`store_url`, TOML). A flag overrides the environment, the environment overrides the file, and the file overrides the
default. Secrets have no flag, because every user of the machine can read a command line.
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from catraca_server.listening import canonical_host, is_local, socket_path
from catraca_server.redis.url import HIDDEN, StoreKind, StoreUrl, shows_password
from catraca_server.setting_values import (
    Duration,
    duration,
    expand_path,
    one_of,
    optional_path,
    short_text,
    switch,
    utf8,
    whole_number,
)

ENVIRONMENT_PREFIX = "CATRACA_"
CONFIG_FILE_VARIABLE = "CATRACA_CONFIG"

_OTHER_VARIABLES = re.compile(
    r"CATRACA_(CONFIG|TARGET|TLS_CA|USE_PROXY|TIMEOUT|OUTPUT|DEBUG|TOKEN|API_KEY|API_KEY_FILE|VALKEY_SERVER|TEST_\w+|(SERVICE|PORT)_\w+)"
)
"""Variables that are not settings of the server: the client's, the tests', and what Kubernetes sets for a service."""

LIFETIME_MAX = "3650d"
"""The longest ttl and idle timeout. A record holds times up to the year 9999, and nobody stays logged in for longer."""


class SettingsError(Exception):
    """The settings cannot be used; `problems` has everything that is wrong with them, one line each.

    `usable` has those that can be read, and the defaults instead of the others.
    """

    def __init__(self, problems: list[str], usable: "Settings") -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.usable = usable


def _setting(default: str, parse: Callable[[str], Any], help_text: str, *, secret: bool = False) -> Any:
    """Returns the field of a setting; `default` is written as an operator would write it."""
    return field(default=parse(default), metadata={"parse": parse, "help": help_text, "secret": secret})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of `catraca serve`."""

    host: str = _setting(
        "127.0.0.1", canonical_host, "address or unix:/path to listen on; for any but loopback, see insecure"
    )
    port: int = _setting("50051", whole_number(0, 65535), "port to listen on; 0: any free port")
    workers: int = _setting("1", whole_number(1, 128), "processes that share the port; each uses one core")
    max_connection_age: Duration = _setting(
        "15m", duration("0s", "24h"), "age at which clients must reconnect, which spreads them over workers; 0s: never"
    )
    max_calls_per_connection: int = _setting(
        "250", whole_number(0, 999_999), "calls a connection may have in flight; more are refused; 0: no limit"
    )
    tls_cert: Path | None = _setting(
        "", optional_path, "certificate to serve with, and its chain (PEM); read again when it changes"
    )
    tls_key: Path | None = _setting("", optional_path, "file with the private key of tls_cert (PEM, not encrypted)")
    tls_client_ca: Path | None = _setting(
        "", optional_path, "authorities whose certificates clients must have (PEM): mutual TLS"
    )
    callers_file: Path | None = _setting(
        "", optional_path, "file that says who may call, and with which roles; read again when it changes"
    )
    max_calls_per_caller: int = _setting(
        "0", whole_number(0, 999_999), "calls a caller may have in flight, with a callers file; 0: no limit"
    )
    max_rate_per_caller: int = _setting(
        "0", whole_number(0, 999_999), "calls a caller may begin a second, with a callers file; 0: no limit"
    )
    invalid_tokens_alarm: int = _setting(
        "1000", whole_number(0, 999_999), "invalid tokens of a caller within a minute that the log tells of; 0: never"
    )
    insecure: bool = _setting(
        "false", switch, "listen where others can reach it without TLS, or without knowing who calls"
    )
    store_url: StoreUrl = _setting(
        "embedded:",
        StoreUrl.parse,
        "where sessions are: embedded:, memory:, redis://…, rediss://…, unix://…, redis+sentinel://… or redis+cluster://…",
    )
    store_password: str = _setting("", str, "password for the store, if not in store_url", secret=True)
    sentinel_password: str = _setting("", str, "password for the Sentinels, if they have one", secret=True)
    store_tls_ca: Path | None = _setting(
        "", optional_path, "authorities (PEM) that the store's certificate is checked against; default: the system's"
    )
    store_tls_cert: Path | None = _setting("", optional_path, "certificate (PEM) to show to the store, if it wants one")
    store_tls_key: Path | None = _setting("", optional_path, "file with the private key of store_tls_cert (PEM)")
    replica_acks: int = _setting(
        "0", whole_number(0, 9), "replicas that must have a change before it is acknowledged; at most 9"
    )
    store_timeout: Duration = _setting("250ms", duration("1ms", "10m"), "how long the store may take to answer a call")
    data_dir: Path | None = _setting(
        "", optional_path, "directory of the embedded store; default: catraca in the XDG state directory"
    )
    key_prefix: str = _setting("", short_text(200), "prefix of every key, for a database that others use too")
    allow_eviction: bool = _setting("false", switch, "accept a store whose maxmemory-policy may evict live sessions")
    token_pepper_file: Path | None = _setting(
        "", optional_path, "file with a secret of at least 32 bytes, the key of all token digests"
    )
    default_ttl: Duration = _setting(
        "24h", duration("1ms", LIFETIME_MAX), "how long a session lives if its creator does not say"
    )
    default_idle_timeout: Duration = _setting(
        "30m", duration("0s", LIFETIME_MAX), "a session's idle timeout if its creator does not say; 0s: none"
    )
    max_ttl: Duration = _setting("30d", duration("1ms", LIFETIME_MAX), "longest ttl and idle timeout of a session")
    max_sessions_per_user: int = _setting(
        "0", whole_number(0, 999_999), "sessions a user may have at the same time; 0: no limit"
    )
    session_limit_policy: str = _setting(
        "evict-oldest", one_of("evict-oldest", "reject"), "what a login at that limit does: evict-oldest or reject"
    )
    rotation_grace: Duration = _setting(
        "30s",
        duration("0s", "300s"),
        "how long a rotated token stays valid; at most 300s; a retry of the rotation after that ends the session",
    )
    drain_timeout: Duration = _setting("10s", duration("0s", "1h"), "how long calls in flight may take when stopping")
    reflection: bool = _setting("true", switch, "serve gRPC reflection, which describes the API to callers")
    audit: bool = _setting("false", switch, "log a line for each session that is created, changed or ended")
    metrics_port: int = _setting("0", whole_number(0, 65535), "port of the page for Prometheus; 0: none")
    metrics_host: str = _setting("127.0.0.1", canonical_host, "address of the page for Prometheus")
    otel: bool = _setting(
        "false", switch, "send traces and metrics to an OpenTelemetry collector; OTEL_* say where it is"
    )
    log_format: str = _setting("text", one_of("text", "json"), "text or json")
    log_level: str = _setting("info", one_of("debug", "info", "warning", "error"), "debug, info, warning or error")

    def store(self) -> StoreUrl:
        """Returns where the store is, and how to connect over TLS. Raises ValueError if the two contradict."""
        paths = {
            "ssl_ca_certs": self.store_tls_ca,
            "ssl_certfile": self.store_tls_cert,
            "ssl_keyfile": self.store_tls_key,
        }
        files = {name: str(path) for name, path in paths.items() if path is not None}
        return self.store_url.with_tls_files(**files) if files else self.store_url

    def missing_protection(self) -> tuple[str, ...]:
        """Returns what is missing where others than this machine can reach the service; nothing if nothing is."""
        if is_local(self.host):
            return ()
        missing = []
        if self.tls_cert is None:
            missing.append("there is no TLS (tls_cert, tls_key)")
        if self.callers_file is None:
            missing.append("anybody may call (callers_file)")
        return tuple(missing)

    def shown(self) -> dict[str, str]:
        """Returns every setting as text, secrets hidden."""
        return {
            each.name: _hide(each, text) if text else text for each, text in ((f, _text(self, f)) for f in fields(self))
        }


SETTINGS: tuple[Field[Any], ...] = fields(Settings)


def environment_name(setting: str) -> str:
    """Returns the environment twin of a setting."""
    return ENVIRONMENT_PREFIX + setting.upper()


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, and where they come from."""

    settings: Settings
    origins: Mapping[str, str]
    """Of each setting that does not have its default: `flag`, `file`, an environment variable, or another setting."""
    warnings: tuple[str, ...]


def load(flags: Mapping[str, str], environment: Mapping[str, str]) -> Loaded:
    """Reads the settings. Raises SettingsError with everything that is wrong with them."""
    problems: list[str] = []
    environment = {name: value for name, value in environment.items() if not _is_service_link(name, value)}
    file = _read_file(flags.get("config") or environment.get(CONFIG_FILE_VARIABLE, ""), problems)
    values: dict[str, Any] = {}
    unreadable: list[str] = []
    origins: dict[str, str] = {}
    for setting in SETTINGS:
        name = setting.name
        variable = environment_name(name)
        for origin, source, key in (("flag", flags, name), (variable, environment, variable), ("file", file, name)):
            if key in source:
                origins[name] = origin
                try:
                    values[name] = setting.metadata["parse"](utf8(source[key]))
                except ValueError as error:
                    problems.append(f"{_called(name, origin)} {error}")
                    unreadable.append(name)
                break
    if origins.get("store_url") == "flag" and shows_password(flags["store_url"]):
        problems.append("--store-url must not hold a password: use CATRACA_STORE_URL or CATRACA_STORE_PASSWORD")
    settings = Settings(**values)
    if settings.default_idle_timeout.ms > settings.max_ttl.ms and "default_idle_timeout" not in origins:
        # Nobody has asked for it, so it need not be contradicted: it follows the limit.
        settings = replace(settings, default_idle_timeout=settings.max_ttl)
        origins["default_idle_timeout"] = "max_ttl"
    # What contradicts a setting that cannot be read may contradict nothing once it can.
    problems += [each for each in _contradictions(settings) if not set(re.findall(r"\w+", each)) & set(unreadable)]
    if problems:
        raise SettingsError(problems, settings)
    return Loaded(settings, origins, (*_unknown(environment), *_warnings(settings)))


def _unknown(environment: Mapping[str, str]) -> list[str]:
    known = {environment_name(setting.name) for setting in SETTINGS}
    return [
        f"{name} is not a setting of catraca and has no effect"
        for name in sorted(environment)
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known and not _OTHER_VARIABLES.fullmatch(name)
    ]


def _warnings(settings: Settings) -> list[str]:
    if missing := settings.missing_protection():
        return [f"INSECURE: others can reach {settings.host}, and {' and '.join(missing)}"]
    return []


def _is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes set this: a Service named catraca gives every pod CATRACA_PORT=tcp://… (service links)."""
    return name == environment_name("port") and value.startswith("tcp://")


def _called(name: str, origin: str) -> str:
    match origin:
        case "flag":
            return f"--{name.replace('_', '-')}"
        case "file":
            return f"{name} (in the configuration file)"
        case _:
            return origin


def _read_file(name: str, problems: list[str]) -> Mapping[str, str]:
    if not name:
        return {}
    try:
        content = tomllib.loads(expand_path(utf8(name)).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"configuration file {name!r} cannot be read: {_reason(error)}")
        return {}
    known = {setting.name for setting in SETTINGS}
    problems.extend(f"{_called(key, 'file')} is not a setting of catraca" for key in sorted(content.keys() - known))
    texts = {}
    for key in known & content.keys():
        value = content[key]
        if isinstance(value, str | int):
            texts[key] = str(value).lower() if isinstance(value, bool) else str(value)
        else:
            problems.append(f"{_called(key, 'file')} must be a string, a whole number, true or false")
    return texts


def _reason(error: Exception) -> str:
    match error:
        case OSError():
            return error.strerror or type(error).__name__
        case UnicodeDecodeError():
            return "it is not UTF-8"
        case tomllib.TOMLDecodeError():
            return f"it is not TOML: {error}"
        case RecursionError():
            return "it is not TOML: nested too deeply"
        case _:
            return f"its name {error}"


def _contradictions(settings: Settings) -> list[str]:
    problems = [
        f"{name} ({default}) must not be longer than max_ttl ({settings.max_ttl})"
        for name in ("default_ttl", "default_idle_timeout")
        if (default := getattr(settings, name)).ms > settings.max_ttl.ms
    ]
    problems += _tls_contradictions(settings)
    if socket_path(settings.metrics_host):
        problems.append("metrics_host must be an address or a name: Prometheus does not read from sockets")
    if not settings.insecure and (missing := settings.missing_protection()):
        problems.append(
            f"host {settings.host} is not loopback, and {' and '.join(missing)}: whoever is on the network could read "
            "tokens, or create and revoke sessions. Set those, or listen on 127.0.0.1 or unix:/path, or set --insecure "
            "if the network itself keeps others out"
        )
    if settings.replica_acks and settings.store_url.kind in (StoreKind.EMBEDDED, StoreKind.MEMORY):
        problems.append(
            f"replica_acks {settings.replica_acks} takes a store that has replicas, and {settings.store_url} has none: "
            "nothing would ever be acknowledged. Use a Redis with replicas, or --replica-acks 0"
        )
    if settings.workers > 1 and settings.store_url.kind is StoreKind.MEMORY:
        problems.append(
            f"store_url memory: allows one worker, not {settings.workers}: each would have a store of its own, without "
            "the sessions of the others. Use embedded: or a Redis, or --workers 1"
        )
    return problems


def _tls_contradictions(settings: Settings) -> list[str]:
    problems = []
    for certificate, key in (("tls_cert", "tls_key"), ("store_tls_cert", "store_tls_key")):
        set_ones = [name for name in (certificate, key) if getattr(settings, name) is not None]
        if len(set_ones) == 1:
            problems.append(f"{set_ones[0]} is set, and of {certificate} and {key} both are needed")
    try:
        settings.store()
    except ValueError as error:
        problems.append(f"store_url {error}")
    if settings.tls_client_ca and not settings.tls_cert:
        problems.append("tls_client_ca is set and tls_cert is not: only over TLS do clients show certificates")
    if settings.workers > 1 and socket_path(settings.host):
        problems.append(
            f"host {settings.host} allows one worker, not {settings.workers}: a Unix socket cannot be shared. Listen "
            "on 127.0.0.1, or use --workers 1"
        )
    return problems


def _text(settings: Settings, setting: Field[Any]) -> str:
    value = getattr(settings, setting.name)
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _hide(setting: Field[Any], text: str) -> str:
    return HIDDEN if setting.metadata["secret"] else text
