"""The daemon's log: a line an event, as text or JSON, with fields instead of sentences. Writes to stderr; rotates nothing."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Final

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _Lines(logging.Formatter):
    """``json`` or logfmt."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        level = "warn" if record.levelno == logging.WARNING else record.levelname.lower()
        fields: dict[str, object] = {"time": moment, "level": level, "msg": record.getMessage()}
        fields |= {key: value for key, value in vars(record).items() if key not in _OWN}
        if record.exc_info:
            fields["trace"] = self.formatException(record.exc_info)
        if self._as_json:
            return json.dumps(fields, ensure_ascii=False, default=str)
        return " ".join(f"{key}={_quoted(value)}" for key, value in fields.items())


def _quoted(value: object) -> str:
    text = str(value)
    plain = text and not any(c.isspace() or c in '"=' or not c.isprintable() for c in text)
    return text if plain else json.dumps(text, ensure_ascii=False)


def set_up_log(*, level: str, form: str) -> None:
    """Send what the daemon and its libraries log to stderr. May be called again."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(as_json=form == "json"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("pybuild").setLevel(_LEVELS[level])
    # What clients send that is no HTTP is answered with 400; it is no error of ours and would fill the log with traces.
    logging.getLogger("aiohttp.server").setLevel(logging.DEBUG if level == "debug" else logging.CRITICAL)
