"""The `catraca` command: its commands and flags. What they do is in `commands`, imported only when one runs.

Exit status: 0 yes (valid, created, found, changed, ended, serving), 1 no (not valid, not found, token in use or reused,
session limit reached, etag out of date), 2 usage (an argument breaks a rule), 3 unavailable (no answer: nothing is
known), 4 not allowed or failed in another way, 70 the command itself failed (an unforeseen error, or an answer that
could not be written: nothing is known), 130 interrupted, 141 nobody reads the output any more.

Flags have environment twins, except those that say what to change in a session, or which sessions to end without having
their token: a variable that somebody forgot to unset must do neither.
"""

import argparse
import errno
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, Self, TextIO, TypeAlias

from catraca._settings import flag_from_environment
from catraca.cli.text import visible
from catraca.errors import InvalidSetting

EXIT_YES, EXIT_NO, EXIT_USAGE, EXIT_UNAVAILABLE, EXIT_FAILED = range(5)
EXIT_UNFORESEEN = 70
"""EX_SOFTWARE of sysexits.h. Python itself would end with 1, which here means "not valid"."""
EXIT_INTERRUPTED, EXIT_NO_READER = 128 + 2, 128 + 13
"""The status that a shell reports for a program ended by SIGINT or SIGPIPE."""

BENCH_MODES = ("all", "single", "coalesced", "near-cache")

_Flags: TypeAlias = argparse.ArgumentParser | argparse._MutuallyExclusiveGroup  # noqa: SLF001  it has no other name

_SERVER_COMMANDS = {
    "serve": "run the service (needs the server extra)",
    "config": "show or check the service's settings (needs the server extra)",
    "keys": "make, list and revoke the API keys of callers (needs the server extra)",
}
_READ_FROM = "The token is read from --token-file, else from CATRACA_TOKEN, else from standard input."
_DURATION_HELP = "such as 30s, 15m, 24h, 30d"
_BENCH = (
    "Needs the roles issue and validate. Its sessions are revoked at the end. Exit status: 0 all validations were "
    "answered and valid, 4 some were not, 3 none was. The others are those of every command."
)
_DEBUG = "--debug"


class FromEnvironment(str):  # noqa: SLOT000  a str cannot have slots and an attribute
    """The value of an environment variable that stands in for a flag."""

    variable: str

    def __new__(cls, value: str, variable: str) -> Self:
        """Returns the value, with the variable that it comes from."""
        made = super().__new__(cls, value)
        made.variable = variable
        return made


class _Parser(argparse.ArgumentParser):
    """Takes values that begin with a dash, as cursors, etags and users' ids may. argparse takes them for flags."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Attaches such values to their flags, which argparse understands, and goes on."""
        flags = self._option_string_actions
        attached: list[str] = []
        words = iter(sys.argv[1:] if args is None else args)
        for word in words:
            attached.append(word)
            if word == "--":
                break
            if word in flags and flags[word].nargs is None and (value := next(words, None)) is not None:
                # What is itself a flag, or ends the flags, stays what it is: somebody forgot the value.
                if value.startswith("-") and value != "--" and value not in flags:
                    attached[-1] += f"={value}"
                else:
                    attached.append(value)
        return super().parse_known_args([*attached, *words], namespace)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command and exits."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    answers_are_lost = _is_closed("stdout")
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # An attribute may hold characters that the encoding of this terminal does not have.
        sys.stdout.reconfigure(errors="backslashreplace")
    if answers_are_lost and words[:1] != ["serve"]:
        # Before anything is done: a session could be created whose token nobody learns.
        tell("catraca: standard output is closed, so the answer would be lost")
        sys.exit(EXIT_UNFORESEEN)
    status = _status(words)
    _flush_or_discard(sys.stderr)
    sys.exit(status)


def _status(words: list[str]) -> int:
    """Runs the command and returns its exit status, whatever happens. Only "not valid" and the like may be 1."""
    debug = _take_debug(words)
    try:
        try:
            return _run(words)
        finally:
            # Now, because at exit it is too late to report what went wrong.
            sys.stdout.flush()
    except SystemExit as end:  # argparse has printed its message
        return end.code if isinstance(end.code, int) else EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does.
        return EXIT_NO_READER
    except Exception as error:  # noqa: BLE001  whatever it is, it must not look like "not valid"
        _tell_unforeseen(error, debug=debug)
        return EXIT_UNFORESEEN
    finally:
        _flush_or_discard(sys.stdout)


