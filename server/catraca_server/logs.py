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
        entry = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            **self._worker,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def configure(log_format: str, level: str, *, worker: int | None = None) -> None:
    """Sets up logging for the process; `log_format` is `text` or `json`. Each entry tells the worker, if it is one."""
    handler = logging.StreamHandler(sys.stderr)
    who = "" if worker is None else f"worker {worker}: "
    text = _Utc(f"%(asctime)s %(levelname)-7s {who}%(message)s")
    handler.setFormatter(_Json(worker) if log_format == "json" else text)
    handler.addFilter(_is_news)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _is_news(record: logging.LogRecord) -> bool:
    """Leaves out what the engine logs, with a traceback, about every caller who has gone before the answer was sent."""
    error = record.exc_info[0] if record.exc_info else None
    return error is None or error.__name__ != "ExecuteBatchError"
