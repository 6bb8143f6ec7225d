"""What one process has counted. Parts report to it, or are asked when the numbers are read."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from catraca_server.domain.audit import CallerRefused
from catraca_server.domain.call import Call
from catraca_server.domain.events import EndCause, EventType, SessionEvent
from catraca_server.observe.numbers import Histogram, Snapshot, sample

_CALL_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_EXCHANGE_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
_BATCH_COMMANDS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 4096)

CODES = (
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
)
"""The names of the codes in grpc-prometheus, by number."""

_CHANGES = {
    EventType.CREATED: "catraca_sessions_created_total",
    EventType.UPDATED: "catraca_sessions_updated_total",
    EventType.ROTATED: "catraca_sessions_rotated_total",
}


class _Method:
    """The calls of one method."""

    __slots__ = ("handled", "labels", "seconds", "started")

    def __init__(self, path: str, grpc_type: str) -> None:
        service, _, method = path.strip("/").rpartition("/")
        self.labels = {"grpc_type": grpc_type, "grpc_service": service, "grpc_method": method}
        self.started = 0
        self.handled = [0] * len(CODES)
        self.seconds = Histogram(_CALL_SECONDS)


class Metrics:
    """Counts. It is an `Observer` of the engine, a `StoreObserver` and an `Audit`.

    `methods` has the type of each method by its path; calls of any other method count as `unknown`. `reasons` are those
    of errors: each is there before it occurs, so that comparing two readings shows the first error too.
    """

    def __init__(self, methods: Mapping[str, str], reasons: Iterable[str]) -> None:
        self._unknown = _Method("/unknown/unknown", "unary")
        self._methods = {path.encode(): _Method(path, grpc_type) for path, grpc_type in methods.items()}
        self._errors = Counter(dict.fromkeys(reasons, 0))
        self._changes = Counter(dict.fromkeys(_CHANGES.values(), 0))
        self._ended = Counter(dict.fromkeys((cause.name for cause in EndCause), 0))
        self._exchanges = Histogram(_EXCHANGE_SECONDS)
        self._batches = Histogram(_BATCH_COMMANDS)
        self._reconnects = 0
        self._readers: dict[str, Callable[[], Mapping[str, float]]] = {}

    def read_from(self, family: str, read: Callable[[], float | None]) -> None:
        """Registers a function that reads a number whenever all are read. It returns None if there is none."""
        self._readers[family] = lambda: {} if (value := read()) is None else {family: value}

    def read_each_from(self, family: str, label: str, read: Callable[[], Mapping[str, int]]) -> None:
        """Registers a function that reads numbers, by the values of a label, whenever all are read."""
        self._readers[family] = lambda: {sample(family, {label: name}): count for name, count in read().items()}

    def started(self, method: bytes, metadata: object = ()) -> None:
        """Counts a call that came in."""
        del metadata
        self._methods.get(method, self._unknown).started += 1

    def handled(self, observed: object, method: bytes, code: int, reason: str, seconds: float) -> None:
        """Counts a call that has ended."""
        del observed
        counts = self._methods.get(method, self._unknown)
        counts.handled[code] += 1
        counts.seconds.observe(seconds)
        if reason:
            self._errors[reason] += 1

    def exchanged(self, commands: int, seconds: float) -> None:
        """Counts an exchange with the store."""
        self._exchanges.observe(seconds)
        if commands:
            self._batches.observe(commands)

    def reconnected(self) -> None:
        """Counts a connection."""
        self._reconnects += 1

    def session_changed(self, event: SessionEvent, call: Call) -> None:
        """Counts what happened to a session: once, and no event about all sessions of a user."""
        del call
        if event.repeated or not event.session_id:
            return
        if event.cause is not None:
            self._ended[event.cause.name] += 1
        elif event.type in _CHANGES:
            self._changes[_CHANGES[event.type]] += 1

    def caller_refused(self, refused: CallerRefused) -> None:
        """Does nothing: the engine reports the end of the call, with its reason."""

    def invalid_tokens(self, caller: str, count: int) -> None:
        """Does nothing: validations are counted where they are answered, by their outcome."""

    def snapshot(self) -> Snapshot:
        """Returns all numbers."""
        found: Snapshot = {
            "grpc_server_started_total": {},
            "grpc_server_handled_total": {},
            "grpc_server_handling_seconds": {},
        }
        for method in (*self._methods.values(), self._unknown):
            labels = method.labels
            found["grpc_server_started_total"][sample("grpc_server_started_total", labels)] = method.started
            for code, count in zip(CODES, method.handled, strict=True):
                if count:
                    name = sample("grpc_server_handled_total", {**labels, "grpc_code": code})
                    found["grpc_server_handled_total"][name] = count
            found["grpc_server_handling_seconds"] |= method.seconds.samples("grpc_server_handling_seconds", labels)
        found["catraca_errors_total"] = _labelled("catraca_errors_total", "reason", self._errors)
        found |= {name: {name: count} for name, count in self._changes.items()}
        found["catraca_sessions_ended_total"] = _labelled("catraca_sessions_ended_total", "cause", self._ended)
        found["catraca_store_exchange_seconds"] = self._exchanges.samples("catraca_store_exchange_seconds", {})
        found["catraca_store_batch_commands"] = self._batches.samples("catraca_store_batch_commands", {})
        found["catraca_store_reconnects_total"] = {"catraca_store_reconnects_total": self._reconnects}
        found |= {family: dict(read()) for family, read in self._readers.items()}
        found["catraca_workers"] = {"catraca_workers": 1}
        return found


def _labelled(family: str, label: str, counts: Mapping[str, int]) -> dict[str, float]:
    return {sample(family, {label: name.lower()}): count for name, count in counts.items()}