def _tell_unforeseen(error: Exception, *, debug: bool) -> None:
    if debug:
        tell("".join(traceback.format_exception(error)))
    elif isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}:
        tell(f"catraca: writing failed: {error.strerror}")
    else:
        tell(visible(f"catraca: unforeseen error: {type(error).__name__}: {error} ({_DEBUG} shows where)"))


def tell(text: str) -> None:
    """Writes to standard error. If that fails, the exit status has to be enough."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def _take_debug(words: list[str]) -> bool:
    """Takes --debug out of the words: it works with every command, and for errors in the other words too."""
    options = words[: words.index("--")] if "--" in words else words
    if _DEBUG in options:
        words[: len(options)] = [word for word in options if word != _DEBUG]
        return True
    try:
        return flag_from_environment("CATRACA_DEBUG")
    except InvalidSetting as error:
        tell(f"catraca: {error}")
        sys.exit(EXIT_USAGE)


def _open_closed_streams() -> None:
    """Opens closed standard streams on /dev/null; otherwise the next socket would get their numbers."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if _is_closed(name):
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def _is_closed(name: str) -> bool:
    return getattr(sys, name) is None


def _flush_or_discard(stream: TextIO) -> None:
    try:
        stream.flush()
    except (OSError, ValueError):
        _discard(stream)


