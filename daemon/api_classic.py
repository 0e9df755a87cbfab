"""A build as the classic protocol shows it: ``Step 2/5 : …``, ``---> Running in …``, the output, ``---> <id>``, one step after another.

Turns the progress of a build, whose steps run side by side, into that order: what a later step prints waits for its turn. There are no
intermediate images here; the identifiers after ``--->`` are of the steps, the last one is the image's. Builds nothing.
"""

from __future__ import annotations

import codecs
import hashlib
import tempfile
import threading
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Final

from pybuild.builder.arguments import global_arguments
from pybuild.builder.progress import BuildWarning, Event, StepDone, StepLog, StepProgress, StepStarted
from pybuild.builder.stages import StagePlan
from pybuild.errors import PybuildError
from pybuild.layers.digest import Digest
from pybuild.parser.ast import Add, Copy, From, Instruction, Run, Stage, Workdir
from pybuild.values import dataclass, field

from .api_progress import Send, progress_fields
from .machine import host_platform

if TYPE_CHECKING:
    from pybuild.parser import Dockerfile

_IN_MEMORY_BYTES: Final = 256 << 10
_MADE_BY_VERTEX: Final = (Run, Copy, Add, Workdir)


@dataclass(slots=True, eq=False)
class _Line:
    """One instruction in the transcript. ``log``: what it printed before its turn."""

    text: str
    instruction: Instruction
    step: str = ""
    log: IO[bytes] | None = None
    announced: bool = False
    running: bool = False
    done: bool = False
    cached: bool = False
    failed: bool = False
    decoders: dict[int, codecs.IncrementalDecoder] = field(default_factory=dict)

    @property
    def waits(self) -> bool:
        return isinstance(self.instruction, _MADE_BY_VERTEX)


