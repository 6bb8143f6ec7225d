"""The commands that need the server: `catraca serve`, `catraca config` and `catraca keys`."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

import uvloop

from catraca_server import keys_cli, logs
from catraca_server.app import StartError
from catraca_server.file_check import problems_of_files
from catraca_server.listening import CannotListen
from catraca_server.runtime.core_environment import start_again
from catraca_server.runtime.run import serve
from catraca_server.settings import SETTINGS, Loaded, SettingsError, environment_name, load

EXIT_OK, EXIT_USAGE, EXIT_UNAVAILABLE = 0, 2, 3


def main(command: str, arguments: Sequence[str]) -> int:
    """Runs `serve`, `config` or `keys`. Returns the exit status: 2 for invalid settings, 3 if the command fails."""
    if command == "keys":
        return keys_cli.main(arguments)
    options = vars(_parser(command).parse_args(arguments))
    action = options.pop("action", None)
    try:
        loaded = load({name: value for name, value in options.items() if value is not None}, os.environ)
    except SettingsError as error:
        return _refuse([*error.problems, *(problems_of_files(error.usable) if action == "check" else ())])
    if command == "serve":
        start_again(command, arguments)
        return _serve(loaded)
    if action == "show":
        _show(loaded)
        return EXIT_OK
    return _check(loaded)


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"catraca {command}",
        description="Run the service." if command == "serve" else "Show or check the settings that serve would use.",
        epilog="A flag overrides its environment variable, which overrides the configuration file (TOML).",
    )
    if command == "config":
        parser.add_argument("action", choices=("show", "check"))
    parser.add_argument("--config", metavar="FILE", help="configuration file (CATRACA_CONFIG)")
    for setting in SETTINGS:
        if not setting.metadata["secret"]:
            shown = f"{setting.metadata['help']} ({environment_name(setting.name)})"
            flag = f"--{setting.name.replace('_', '-')}"
            if isinstance(setting.default, bool):
                parser.add_argument(flag, metavar="true|false", nargs="?", const="true", help=shown)
            else:
                parser.add_argument(flag, metavar="VALUE", help=shown)
    return parser


def _serve(loaded: Loaded) -> int:
    logs.configure(loaded.settings.log_format, loaded.settings.log_level)
    for warning in loaded.warnings:
        logs.logger.warning(warning)
    try:
        # uvloop makes a call a tenth cheaper (docs/performance.md).
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(loaded.settings, os.environ))
    except (StartError, CannotListen) as error:
        print(f"catraca: {error}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    return EXIT_OK


def _check(loaded: Loaded) -> int:
    for warning in loaded.warnings:
        print(f"catraca: warning: {warning}", file=sys.stderr)
    if problems := problems_of_files(loaded.settings):
        return _refuse(problems)
    print("the settings can be used")
    return EXIT_OK


def _refuse(problems: Sequence[str]) -> int:
    for problem in problems:
        print(f"catraca: {problem}", file=sys.stderr)
    return EXIT_USAGE


def _show(loaded: Loaded) -> None:
    for name, value in loaded.settings.shown().items():
        print(f"{environment_name(name)}={value}  # {loaded.origins.get(name, 'default')}")
