"""The settings of a client: from its arguments or, if those are left out, from the environment."""

import os
import re

from catraca.errors import InvalidSetting

DEFAULT_TARGET = "127.0.0.1:50051"

_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_WEB_ADDRESS = re.compile(r"https?://(?:[^/?#]*@)?([^/?#]*)", re.IGNORECASE)


def target_or_default(target: str | None) -> str:
    """Returns where to connect: as given, else CATRACA_TARGET, else the service's default address.

    Raises InvalidSetting for what cannot be a target. gRPC would take `http` for the name of a host, and would connect
    to whatever comes before a NUL.
    """
    variable = os.environ.get("CATRACA_TARGET")
    name, text = ("target", target) if target else ("CATRACA_TARGET", variable or DEFAULT_TARGET)
    if web_address := _WEB_ADDRESS.match(text):
        # Only the host, because what surrounds it may be a password.
        hint = web_address[1] if ":" in web_address[1] else f"{web_address[1] or 'HOST'}:50051"
        raise InvalidSetting(f"{name} is a web address: leave out http:// and any path, and write {hint!a}")
    if not text.isprintable() or " " in text:
        # Spaces, control characters, and the surrogates that stand for bytes which are not text.
        raise InvalidSetting(f"{name} {text!a} is not a target: write HOST:PORT, such as {DEFAULT_TARGET}")
    return text


def use_proxy_or_default(use_proxy: bool | None) -> bool:
    """Returns whether to connect through a proxy: as given, else CATRACA_USE_PROXY, else not."""
    return flag_from_environment("CATRACA_USE_PROXY") if use_proxy is None else use_proxy


def flag_from_environment(variable: str) -> bool:
    """Returns what a variable says; false if it is unset or empty. Raises InvalidSetting."""
    text = os.environ.get(variable, "")
    if not text:
        return False
    value = _WORDS.get(text.strip().lower())
    if value is None:
        raise InvalidSetting(f"{variable}={text!a} is neither true nor false: write one of these")
    return value
