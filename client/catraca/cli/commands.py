"""What the client commands do."""

import argparse
import getpass
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from catraca import SessionClient, _core, errors
from catraca.cli import EXIT_FAILED, EXIT_NO, EXIT_UNAVAILABLE, EXIT_USAGE, EXIT_YES, demo, output
from catraca.cli.text import visible

_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class UsageError(Exception):
    """The words of the command cannot be used."""


_STATUSES: tuple[tuple[type[Exception] | tuple[type[Exception], ...], int], ...] = (
    ((UsageError, errors.InvalidRequest), EXIT_USAGE),
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
            return demo.play(_span(options.ttl or "2s"))
        return _run(options)
    except (UsageError, errors.CatracaError) as error:
        print(f"catraca: {visible(str(error))}", file=sys.stderr)
        return next(status for types, status in _STATUSES if isinstance(error, types))


def _run(options: argparse.Namespace) -> int:
    timeout = _span(options.timeout or "1s").total_seconds()
    show = output.Json() if options.output == "json" else output.Text()
    if options.command == "health":
        return _health(_core.target_or_default(options.target), options.service or "", timeout, show)
    with SessionClient(options.target, timeout=timeout) as sessions:
        return _COMMANDS[options.command](sessions, options, show)


def _create(sessions: SessionClient, options: argparse.Namespace, show: output.Output) -> int:
    login = sessions.create(
        options.user_id,
        ttl=_span(options.ttl) if options.ttl else None,
        idle_timeout=_span(options.idle_timeout) if options.idle_timeout else None,
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
    # All before any is shown: a list that breaks off must not look like a whole one.
    show.sessions(list(sessions.list_sessions(options.user_id)))
    return EXIT_YES


def _update(sessions: SessionClient, options: argparse.Namespace, show: output.Output) -> int:
    _not_empty("--etag", options.etag)
    given = dict(_attribute(each) for each in options.attribute)
    removed = dict.fromkeys(options.remove_attribute)
    if both := given.keys() & removed.keys():
        raise UsageError(f"attribute {min(both)!r} is both to be set and to be removed")
    replaces = options.replace_attributes
    if not (given or removed or replaces or options.expire_in is not None or options.idle_timeout is not None):
        raise UsageError("there is nothing to change: see catraca update --help")
    show.session(
        sessions.update(
            options.session_id,
            etag=options.etag,
            attributes=given if replaces else None,
            set_attributes=removed if replaces else {**given, **removed},
            absolute_expire_time=_from_now(options.expire_in) if options.expire_in is not None else None,
            idle_timeout=_span(options.idle_timeout) if options.idle_timeout is not None else None,
        )
    )
    return EXIT_YES


def _rotate(sessions: SessionClient, options: argparse.Namespace, show: output.Output) -> int:
    show.rotation(sessions.rotate(_token(options)))
    return EXIT_YES


def _revoke(sessions: SessionClient, options: argparse.Namespace, show: output.Output) -> int:
    if options.except_session_id is not None and options.user is None:
        raise UsageError("--except goes with --user")
    _not_empty("--except", options.except_session_id)
    if options.user is not None:
        show.revoked_count(sessions.revoke_user_sessions(options.user, except_session_id=options.except_session_id))
    elif options.session_id is not None:
        show.revoked(sessions.revoke(session_id=options.session_id))
    else:
        show.revoked(sessions.revoke(token=_token(options)))
    return EXIT_YES


_COMMANDS = {
    "create": _create,
    "validate": _validate,
    "get": _get,
    "list": _list,
    "update": _update,
    "rotate": _rotate,
    "revoke": _revoke,
}


def _health(target: str, service: str, timeout: float, show: output.Output) -> int:
    # The health protocol's two messages have a string and an enum as their field 1, on the wire the same as these
    # wrappers have: this saves the client a dependency.
    with grpc.insecure_channel(target) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=StringValue.SerializeToString,
            response_deserializer=Int32Value.FromString,
        )
        try:
            status = check(StringValue(value=service), timeout=timeout)
        except grpc.RpcError as error:
            raise errors.from_status(error.code(), error.details(), error.trailing_metadata() or ()) from error
    serving = status.value == 1
    show.health(serving=serving)
    return EXIT_YES if serving else EXIT_UNAVAILABLE


def _token(options: argparse.Namespace) -> str:
    """Reads a token from where others cannot: never from the command line, which every user of the machine can see."""
    if options.token_file not in (None, "-"):
        try:
            return Path(options.token_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError) as error:
            raise UsageError(f"--token-file {options.token_file} cannot be read: {error}") from error
    if options.token_file is None and (token := os.environ.get("CATRACA_TOKEN")):
        return token
    if sys.stdin.isatty():
        return getpass.getpass("Token: ")
    return sys.stdin.read().strip()


def _attribute(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise UsageError(f"--attribute {text!r} is no KEY=VALUE")
    return key, value


def _not_empty(flag: str, value: str | None) -> None:
    """Refuses what an unset variable of a script makes of a flag that holds back: the API takes it for no flag."""
    if value == "":
        raise UsageError(f"{flag} is empty")


def _span(text: str) -> timedelta:
    match = re.fullmatch(r"([0-9]{1,9})(ms|s|m|h|d)", text)
    if match is None:
        raise UsageError(f"{text!r} is no span: write a whole number and a unit, such as 250ms, 30s, 15m, 24h or 30d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _from_now(text: str) -> datetime:
    try:
        return datetime.now(UTC) + _span(text)
    except OverflowError:
        raise UsageError(f"{text!r} from now is further away than there are dates") from None
