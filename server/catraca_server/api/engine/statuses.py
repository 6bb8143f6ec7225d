"""How calls end: statuses, and the metadata that goes with them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

Metadata = Sequence[tuple[str, str | bytes]]
"""Keys are lower case. The value of a key that ends in `-bin` is bytes, that of any other printable ASCII."""

_KEY = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")


@dataclass(frozen=True, slots=True)
class Status:
    """How a call ends; `trailing_metadata` is where `grpc-status-details-bin` goes."""

    code: grpc.StatusCode
    message: str = ""
    trailing_metadata: Metadata = ()
    reason: str = field(default="", compare=False)
    """For the observer; it is not sent."""


class StatusError(Exception):
    """A handler raises this to end its call with a status."""

    def __init__(self, status: Status) -> None:
        if status.code is grpc.StatusCode.OK:
            raise ValueError("OK is not an error")
        super().__init__(status.code.name)
        self.status = status


def checked(metadata: Metadata) -> tuple[tuple[str, str | bytes], ...]:
    """Returns metadata as the core takes it. Raises ValueError if the core would refuse it.

    The core would refuse it only as the operation starts, and would then never free that operation's tag or its call.
    """
    for key, value in metadata:
        if not _KEY.fullmatch(key):
            raise ValueError("a metadata key is not of 0-9 a-z _ . -")
        if key.endswith("-bin"):
            if not isinstance(value, bytes):
                raise ValueError(f"metadata {key} must be bytes")
        elif not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise ValueError(f"metadata {key} must be printable ASCII text")
    return tuple((key, value) for key, value in metadata)