class ClassicTranscript:
    """A Progress. ``dockerfile`` must be called before the first step; ``finish`` or ``fail`` ends it. ``quiet`` drops everything."""

    def __init__(self, send: Send, *, build_args: Mapping[str, str], target: str | None, quiet: bool) -> None:
        self._send = send
        self._build_args = build_args
        self._target = target
        self._quiet = quiet
        self._lock = threading.Lock()
        self._lines: list[_Line] = []
        self._by_line: dict[int, _Line] = {}
        self._by_step: dict[str, _Line] = {}
        self._current = 0
        self._last_id = ""
        self._warnings: list[str] = []

    # --- what happens ------------------------------------------------------------------------------------------------

    def dockerfile(self, dockerfile: Dockerfile) -> None:
        """The build has read its Dockerfile: show the first lines."""
        with self._lock:
            self._lines = [
                _Line(_text_of(instruction), instruction)
                for instruction in instructions_of(dockerfile, build_args=self._build_args, target=self._target)
            ]
            self._by_line = {line.instruction.span.start.line: line for line in self._lines}
            self._advance()

    def emit(self, event: Event) -> None:
        """See Progress."""
        if self._quiet:
            return
        with self._lock:
            match event:
                case StepStarted():
                    line = self._by_line.get(event.lines[0]) if event.lines else None
                    if line is not None:
                        self._by_step[event.step] = line
                        line.step = line.step or event.step
                case StepLog():
                    self._log(event)
                case StepProgress():
                    self._transfer(event)
                case StepDone():
                    self._done(event)
                case BuildWarning():
                    if not event.rule:
                        self._warnings.append(event.message)

    def finish(self, image_id: Digest | None) -> None:
        """The build is over: show the rest."""
        with self._lock:
            if self._quiet:
                return
            for line in self._lines:
                line.done = True
            self._last_id = image_id.hex if image_id is not None else ""
            self._advance(last=True)
            for warning in self._warnings:
                self._stream(f"{warning}\n")

    def fail(self) -> None:
        """The build failed: show what there is up to the instruction that failed."""
        with self._lock:
            if self._quiet:
                return
            failed = next((position for position, line in enumerate(self._lines) if line.failed), None)
            for line in self._lines[: failed if failed is not None else self._current]:
                line.done = True
            self._advance()
            self._close_logs()

    # --- the order ---------------------------------------------------------------------------------------------------

    def _advance(self, *, last: bool = False) -> None:
        """Show what is complete from the current instruction on, and the beginning of the next one."""
        if self._quiet:
            return
        while self._current < len(self._lines):
            line = self._lines[self._current]
            self._announce(line)
            self._release(line)
            if line.failed or (line.waits and not line.done):
                return
            if self._current == len(self._lines) - 1 and not last:
                return  # the identifier to be shown is the image's, which isn't known yet
            self._end(line)
            self._current += 1

    def _announce(self, line: _Line) -> None:
        if not line.announced:
            line.announced = True
            self._stream(f"Step {self._current + 1}/{len(self._lines)} : {line.text}\n")

    def _release(self, line: _Line) -> None:
        log, line.log = line.log, None
        if log is None:
            return
        with log:
            log.seek(0)
            self._run(line)
            while data := log.read(_IN_MEMORY_BYTES):
                self._write(line, 1, data)

    def _run(self, line: _Line) -> None:
        if not line.running and isinstance(line.instruction, Run):
            line.running = True
            self._stream(f" ---> Running in {_short(line.step + 'container')}\n")

    def _end(self, line: _Line) -> None:
        if line.cached:
            self._stream(" ---> Using cache\n")
        elif line.waits and line.step:
            self._run(line)
            if line.running:
                self._stream(f" ---> Removed intermediate container {_short(line.step + 'container')}\n")
        identifier = _short(line.step or f"{self._current} {line.text}")
        if self._current == len(self._lines) - 1 and self._last_id:
            identifier = self._last_id[:12]
        self._stream(f" ---> {identifier}\n")

    # --- events ------------------------------------------------------------------------------------------------------

    def _is_current(self, line: _Line) -> bool:
        return self._current < len(self._lines) and self._lines[self._current] is line

    def _log(self, event: StepLog) -> None:
        line = self._by_step.get(event.step)
        if line is None:
            return
        if self._is_current(line):
            self._run(line)
            self._write(line, event.stream, event.data)
            return
        if line.log is None:
            line.log = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115  # closed when its turn comes, or at the end
        line.log.write(event.data)

    def _write(self, line: _Line, stream: int, data: bytes) -> None:
        decoder = line.decoders.get(stream)
        if decoder is None:
            decoder = line.decoders[stream] = codecs.getincrementaldecoder("utf-8")("replace")
        if text := decoder.decode(data):
            self._stream(text)

    def _transfer(self, event: StepProgress) -> None:
        line = self._by_step.get(event.step)
        if line is None or event.unit != "bytes" or not event.id.startswith("sha256:") or not self._is_current(line):
            return
        identifier = event.id.removeprefix("sha256:")[:12]
        if event.done:
            self._send({"status": "Download complete", "progressDetail": {}, "id": identifier})
        else:
            self._send({"status": "Downloading", **progress_fields(event.current, event.total), "id": identifier})

    def _done(self, event: StepDone) -> None:
        line = self._by_step.get(event.step)
        if line is None:
            return
        line.done = True
        line.cached = event.cached and line.waits
        line.failed = event.error is not None and event.error != "canceled"
        self._advance()

    def _close_logs(self) -> None:
        for line in self._lines:
            if line.log is not None:
                line.log.close()
                line.log = None

    def _stream(self, text: str) -> None:
        self._send({"stream": text})


def instructions_of(dockerfile: Dockerfile, *, build_args: Mapping[str, str], target: str | None) -> list[Instruction]:
    """The instructions of the stages that are going to be built, in the file's order; all up to the target where that can't be told."""
    out: list[Instruction] = list(dockerfile.global_args)
    for stage in _needed(dockerfile, build_args, target):
        out.append(stage.from_)
        out += stage.instructions
    return out


def _needed(dockerfile: Dockerfile, build_args: Mapping[str, str], target: str | None) -> list[Stage]:
    try:
        arguments = global_arguments(dockerfile.global_args, predefined={}, given=build_args)
        plan = StagePlan(dockerfile.stages, arguments=arguments, contexts={}, target=host_platform())
        return [node.stage for node in plan.reachable(plan.find_target(target)) if node.stage is not None]
    except PybuildError:
        return list(dockerfile.stages)  # the build itself will say what is wrong


def _text_of(instruction: Instruction) -> str:
    keyword, space, rest = instruction.text.strip().partition(" ")
    if isinstance(instruction, From):
        return instruction.text.strip()
    return keyword.upper() + space + rest


def _short(text: str) -> str:
    if text.startswith("sha256:") and len(text) == 71:
        return text[7:19]
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]
