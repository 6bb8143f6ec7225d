"""What the client commands do."""

import argparse
import getpass
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from catraca import AsyncSessionClient, SessionClient, _settings, errors
from catraca._access import tls_credentials
from catraca._channel_sync import open_channel
from catraca.cli import (
    BENCH_MODES,
    EXIT_FAILED,
    EXIT_NO,
    EXIT_UNAVAILABLE,
    EXIT_USAGE,
    EXIT_YES,
    FromEnvironment,
    bench,
    demo,
    output,
    tell,
    watch,
)
from catraca.cli.text import visible

_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class UsageError(Exception):
    """The command cannot be run as it was given."""


_STATUSES: tuple[tuple[type[Exception] | tuple[type[Exception], ...], int], ...] = (
    ((UsageError, errors.InvalidRequest, errors.InvalidSetting), EXIT_USAGE),
    (
        (
            errors.EtagMismatch,
            errors.SessionLimitReached,
            errors.SessionNotFound,
            errors.TokenInUse,
            errors.TokenReused,
        ),
        EXIT_NO,
    ),
    (errors.Unavailable, EXIT_UNAVAILABLE),
    (errors.CatracaError, EXIT_FAILED),
)


def run(options: argparse.Namespace) -> int:
    """Runs a parsed command and returns its exit status."""
    try:
        if options.command == "demo":
            return demo.play(_duration("--ttl", options.ttl or "2s"))
        return _run(options)
    except (UsageError, errors.CatracaError) as error:
        tell(f"catraca: {visible(str(error))}")
        return next(status for types, status in _STATUSES if isinstance(error, types))


def _run(options: argparse.Namespace) -> int:
    timeout_seconds = _duration("--timeout", options.timeout or "1s").total_seconds()
    show = output.Json() if options.output == "json" else output.Text()
    if options.command == "health":
        return _health(options, timeout_seconds, show)
    arguments: dict[str, Any] = {
        "target": _target(options),
        "timeout": timeout_seconds,
        "credentials": _credentials(options),
        "api_key_file": None if isinstance(options.api_key_file, FromEnvironment) else options.api_key_file,
        "insecure": options.insecure,
        "use_proxy": options.use_proxy,
    }
    if options.command == "bench":
        return bench.run(partial(AsyncSessionClient, **arguments), _bench_plan(options))
    with SessionClient(**arguments) as sessions:
        return _COMMANDS[options.command](sessions, options, show)


def _bench_plan(options: argparse.Namespace) -> bench.Plan:
    mode = options.mode or "all"
    if options.plot and not Path(options.plot).parent.is_dir():
        raise UsageError(f"--plot {options.plot}: there is no such folder")
    return bench.Plan(
        modes=[each for each in BENCH_MODES if each != "all" and mode in ("all", each)],
        sessions=_count("--sessions", options.sessions or "100", 100_000),
        duration=_duration("--duration", options.duration or "10s") or timedelta(milliseconds=1),
        concurrency=_count("--concurrency", options.concurrency or "32", 10_000),
        user_id=options.user_id or "catraca-bench",
        compare=options.compare,
        redis_url=options.redis_url or None,
        plot=Path(options.plot) if options.plot else None,
        as_json=options.output == "json",
    )


def _count(flag: str, text: str, most: int) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) or not 1 <= int(text) <= most:
        name = f"{text.variable}=" if isinstance(text, FromEnvironment) else f"{flag} "
        raise UsageError(f"{name}{text} is not a number from 1 to {most}")
    return int(text)


def _create(sessions: SessionClient, options: argparse.Namespace, show: output.Output) -> int:
    login = sessions.create(
        options.user_id,
        ttl=_duration("--ttl", options.ttl) if options.ttl else None,
        idle_timeout=_duration("--idle-timeout", options.idle_timeout) if options.idle_timeout else None,
        attributes=dict(_attribute(each) for each in options.attribute),
        token=_token(options) if options.bring_token else None,
    )
    show.login(login)
    return EXIT_YES


def _validate(sessions: SessionClient, options: argparse.Namespace, show: output.Output) -> int:
    validation = sessions.validate(_token(options), user_id=options.user_id, skip_touch=options.skip_touch)
    show.validation(validation)
    return EXIT_YES if validation else EXIT_NO


def _get(sessions: SessionClient, options: argparse.Namespace, show: output.Output) -> int:
    show.session(sessions.get(options.session_id))
    return EXIT_YES


def _list(sessions: SessionClient, options: argparse.Namespace, show: output.Output) -> int:
    # Reads everything before showing anything: a list that breaks off must not look complete.
    show.sessions(list(sessions.list_sessions(options.user_id)))
    return EXIT_YES


