"""What a build leaves behind for ``pybuild why`` and for explaining the next one: its steps with their keys and reasons.

Owns collecting them from the events of a running build. Where records are kept is the ``BuildStore``'s business.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from pybuild.layers.builds import BuildRecord, BuildStep
from pybuild.values import dataclass

from .graph import ContextSource, ImageSource, Note, Vertex
from .progress import Event, Progress, StepDone, StepStarted
from .request import BuildRequest
from .solver_steps import topological
from .why import PreviousStep


class BuildStore(Protocol):
    """Where records of builds are kept."""

    def record(self, build: BuildRecord) -> None: ...

    def last(self, *, subject: str | None = None, before: float | None = None) -> BuildRecord | None: ...


@dataclass(slots=True)
class _Seen:
    started: StepStarted
    done: StepDone | None = None


class Recording:
    """A Progress that passes events on and remembers the steps."""

    def __init__(self, inner: Progress, *, ref: str, subject: str, started: float) -> None:
        """``ref``: the build's identifier; ``subject``: equal for builds that compare; ``started``: seconds since the epoch."""
        self._inner = inner
        self._lock = threading.Lock()
        self._seen: dict[str, _Seen] = {}
        self._notes: dict[str, Note] = {}
        self.ref = ref
        self.subject = subject
        self.started = started

    def emit(self, event: Event) -> None:
        if isinstance(event, StepStarted):
            with self._lock:
                self._seen.setdefault(event.step, _Seen(event))
        elif isinstance(event, StepDone):
            with self._lock:
                seen = self._seen.get(event.step)
                if seen is not None and seen.done is None:
                    seen.done = event
        self._inner.emit(event)

    def expect(self, targets: Sequence[Vertex]) -> None:
        """Tell which vertices are going to be solved: only their steps are recorded, without what merely gives them files."""
        for vertex in topological(targets):
            if isinstance(vertex.op, (ContextSource, ImageSource)):
                continue
            self._notes.setdefault(vertex.note.title, vertex.note)

    def finish(
        self,
        store: BuildStore,
        *,
        finished: float,
        recipe_of: Callable[[str], str | None],
        names: Sequence[str] = (),
        result: str = "",
        error: str = "",
    ) -> None:
        """Keep the record. ``recipe_of`` gives the recorded recipe of a step's key; nothing is kept if no step was seen."""
        steps: list[BuildStep] = []
        for key, seen in self._seen.items():
            note = self._notes.get(seen.started.title)
            if note is None:
                continue
            done = seen.done
            steps.append(
                BuildStep(
                    step=key,
                    title=note.title,
                    instruction=note.instruction,
                    stage=note.stage,
                    lines=note.lines,
                    key=key,
                    recipe=recipe_of(key) or "",
                    cached=done is not None and done.cached,
                    reason="" if done is None else done.reason,
                    seconds=0.0 if done is None else max(0.0, done.time - seen.started.time),
                    error="" if done is None else done.error or "",
                    platform="" if note.platform is None else str(note.platform),
                )
            )
        if not steps:
            return
        store.record(
            BuildRecord(
                ref=self.ref,
                subject=self.subject,
                started=self.started,
                finished=finished,
                names=tuple(names),
                result=result,
                error=error,
                steps=tuple(steps),
            )
        )


def subject_of(request: BuildRequest) -> str:
    """What is built, in words that are equal for builds that can be compared."""
    platforms = ",".join(str(platform) for platform in request.platforms)
    where = request.context if "://" in request.context else f"{request.directory}/{request.context}"
    return f"{where} | {request.dockerfile or 'Dockerfile'} | {request.target or ''} | {platforms}"


def previous_steps(store: BuildStore, subject: str, *, before: float | None = None) -> list[PreviousStep]:
    """The steps of the last build of ``subject`` (that started before ``before``), for an Explainer."""
    found = store.last(subject=subject, before=before)
    if found is None:
        return []
    return [PreviousStep(step.stage, step.instruction, step.title, step.key, step.recipe) for step in found.steps]
