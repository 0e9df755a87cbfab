"""Runs processes isolated: turns a ``ProcessSpec`` into a launcher request, reads what the step prints, waits for its end.

Satisfies ``builder.protocols.Executor``. Decides what a step gets (capabilities, masked paths, files such as /etc/hosts);
how that is done is ``daemon/sandbox.py``'s. Never writes below the root except to remove stubs that were made for mounts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, assert_never

from pybuild.builder.protocols import (
    DataMount,
    ExitStatus,
    HostMount,
    OverlayMount,
    ProcessMount,
    ProcessSpec,
    SocketMount,
    TemporaryMount,
)
from pybuild.errors import Cancelled, PybuildError

from . import capabilities, seccomp
from .launcher import LauncherProcess, RunningStep, StepExit, StepFailed, StepReady
from .resolver import hosts_file, resolv_conf_file
from .stubs import remove_stubs

if TYPE_CHECKING:
    from .sandbox import Request, StepMount

DEFAULT_SHM_SIZE = 64 << 20
POLL_MILLISECONDS = 100
"""How often a running step looks whether it was cancelled."""

# Devices of an insecure step beyond the standard ones: path below /dev, type, major, minor, mode.
CHARACTER = 0o020000
BLOCK = 0o060000
INSECURE_DEVICES = (
    (b"kmsg", CHARACTER, 1, 11, 0o666),
    (b"cuse", CHARACTER, 10, 203, 0o666),
    (b"fuse", CHARACTER, 10, 229, 0o666),
    (b"kvm", CHARACTER, 10, 232, 0o666),
    (b"net/tun", CHARACTER, 10, 200, 0o666),
    (b"loop-control", CHARACTER, 10, 237, 0o666),
    *((b"loop%d" % number, BLOCK, 7, number, 0o666) for number in range(8)),
)

# getrlimit(2) numbers by the names that --ulimit takes (include/uapi/asm-generic/resource.h).
ULIMITS = {
    "cpu": 0,
    "fsize": 1,
    "data": 2,
    "stack": 3,
    "core": 4,
    "rss": 5,
    "nproc": 6,
    "nofile": 7,
    "memlock": 8,
    "as": 9,
    "locks": 10,
    "sigpending": 11,
    "msgqueue": 12,
    "nice": 13,
    "rtprio": 14,
    "rttime": 15,
}


class SandboxError(PybuildError):
    """The step's surroundings can't be set up: mounts, namespaces, user."""


class ProgramNotStarted(PybuildError):
    """The step's program can't be executed. ``status`` is what a shell would end with, and `pybuild run`: 127 not found, 126 otherwise."""

    def __init__(self, message: str, *, status: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = self.exit_code = status


def expand_slice(parent: str) -> str:
    """A control group parent as a path: systemd's ``a-b.slice`` lies in ``a.slice`` (systemd.slice(5))."""
    name = parent.partition(":")[0]
    if "/" in name or not name.endswith(".slice"):
        return parent
    parts = name.removesuffix(".slice").split("-")
    return "/".join("-".join(parts[: length + 1]) + ".slice" for length in range(len(parts)))