def _discard(stream: TextIO) -> None:
    """Throws away what a stream still holds: Python would try to write it at exit, and replace the exit status."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _run(words: Sequence[str]) -> int:
    if words and words[0] in _SERVER_COMMANDS:
        return _run_server_command(words[0], words[1:])
    options = _parser().parse_args(words)
    return int(importlib.import_module("catraca.cli.commands").run(options))


def _run_server_command(command: str, arguments: Sequence[str]) -> int:
    try:
        # By name, because the client must not depend on the server; it is there if the extra is installed.
        server = importlib.import_module("catraca_server.cli")
    except ModuleNotFoundError as error:
        print(f"catraca: {command} needs the server: pip install 'catraca[server]' ({error})", file=sys.stderr)
        return EXIT_USAGE
    return int(server.main(command, arguments))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="catraca",
        description="Session validation over gRPC and Redis: is this token good, and whose is it?",
        epilog="Exit status: 0 yes, 1 no (not valid, not found, token in use or reused, session limit reached, etag "
        "out of date), 2 usage, 3 unavailable, 4 failed, 70 the command itself failed, 130 interrupted, 141 nobody "
        "reads the output. Flags have environment twins (--target is CATRACA_TARGET), except those that say what to "
        "change or to end. --debug (CATRACA_DEBUG), with any command, shows where an unforeseen error comes from.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in _SERVER_COMMANDS.items():
        commands.add_parser(name, help=text)

    client = _Parser(add_help=False)
    _flag(client, "--target", "where the service is (default 127.0.0.1:50051)")
    _flag(client, "--timeout", "how long to wait for an answer (default 1s)")
    _flag(client, "--output", "text or json (default text)", choices=("text", "json"))
    _flag(client, "--tls-ca", "file with the authorities (PEM) that the service's certificate is checked against")
    _flag(client, "--tls-cert", "file with your certificate (PEM), if the service wants one")
    _flag(client, "--tls-key", "file with its private key (PEM)")
    _flag(client, "--api-key-file", "file with your API key; the key itself may be in CATRACA_API_KEY")
    client.add_argument(
        "--insecure",
        action=argparse.BooleanOptionalAction,
        help="send the API key to another machine without TLS (default: no) (CATRACA_INSECURE)",
    )
    client.add_argument(
        "--use-proxy",
        action=argparse.BooleanOptionalAction,
        help="connect through the proxy that http_proxy or https_proxy names (default: no) (CATRACA_USE_PROXY)",
    )
    token = _Parser(add_help=False)
    _token_flag(token)

    def add(name: str, text: str, *parents: _Parser, epilog: str | None = None) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=parents, epilog=epilog)

    demo = add(
        "demo", "play through a session's life, against a service that it starts itself (needs the server extra)"
    )
    _flag(demo, "--ttl", "how long the first session lives (default 2s)")
    health = add("health", "ask whether the service is serving", client)
    _flag(health, "--service", "the service, or `store` (default: the server as a whole)")
    create = add("create", "start a session", client, token, epilog=_READ_FROM)
    _flag(create, "--user-id", "whose session it is", required=True)
    _flag(create, "--ttl", f"how long it lives at most, {_DURATION_HELP} (default: the server's)")
    _flag(
        create,
        "--idle-timeout",
        "how long it survives without activity; 0s for no idle timeout (default: the server's)",
    )
    create.add_argument("--attribute", metavar="KEY=VALUE", action="append", default=[], help="data to store with it")
    create.add_argument("--bring-token", action="store_true", help="bring your own token instead of having one minted")
    validate = add("validate", "ask whether a token is good", client, token, epilog=_READ_FROM)
    _flag(validate, "--user-id", "the session must be this user's")
    validate.add_argument("--skip-touch", action="store_true", help="do not count this as activity")
    get = add("get", "read a session by its public id", client)
    get.add_argument("session_id")
    sessions = add("list", "list a user's sessions, newest first", client)
    _flag(sessions, "--user-id", "whose sessions", required=True)
    _add_update(add("update", "change a session: its attributes, or when it ends", client))
    add(
        "rotate",
        "replace a session's token; the old one stays valid for a short grace",
        client,
        token,
        epilog=_READ_FROM,
    )
    _add_revoke(add("revoke", "end a session, or all sessions of a user", client, epilog=_READ_FROM))
    _add_bench(add("bench", "measure how fast validations are against your service", client, epilog=_BENCH))
    _add_watch(add("watch", "show events about sessions as they happen, until Ctrl-C", client))
    return parser


def _add_update(update: argparse.ArgumentParser) -> None:
    update.add_argument("session_id")
    update.add_argument(
        "--attribute", metavar="KEY=VALUE", action="append", default=[], help="set this attribute and keep the others"
    )
    update.add_argument(
        "--remove-attribute", metavar="KEY", action="append", default=[], help="remove the attribute with this key"
    )
    update.add_argument(
        "--replace-attributes", action="store_true", help="remove all attributes except those set with --attribute"
    )
    update.add_argument(
        "--expire-in", metavar="DURATION", help=f"end it this long from now, by this machine's clock, {_DURATION_HELP}"
    )
    update.add_argument(
        "--idle-timeout", metavar="DURATION", help="how long it survives without activity; 0s for no idle timeout"
    )
    update.add_argument("--etag", help="change it only if it still has this etag (get --output json shows it)")


def _add_revoke(revoke: argparse.ArgumentParser) -> None:
    which = revoke.add_mutually_exclusive_group()
    _token_flag(which)
    which.add_argument("--session-id", metavar="VALUE", help="end the session with this public id, not that of a token")
    # Not --user-id, which for validate is a condition on the token.
    which.add_argument("--user", metavar="VALUE", help="end all sessions of this user, not that of a token")
    revoke.add_argument(
        "--except", metavar="SESSION_ID", dest="except_session_id", help="with --user: spare the session with this id"
    )


def _add_watch(watch: argparse.ArgumentParser) -> None:
    watch.add_argument(
        "--type",
        action="append",
        default=[],
        choices=("created", "updated", "rotated", "revoked"),
        help="show only events of this type; may be repeated (default: all)",
    )
    watch.add_argument(
        "--cursor", help="continue after the event with this cursor (--output json shows it; default: now)"
    )


def _add_bench(bench: argparse.ArgumentParser) -> None:
    _flag(bench, "--mode", "single, coalesced, near-cache or all (default all)", choices=BENCH_MODES)
    _flag(bench, "--sessions", "how many sessions to create and validate (default 100)")
    _flag(bench, "--duration", "how long to measure each mode (default 10s)")
    _flag(bench, "--concurrency", "how many validations to have under way (default 32)")
    _flag(bench, "--user-id", "how its users' ids begin (default catraca-bench)")
    _flag(bench, "--plot", "SVG file to draw the latencies to")
    bench.add_argument("--compare", action="store_true", help="also measure a Redis GET and a JWT")
    _flag(bench, "--redis-url", "with --compare: where Redis is, such as redis://localhost:6379/0")


def _token_flag(parser: _Flags) -> None:
    _flag(parser, "--token-file", "file with the token; - for standard input")


def _flag(parser: _Flags, flag: str, text: str, *, required: bool = False, choices: Sequence[str] = ()) -> None:
    """Adds a flag whose default is its environment twin."""
    twin = f"CATRACA_{flag.strip('-').replace('-', '_').upper()}"
    value = os.environ.get(twin)
    default = None if value is None else FromEnvironment(value, twin)

    def chosen(word: str) -> str:
        # Not left to argparse, which does not look at defaults.
        if choices and word not in choices and not word == default == "":
            raise argparse.ArgumentTypeError(f"{visible(word)!r} is not one of: {', '.join(choices)} (also {twin})")
        return word

    parser.add_argument(
        flag,
        metavar="VALUE",
        type=chosen,
        default=default,
        required=required and default is None,
        help=f"{text} ({twin})",
    )
