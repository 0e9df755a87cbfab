"""The engine's end of the launcher process: starts it once, hands it steps, notices when it is gone.

Makes no privileged system call itself (``daemon/sandbox.py``, which runs in the launcher, does) and interprets neither requests nor
what a step prints.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from pybuild.errors import PybuildError
from pybuild.values import dataclass

if TYPE_CHECKING:
    from .sandbox import Request


class LauncherError(PybuildError):
    """The launcher process can't be started or has gone."""


@dataclass(frozen=True, slots=True)
class StepReady:
    """The step is set up and its program is about to be executed. ``stubs``: what was made in the root for mounts, as (path,
    is a directory); ``descriptors``: a listening socket per SocketMount in order, then a terminal's master if one was asked for."""

    stubs: tuple[tuple[bytes, bool], ...]
    notices: tuple[str, ...]
    descriptors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StepFailed:
    """The step could not be set up, or its program not be executed. ``kind`` as in ``sandbox.SandboxFailure``."""

    kind: str
    number: int
    message: str


@dataclass(frozen=True, slots=True)
class StepExit:
    """The step's first process has ended (and so have all others): its wait status (wait(2))."""

    status: int


StepEvent = StepReady | StepFailed | StepExit


class RunningStep:
    """One step in the launcher. Closing it kills the step."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def fileno(self) -> int:
        """For select and poll: readable when ``next_event`` wouldn't block."""
        return self._channel.fileno()

    def next_event(self) -> StepEvent:
        """Wait for the next event. Raises LauncherError when the launcher has gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._channel, 1 << 20, 64)
        except ConnectionError:
            data, descriptors = b"", []
        if not data:
            raise LauncherError("the launcher process has gone while a step was running")
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        # Marshalled by our own code in the launcher before it executes anything foreign.
        message = marshal.loads(data)
        match message:
            case ("ready", list(stubs), list(notices)):
                made = tuple((path, directory) for path, directory in stubs)
                return StepReady(made, tuple(notices), descriptors=tuple(descriptors))
            case ("failed", str(kind), int(number), str(text)):
                return StepFailed(kind, number, message=text)
            case ("exit", int(status)):
                return StepExit(status)
            case _:
                raise LauncherError(f"the launcher sent something unknown: {message!r:.80}")

    def kill(self) -> None:
        """Kill every process of the step; its exit is still reported."""
        with contextlib.suppress(OSError):
            self._channel.send(b"kill")

    def close(self) -> None:
        """Stop listening; a step that still runs is killed."""
        self._channel.close()


class LauncherProcess:
    """Starts the launcher process when first needed and keeps it until closed. Thread-safe.

    A process belongs to the thread of control that can see it end, not to the thread that started it: it lives until
    ``close`` or until this process dies in any way.
    """

    def __init__(self, *, python: str = sys.executable, old_mount_calls: bool = False) -> None:
        self._python = python
        self._old_mount_calls = old_mount_calls
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._greeted = False

    def __enter__(self) -> LauncherProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the process without waiting for it, so that it is ready when the first step comes. Idempotent."""
        with self._lock:
            self._start()

    def _start(self) -> None:
        if self._process is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        folder = Path(__file__).absolute().parent
        # Imported rather than run as a file, so that its compiled form is used; appended, so that nothing shadows the library.
        code = f"import sys; sys.path.append({str(folder.parent)!r}); from {folder.name} import sandbox; sandbox.main("
        code += f"old_mount_calls={self._old_mount_calls})"
        try:
            self._process = subprocess.Popen(
                [self._python, "-I", "-S", "-c", code],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                close_fds=True,
                cwd="/",
            )
        except OSError as error:
            ours.close()
            raise LauncherError(f"can't start the launcher process {self._python}: {error.strerror}") from error
        finally:
            theirs.close()
        self._control = ours
        self._greeted = False

    def _greet(self, control: socket.socket) -> None:
        if self._greeted:
            return
        if not select.select([control], [], [], 30)[0]:
            raise LauncherError("the launcher process doesn't answer")
        data = control.recv(1 << 16)
        message: object = marshal.loads(data) if data else ("failed", "setup", 0, "it ended at once")
        match message:
            case ("started", bool()):
                self._greeted = True
            case ("failed", str(), int(), str(text)):
                raise LauncherError(
                    f"the launcher process can't run steps: {text}",
                    hint="run as root, or where user namespaces are allowed; `pybuild doctor` tells what is missing",
                )
            case _:
                raise LauncherError("the launcher process sent something unknown")

    def run(self, request: Request, *, streams: Sequence[int]) -> RunningStep:
        """Start a step with standard output, error and, if there is a third, input on the descriptors ``streams`` (the caller keeps and
        closes its own). Raises LauncherError."""
        content = marshal.dumps(request)  # type: ignore[arg-type]  # a TypedDict is a dict of plain values
        try:
            with self._lock:
                self._start()
                assert self._control is not None
                control = self._control
                self._greet(control)
        except LauncherError:
            self.close()
            raise
        memory = os.memfd_create("step", os.MFD_CLOEXEC)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(memory, view) :]
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                socket.send_fds(control, [b"step"], [memory, theirs.fileno(), *streams])
            except OSError as error:
                ours.close()
                self.close()
                raise LauncherError("the launcher process has gone") from error
            finally:
                theirs.close()
        finally:
            os.close(memory)
        return RunningStep(ours)

    def close(self) -> None:
        """End the launcher, and with it every step that still runs. It starts again when used again."""
        with self._lock:
            process, self._process = self._process, None
            control, self._control = self._control, None
        if control is not None:
            control.close()
        if process is not None:
            process.wait()
