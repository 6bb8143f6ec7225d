"""What an operator can set: read once, checked as a whole, frozen, and printable without secrets.

Each setting has a flag (`--store-url`), an environment twin (`CATRACA_STORE_URL`) and a key in the configuration file
(`store_url`, TOML); flag goes before environment, environment before file, file before default. What holds a secret has
no flag, because a command line is there for every user of the machine to read.
"""

import ipaddress
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from catraca_server.redis.url import HIDDEN, StoreKind, StoreUrl, shows_password

ENVIRONMENT_PREFIX = "CATRACA_"
CONFIG_FILE_VARIABLE = "CATRACA_CONFIG"

_NO_SETTINGS = re.compile(r"CATRACA_(CONFIG|TARGET|API_KEY|API_KEY_FILE|VALKEY_SERVER|TEST_\w+|(SERVICE|PORT)_\w+)")
"""Variables that are not the server's: the client's, the tests', and what Kubernetes sets for a service so named."""

ROTATION_GRACE_MAX = 300_000
CONNECTION_AGE_MAX = 86_400_000
WORKERS_MAX = 128

_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class SettingsError(Exception):
    """The settings cannot be used; `problems` says all that is wrong with them, a line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Millis:
    """A span of time as operators write it: `250ms`, `30s`, `15m`, `24h`, `30d`."""

    milliseconds: int

    @classmethod
    def parse(cls, text: str) -> "Millis":
        """Reads a span. Raises ValueError."""
        match = re.fullmatch(r"([0-9]{1,12})(ms|s|m|h|d)", text)
        if match is None:
            raise ValueError("must be a whole number and a unit, such as 250ms, 30s, 15m, 24h or 30d")
        return cls(int(match[1]) * _UNITS[match[2]])

    def __str__(self) -> str:
        """Returns the span in its largest whole unit."""
        unit = max((unit for unit in _UNITS if self.milliseconds % _UNITS[unit] == 0), key=lambda unit: _UNITS[unit])
        return f"{self.milliseconds // _UNITS[unit]}{unit}" if self.milliseconds else "0s"

    @property
    def seconds(self) -> float:
        """The span in seconds."""
        return self.milliseconds / 1000


def _boolean(text: str) -> bool:
    values = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if text.lower() not in values:
        raise ValueError("must be true or false")
    return values[text.lower()]


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return text

    return parse


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= 65535:
        raise ValueError("must be a port, 0 to 65535 (0: any free one)")
    return int(text)


def _positive_span(text: str) -> Millis:
    span = Millis.parse(text)
    if not span.milliseconds:
        raise ValueError("must be positive")
    return span


def _whole_number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise ValueError("must be a whole number, 0 to 999999")
    return int(text)


def _rotation_grace(text: str) -> Millis:
    grace = Millis.parse(text)
    if grace.milliseconds > ROTATION_GRACE_MAX:
        raise ValueError("must be at most 300s")
    return grace


def _replica_acks(text: str) -> int:
    if not re.fullmatch(r"[0-9]", text):
        raise ValueError("must be a whole number, 0 to 9")
    return int(text)


def _workers(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= WORKERS_MAX:
        raise ValueError(f"must be a whole number, 1 to {WORKERS_MAX}")
    return int(text)


def _connection_age(text: str) -> Millis:
    age = Millis.parse(text)
    if age.milliseconds > CONNECTION_AGE_MAX:
        raise ValueError("must be at most 24h, or 0s for no limit")
    return age


def _optional_path(text: str) -> Path | None:
    return Path(text).expanduser() if text else None


def _setting(default: str, parse: Callable[[str], Any], help_text: str, *, secret: bool = False) -> Any:
    """Returns the field of a setting; `default` is written as an operator would."""
    return field(default=parse(default), metadata={"parse": parse, "help": help_text, "secret": secret})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of `catraca serve`."""

    host: str = _setting("127.0.0.1", str, "address to listen on; other than loopback needs insecure")
    port: int = _setting("50051", _port, "port to listen on; 0: any free one")
    workers: int = _setting("1", _workers, "processes that share the port; one uses one core")
    max_connection_age: Millis = _setting(
        "15m", _connection_age, "after this clients are told to connect anew, to spread over the workers; 0s: never"
    )
    max_calls_per_connection: int = _setting(
        "250", _whole_number, "calls that a connection may have in flight; more are refused; 0: any number"
    )
    insecure: bool = _setting("false", _boolean, "listen on any address without TLS and caller authentication")
    store_url: StoreUrl = _setting(
        "embedded:",
        StoreUrl.parse,
        "where sessions are: embedded:, memory:, redis://…, rediss://…, unix://…, redis+sentinel://… or redis+cluster://…",
    )
    store_password: str = _setting("", str, "password for the store, if not in store_url", secret=True)
    sentinel_password: str = _setting("", str, "password for the Sentinels, if they have one", secret=True)
    replica_acks: int = _setting(
        "0", _replica_acks, "replicas that must have a change before it is acknowledged, at most 9"
    )
    store_timeout: Millis = _setting("250ms", _positive_span, "what the store has for one call")
    data_dir: Path | None = _setting(
        "", _optional_path, "where the embedded store keeps sessions; default catraca in the XDG state directory"
    )
    key_prefix: str = _setting("", str, "put before every key, to share a database")
    allow_eviction: bool = _setting("false", _boolean, "use a store whose maxmemory-policy may evict live sessions")
    token_pepper_file: Path | None = _setting("", _optional_path, "file whose content keys all token digests")
    default_ttl: Millis = _setting("24h", _positive_span, "a session's ttl where its creator names none")
    default_idle_timeout: Millis = _setting(
        "30m", Millis.parse, "a session's idle timeout where its creator names none; 0s: none"
    )
    max_ttl: Millis = _setting("30d", _positive_span, "the longest ttl a session may have")
    max_sessions_per_user: int = _setting("0", _whole_number, "sessions a user may have at once; 0: any number")
    session_limit_policy: str = _setting(
        "evict-oldest", _one_of("evict-oldest", "reject"), "at the limit: evict-oldest or reject"
    )
    rotation_grace: Millis = _setting("30s", _rotation_grace, "how long a rotated-out token stays valid; at most 300s")
    drain_timeout: Millis = _setting("10s", Millis.parse, "how long calls in flight may finish when stopping")
    reflection: bool = _setting("true", _boolean, "serve gRPC reflection, which tells callers the API")
    log_format: str = _setting("text", _one_of("text", "json"), "text or json")
    log_level: str = _setting("info", _one_of("debug", "info", "warning", "error"), "debug, info, warning or error")

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
    """Settings as they were found."""

    settings: Settings
    origins: Mapping[str, str]
    """Where each setting that is not the default comes from: `flag`, an environment variable, or `file`."""
    warnings: tuple[str, ...]


