"""Chooses how a build's progress is shown, and prints the list of warnings at its end."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, TextIO

from pybuild.builder.progress import BuildWarning, Event
from pybuild.errors import UsageError

MODES = ("auto", "plain", "tty", "quiet", "rawjson")


class Renderer(Protocol):
    """A ``builder.progress.Progress`` with an end."""

    def emit(self, event: Event) -> None: ...

    def close(self) -> None: ...

    def pause(self) -> None:
        """Leave the terminal to somebody else until the next event."""


def renderer_for(mode: str, *, variables: Mapping[str, str], stream: TextIO | None = None) -> Renderer:
    """The renderer for ``--progress=MODE``; ``auto`` is ``tty`` on a terminal and ``plain`` elsewhere. Raises UsageError."""
    out = sys.stderr if stream is None else stream
    if mode not in MODES:
        raise UsageError(f"unknown progress mode {mode!r}", hint=f"use one of {', '.join(MODES)}")
    if mode == "auto":
        mode = "tty" if out.isatty() and variables.get("TERM", "") != "dumb" else "plain"
    match mode:
        case "tty":
            from .render_tty import TtyRenderer

            return TtyRenderer(out, color=not variables.get("NO_COLOR"))
        case "quiet":
            from .render_quiet import QuietRenderer

            return QuietRenderer()
        case "rawjson":
            from .render_json import JsonRenderer

            return JsonRenderer(out)
        case _:
            from .render_plain import PlainRenderer

            return PlainRenderer(out)


class Collecting:
    """Passes events on to another Progress and keeps the warnings, each finding once."""

    def __init__(self, inner: Renderer) -> None:
        self._inner = inner
        self._warnings: dict[tuple[str, str, tuple[int, int] | None], BuildWarning] = {}
        self._guard = threading.Lock()
        self._held: list[Event] | None = None

    @contextmanager
    def suspended(self, text: str) -> Iterator[None]:
        """Show ``text``, then nothing until the context ends; what happens meanwhile is shown afterwards."""
        with self._guard:
            self._held = []
            self._inner.pause()
        print(text, file=sys.stderr, flush=True)
        try:
            yield
        finally:
            with self._guard:
                held, self._held = self._held, None
                for event in held:
                    self._inner.emit(event)

    def emit(self, event: Event) -> None:
        if isinstance(event, BuildWarning):
            key = (event.rule, event.message, event.lines)
            if key in self._warnings:
                return
            self._warnings[key] = event
        with self._guard:
            if self._held is not None:
                self._held.append(event)
                return
        self._inner.emit(event)

    @property
    def warnings(self) -> tuple[BuildWarning, ...]:
        return tuple(self._warnings.values())


def report_warnings(warnings: Sequence[BuildWarning] | Iterable[BuildWarning], *, stream: TextIO | None = None) -> None:
    """Print the findings as Docker does at the end of a build: one line each, ``- Rule: message (line N)``."""
    found = list(warnings)
    if not found:
        return
    out = sys.stderr if stream is None else stream
    noun = "warning" if len(found) == 1 else "warnings"
    print(f"\n {len(found)} {noun} found:", file=out)
    for warning in found:
        rule = f"{warning.rule}: " if warning.rule else ""
        place = f" (line {warning.lines[0]})" if warning.lines else ""
        print(f" - {rule}{warning.message}{place}", file=out)
