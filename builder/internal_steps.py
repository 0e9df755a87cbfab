"""Events of steps that aren't vertices: reading the Dockerfile and the ignore file. Does none of the work."""

from __future__ import annotations

from collections.abc import Callable

from pybuild.errors import PybuildError
from pybuild.values import dataclass

from .progress import Progress, StepDone, StepProgress, StepStarted, step_of


@dataclass(slots=True)
class InternalSteps:
    """Emits the events of steps that aren't vertices."""

    progress: Progress
    clock: Callable[[], float]

    def begin(self, title: str) -> str:
        """Start a step; gives its identifier."""
        step = step_of(title)
        self.progress.emit(StepStarted(step, title, self.clock()))
        return step

    def count(self, step: str, id: str, amount: int) -> None:
        """``amount`` bytes of ``id`` came over, all there are."""
        self.progress.emit(StepProgress(step, id, amount, amount, True, self.clock()))

    def end(self, step: str, error: PybuildError | None = None) -> None:
        """End a step, with what went wrong."""
        self.progress.emit(StepDone(step, self.clock(), error=None if error is None else error.message))
