"""Progress on a terminal: a block that is redrawn in place, running steps with their last output lines and transfer bars.

Draws only; when the build ends the final block stays, complete, as the record of what happened. Honours ``NO_COLOR``.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import deque
from typing import TextIO

from pybuild.builder.progress import BuildWarning, Event, StepDone, StepLog, StepProgress, StepStarted
from pybuild.values import dataclass, field

from .render_plain import human_bytes

_LOG_LINES = 6
_REDRAW_SECONDS = 0.1
_ESCAPES = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-Z\\-_]|[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(slots=True)
class _Step:
    title: str
    started: float
    ended: float | None = None
    cached: bool = False
    error: str | None = None
    log: deque[str] = field(default_factory=lambda: deque(maxlen=_LOG_LINES))
    partial: bytes = b""
    transfers: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class TtyRenderer:
    """Redraws at most ten times a second from its own thread; ``close()`` draws the last state and stops it."""

    def __init__(self, stream: TextIO, *, color: bool) -> None:
        self._stream = stream
        self._color = color
        self._lock = threading.Lock()
        self._steps: dict[str, _Step] = {}
        self._drawn = 0
        self._begin = time.time()
        self._dirty = False
        self._paused = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="progress", daemon=True)
        self._thread.start()

    def emit(self, event: Event) -> None:
        with self._lock:
            self._dirty, self._paused = True, False
            match event:
                case StepStarted():
                    self._steps.setdefault(event.step, _Step(event.title, event.time))
                case StepLog():
                    self._log(event)
                case StepProgress():
                    step = self._steps.get(event.step)
                    if step is not None:
                        if event.done:
                            step.transfers.pop(event.id, None)
                            if not event.current and not event.total:
                                step.notes.append(event.id)
                        else:
                            step.transfers[event.id] = (event.current, event.total, event.unit)
                case StepDone():
                    step = self._steps.get(event.step)
                    if step is not None and step.ended is None:
                        step.ended, step.cached, step.error = event.time, event.cached, event.error
                case BuildWarning():
                    pass

    def pause(self) -> None:
        """Leave what is drawn where it is, and draw a new block with the next event."""
        with self._lock:
            self._draw(final=True)
            self._dirty, self._paused = False, True

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        with self._lock:
            self._draw(final=True)

    def _log(self, event: StepLog) -> None:
        step = self._steps.get(event.step)
        if step is None:
            return
        *lines, step.partial = (step.partial + event.data).split(b"\n")
        step.partial = step.partial[-4096:]
        for line in lines:
            shown = _ESCAPES.sub(b"", line.rpartition(b"\r")[2] or line.rstrip(b"\r")).decode("utf-8", "replace")
            step.log.append(shown.replace("\t", "    "))

    def _loop(self) -> None:
        while not self._stop.wait(_REDRAW_SECONDS):
            with self._lock:
                running = any(step.ended is None for step in self._steps.values())
                if self._dirty or (running and not self._paused):
                    self._dirty = False
                    self._draw(final=False)

    def _draw(self, *, final: bool) -> None:
        try:
            size = os.get_terminal_size(self._stream.fileno())
            columns, rows = size.columns or 80, size.lines or 24
        except (OSError, ValueError):
            columns, rows = 80, 24
        lines = self._block(columns, final=final)
        if not final and len(lines) > rows - 1:
            # Only what fits can be redrawn: the header and the newest lines.
            lines = [lines[0], *lines[len(lines) - rows + 2 :]]
        out = [f"\x1b[{self._drawn}A" if self._drawn else "", "\r"]
        out.extend(f"\x1b[2K{line}\n" for line in lines)
        if len(lines) < self._drawn:
            out.append("\x1b[J")
        self._drawn = 0 if final else len(lines)
        self._stream.write("".join(out))
        self._stream.flush()

    def _block(self, columns: int, *, final: bool) -> list[str]:
        now = time.time()
        done = sum(step.ended is not None for step in self._steps.values())
        failed = any(step.error is not None for step in self._steps.values())
        finished = " FINISHED" if final and not failed and done == len(self._steps) else ""
        header = f"[+] Building {now - self._begin:.1f}s ({done}/{len(self._steps)}){finished}"
        lines = [self._paint(header[: columns - 1], "31" if failed else "34" if finished else "")]
        for step in self._steps.values():
            lines.extend(self._step_lines(step, columns, now, final=final))
        return lines

    def _step_lines(self, step: _Step, columns: int, now: float, *, final: bool) -> list[str]:
        mark = "CACHED " if step.cached else "ERROR " if step.error is not None else ""
        seconds = f"{max(0.0, (step.ended or now) - step.started):.1f}s"
        room = max(10, columns - len(seconds) - 6)
        title = (mark + step.title)[:room]
        color = "31" if step.error is not None else "34" if step.ended is not None else ""
        lines = [self._paint(f" => {title}", color) + " " * (room - len(title) + 1) + self._paint(seconds, color)]
        lines.extend(f" => => {note}"[: columns - 1] for note in step.notes)
        if step.ended is None and not final:
            for name, (current, total, unit) in list(step.transfers.items())[:8]:
                lines.append(self._bar(name, current, total, unit=unit, columns=columns))
            lines.extend(self._paint(f" => => # {text}"[: columns - 1], "2") for text in step.log)
        return lines

    def _bar(self, name: str, current: int, total: int, *, unit: str, columns: int) -> str:
        label = name if len(name) <= 40 else name[:37] + "…"
        if unit != "bytes":
            return f" => => {label} {current} {unit}"[: columns - 1]
        if not total:
            return f" => => {label} {human_bytes(current)}"[: columns - 1]
        filled = min(20, current * 20 // total)
        return f" => => {label} [{'#' * filled}{' ' * (20 - filled)}] {human_bytes(current)} / {human_bytes(total)}"[
            : columns - 1
        ]

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._color and code else text
