"""Finds out what this machine offers for building and what pybuild will do where something is missing.

Reads and tries things out in short-lived processes of its own; changes nothing, prints nothing (rendering is the command line's)
and asks no registry.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from pybuild.values import dataclass

from . import userns


class Level(Enum):
    """OK: there; FALLBACK: not there, and pybuild does without in the way told; MISSING: something can't be done."""

    OK = "ok"
    FALLBACK = "fallback"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """One row: ``topic`` is a short constant name, ``found`` what there is, ``consequence`` what follows (empty if nothing),
    ``remedy`` what would change it (empty if nothing)."""

    topic: str
    level: Level
    found: str
    consequence: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, in the order to be shown."""

    findings: tuple[Finding, ...]

    @property
    def able(self) -> bool:
        """False if steps (RUN) can't be executed here at all."""
        return not any(one.level is Level.MISSING and one.topic in ESSENTIAL for one in self.findings)


ESSENTIAL = ("identity", "namespaces", "overlay")

BINFMT = Path("/proc/sys/fs/binfmt_misc")


def probe(*, root: Path) -> Report:
    """Look at everything. ``root`` is the store's directory, or where it would be made.

    Must run in the process that has entered what the engine enters (``userns.enter``), or before that as the user: then what
    entering would give is found out without entering.
    """
    return Report(tuple(_findings(root)))


def _findings(root: Path) -> Iterator[Finding]:
    name = os.uname()
    yield Finding("kernel", Level.OK, f"{name.sysname} {name.release} {name.machine}")
    place = _existing(root)
    identity = _identity()
    yield identity
    yield from _sub_ids()
    if identity.level is not Level.MISSING:
        yield from _tried(place)
    yield _emulation(name.machine)
    yield _program("git", "contexts and ADD from git repositories need it", "install git")
    yield _disk(place, root)


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _identity() -> Finding:
    if not userns.needs_user_namespace():
        found = userns.identity()
        if found.kind is userns.IdentityKind.SINGLE_ID:
            return Finding("identity", Level.FALLBACK, "root of a user namespace with one id", found.notices[0])
        if found.kind is userns.IdentityKind.SUBIDS:
            return Finding("identity", Level.OK, f"root of a user namespace with {found.ids} ids")
        return Finding("identity", Level.OK, "root")
    plan = userns.make_plan()
    error = _try_to_enter()
    if error:
        text, _, remedy = error.partition("\n")
        return Finding(
            "identity", Level.MISSING, f"user {os.geteuid()}, {text}", "RUN can't be executed", remedy or "run as root"
        )
    if plan.kind is userns.IdentityKind.SINGLE_ID:
        return Finding(
            "identity",
            Level.FALLBACK,
            f"user {os.geteuid()}, one id in a user namespace",
            plan.notices[0] if plan.notices else "",
        )
    count = sum(size for _, _, size in plan.uids)
    return Finding("identity", Level.OK, f"user {os.geteuid()}, root of a user namespace with {count} ids")


