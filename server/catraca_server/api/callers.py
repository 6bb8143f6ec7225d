"""Who calls, and what they may do: decided in one place for every method, before any of the request is read.

A caller presents an API key, as `authorization: Bearer <key>`, or a certificate in mutual TLS. If there is a key, the
key alone counts: a certificate does not make up for a key that was revoked.
"""

import asyncio
import logging
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from math import inf
from pathlib import Path
from typing import TypeAlias, TypeVar

from catraca_server.api.call_ids import given_ids
from catraca_server.api.certificates import valid_until
from catraca_server.api.engine import Arrival, Call, Metadata, StatusError
from catraca_server.api.limits import CallerLimits
from catraca_server.api.statuses import status_of
from catraca_server.callers_file import CallersFileError, Stamp, read, stamp_of
from catraca_server.domain.audit import Audit, CallerRefused, NoAudit
from catraca_server.domain.call import Caller, Role
from catraca_server.domain.callers import Callers, read_key
from catraca_server.domain.errors import PermissionDenied, Unauthenticated

logger = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
"""How often to check whether the file has changed, and whether certificates of open streams have expired."""

KNOWN_MAX = 10_000
"""How many credentials are remembered. Beyond that, all are forgotten and looked up again."""

_HEADER = "authorization"
_SCHEME = "bearer "
_UNAUTHENTICATED = status_of(Unauthenticated())

_Known: TypeAlias = tuple[Caller, float]
"""The caller with a credential, and until when it is valid: in seconds since 1970, infinity for a key."""

_Presented = TypeVar("_Presented")


