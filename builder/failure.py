"""How a failed build is told: the failed step with its last output, the Dockerfile's lines around it, one sentence. Formats only."""

from __future__ import annotations

from pybuild.errors import PybuildError
from pybuild.parser import Dockerfile
from pybuild.parser.errors import DockerfileError, excerpt

from .check_rules import CheckViolations
from .solver_steps import StepFailed

_RULE = "------"


class BuildFailed(PybuildError):
    """A build ended without a result. ``reason``: the message without what clients put in front of it; ``title``: the failed step's, ``output``:
    its last lines, ``place``: the listing of the Dockerfile, ``lines``: which of its lines."""

    def __init__(
        self,
        message: str,
        *,
        hint: str | None,
        title: str = "",
        output: tuple[str, ...] = (),
        times: tuple[str, ...] = (),
        place: str = "",
        lines: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(f"failed to build: failed to solve: {message}", hint=hint)
        self.reason = message
        self.lines = lines
        self.title = title
        self.output = output
        self._times = times
        self.place = place

    @classmethod
    def of_dockerfile(cls, error: DockerfileError) -> BuildFailed:
        """The Dockerfile itself is wrong."""
        return cls(
            error.message,
            hint=error.hint,
            place=error.excerpt(),
            lines=error.lines,
        )

    @classmethod
    def of_step(cls, error: PybuildError, dockerfile: Dockerfile | None) -> BuildFailed:
        """A step, or something around the steps, went wrong."""
        if isinstance(error, CheckViolations) and dockerfile is not None and error.lines is not None:
            place = excerpt(dockerfile.text, error.lines, filename=dockerfile.filename)
            return cls(error.message, hint=error.hint, place=place, lines=error.lines)
        if not isinstance(error, StepFailed):
            return cls(error.message, hint=error.hint)
        note = error.vertex.note
        lines = note.lines
        place = (
            excerpt(dockerfile.text, lines, filename=dockerfile.filename) if dockerfile is not None and lines else ""
        )
        output = tuple(line.decode("utf-8", "replace") for line in error.output)
        return cls(
            error.message,
            hint=error.hint,
            title=note.title,
            output=output,
            times=error.times,
            place=place,
            lines=lines,
        )

    def listing(self) -> str:
        """What is shown above the error's line."""
        parts: list[str] = []
        if self.title:
            output = [f"{time} {line}" if time else line for time, line in zip(self._times, self.output, strict=True)]
            parts += [_RULE, f" > {self.title}:", *output, _RULE]
        if self.place:
            parts.append(self.place.rstrip("\n"))
        return "\n".join(parts)