def _update(sessions: SessionClient, options: argparse.Namespace, show: output.Output) -> int:
    _not_empty("--etag", options.etag)
    given = dict(_attribute(each) for each in options.attribute)
    removed = dict.fromkeys(options.remove_attribute)
    if both := given.keys() & removed.keys():
        raise UsageError(f"attribute {min(both)!r} is to be both set and removed: leave out one of the two")
    replaces = options.replace_attributes
    if not (given or removed or replaces or options.expire_in is not None or options.idle_timeout is not None):
        raise UsageError("nothing to change: see catraca update --help")
    show.session(
        sessions.update(
            options.session_id,
            etag=options.etag,
            attributes=given if replaces else None,
            set_attributes=removed if replaces else {**given, **removed},
            absolute_expire_time=_from_now(options.expire_in) if options.expire_in is not None else None,
            idle_timeout=_duration("--idle-timeout", options.idle_timeout)
            if options.idle_timeout is not None
            else None,
        )
    )
    return EXIT_YES


def _rotate(sessions: SessionClient, options: argparse.Namespace, show: output.Output) -> int:
    show.rotation(sessions.rotate(_token(options)))
    return EXIT_YES


def _revoke(sessions: SessionClient, options: argparse.Namespace, show: output.Output) -> int:
    if options.except_session_id is not None and options.user is None:
        raise UsageError("--except works only together with --user")
    _not_empty("--except", options.except_session_id)
    if options.user is not None:
        show.revoked_count(sessions.revoke_user_sessions(options.user, except_session_id=options.except_session_id))
    elif options.session_id is not None:
        show.revoked(sessions.revoke(session_id=options.session_id))
    else:
        show.revoked(sessions.revoke(token=_token(options)))
    return EXIT_YES


def _watch(sessions: SessionClient, options: argparse.Namespace, show: output.Output) -> int:
    _not_empty("--cursor", options.cursor)
    return watch.follow(sessions, options.type, options.cursor or "", show)


_COMMANDS = {
    "create": _create,
    "validate": _validate,
    "get": _get,
    "list": _list,
    "update": _update,
    "rotate": _rotate,
    "revoke": _revoke,
    "watch": _watch,
}


def _health(options: argparse.Namespace, timeout_seconds: float, show: output.Output) -> int:
    target = _settings.target_or_default(_target(options))
    # The health protocol's two messages have a string and an enum as their field 1. On the wire these wrappers look the
    # same, which saves the client a dependency.
    use_proxy = _settings.use_proxy_or_default(options.use_proxy)
    with open_channel(target, _credentials(options), use_proxy=use_proxy) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=StringValue.SerializeToString,
            response_deserializer=Int32Value.FromString,
        )
        try:
            status = check(StringValue(value=options.service or ""), timeout=timeout_seconds)
        except grpc.RpcError as error:
            raise errors.from_status(error.code(), error.details(), error.trailing_metadata() or ()) from error
    serving = status.value == 1
    show.health(serving=serving)
    return EXIT_YES if serving else EXIT_UNAVAILABLE


def _credentials(options: argparse.Namespace) -> grpc.ChannelCredentials | None:
    flags = {"--tls-ca": options.tls_ca, "--tls-cert": options.tls_cert, "--tls-key": options.tls_key}
    return tls_credentials(
        {path.variable if isinstance(path, FromEnvironment) else flag: path for flag, path in flags.items()}
    )


def _target(options: argparse.Namespace) -> str | None:
    # The client reads the variable itself, so that its errors name it.
    return None if isinstance(options.target, FromEnvironment) else options.target


def _token(options: argparse.Namespace) -> str:
    """Reads a token from where others cannot: never from the command line, which all users of the machine can see."""
    return _read_token(options.token_file).strip()


def _read_token(file: str | None) -> str:
    if file not in (None, "-"):
        try:
            return Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise UsageError(f"cannot read the token from --token-file {file}: {_why(error)}") from error
    if file is None and (token := os.environ.get("CATRACA_TOKEN", "")).strip():
        return token
    try:
        return getpass.getpass("Token: ") if sys.stdin.isatty() else sys.stdin.read()
    except (OSError, UnicodeError) as error:
        raise UsageError(f"cannot read the token from standard input: {_why(error)}") from error
    except EOFError:
        raise UsageError("no token was entered") from None


def _why(error: OSError | UnicodeError) -> str:
    # Not the error's own text, which for a UnicodeError quotes what was read.
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else "it is not UTF-8 text"


def _attribute(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise UsageError(f"--attribute {text!r} is not KEY=VALUE: write it with a =")
    return key, value


def _not_empty(flag: str, value: str | None) -> None:
    """Refuses the empty value that a script's unset variable leaves: the API would act as if the flag were absent."""
    if value == "":
        raise UsageError(f"{flag} is empty: give it a value, or leave it out")


def _duration(flag: str, text: str) -> timedelta:
    match = re.fullmatch(r"([0-9]{1,9})(ms|s|m|h|d)", text, re.ASCII)
    if match is None:
        name = f"{text.variable}=" if isinstance(text, FromEnvironment) else f"{flag} "
        raise UsageError(
            f"{name}{text} is not a duration: write a whole number and a unit, such as 250ms, 30s, 15m, 24h or 30d"
        )
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _from_now(text: str) -> datetime:
    try:
        return datetime.now(UTC) + _duration("--expire-in", text)
    except OverflowError:
        raise UsageError(f"--expire-in {text} is after the year 9999: write a shorter duration") from None