class CallerGuard:
    """Lets in the callers that the callers file names, with the roles that it gives. Raises CallersFileError.

    `method_roles` says which role each method needs, by its path; nobody may call any other method. `now` returns the
    seconds since 1970. `audit` is notified of refused calls. `limits` says how much each caller may do.
    """

    def __init__(
        self,
        path: Path,
        method_roles: Mapping[str, Role],
        *,
        audit: Audit | None = None,
        limits: CallerLimits | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._audit = audit or NoAudit()
        self._limits = limits
        self._now = now
        self._needed = {method.encode(): role for method, role in method_roles.items()}
        self._denied = {role: status_of(PermissionDenied(role)) for role in Role}
        self._stamp: Stamp | None
        entries, self._stamp = read(path)
        self._callers = Callers(entries)
        # Credentials that were presented before, so that most calls cost one dictionary lookup. Only accepted ones are
        # kept: made-up keys must not fill it.
        self._by_header: dict[str, _Known] = {}
        self._by_certificate: dict[bytes, _Known] = {}
        self._open: dict[Call, tuple[Callable[[StatusError], None], float]] = {}
        """What ends each open stream, and until when its caller's credential is valid."""

    def __call__(self, arrival: Arrival) -> Caller:
        """Returns who calls. Raises StatusError: unauthenticated, without the role, or too many calls."""
        header = _header_in(arrival.metadata)
        caller, _ = self._known(arrival, header)
        if self._limits is not None:
            try:
                arrival.on_end = self._limits.admit(caller)
            except StatusError:
                self._tell("OVERLOADED", arrival, caller.name, header)
                raise
        return caller

    @contextmanager
    def watching(self, call: Call, end: Callable[[StatusError], None]) -> Iterator[None]:
        """Calls `end` if the caller of an open stream loses the right to it in the body. Raises it if it has already.

        That happens when its line is removed from the file or loses the role, or when its certificate expires.
        """
        # Checked again, because the file may have changed since the stream was let in.
        _, until = self._known(call, _header_in(call.metadata), call.caller.name)
        self._open[call] = end, until
        try:
            yield
        finally:
            self._open.pop(call, None)

    def check(self) -> None:
        """Reads the file if it has changed, and ends the streams of callers that have lost the right to them.

        If the file cannot be used, the previous callers stay in force, and the log says why.
        """
        changed, now = self._check_file(), self._now()
        for call, (end, until) in list(self._open.items()):
            if (changed or until < now) and not call.cancelled:
                try:
                    self._known(call, _header_in(call.metadata), call.caller.name)
                except StatusError as refused:
                    # Only once: from here on, the stream itself decides how it ends.
                    del self._open[call]
                    end(refused)

    def _check_file(self) -> bool:
        """Reads the file if it has changed. Returns whether it replaced the callers."""
        stamp = stamp_of(self._path)
        if stamp == self._stamp:
            return False
        # Also for an unusable file, so that it is logged only once.
        self._stamp = stamp
        try:
            entries, self._stamp = read(self._path)
        except CallersFileError as error:
            logger.error("callers file not reloaded, the callers of before stay in force: %s", error)  # noqa: TRY400
            return False
        self._callers = Callers(entries)
        self._by_header, self._by_certificate = {}, {}
        logger.info("callers file reloaded: %d entries", len(entries))
        return True

    @asynccontextmanager
    async def following_file(self) -> AsyncIterator[None]:
        """Checks every second in the body."""

        async def follow() -> None:
            while True:
                await asyncio.sleep(CHECK_SECONDS)
                try:
                    self.check()
                except Exception as error:  # noqa: BLE001  whatever it is, the file is checked again
                    # Not what the exception says, which may quote the key of an open stream.
                    where = "".join(traceback.format_tb(error.__traceback__))
                    logger.error(  # noqa: TRY400  as above
                        "defect in checking the callers file, the callers of before stay in force: %s\n%s",
                        type(error).__name__,
                        where,
                    )

        task = asyncio.create_task(follow(), name="callers-file")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def _known(self, call: Arrival | Call, header: str | None, name: str = "") -> _Known:
        """Returns who makes a call. Raises StatusError: unauthenticated, or without the role.

        `name` is the caller's name as of when the call was let in.
        """
        kept = None if header is None else self._by_header.get(header)
        found = kept or (self._of_certificate(call) if header is None else self._of_header(header))
        if found is None:
            self._tell("UNAUTHENTICATED", call, name, header)
            raise StatusError(_UNAUTHENTICATED)
        caller, _ = found
        role = self._needed[call.method]
        if role not in caller.roles:
            self._tell("PERMISSION_DENIED", call, caller.name, header)
            raise StatusError(self._denied[role])
        return found

    def _of_header(self, header: str) -> _Known | None:
        caller = self._callers.with_key(_key_in(header))
        if caller is None:
            return None
        _remember(self._by_header, header, found := (caller, inf))
        return found

    def _of_certificate(self, call: Arrival | Call) -> _Known | None:
        context = call.auth_context()
        (certificate,) = context.get("x509_pem_cert", (b"",))
        found = self._by_certificate.get(certificate) or self._certified(certificate, context)
        # TLS has checked this, but only at the handshake: a connection may outlive its certificate, and a client that
        # resumes a TLS session days later is not asked for a certificate again.
        return None if found is None or found[1] < self._now() else found

    def _certified(self, certificate: bytes, context: Mapping[str, Sequence[bytes]]) -> _Known | None:
        try:
            until = valid_until(certificate)
        except ValueError:
            # There is no certificate, which is the usual case, or its end cannot be read.
            return None
        # Not `peer_identities`, which has names of every kind in one list: an e-mail address or, in a certificate
        # without other names, the common name would be taken for a DNS name.
        uris, dns_names = (
            [name.decode(errors="replace") for name in context.get(key, ())] for key in ("peer_uri", "peer_dns")
        )
        # The authority vouches for this caller. Unless the callers file names it, it has no role.
        caller = self._callers.with_certificate(uris, dns_names) or Caller(
            next(iter((*uris, *dns_names)), "a certificate")
        )
        _remember(self._by_certificate, certificate, found := (caller, until))
        return found

    def _tell(self, reason: str, call: Arrival | Call, caller: str, header: str | None) -> None:
        presented = read_key(_key_in(header or ""))
        key_id = "" if presented is None else presented.key_id
        self._audit.caller_refused(
            CallerRefused(reason, call.method.decode(), caller, key_id, call.peer(), *given_ids(call.metadata))
        )


def _header_in(metadata: Metadata) -> str | None:
    header = None
    for key, value in metadata:
        if key == _HEADER:
            # Of two headers, it would not be clear which one counts.
            header = value if header is None else ""
    assert header is None or isinstance(header, str), "only the values of -bin keys are bytes"
    return header


def _key_in(header: str) -> str:
    return header[len(_SCHEME) :].strip() if header[: len(_SCHEME)].lower() == _SCHEME else ""


def _remember(known: dict[_Presented, _Known], presented: _Presented, found: _Known) -> None:
    if len(known) >= KNOWN_MAX:
        known.clear()
    known[presented] = found
