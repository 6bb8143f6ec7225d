"""What the client commands do."""

import argparse
import getpass
import os
import re
import sys
from datetime import timedelta
from pathlib import Path

import grpc
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from catraca import SessionClient, _core, errors
from catraca.cli import EXIT_FAILED, EXIT_NO, EXIT_UNAVAILABLE, EXIT_USAGE, EXIT_YES, demo, output

_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class UsageError(Exception):
    """The words of the command cannot be used."""


_STATUSES: tuple[tuple[type[Exception] | tuple[type[Exception], ...], int], ...] = (
    ((UsageError, errors.InvalidRequest), EXIT_USAGE),
    ((errors.SessionNotFound, errors.TokenInUse), EXIT_NO),
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
        print(f"catraca: {error}", file=sys.stderr)
        return next(status for types, status in _STATUSES if isinstance(error, types))


def _run(options: argparse.Namespace) -> int:
    timeout = _span(options.timeout or "1s").total_seconds()
    show = output.Json() if options.output == "json" else output.Text()
    if options.command == "health":
        return _health(_core.target_or_default(options.target), options.service or "", timeout, show)
    with SessionClient(options.target, timeout=timeout) as sessions:
        match options.command:
            case "create":
                login = sessions.create(
                    options.user_id,
                    ttl=_span(options.ttl) if options.ttl else None,
                    idle_timeout=_span(options.idle_timeout) if options.idle_timeout else None,
                    attributes=dict(_attribute(each) for each in options.attribute),
                    token=_token(options) if options.bring_token else None,
                )
                show.login(login)
            case "validate":
                validation = sessions.validate(_token(options), user_id=options.user_id, skip_touch=options.skip_touch)
                show.validation(validation)
                return EXIT_YES if validation else EXIT_NO
            case "get":
                show.session(sessions.get(options.session_id))
            case "revoke":
                by_id = options.session_id is not None
                show.revoked(
                    sessions.revoke(session_id=options.session_id) if by_id else sessions.revoke(token=_token(options))
                )
    return EXIT_YES


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


def _span(text: str) -> timedelta:
    match = re.fullmatch(r"([0-9]{1,9})(ms|s|m|h|d)", text)
    if match is None:
        raise UsageError(f"{text!r} is no span: write a whole number and a unit, such as 250ms, 30s, 15m, 24h or 30d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})
