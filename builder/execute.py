"""RUN: from an Exec operation to a process specification, its run, and the layer it leaves.

Owns users, environment, mounts and their order; knows nothing of namespaces. Trees that mounts show come from ``execute_trees.py``, cache
mounts from ``execute_caches.py``. Secrets go into process specifications only: never into messages, events or the store.
"""

from __future__ import annotations

import json
import posixpath
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Final, assert_never

from pybuild.errors import PybuildError
from pybuild.layers.descriptor import Platform
from pybuild.layers.digest import Digest
from pybuild.layers.entries import Layer
from pybuild.layers.image import DEFAULT_PATH

from .exec_settings import ExecSettings as ExecSettings
from .exec_settings import FailedProcess
from .execute_caches import CacheMountPool
from .execute_trees import MountTree, mount_tree
from .graph import (
    BindMount,
    CacheMount,
    Exec,
    Mount,
    SecretMount,
    Security,
    SshMount,
    TmpfsMount,
)
from .owners import NO_ACCOUNTS, InvalidUser, ProcessUser, UnknownGroup, UnknownUser, read_accounts
from .protocols import (
    DataMount,
    Executor,
    ExitStatus,
    ProcessMount,
    ProcessSpec,
    Snapshots,
    SocketMount,
    TemporaryMount,
)

_SCRIPTS: Final = "/dev/pipes"


class SecretMissing(PybuildError):
    """A required secret was not given."""

    def __init__(self, id: str) -> None:
        super().__init__(
            f"secret {id}: not found", hint=f"give it with --secret id={id},src=FILE or --secret id={id},env=VARIABLE"
        )
        self.id = id


class SshMissing(PybuildError):
    """A required ssh agent was not forwarded."""

    def __init__(self, id: str) -> None:
        super().__init__(f'no SSH key "{id}" forwarded from the client', hint=f"run the build with --ssh {id}")
        self.id = id


class ProcessFailed(PybuildError):
    """The process of a RUN ended with a failure."""

    def __init__(self, args: Sequence[str], status: ExitStatus) -> None:
        super().__init__(f"process {quoted(args)} did not complete successfully: exit code: {status.code}")
        self.args_of_process = tuple(args)
        self.status = status


class ProcessNotRun(PybuildError):
    """The process of a RUN could not be started or its surroundings not be made."""

    def __init__(self, args: Sequence[str], cause: PybuildError, *, foreign: Platform | None = None) -> None:
        """``foreign``: the stage's platform, if it isn't this machine's."""
        message, hint = f"process {quoted(args)} did not complete successfully: {cause.message}", cause.hint
        if foreign is not None and "exec format error" in cause.message:
            message += f": the stage is for {foreign}, and this machine has no emulation for it"
            hint = "install qemu-user-static with binfmt_misc, or build natively: FROM --platform=$BUILDPLATFORM"
        super().__init__(message, hint=hint)
        self.args_of_process = tuple(args)
        self.cause = cause


def quoted(args: Sequence[str]) -> str:
    """A command line as error messages show it: joined by blanks, in double quotes."""
    return json.dumps(" ".join(args), ensure_ascii=False)


