"""`python -m bench door`: what a validation costs on a service that knows its callers, tells what it does and encrypts.

All servers run at the same time, on one core, over the same sessions in one store, and take turns. Each row has
everything that the row above it has, and one thing more; but in the last row a certificate replaces the key.
"""

import secrets
import socket
import ssl
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.certificates import Authority

from bench.checkouts import THIS
from bench.closed_loop import Load
from bench.http2 import OPEN, Access
from bench.measure import Contestant, Plan, Row, measure
from bench.processes import find_cores
from bench.report import Results, Table
from bench.sessions import log_in, single_validations
from bench.store import Store, temporary_store
from bench.validation import SESSIONS
from catraca_server import callers_file
from catraca_server.domain.call import Caller, Role
from catraca_server.domain.callers import DnsPattern, Entry, new_key

_CALLER = Caller("bench", frozenset({Role.VALIDATE}))
_CLIENT_NAME = "bench.test"


@dataclass(frozen=True)
class _Door:
    name: str
    settings: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the server, in addition to the store's."""
    access: Access = OPEN
    watched: bool = True
    """Whether it has metrics and audit."""

    def contestant(self, store: Store, load: Load) -> Contestant:
        """Describes the server, and the one row of it."""
        told = {"CATRACA_METRICS_PORT": str(_free_port()), "CATRACA_AUDIT": "true"} if self.watched else {}
        return Contestant(THIS.serve(store.url), [Row(self.name, load, access=self.access)], {**self.settings, **told})


def compare_doors(plan: Plan, *, progress: Callable[[str], None]) -> Results:
    """Measures one validation a call by 64 callers, from an open server without TLS to one with mutual TLS."""
    cores = find_cores()
    with temporary_store(core=cores.load) as store, tempfile.TemporaryDirectory() as directory:
        progress("creating sessions")
        sessions = log_in(SESSIONS, THIS, store.url, core=cores.server)
        load = single_validations([session.token for session in sessions])
        doors = _doors(Path(directory))
        group = [door.contestant(store, load) for door in doors]
        measurements = measure([group], plan, cores=cores, store=store.running, progress=progress)
    return Results(plan, cores, store.version, [Table("The door", [door.name for door in doors])], measurements)


def _doors(directory: Path) -> list[_Door]:
    authority = Authority()
    certificate, key, ca, callers = (directory / name for name in ("tls.crt", "tls.key", "ca.crt", "callers"))
    authority.server().write(certificate, key)
    ca.write_bytes(authority.pem)
    api_key, record = new_key(secrets.token_bytes)
    callers_file.add(callers, Entry(_CALLER, record))
    callers_file.add(callers, Entry(_CALLER, DnsPattern(_CLIENT_NAME)))
    trusting, known = _context(ca), _context(ca)
    client, client_key = directory / "client.crt", directory / "client.key"
    authority.client(dns=_CLIENT_NAME).write(client, client_key)
    known.load_cert_chain(client, client_key)
    knowing = {"CATRACA_CALLERS_FILE": str(callers)}
    encrypting = {**knowing, "CATRACA_TLS_CERT": str(certificate), "CATRACA_TLS_KEY": str(key)}
    return [
        _Door("open, in clear", watched=False),
        _Door("metrics and audit"),
        _Door("metrics, audit, API key", knowing, Access(api_key=api_key)),
        _Door("the same over TLS", encrypting, Access(trusting, api_key)),
        _Door("mutual TLS, no key", {**encrypting, "CATRACA_TLS_CLIENT_CA": str(ca)}, Access(known)),
    ]


def _context(ca: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(["h2"])
    return context


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port