class NamespaceExecutor:
    """An Executor on Linux namespaces. Several steps may run at once, each ``run`` in its caller's thread.

    ``filtered`` False runs steps without a seccomp filter; ``resolv_conf`` is the host's file; ``python`` runs the launcher;
    ``old_mount_calls`` as in ``sandbox.main``.
    Close it to end the launcher.
    """

    def __init__(
        self,
        *,
        filtered: bool = True,
        resolv_conf: str = "/etc/resolv.conf",
        python: str = sys.executable,
        old_mount_calls: bool = False,
    ) -> None:
        self._launcher = LauncherProcess(python=python, old_mount_calls=old_mount_calls)
        self._filtered = filtered
        self._resolv_conf = resolv_conf
        self._notices: dict[str, None] = {}

    def __enter__(self) -> NamespaceExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the launcher in the background, so that the first step needn't wait for it."""
        self._launcher.start()

    def close(self) -> None:
        """End the launcher; steps that still run are killed."""
        self._launcher.close()

    @property
    def notices(self) -> tuple[str, ...]:
        """What steps had to do without on this machine, each once, one line."""
        return tuple(self._notices)

    def run(
        self,
        spec: ProcessSpec,
        *,
        on_output: Callable[[int, bytes], None],
        cancel: threading.Event,
    ) -> ExitStatus:
        """See ``builder.protocols.Executor``. Raises Cancelled, ProgramNotStarted, SandboxError, LauncherError."""
        if cancel.is_set():
            raise Cancelled()
        if not spec.args:
            raise ProgramNotStarted("no command to run", status=126)
        self._launcher.start()
        request = self._request(spec)
        out_read, out_write = os.pipe2(os.O_CLOEXEC)
        err_read, err_write = os.pipe2(os.O_CLOEXEC)
        try:
            given = () if spec.stdin is None else (spec.stdin,)
            step = self._launcher.run(request, streams=(out_write, err_write, *given))
        except BaseException:
            for fd in (out_read, err_read):
                os.close(fd)
            raise
        finally:
            os.close(out_write)
            os.close(err_write)
        try:
            return self._attend(spec, step, streams={out_read: 1, err_read: 2}, on_output=on_output, cancel=cancel)
        finally:
            step.close()
            for fd in (out_read, err_read):
                os.close(fd)

    def _attend(
        self,
        spec: ProcessSpec,
        step: RunningStep,
        *,
        streams: dict[int, int],
        on_output: Callable[[int, bytes], None],
        cancel: threading.Event,
    ) -> ExitStatus:
        made: tuple[tuple[bytes, bool], ...] = ()
        failed: StepFailed | None = None
        killed = False
        status: int | None = None
        with contextlib.ExitStack() as companions:
            # Stubs go last, when nothing of the step runs any more.
            companions.callback(lambda: remove_stubs(spec.root.upper, made))
            poll = select.poll()
            poll.register(step, select.POLLIN)
            for fd in streams:
                poll.register(fd, select.POLLIN)
            open_streams = dict(streams)
            while status is None or open_streams:
                if cancel.is_set() and not killed:
                    step.kill()
                    killed = True
                for fd, _ in poll.poll(POLL_MILLISECONDS):
                    if fd in open_streams:
                        data = os.read(fd, 1 << 16)
                        if data:
                            on_output(open_streams[fd], data)
                        else:
                            poll.unregister(fd)
                            del open_streams[fd]
                        continue
                    match step.next_event():
                        case StepReady() as ready:
                            made = ready.stubs
                            self._notices.update(dict.fromkeys(ready.notices))
                            _accompany(spec, ready, companions)
                        case StepFailed() as failed:
                            pass
                        case StepExit(status):
                            poll.unregister(step)
        if killed:
            raise Cancelled()
        if failed is not None:
            raise _failure(failed)
        code = os.waitstatus_to_exitcode(status)
        return ExitStatus(code) if code >= 0 else ExitStatus(128 - code, signal=-code)

    def _request(self, spec: ProcessSpec) -> Request:
        granted = capabilities.ALL if spec.insecure else capabilities.DEFAULT
        return {
            "lower": [os.fsencode(path) for path in spec.root.lower],
            "upper": os.fsencode(spec.root.upper),
            "work": os.fsencode(spec.root.work),
            "args": [os.fsencode(argument) for argument in spec.args],
            "env": [(os.fsencode(name), os.fsencode(value)) for name, value in spec.env],
            "cwd": os.fsencode(spec.cwd),
            "uid": spec.uid,
            "gid": spec.gid,
            # The primary group belongs to the list too (CVE-2023-25173): a process that leaves it can't regain access by it.
            "groups": list(spec.groups if spec.gid in spec.groups else (spec.gid, *spec.groups)),
            "mounts": [_mount(mount) for mount in spec.mounts],
            "files": [
                (b"etc/resolv.conf", self._resolver_file(spec)),
                (b"etc/hosts", hosts_file(spec.hostname, spec.extra_hosts)),
            ],
            "new_network": spec.network == "none",
            "hostname": spec.hostname,
            "shm_size": spec.shm_size or DEFAULT_SHM_SIZE,
            "rlimits": [_limit(limit) for limit in spec.ulimits],
            "bounding": granted,
            "permitted": granted,
            "inheritable": granted if spec.insecure else 0,
            "ambient": granted if spec.insecure else 0,
            "seccomp": b"" if spec.insecure else self._program(granted),
            "devices": list(INSECURE_DEVICES) if spec.insecure else [],
            "privileged": spec.insecure,
            "control_group_parent": expand_slice(spec.cgroup_parent),
            "limits": list(spec.resources),
            "terminal": spec.terminal.size if spec.terminal else None,
        }

    def _resolver_file(self, spec: ProcessSpec) -> bytes:
        if spec.resolv_conf is not None:
            return spec.resolv_conf.encode("utf-8", "surrogateescape")
        try:
            with open(self._resolv_conf, "rb") as text:
                content = text.read()
        except OSError:
            content = b""
        return resolv_conf_file(content, own_network=spec.network == "none")

    def _program(self, granted: int) -> bytes:
        """The seccomp program for a bounding set; none, with a notice, where call numbers aren't known."""
        if not self._filtered:
            return b""
        name = os.uname()
        try:
            return seccomp.default_program(granted, machine=name.machine, kernel=kernel_version(name.release))
        except LookupError:
            self._notices[f"steps run without a seccomp filter: it isn't known for {name.machine}"] = None
            return b""


