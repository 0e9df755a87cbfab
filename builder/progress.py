"""What a build tells about itself while it runs: events as values. Nothing here prints.

The vocabulary is BuildKit's status stream (vertexes, statuses, logs, warnings), so that ``rawjson`` is a plain mapping.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

from pybuild.values import dataclass, replace


@dataclass(frozen=True, slots=True)
class StepStarted:
    """``step`` identifies the step within this build (a digest's text); ``inputs`` are other steps' identifiers."""

    step: str
    title: str
    time: float
    inputs: tuple[str, ...] = ()
    lines: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class StepLog:
    """Output of a step: ``stream`` 1 or 2, ``data`` as the process wrote it."""

    step: str
    stream: int
    data: bytes
    time: float


@dataclass(frozen=True, slots=True)
class StepProgress:
    """A transfer or another countable part of a step; ``total`` 0 if unknown; ``done`` True once, at its end. Unit: bytes unless
    ``unit`` says otherwise."""

    step: str
    id: str
    current: int
    total: int
    done: bool
    time: float
    unit: str = "bytes"


@dataclass(frozen=True, slots=True)
class StepDone:
    """The end of a step. ``cached``: nothing ran. ``reason``: why it was not cached, in words, when known."""

    step: str
    time: float
    cached: bool = False
    error: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class BuildWarning:
    """A finding of the build checks or a trouble that doesn't stop the build. ``trouble``: something that was asked for wasn't done."""

    rule: str
    message: str
    lines: tuple[int, int] | None = None
    url: str = ""
    detail: str = ""
    step: str = ""
    trouble: bool = False


def step_of(text: str) -> str:
    """The identifier of a step that has no key, from what tells it from all others in its build."""
    from hashlib import sha256

    return f"sha256:{sha256(text.encode('utf-8', 'surrogateescape'), usedforsecurity=False).hexdigest()}"


Event: TypeAlias = StepStarted | StepLog | StepProgress | StepDone | BuildWarning


class Progress(Protocol):
    """Receives events, from any thread, in order per step; must not block for long and never raises."""

    def emit(self, event: Event) -> None: ...


class Silent:
    """A Progress that drops everything."""

    def emit(self, event: Event) -> None:
        return None


class Again:
    """A Progress for doing over what was told of already: its steps are other steps."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def emit(self, event: Event) -> None:
        step = event.step and step_of(f"{event.step} again")
        if isinstance(event, StepStarted):
            event = replace(event, inputs=tuple(step_of(f"{key} again") for key in event.inputs))
        self._progress.emit(replace(event, step=step))