def load(flags: Mapping[str, str], environment: Mapping[str, str]) -> Loaded:
    """Reads the settings. Raises SettingsError with all that is wrong with them."""
    problems: list[str] = []
    environment = {name: value for name, value in environment.items() if not _is_service_link(name, value)}
    file = _read_file(flags.get("config") or environment.get(CONFIG_FILE_VARIABLE, ""), problems)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for setting in SETTINGS:
        name = setting.name
        variable = environment_name(name)
        for origin, source, key in (("flag", flags, name), (variable, environment, variable), ("file", file, name)):
            if key in source:
                origins[name] = origin
                try:
                    values[name] = setting.metadata["parse"](source[key])
                except ValueError as fault:
                    problems.append(f"{_called(name, origin)} {fault}")
                break
    if origins.get("store_url") == "flag" and shows_password(flags["store_url"]):
        problems.append("--store-url must not hold a password: use CATRACA_STORE_URL or CATRACA_STORE_PASSWORD")
    if not problems:
        settings = Settings(**values)
        problems = _contradictions(settings)
        if not problems:
            return Loaded(settings, origins, tuple(_unknown(environment)))
    raise SettingsError(problems)


def _unknown(environment: Mapping[str, str]) -> list[str]:
    known = {environment_name(setting.name) for setting in SETTINGS}
    return [
        f"{name} is no setting of catraca and does nothing"
        for name in sorted(environment)
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known and not _NO_SETTINGS.fullmatch(name)
    ]


def _is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes set this: a service called catraca gives every pod CATRACA_PORT=tcp://… (service links)."""
    return name == environment_name("port") and value.startswith("tcp://")


def _called(name: str, origin: str) -> str:
    match origin:
        case "flag":
            return f"--{name.replace('_', '-')}"
        case "file":
            return f"{name} (in the configuration file)"
        case _:
            return origin


def _read_file(path: str, problems: list[str]) -> Mapping[str, str]:
    if not path:
        return {}
    try:
        content = tomllib.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        problems.append(f"the configuration file cannot be read: {fault}")
        return {}
    known = {setting.name for setting in SETTINGS}
    problems.extend(f"{key} (in the configuration file) is no setting of catraca" for key in content.keys() - known)
    return {
        key: str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in content.items()
        if key in known
    }


def _contradictions(settings: Settings) -> list[str]:
    problems = []
    if settings.default_ttl.milliseconds > settings.max_ttl.milliseconds:
        problems.append(f"default_ttl ({settings.default_ttl}) must not be over max_ttl ({settings.max_ttl})")
    if not settings.insecure and not _is_loopback(settings.host):
        problems.append(
            f"host {settings.host} is not loopback, and this version has no TLS and no caller authentication: anybody "
            "who reaches the port could create and revoke sessions. Listen on 127.0.0.1, or say --insecure if the "
            "network itself keeps others out"
        )
    if settings.replica_acks and settings.store_url.kind in (StoreKind.EMBEDDED, StoreKind.MEMORY):
        problems.append(
            f"replica_acks {settings.replica_acks} takes a store that has replicas, and {settings.store_url} has none: "
            "nothing would ever be acknowledged. Use a Redis with replicas, or --replica-acks 0"
        )
    if settings.workers > 1 and settings.store_url.kind is StoreKind.MEMORY:
        problems.append(
            f"store_url memory: takes one worker, not {settings.workers}: each would have a store of its own, and not "
            "know the others' sessions. Use embedded: or a Redis, or --workers 1"
        )
    return problems


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _text(settings: Settings, setting: Field[Any]) -> str:
    value = getattr(settings, setting.name)
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _hide(setting: Field[Any], text: str) -> str:
    return HIDDEN if setting.metadata["secret"] else text
