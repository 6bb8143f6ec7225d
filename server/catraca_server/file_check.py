"""The files that settings name, checked before the service starts, so that one check finds everything that is wrong.

The service reads them with the same code when it starts, but stops at the first fault.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from catraca_server import callers_file
from catraca_server.api.tls import CertificateError, check_authorities, check_pair
from catraca_server.app import StartError, check_otel, read_pepper
from catraca_server.settings import Settings, environment_name

_PAIRS = (("tls_cert", "tls_key"), ("store_tls_cert", "store_tls_key"))
_AUTHORITIES = ("tls_client_ca", "store_tls_ca")


def problems_of_files(settings: Settings) -> list[str]:
    """Returns what is wrong with the files on this machine that the settings name, one line each."""
    return [
        *_otel_problems(settings),
        *_tls_problems(settings),
        *_callers_problems(settings),
        *_pepper_problems(settings),
    ]


def _tls_problems(settings: Settings) -> Iterator[str]:
    for names in _PAIRS:
        paths = {name: path for name in names if (path := getattr(settings, name)) is not None}
        unreadable = [problem for name, path in paths.items() if (problem := _unreadable(name, path))]
        yield from unreadable
        if len(paths) == len(names) and not unreadable:
            yield from _certificate_problems(" and ".join(map(environment_name, names)), check_pair, *paths.values())
    for name in _AUTHORITIES:
        path = getattr(settings, name)
        if path is not None and (problem := _unreadable(name, path)):
            yield problem
        elif path is not None:
            yield from _certificate_problems(environment_name(name), check_authorities, path)


def _certificate_problems(names: str, check: Callable[..., None], *paths: Path) -> Iterator[str]:
    try:
        check(*paths)
    except CertificateError as error:
        yield f"{names}: {error}"


def _callers_problems(settings: Settings) -> Iterator[str]:
    if settings.callers_file is None:
        return
    try:
        callers_file.read(settings.callers_file)
    except callers_file.CallersFileError as error:
        yield from (f"{environment_name('callers_file')}: {each}" for each in error.problems)


def _otel_problems(settings: Settings) -> Iterator[str]:
    try:
        check_otel(settings, os.environ)
    except StartError as error:
        yield from str(error).splitlines()


def _pepper_problems(settings: Settings) -> Iterator[str]:
    try:
        read_pepper(settings)
    except StartError as error:
        yield str(error)


def _unreadable(name: str, path: Path) -> str:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        return f"{environment_name(name)}: {path} cannot be read: {error.strerror}"
    return ""
