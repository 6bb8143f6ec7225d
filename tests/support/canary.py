"""Canaries: marked secrets, the outputs of a service and its clients, and a search for the secrets in the outputs."""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import Message
from tests.support.service import ServeProcess
from tests.support.waiting import TIMEOUT_SECONDS

from catraca.v1.session_service_pb2_grpc import SessionServiceStub

MARK = "canary"
PEPPER = f"{MARK}-pepper-{secrets.token_hex(16)}"
PASSWORD = f"{MARK}-password-{secrets.token_hex(8)}"
ATTRIBUTE = f"{MARK}-attribute-{secrets.token_hex(8)}"
BROUGHT = f"{MARK}-brought-{secrets.token_hex(16)}"
MADE_UP_KEY = f"ctrk_{MARK}{secrets.token_hex(32)}"

_MINTED = re.compile(r"ctrk?_[0-9A-Za-z]{71}")
"""Matches any token or key, even one that no test knows."""


@dataclass
class Outputs:
    """All outputs, by where they were found, and all secrets."""

    texts: dict[str, str] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=lambda: [PEPPER, PASSWORD, BROUGHT, MADE_UP_KEY])

    def add(self, where: str, *what: object) -> None:
        """Adds an output: text, bytes, or an object, of which `str` and `repr` are added."""
        texts = [each.decode(errors="replace") if isinstance(each, bytes) else f"{each}\n{each!r}" for each in what]
        self.texts[where] = self.texts.get(where, "") + "\n".join(texts)

    def keep_secret(self, token: str) -> str:
        """Adds a token or a key, both the whole and its secret part."""
        secret = token[token.index("_") + 1 + 22 : -6]
        self.secrets += [token, secret]
        return token

    def found(self, *more: str, but_for: tuple[str, ...] = ()) -> list[tuple[str, str]]:
        """Returns which secrets were found, and where."""
        return [
            (where, secret)
            for where, text in self.texts.items()
            if not where.startswith(but_for or ("\0",))
            for secret in (*self.secrets, *more, *_MINTED.findall(text))
            if secret in text
        ]


@dataclass
class Canary:
    """A service with secrets, and the way to it."""

    process: ServeProcess
    outputs: Outputs
    key: str
    environment: Mapping[str, str]
    stub: SessionServiceStub

    def call(self, method: str, request: Message, **metadata: str) -> Any:
        """Makes a call, adds its metadata and its error to the outputs, and returns the response or the error."""
        sent = {"authorization": f"Bearer {self.key}", "x-request-id": BROUGHT * 2, "traceparent": BROUGHT, **metadata}
        try:
            response, call = getattr(self.stub, method).with_call(
                request, metadata=tuple(sent.items()), timeout=TIMEOUT_SECONDS
            )
        except grpc.RpcError as error:
            failed: Any = error
            self.outputs.add(f"error of {method}", failed, failed.initial_metadata(), failed.trailing_metadata())
            return failed
        self.outputs.add(f"metadata of {method}", call.initial_metadata(), call.trailing_metadata())
        return response
