"""What a build leaves behind for ``pybuild why`` and for explaining the next one: its steps with their keys and reasons.

Owns making the record of a build from its solver's reports. Where records are kept is the ``BuildStore``'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pybuild.layers.builds import BuildRecord, BuildStep

from .graph import Merge
from .request import BuildRequest
from .solver_steps import StepReport
from .why import PreviousStep


class BuildStore(Protocol):
    """Where records of builds are kept."""

    def record(self, build: BuildRecord) -> None: ...

    def last(self, *, subject: str | None = None, before: float | None = None) -> BuildRecord | None: ...


class Recording:
    """One build's record in the making."""

    def __init__(self, *, ref: str, subject: str, started: float) -> None:
        """``ref``: the build's identifier; ``subject``: equal for builds that compare; ``started``: seconds since the epoch."""
        self.ref = ref
        self.subject = subject
        self.started = started
        self._reports: list[StepReport] = []

    def add(self, reports: Sequence[StepReport]) -> None:
        """Take over what a solver tells of its steps; those that merely give files to others are left out."""
        self._reports += [
            report for report in reports if not report.step.is_source and not isinstance(report.step.op, Merge)
        ]

    def finish(
        self,
        store: BuildStore,
        *,
        finished: float,
        names: Sequence[str] = (),
        result: str = "",
        error: str = "",
    ) -> None:
        """Keep the record; nothing is kept if no step was reached."""
        if not self._reports:
            return
        steps: list[BuildStep] = []
        for report in self._reports:
            note, key = report.vertex.note, report.key
            steps.append(
                BuildStep(
                    step=report.id,
                    title=note.title,
                    instruction=note.instruction,
                    stage=note.stage,
                    lines=note.lines,
                    key=key,
                    recipe=report.recipe,
                    cached=report.cached,
                    reason=report.reason,
                    seconds=max(0.0, report.finished - report.started),
                    error=report.error,
                    platform="" if note.platform is None else str(note.platform),
                )
            )
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
    if request.definition is not None:
        where = f"{request.directory} (described in Python)"
    return f"{where} | {request.dockerfile or 'Dockerfile'} | {request.target or ''} | {platforms}"


def previous_steps(store: BuildStore, subject: str, *, before: float | None = None) -> list[PreviousStep]:
    """The steps of the last build of ``subject`` (that started before ``before``), for an Explainer."""
    found = store.last(subject=subject, before=before)
    if found is None:
        return []
    steps = {(step.platform, step.title): step for step in found.steps}
    if found.error:
        # It may not have reached everything: of what it didn't reach, the build before it knows.
        older = store.last(subject=subject, before=found.started)
        for step in () if older is None else older.steps:
            steps.setdefault((step.platform, step.title), step)
    return [
        PreviousStep(step.stage, step.instruction, step.title, step.key, step.recipe, step.platform, step.error)
        for step in steps.values()
    ]
