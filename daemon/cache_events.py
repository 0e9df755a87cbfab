"""What caches tell while a build runs: steps of their own in the progress, and each place's first trouble as a warning."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pybuild.builder.progress import BuildWarning, Progress, StepDone, StepLog, StepProgress, StepStarted, step_of
from pybuild.errors import PybuildError


class CacheEvents:
    """Emits for the caches of one build. Thread-safe."""

    def __init__(self, progress: Progress, *, clock: Callable[[], float]) -> None:
        self._progress = progress
        self._clock = clock
        self._guard = threading.Lock()
        self._told: set[str] = set()
        self._numbers: dict[str, int] = {}

    def begin(self, title: str) -> str:
        """Start a step; returns its identifier."""
        with self._guard:
            number = self._numbers[title] = self._numbers.get(title, 0) + 1
        step = step_of(f"{title} {number}")
        self._progress.emit(StepStarted(step, title, self._clock()))
        return step

    def count(self, step: str, id: str, amount: int) -> None:
        """A part of a step is done; ``amount`` in bytes."""
        self._progress.emit(StepProgress(step, id, amount, amount, True, self._clock()))

    def say(self, step: str, text: str) -> None:
        """A line of a step."""
        self._progress.emit(StepLog(step, 2, text.encode("utf-8", "surrogateescape") + b"\n", self._clock()))

    def end(self, step: str, error: str | None = None) -> None:
        """The end of a step."""
        self._progress.emit(StepDone(step, self._clock(), error=error))

    def warn(self, message: str) -> None:
        """A warning in the build's list."""
        self._progress.emit(BuildWarning("", message))

    def trouble(self, name: str, error: PybuildError | OSError) -> str:
        """Tell of a place's first trouble; returns the message."""
        message = error.message if isinstance(error, PybuildError) else str(error)
        with self._guard:
            first = name not in self._told
            self._told.add(name)
        if first:
            self._progress.emit(BuildWarning("", f"cache {name}: {message}", trouble=True))
        return message