def kernel_version(release: str) -> tuple[int, int]:
    """Major and minor version of a kernel release such as ``6.1.0-18-amd64``."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def _accompany(spec: ProcessSpec, ready: StepReady, companions: contextlib.ExitStack) -> None:
    """Start what lives beside the step: forwarding of its sockets, the bridge to its terminal."""
    descriptors = list(ready.descriptors)
    master = descriptors.pop() if spec.terminal else None
    if descriptors:
        from .forwarding import SocketForwarder

        upstreams = [mount.upstream for mount in spec.mounts if isinstance(mount, SocketMount)]
        companions.enter_context(SocketForwarder(descriptors, upstreams))
    if master is not None and spec.terminal is not None:
        from .terminal import RemoteTerminalBridge, TerminalBridge

        connection = spec.terminal.connection
        companions.enter_context(
            TerminalBridge(master) if connection is None else RemoteTerminalBridge(master, connection=connection)
        )


def _limit(limit: tuple[str, int, int]) -> tuple[int, int, int]:
    name, soft, hard = limit
    number = ULIMITS.get(name.lower().removeprefix("rlimit_"))
    if number is None:
        raise SandboxError(f"unknown ulimit {name!r}", hint="one of " + ", ".join(sorted(ULIMITS)))
    return number, soft, hard


def _mount(mount: ProcessMount) -> StepMount:
    match mount:
        case HostMount():
            return ("host", os.fsencode(mount.source), os.fsencode(mount.target), mount.readonly)
        case OverlayMount():
            lower = [os.fsencode(path) for path in mount.lower]
            source, target, scratch = os.fsencode(mount.source), os.fsencode(mount.target), os.fsencode(mount.scratch)
            return ("overlay", lower, source, target, mount.readonly, scratch)
        case TemporaryMount():
            return ("tmpfs", os.fsencode(mount.target), mount.size)
        case DataMount():
            return ("data", os.fsencode(mount.target), mount.data, mount.mode, mount.uid, mount.gid)
        case SocketMount():
            return ("socket", os.fsencode(mount.target), mount.mode, mount.uid, mount.gid)
        case _:
            assert_never(mount)


def _failure(failed: StepFailed) -> PybuildError:
    if failed.kind == "program":
        missing = failed.number in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
        return ProgramNotStarted(failed.message, status=127 if missing else 126)
    return SandboxError(failed.message)
