"""Figures about the daemon in Prometheus' text format (version 0.0.4). Counts what it is told; measures its own process."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Final

BUCKETS_SECONDS: Final = (0.005, 0.05, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0)
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters, gauges and durations. Thread-safe."""

    def __init__(self, *, started: float) -> None:
        """``started``: seconds since the epoch."""
        self._lock = threading.Lock()
        self._started = started
        self._counts: dict[tuple[str, Labels], float] = {}
        self._durations: dict[tuple[str, Labels], list[float]] = {}
        self._kinds: dict[str, tuple[str, str]] = {}

    def add(self, name: str, amount: float = 1, *, help: str, kind: str = "counter", **labels: str) -> None:
        """Add to a counter, or (``kind="gauge"``) raise or lower a gauge."""
        with self._lock:
            self._kinds.setdefault(name, (kind, help))
            key = (name, tuple(sorted(labels.items())))
            self._counts[key] = self._counts.get(key, 0) + amount

    def observe(self, name: str, seconds: float, *, help: str, **labels: str) -> None:
        """Put a duration into a histogram."""
        with self._lock:
            self._kinds.setdefault(name, ("histogram", help))
            row = self._durations.setdefault((name, tuple(sorted(labels.items()))), [0.0] * (len(BUCKETS_SECONDS) + 2))
            for position, limit in enumerate(BUCKETS_SECONDS):
                if seconds <= limit:
                    row[position] += 1
            row[-2] += seconds
            row[-1] += 1

    def render(self) -> str:
        """The whole page."""
        return "".join(f"{line}\n" for line in (*self._own(), *self._process()))

    def _own(self) -> list[str]:
        out: list[str] = []
        with self._lock:
            for name, (kind, text) in sorted(self._kinds.items()):
                out += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
                for (key, labels), value in sorted(self._counts.items()):
                    if key == name:
                        out.append(f"{name}{_shown(labels)} {_number(value)}")
                for (key, labels), row in sorted(self._durations.items()):
                    if key != name:
                        continue
                    for position, limit in enumerate(BUCKETS_SECONDS):
                        out.append(f"{name}_bucket{_shown((*labels, ('le', str(limit))))} {_number(row[position])}")
                    out.append(f"{name}_bucket{_shown((*labels, ('le', '+Inf')))} {_number(row[-1])}")
                    out.append(f"{name}_sum{_shown(labels)} {row[-2]:.6f}")
                    out.append(f"{name}_count{_shown(labels)} {_number(row[-1])}")
        return out

    def _process(self) -> Iterator[str]:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        rows = (
            ("process_cpu_seconds_total", "counter", (int(fields[11]) + int(fields[12])) / _TICKS),
            ("process_resident_memory_bytes", "gauge", int(fields[21]) * _PAGE),
            ("process_virtual_memory_bytes", "gauge", int(fields[20])),
            ("process_threads", "gauge", int(fields[17])),
            ("process_open_fds", "gauge", len(os.listdir("/proc/self/fd")) - 1),
            ("process_start_time_seconds", "gauge", self._started),
        )
        for name, kind, value in rows:
            yield f"# TYPE {name} {kind}"
            yield f"{name} {_number(value)}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.6f}"


def _shown(labels: Labels) -> str:
    if not labels:
        return ""
    escaped = ((name, value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")) for name, value in labels)
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"
