"""Who calls, and whether they may: decided for every method in one place, before anything of the request is read.

A caller presents an API key, as `authorization: Bearer <key>`, or a certificate in mutual TLS. If there is a key, the
key alone counts: a certificate does not make up for a key that was revoked.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeAlias, TypeVar

from catraca_server.api.call_ids import given_ids
from catraca_server.api.certificates import valid_until
from catraca_server.api.engine import Arrival, StatusError
from catraca_server.api.limits import CallerLimits
from catraca_server.api.statuses import status_of
from catraca_server.callers_file import CallersFileError, Stamp, read, stamp_of
from catraca_server.domain.audit import Audit, CallerRefused, NoAudit
from catraca_server.domain.call import Caller, Role
from catraca_server.domain.callers import Callers, read_key
from catraca_server.domain.errors import PermissionDenied, Unauthenticated

logger = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
"""How often the file is looked at."""

KNOWN_MAX = 10_000
"""Credentials that are remembered; beyond that all are forgotten, and read once more."""

_HEADER = "authorization"
_SCHEME = "bearer "
_UNAUTHENTICATED = status_of(Unauthenticated())

_Certified: TypeAlias = tuple[Caller, float]
"""Whose a certificate is, and until when."""

_Presented = TypeVar("_Presented")
_Found = TypeVar("_Found")


class CallerGuard:
    """Lets in who the callers file names, with the roles that it gives. Raises CallersFileError.

    `method_roles` says which role each method needs, by its path; nobody may call a method that is not there. `now`
    returns the seconds since 1970. `audit` is told of refused calls. `limits` has how much each caller may do.
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
        # What was presented before, so that most calls cost a look into a dictionary. Only what was accepted is kept:
        # made-up keys must not fill it.
        self._by_header: dict[str, Caller] = {}
        self._by_certificate: dict[bytes, _Certified] = {}

    def __call__(self, arrival: Arrival) -> Caller:
        """Returns who calls. Raises StatusError: unauthenticated, without the role, or too many calls."""
        header = None
        for key, value in arrival.metadata:
            if key == _HEADER:
                # Of two, nobody could say which one counts.
                header = value if header is None else ""
        assert header is None or isinstance(header, str), "only the values of -bin keys are bytes"
        caller: Caller | None
        if header is None:
            caller = self._of_certificate(arrival)
        else:
            caller = self._by_header.get(header) or self._of_header(header)
        if caller is None:
            self._tell("UNAUTHENTICATED", arrival, "", header)
            raise StatusError(_UNAUTHENTICATED)
        role = self._needed[arrival.method]
        if role not in caller.roles:
            self._tell("PERMISSION_DENIED", arrival, caller.name, header)
            raise StatusError(self._denied[role])
        if self._limits is not None:
            try:
                arrival.on_end = self._limits.admit(caller)
            except StatusError:
                self._tell("OVERLOADED", arrival, caller.name, header)
                raise
        return caller

    def check_file(self) -> None:
        """Reads the file if it has changed. If it cannot be used, the callers of before stay, and the log says why."""
        stamp = stamp_of(self._path)
        if stamp == self._stamp:
            return
        # Also of a file that cannot be used, which is logged once.
        self._stamp = stamp
        try:
            entries, self._stamp = read(self._path)
        except CallersFileError as error:
            logger.error("callers file not reloaded, the callers of before stay in force: %s", error)  # noqa: TRY400
            return
        self._callers = Callers(entries)
        self._by_header, self._by_certificate = {}, {}
        logger.info("callers file reloaded: %d entries", len(entries))

    @asynccontextmanager
    async def following_file(self) -> AsyncIterator[None]:
        """Looks at the file every second in the body."""

        async def follow() -> None:
            while True:
                await asyncio.sleep(CHECK_SECONDS)
                self.check_file()

        task = asyncio.create_task(follow(), name="callers-file")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def _of_header(self, header: str) -> Caller | None:
        caller = self._callers.with_key(_key_in(header))
        if caller is not None:
            _remember(self._by_header, header, caller)
        return caller

    def _of_certificate(self, arrival: Arrival) -> Caller | None:
        context = arrival.auth_context()
        (certificate,) = context.get("x509_pem_cert", (b"",))
        found = self._by_certificate.get(certificate) or self._certified(certificate, context)
        # TLS has checked this, but only at the handshake: a connection may outlive its certificate, and whoever
        # resumes a TLS session days later is not asked for one again.
        return None if found is None or found[1] < self._now() else found[0]

    def _certified(self, certificate: bytes, context: Mapping[str, Sequence[bytes]]) -> _Certified | None:
        try:
            until = valid_until(certificate)
        except ValueError:
            # There is none, which is the usual case, or nobody can say until when it is valid.
            return None
        # Not `peer_identities`, which has names of every kind in one list: an e-mail address or, in a certificate
        # without other names, the common name would be taken for a DNS name.
        uris, dns_names = (
            [name.decode(errors="replace") for name in context.get(key, ())] for key in ("peer_uri", "peer_dns")
        )
        # The authority knows who it is. Unless the file names it, nobody has given it a role.
        caller = self._callers.with_certificate(uris, dns_names) or Caller(
            next(iter((*uris, *dns_names)), "a certificate")
        )
        _remember(self._by_certificate, certificate, (caller, until))
        return caller, until

    def _tell(self, reason: str, arrival: Arrival, caller: str, header: str | None) -> None:
        presented = read_key(_key_in(header or ""))
        key_id = "" if presented is None else presented.key_id
        self._audit.caller_refused(
            CallerRefused(reason, arrival.method.decode(), caller, key_id, arrival.peer(), *given_ids(arrival.metadata))
        )


def _key_in(header: str) -> str:
    return header[len(_SCHEME) :].strip() if header[: len(_SCHEME)].lower() == _SCHEME else ""


def _remember(known: dict[_Presented, _Found], presented: _Presented, found: _Found) -> None:
    if len(known) >= KNOWN_MAX:
        known.clear()
    known[presented] = found
