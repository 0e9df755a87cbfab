"""Plain progress: BuildKit's line format, for logs and for tools that parse them. Steps keep their number for the whole build."""

from __future__ import annotations

import threading
from typing import TextIO

from pybuild.builder.progress import BuildWarning, Event, StepDone, StepLog, StepProgress, StepStarted
from pybuild.values import dataclass, field

_NO_NEWS = frozenset({"first build here", "a new step", "the cache is off for this step"})
"""Reasons that whoever started the build knows already."""


def human_bytes(count: float) -> str:
    """``12.34kB``: powers of 1000 with two decimals, as BuildKit prints transfers."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f}{unit}" if unit == "B" else f"{count:.2f}{unit}"
        count /= 1000
    raise AssertionError("unreachable")


@dataclass(slots=True)
class _Step:
    number: int
    title: str
    started: float
    partial: dict[int, bytearray] = field(default_factory=dict)
    transfers: dict[str, int] = field(default_factory=dict)
    ended: bool = False


class PlainRenderer:
    """Writes each event as lines to ``stream``; the block of another step is separated by a blank line, as BuildKit does."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._steps: dict[str, _Step] = {}
        self._current: _Step | None = None
        self._begun = False

    def emit(self, event: Event) -> None:
        with self._lock:
            match event:
                case StepStarted():
                    self._start(event)
                case StepLog():
                    self._log(event)
                case StepProgress():
                    self._progress(event)
                case StepDone():
                    self._done(event)
                case BuildWarning():
                    pass  # listed at the end, see report_warnings
            self._stream.flush()

    def pause(self) -> None:
        """Nothing is drawn between events."""

    def close(self) -> None:
        """Flush what processes wrote without a final newline."""
        with self._lock:
            for step in self._steps.values():
                self._flush_partial(step, 0.0)
            self._stream.flush()

    def _line(self, step: _Step, text: str | None) -> None:
        """Write a line of a step (None: just its title), after saying that another one is left."""
        if self._current is not step:
            if self._current is not None:
                self._stream.write(f"#{self._current.number} ...\n")
            self._stream.write(f"{chr(10) if self._begun else ''}#{step.number} {step.title}\n")
            self._begun = True
            self._current = step
        if text is not None:
            self._stream.write(f"#{step.number} {text}\n")

    def _start(self, event: StepStarted) -> None:
        known = self._steps.get(event.step)
        if known is not None:
            return
        step = _Step(number=len(self._steps) + 1, title=event.title, started=event.time)
        self._steps[event.step] = step
        self._line(step, None)

    def _log(self, event: StepLog) -> None:
        step = self._steps.get(event.step)
        if step is None:
            return
        whole, newline, rest = event.data.rpartition(b"\n")
        if newline:
            beginning = step.partial.pop(event.stream, b"")
            seconds = f"{max(0.0, event.time - step.started):.3f} "
            shown = "\n".join([f"#{step.number} {seconds}{text}".rstrip() for text in _printable(beginning + whole)])
            self._line(step, None)
            self._stream.write(shown + "\n")
        if rest:
            # Programs write megabytes without a newline: what is kept of a line only grows at its end.
            step.partial.setdefault(event.stream, bytearray()).extend(rest)

    def _flush_partial(self, step: _Step, now: float) -> None:
        for data in step.partial.values():
            for text in _printable(data):
                self._line(step, f"{max(0.0, now - step.started):.3f} {text}".rstrip())
        step.partial.clear()

    def _progress(self, event: StepProgress) -> None:
        step = self._steps.get(event.step)
        if step is None:
            return
        amount = human_bytes(event.current) if event.unit == "bytes" else f"{event.current} {event.unit}"
        if event.done:
            self._line(step, f"{event.id} {amount} done" if event.current or event.total else f"{event.id} done")
            step.transfers.pop(event.id, None)
            return
        # A line a percent or more would drown a log: one for each quarter is enough.
        quarter = event.current * 4 // event.total if event.total else event.current >> 26
        if step.transfers.get(event.id) != quarter and event.current:
            step.transfers[event.id] = quarter
            total = f" / {human_bytes(event.total)}" if event.total and event.unit == "bytes" else ""
            self._line(step, f"{event.id} {amount}{total}")

    def _done(self, event: StepDone) -> None:
        step = self._steps.get(event.step)
        if step is None or step.ended:
            return
        step.ended = True
        self._flush_partial(step, event.time)
        if event.cached:
            self._line(step, "CACHED")
        elif event.error is not None:
            from .report import visible

            canceled = event.error.endswith("context canceled")
            self._line(step, "CANCELED" if canceled else f"ERROR: {visible(event.error)}")
        else:
            if event.reason and event.reason not in _NO_NEWS:
                self._line(step, f"reason: {event.reason}")
            self._line(step, f"DONE {max(0.0, event.time - step.started):.1f}s")
        self._current = None


def _printable(data: bytes | bytearray) -> list[str]:
    """The lines of ``data``, for people: of a line that was drawn again after carriage returns (a progress bar), what a terminal shows last."""
    lines = data.decode("utf-8", "replace").split("\n")
    return [line.rstrip("\r").rpartition("\r")[2] for line in lines] if b"\r" in data else lines
