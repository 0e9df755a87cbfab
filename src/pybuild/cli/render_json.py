"""``--progress=rawjson``: BuildKit's status stream, one JSON object a line, for tools.

Each line is a ``SolveStatus``: ``vertexes`` (digest, name, inputs, started, completed, cached, error), ``statuses`` (id, vertex,
name, current, total, timestamp, started, completed), ``logs`` (vertex, stream, data in base64, timestamp), ``warnings``.
"""

from __future__ import annotations

import base64
import json
import threading
from datetime import UTC, datetime
from typing import Any, TextIO

from pybuild.builder.progress import BuildWarning, Event, StepDone, StepLog, StepProgress, StepStarted


def rfc3339(time: float) -> str:
    """Seconds since the epoch as RFC 3339 with microseconds, in UTC."""
    return datetime.fromtimestamp(time, UTC).isoformat().replace("+00:00", "Z")


class JsonRenderer:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._vertexes: dict[str, dict[str, Any]] = {}  # Any: the JSON edge
        self._started: dict[tuple[str, str], float] = {}

    def emit(self, event: Event) -> None:
        with self._lock:
            self._stream.write(json.dumps(self._status(event), separators=(",", ":")) + "\n")
            self._stream.flush()

    def close(self) -> None:
        return None

    def pause(self) -> None:
        return None

    def _status(self, event: Event) -> dict[str, Any]:  # Any: the JSON edge
        match event:
            case StepStarted():
                vertex: dict[str, Any] = {"digest": event.step, "name": event.title, "started": rfc3339(event.time)}
                if event.inputs:
                    vertex["inputs"] = list(event.inputs)
                self._vertexes[event.step] = vertex
                return {"vertexes": [vertex]}
            case StepDone():
                vertex = dict(self._vertexes.get(event.step, {"digest": event.step, "name": ""}))
                vertex["completed"] = rfc3339(event.time)
                if event.cached:
                    vertex["cached"] = True
                if event.error is not None:
                    vertex["error"] = event.error
                return {"vertexes": [vertex]}
            case StepLog():
                data = base64.b64encode(event.data).decode("ascii")
                return {
                    "logs": [
                        {"vertex": event.step, "stream": event.stream, "data": data, "timestamp": rfc3339(event.time)}
                    ]
                }
            case StepProgress():
                started = self._started.setdefault((event.step, event.id), event.time)
                status: dict[str, Any] = {
                    "id": event.id,
                    "vertex": event.step,
                    "current": event.current,
                    "timestamp": rfc3339(event.time),
                    "started": rfc3339(started),
                }
                if event.total:
                    status["total"] = event.total
                if event.done:
                    status["completed"] = rfc3339(event.time)
                return {"statuses": [status]}
            case BuildWarning():
                warning: dict[str, Any] = {
                    "vertex": event.step,
                    "level": 1,
                    "short": base64.b64encode(f"{event.rule}: {event.message}".encode("utf-8", "replace")).decode(
                        "ascii"
                    ),
                    "detail": [base64.b64encode(event.detail.encode("utf-8", "replace")).decode("ascii")]
                    if event.detail
                    else None,
                    "url": event.url,
                }
                if event.lines is not None:
                    first, last = event.lines
                    warning["range"] = [{"start": {"line": first}, "end": {"line": last}}]
                return {"warnings": [warning]}
