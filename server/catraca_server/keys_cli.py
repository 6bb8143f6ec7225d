"""`catraca keys`: the API keys in the callers file. The server reads the file within a second of a change.

Exit status: 0 done, 1 no such key, 2 usage, 3 the file cannot be read or changed.
"""

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from catraca_server.callers_file import CallersFileError, add, caller, read, remove_key
from catraca_server.domain.call import Role
from catraca_server.domain.callers import KEY_PREFIX, Entry, KeyRecord, new_key
from catraca_server.settings import CONFIG_FILE_VARIABLE, SettingsError, load

EXIT_OK, EXIT_NOT_FOUND, EXIT_USAGE, EXIT_UNAVAILABLE = range(4)


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    options = _parser().parse_args(arguments)
    flags = {name: value for name in ("config", "callers_file") if (value := getattr(options, name)) is not None}
    try:
        path = load(flags, _relevant(os.environ)).settings.callers_file
    except SettingsError as error:
        for problem in error.problems:
            _tell(problem)
        return EXIT_USAGE
    if path is None:
        _tell("there is no callers file: name one with CATRACA_CALLERS_FILE or --callers-file")
        return EXIT_USAGE
    try:
        match options.action:
            case "new":
                return _new(path, options.caller, options.roles)
            case "list":
                return _list(path)
            case _:
                return _revoke(path, options.key_id)
    except CallersFileError as error:
        _tell(str(error))
        return EXIT_UNAVAILABLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="catraca keys", description="Make, list and revoke the API keys of callers.", allow_abbrev=False
    )
    file = argparse.ArgumentParser(add_help=False)
    file.add_argument("--callers-file", metavar="FILE", help="the file with the callers (CATRACA_CALLERS_FILE)")
    file.add_argument("--config", metavar="FILE", help=f"configuration file that names it ({CONFIG_FILE_VARIABLE})")
    actions = parser.add_subparsers(dest="action", metavar="new|list|revoke", required=True)
    new = actions.add_parser("new", help="make a key and print it, once", parents=[file])
    new.add_argument("--caller", metavar="NAME", required=True, help="whose key it is, as the log will say")
    roles = ",".join(role.value for role in Role)
    new.add_argument("--roles", metavar="ROLES", required=True, help=f"what it allows: some of {roles}")
    actions.add_parser("list", help="list the keys, without what is secret", parents=[file])
    revoke = actions.add_parser("revoke", help="revoke a key", parents=[file])
    revoke.add_argument("key_id", metavar="KEY_ID", help=f"its id, as list shows it: what follows {KEY_PREFIX}")
    return parser


def _new(path: Path, name: str, roles: str) -> int:
    try:
        whose = caller(name, roles)
    except ValueError as error:
        _tell(str(error))
        return EXIT_USAGE
    key, record = new_key(secrets.token_bytes)
    add(path, Entry(whose, record, created=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"))
    # Alone on standard output, so that it can be piped into a secret store.
    print(key)
    _tell(f"key {record.key_id} of {name} ({roles}) is in {path}. It is shown only now: store it where only {name} is")
    return EXIT_OK


def _list(path: Path) -> int:
    entries, _ = read(path)
    for entry in entries:
        if isinstance(entry.credential, KeyRecord):
            roles = ",".join(role.value for role in Role if role in entry.caller.roles)
            print(f"{entry.credential.key_id}  {entry.created or '-':20}  {entry.caller.name}  {roles}")
    return EXIT_OK


def _revoke(path: Path, key_id: str) -> int:
    if key_id.startswith(KEY_PREFIX):
        # The shell's history has the key now.
        _tell("that is a key and not its id. Its id is the first 22 characters after the underscore")
        return EXIT_USAGE
    removed = remove_key(path, key_id)
    if removed is None:
        _tell(f"no key in {path} has that id")
        return EXIT_NOT_FOUND
    _tell(f"key {key_id} of {removed.caller.name} is revoked: a running server refuses it within a second or two")
    return EXIT_OK


def _relevant(environment: os._Environ[str]) -> dict[str, str]:
    """Returns the variables that say where the file is. Others may be for another machine, and invalid here."""
    names = ("CATRACA_CALLERS_FILE", CONFIG_FILE_VARIABLE)
    return {name: environment[name] for name in names if name in environment}


def _tell(text: str) -> None:
    print(f"catraca: {text}", file=sys.stderr)