def _try_to_enter() -> str:
    """Enter in a child; what went wrong, a line break, and a remedy; or nothing."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        answer = ""
        try:
            # A forked child has one thread, whatever its parent had.
            userns.enter()
        except userns.UserNamespaceError as error:
            answer = f"{error.message}\n{error.hint or ''}"
        except BaseException as error:
            answer = str(error) or type(error).__name__
        os.write(write, answer.encode(errors="replace"))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        answer = stream.read().decode(errors="replace")
    os.waitpid(child, 0)
    return answer


def _sub_ids() -> Iterator[Finding]:
    if os.geteuid() == 0:
        return
    missing = [program for program in ("newuidmap", "newgidmap") if shutil.which(program) is None]
    if missing:
        yield Finding(
            "sub-ids", Level.FALLBACK, f"no {' and '.join(missing)}", "one id only", "install uidmap (shadow-utils)"
        )
        return
    plan = userns.make_plan()
    if plan.kind is userns.IdentityKind.SUBIDS:
        yield Finding("sub-ids", Level.OK, ", ".join(f"{first}+{size}" for _, first, size in plan.uids[1:]))
    else:
        yield Finding(
            "sub-ids",
            Level.FALLBACK,
            "none in /etc/subuid and /etc/subgid",
            "one id only: USER other than root fails, owners are lost",
            "usermod --add-subuids 100000-165535 --add-subgids 100000-165535",
        )


def _tried(place: Path) -> Iterator[Finding]:
    results = _run_probe(place)
    names = ("mount", "pid", "ipc", "uts", "net", "cgroup")
    refused = [name for name in names if results.get(f"namespace {name}") != "ok"]
    needed = [name for name in refused if name not in ("net", "cgroup")]
    if needed:
        reason = results.get(f"namespace {needed[0]}", "")
        yield Finding(
            "namespaces",
            Level.MISSING,
            f"no {', '.join(needed)}: {reason}",
            "RUN can't be executed",
            "run with more privileges",
        )
    elif refused:
        yield Finding(
            "namespaces",
            Level.FALLBACK,
            f"no {', '.join(refused)}",
            "RUN --network=none fails" if "net" in refused else "",
        )
    else:
        yield Finding("namespaces", Level.OK, ", ".join(names))
    if results.get("overlay") == "ok":
        yield Finding("overlay", Level.OK, f"works below {place}")
    else:
        yield Finding(
            "overlay",
            Level.MISSING,
            f"can't be mounted below {place}: {results.get('overlay')}",
            "RUN can't be executed there",
            "put the store (--root) on ext4, xfs, btrfs or tmpfs",
        )
    if results.get("calls") == "ok":
        yield Finding("mount calls", Level.OK, "fsopen, move_mount, mount_setattr")
    else:
        yield Finding(
            "mount calls", Level.FALLBACK, "mount only", "read-only binds take more calls", "Linux 5.12 or newer"
        )
    if results.get("proc") == "ok":
        yield Finding("proc", Level.OK, "steps get their own")
    else:
        yield Finding("proc", Level.FALLBACK, str(results.get("proc")), "steps see the processes outside in /proc")
    if results.get("seccomp") == "ok":
        yield Finding("seccomp", Level.OK, "Docker's default profile is applied")
    else:
        yield Finding("seccomp", Level.FALLBACK, str(results.get("seccomp")), "steps run without a system call filter")
    if results.get("groups") == "ok":
        yield Finding("control groups", Level.OK, "version 2" if _unified() else "version 1")
    else:
        yield Finding(
            "control groups",
            Level.FALLBACK,
            str(results.get("groups")),
            "no --cgroup-parent" + ("" if userns.needs_user_namespace() else "; devices are guarded by nodev mounts"),
        )


def _unified() -> bool:
    return Path("/sys/fs/cgroup/cgroup.controllers").exists()


def _run_probe(place: Path) -> dict[str, str]:
    import tempfile

    try:
        folder = tempfile.mkdtemp(prefix=".pybuild-doctor-", dir=place)
    except OSError:
        folder = tempfile.mkdtemp(prefix="pybuild-doctor-")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
    command = [sys.executable, "-B", "-m", "pybuild.daemon.probing", folder]
    try:
        result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        answer = json.loads(result.stdout or "{}")
        return {str(key): str(value) for key, value in answer.items()}
    finally:
        _remove(folder)


def _remove(folder: str) -> None:
    # overlayfs makes directories without any permission in its work directory, which stop their owner unless that is root.
    for path, names, _ in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                os.chmod(os.path.join(path, name), 0o700)
    shutil.rmtree(folder, ignore_errors=True)


def emulated_machines(folder: Path = BINFMT) -> tuple[str, ...]:
    """Machines whose programs this kernel hands to an emulator that stays open (flag F, binfmt_misc.rst): in a container the
    emulator's file isn't there, so others don't count."""
    found = []
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return ()
    for entry in entries:
        if not entry.name.startswith("qemu-"):
            continue
        try:
            text = entry.read_text(errors="replace")
        except OSError:
            continue
        lines = text.splitlines()
        flags = next((line.partition(":")[2] for line in lines if line.startswith("flags:")), "")
        if lines[:1] == ["enabled"] and "F" in flags:
            found.append(entry.name.removeprefix("qemu-"))
    return tuple(found)


def _emulation(machine: str) -> Finding:
    machines = emulated_machines()
    if machines:
        return Finding("platforms", Level.OK, f"{machine}, emulated: {', '.join(machines)}")
    return Finding(
        "platforms",
        Level.FALLBACK,
        f"{machine} only",
        "RUN for another platform fails with an exec format error",
        "install qemu-user-static with binfmt_misc",
    )


def _program(name: str, consequence: str, remedy: str) -> Finding:
    path = shutil.which(name)
    if path is None:
        return Finding(name, Level.FALLBACK, "not installed", consequence, remedy)
    return Finding(name, Level.OK, path)


def _disk(place: Path, root: Path) -> Finding:
    space = os.statvfs(place)
    free = space.f_bavail * space.f_frsize
    found = f"{root}: {free / 1e9:.1f} GB free"
    if not os.access(place, os.W_OK):
        return Finding(
            "store", Level.MISSING, f"{place} can't be written", "nothing can be kept", "choose another --root"
        )
    if free < 2_000_000_000 or (space.f_files and space.f_favail < 20_000):
        return Finding("store", Level.FALLBACK, found, "a build may run out of space", "free some, or `pybuild prune`")
    return Finding("store", Level.OK, found)
