"""How the server logs: to stderr, as text for people or as JSON for collectors."""

import json
import logging
import sys
import time

logger = logging.getLogger("catraca_server")


class _Utc(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


class _Json(_Utc):
    def __init__(self, worker: int | None) -> None:
        super().__init__()
        self._worker = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        # An audit line has its words as fields here, and is in text logs the line that people read.
        words = getattr(record, "words", None)
        entry = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            **self._worker,
            "logger": record.name,
            "message": record.getMessage() if words is None else vars(record)["what"],
        }
        if words is not None:
            entry |= {name: value for name, value in words.items() if value}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        # In ASCII: callers chose some of it, and terminals obey more characters than JSON has to escape.
        return json.dumps(entry)


def configure(log_format: str, level: str, *, worker: int | None = None) -> None:
    """Sets up logging for this process; `log_format` is `text` or `json`. A worker's lines have its number."""
    handler = logging.StreamHandler(sys.stderr)
    who = "" if worker is None else f"worker {worker}: "
    text = _Utc(f"%(asctime)s %(levelname)-7s {who}%(message)s")
    handler.setFormatter(_Json(worker) if log_format == "json" else text)
    handler.addFilter(_is_worth_logging)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Drops what the engine logs, with a traceback, for each caller that disconnected before the response was sent."""
    error = record.exc_info[0] if record.exc_info else None
    return error is None or error.__name__ != "ExecuteBatchError"
