"""The `catraca` command: its words and flags. What a command does is in `commands`, imported once it is to run.

Exit status: 0 yes (valid, created, found, changed, ended, serving), 1 no (not valid, not found, token in use or reused,
session limit reached, etag out of date), 2 usage (an argument breaks a rule), 3 unavailable (no answer: nothing is
known), 4 not allowed or failed in another way.

Flags have environment twins, except those that say what to change in a session, or which sessions to end without having
their token: what was once left in an environment must do neither.
"""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import TypeAlias

EXIT_YES, EXIT_NO, EXIT_USAGE, EXIT_UNAVAILABLE, EXIT_FAILED = range(5)

_Flags: TypeAlias = argparse.ArgumentParser | argparse._MutuallyExclusiveGroup  # noqa: SLF001  it has no other name

_SERVER_COMMANDS = {
    "serve": "run the service (needs the server extra)",
    "config": "show or check the service's settings (needs the server extra)",
}
_READ_FROM = "The token is read from --token-file, else from CATRACA_TOKEN, else from standard input."
_SPAN_HELP = "such as 30s, 15m, 24h, 30d"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command and exits."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # An attribute may hold what the encoding of this terminal does not have.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            sys.exit(_run(words))
        finally:
            # Now, because a reader that has gone could not be told apart any more at exit.
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does; say nothing more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)


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
    parser = argparse.ArgumentParser(
        prog="catraca",
        description="Session validation over gRPC and Redis: is this token good, and whose is it?",
        epilog="Exit status: 0 yes, 1 no (not valid, not found, token in use or reused, session limit reached, etag "
        "out of date), 2 usage, 3 unavailable, 4 failed. Flags have environment twins (--target is CATRACA_TARGET), "
        "except those that say what to change or to end.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in _SERVER_COMMANDS.items():
        commands.add_parser(name, help=text)

    client = argparse.ArgumentParser(add_help=False)
    _flag(client, "--target", "where the service is (default 127.0.0.1:50051)")
    _flag(client, "--timeout", "how long to wait for an answer (default 1s)")
    _flag(client, "--output", "text or json (default text)", choices=("text", "json"))
    token = argparse.ArgumentParser(add_help=False)
    _token_flag(token)

    def add(
        name: str, text: str, *parents: argparse.ArgumentParser, epilog: str | None = None
    ) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=parents, epilog=epilog)

    demo = add("demo", "play a session's life against a service of its own (needs the server extra)")
    _flag(demo, "--ttl", "how long the first session lives (default 2s)")
    health = add("health", "ask whether the service serves", client)
    _flag(health, "--service", "the service, or `store` (default: the server as a whole)")
    create = add("create", "start a session", client, token, epilog=_READ_FROM)
    _flag(create, "--user-id", "whose session it is", required=True)
    _flag(create, "--ttl", f"how long it may live, {_SPAN_HELP} (default: the server's)")
    _flag(
        create, "--idle-timeout", "how long it survives without activity; 0s: no idle timeout (default: the server's)"
    )
    create.add_argument("--attribute", metavar="KEY=VALUE", action="append", default=[], help="data to keep with it")
    create.add_argument("--bring-token", action="store_true", help="use a token of yours instead of a minted one")
    validate = add("validate", "ask whether a token is good", client, token, epilog=_READ_FROM)
    _flag(validate, "--user-id", "the session must be this user's")
    validate.add_argument("--skip-touch", action="store_true", help="only look: this is no activity")
    get = add("get", "read a session by its public id", client)
    get.add_argument("session_id")
    sessions = add("list", "list a user's sessions, newest first", client)
    _flag(sessions, "--user-id", "whose sessions", required=True)
    _add_update(add("update", "change a session: its attributes, or when it ends", client))
    add("rotate", "replace a session's token, with a short grace for the old one", client, token, epilog=_READ_FROM)
    _add_revoke(add("revoke", "end a session, or all of a user", client, epilog=_READ_FROM))
    return parser


def _add_update(update: argparse.ArgumentParser) -> None:
    update.add_argument("session_id")
    update.add_argument(
        "--attribute", metavar="KEY=VALUE", action="append", default=[], help="set this attribute; others stay"
    )
    update.add_argument(
        "--remove-attribute", metavar="KEY", action="append", default=[], help="remove the attribute of this key"
    )
    update.add_argument(
        "--replace-attributes", action="store_true", help="remove all attributes but those set with --attribute"
    )
    update.add_argument(
        "--expire-in", metavar="SPAN", help=f"end it so long from now, by this machine's clock, {_SPAN_HELP}"
    )
    update.add_argument(
        "--idle-timeout", metavar="SPAN", help="how long it survives without activity; 0s: no idle timeout"
    )
    update.add_argument("--etag", help="only if it still has this etag (get --output json shows it)")


def _add_revoke(revoke: argparse.ArgumentParser) -> None:
    which = revoke.add_mutually_exclusive_group()
    _token_flag(which)
    which.add_argument(
        "--session-id", metavar="VALUE", help="end the session with this public id, instead of a token's"
    )
    # Not --user-id, which for validate is a condition on the token.
    which.add_argument("--user", metavar="VALUE", help="end all sessions of this user, instead of a token's")
    revoke.add_argument(
        "--except", metavar="SESSION_ID", dest="except_session_id", help="with --user: all but the one with this id"
    )


def _token_flag(parser: _Flags) -> None:
    _flag(parser, "--token-file", "file with the token; - for standard input")


def _flag(
    parser: _Flags,
    flag: str,
    text: str,
    *,
    required: bool = False,
    choices: Sequence[str] | None = None,
) -> None:
    """Adds a flag whose default is its environment twin."""
    twin = f"CATRACA_{flag.strip('-').replace('-', '_').upper()}"
    default = os.environ.get(twin)
    parser.add_argument(
        flag,
        metavar="VALUE",
        default=default,
        required=required and default is None,
        choices=choices,
        help=f"{text} ({twin})",
    )