class ExecRunner:
    """Runs the Exec operations of one build."""

    def __init__(self, executor: Executor, snapshots: Snapshots, *, settings: ExecSettings) -> None:
        self._executor = executor
        self._snapshots = snapshots
        self._settings = settings
        self._caches = CacheMountPool(snapshots)

    def run(
        self,
        op: Exec,
        *,
        stack: Sequence[Digest],
        trees: Mapping[int, MountTree],
        on_output: Callable[[int, bytes], None],
        cancel: threading.Event,
    ) -> Layer:
        """Run ``op`` on ``stack`` and commit what it changed. ``trees``: what the mounts read, by position of the input.

        Raises ProcessFailed, ProcessNotRun, SecretMissing, SshMissing, Cancelled, and what the mounts' sources raise.
        """
        with ExitStack() as held:
            try:
                user = self._user(op, stack)
            except (UnknownUser, UnknownGroup, InvalidUser) as error:
                raise ProcessNotRun(op.args, error) from error
            mounts = self._mounts(op, trees, held, cancel)
            active = held.enter_context(self._snapshots.prepare(stack))
            spec = ProcessSpec(
                root=active.root,
                args=op.args,
                env=self._environment(op, user),
                cwd=op.cwd or "/",
                uid=user.uid,
                gid=user.gid,
                groups=user.groups,
                mounts=mounts,
                network=op.network.value,
                insecure=op.security is Security.INSECURE,
                hostname=op.hostname,
                extra_hosts=op.extra_hosts,
                shm_size=op.shm_size,
                ulimits=op.ulimits,
                cgroup_parent=op.cgroup_parent,
                resources=op.resources,
            )
            stubs = stub_paths(mounts)
            try:
                self._run(op, spec, on_output=on_output, cancel=cancel)
            except (ProcessNotRun, ProcessFailed) as error:
                if self._settings.on_failure is not None and not cancel.is_set():
                    failed = FailedProcess(op, spec, tuple(stack), error, lambda: active.commit(ignore=stubs))
                    error.hint = self._settings.on_failure(failed) or error.hint
                raise
            return active.commit(ignore=stubs)

    def _run(
        self, op: Exec, spec: ProcessSpec, *, on_output: Callable[[int, bytes], None], cancel: threading.Event
    ) -> None:
        try:
            status = self._executor.run(spec, on_output=on_output, cancel=cancel)
        except PybuildError as error:
            if cancel.is_set():
                raise
            host = self._settings.host
            is_foreign = host is not None and (op.platform.os, op.platform.architecture) != (host.os, host.architecture)
            raise ProcessNotRun(op.args, error, foreign=op.platform if is_foreign else None) from error
        if status.code or status.signal is not None:
            raise ProcessFailed(op.args, status)

    def _user(self, op: Exec, stack: Sequence[Digest]) -> ProcessUser:
        if not stack:
            return NO_ACCOUNTS.process_user(op.user)
        with self._snapshots.view(stack) as view:
            return read_accounts(view).process_user(op.user)

    def _environment(self, op: Exec, user: ProcessUser) -> tuple[tuple[str, str], ...]:
        env = dict(op.env)
        for name, value in op.hidden_env:
            env.setdefault(name, value)
        env.setdefault("PATH", DEFAULT_PATH)
        for mount in op.mounts:
            if isinstance(mount, SecretMount) and mount.env is not None:
                data = self._secret(mount)
                if data is not None:
                    env[mount.env] = data.decode("utf-8", "surrogateescape")
        # runc sets HOME from the user's entry where it is unset or empty.
        if not env.get("HOME"):
            env["HOME"] = user.home
        return tuple(env.items())

    def _secret(self, mount: SecretMount) -> bytes | None:
        data = self._settings.secrets.get(mount.id)
        if data is None and mount.required:
            raise SecretMissing(mount.id)
        return data

    # --- mounts ------------------------------------------------------------------------------------------------------

    def _mounts(
        self, op: Exec, trees: Mapping[int, MountTree], held: ExitStack, cancel: threading.Event
    ) -> tuple[ProcessMount, ...]:
        made = [DataMount(f"{_SCRIPTS}/{script.name}", script.data, script.mode, 0, 0) for script in op.scripts]
        mounts: list[ProcessMount] = [*made]
        mounted_caches: dict[str, str] = {}
        # Locks are taken in one order by all steps: two that lock the same caches never wait for each other.
        for cache in sorted((m for m in op.mounts if isinstance(m, CacheMount)), key=lambda m: m.id):
            self._mount(op, cache, trees, held, cancel, mounted_caches)
        for mount in op.mounts:
            one = self._mount(op, mount, trees, held, cancel, mounted_caches)
            if one is not None:
                mounts.append(one)
        # Parents first, whatever the order in the Dockerfile; stable for equal targets, the later one on top.
        return tuple(sorted(mounts, key=lambda mount: posixpath.normpath(mount.target).split("/")))

    def _mount(
        self,
        op: Exec,
        mount: Mount,
        trees: Mapping[int, MountTree],
        held: ExitStack,
        cancel: threading.Event,
        mounted_caches: dict[str, str],
    ) -> ProcessMount | None:
        match mount:
            case BindMount():
                return mount_tree(trees[mount.input], mount, held=held, snapshots=self._snapshots)
            case CacheMount():
                tree = None if mount.input is None else trees[mount.input]
                return self._caches.mount(
                    mount, tree, fresh=bool(op.nonce), held=held, cancel=cancel, mounted=mounted_caches
                )
            case TmpfsMount():
                return TemporaryMount(mount.target, mount.size)
            case SecretMount():
                data = self._secret(mount)
                if data is None or mount.target is None:
                    return None
                return DataMount(mount.target, data, mount.mode, mount.uid, mount.gid)
            case SshMount():
                socket = self._settings.ssh.get(mount.id)
                if socket is None:
                    if mount.required:
                        raise SshMissing(mount.id)
                    return None
                return SocketMount(mount.target, socket, mount.mode, mount.uid, mount.gid)
            case _:
                assert_never(mount)


def stub_paths(mounts: Sequence[ProcessMount]) -> tuple[str, ...]:
    """Paths that may have been made in the root to mount on them: targets and their parents, relative, parents first.

    Nothing below /dev, /proc and /sys: these stay in the layer, as the reference leaves them.
    """
    paths: dict[str, None] = {}
    for target in ("/etc/resolv.conf", "/etc/hosts", "/etc/hostname", *(mount.target for mount in mounts)):
        parts = [part for part in target.split("/") if part and part != "."]
        if not parts or parts[0] in ("dev", "proc", "sys"):
            continue
        for length in range(1, len(parts) + 1):
            paths["/".join(parts[:length])] = None
    return tuple(paths)
