"""Tries out what steps need, each thing in a process of its own, and prints the outcomes as JSON. Run by ``daemon/doctor.py``.

    python -m pybuild.daemon.probing FOLDER     FOLDER: empty, on the store's file system

Leaves nothing behind but what is in FOLDER. Draws no conclusions.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable

from . import control_groups, sandbox, userns

NAMESPACES = {
    "mount": sandbox.CLONE_NEWNS,
    "pid": sandbox.CLONE_NEWPID,
    "ipc": sandbox.CLONE_NEWIPC,
    "uts": sandbox.CLONE_NEWUTS,
    "net": sandbox.CLONE_NEWNET,
    "cgroup": sandbox.CLONE_NEWCGROUP,
}


def attempt(action: Callable[[], None]) -> str:
    """Run ``action`` in a child; ``ok``, or what it failed with."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        answer = "ok"
        try:
            action()
        except OSError as error:
            answer = error.strerror or str(error)
        except BaseException as error:
            answer = str(error) or type(error).__name__
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        answer = stream.read().decode(errors="replace")
    os.waitpid(child, 0)
    return answer or "the process died"


def _private_mounts() -> None:
    sandbox.unshare(sandbox.CLONE_NEWNS)
    sandbox.mount(b"none", b"/", flags=sandbox.MS_REC | sandbox.MS_PRIVATE)
    sandbox.examine()


def _overlay(folder: bytes) -> None:
    _private_mounts()
    lower, upper, work = (os.path.join(folder, name) for name in (b"lower", b"upper", b"work"))
    for path in (lower, upper, work):
        os.mkdir(path)
    sandbox.mount_overlay([lower], upper, work, upper)


def _own_proc() -> None:
    sandbox.unshare(sandbox.CLONE_NEWPID)
    child = os.fork()
    if child == 0:
        number = 0
        try:
            _private_mounts()
            sandbox.attach_filesystem("proc", b"/proc")
        except OSError as error:
            number = error.errno or 1
        os._exit(number)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise OSError(status, os.strerror(status))


def _mount_calls() -> None:
    _private_mounts()
    if not sandbox.Machine.modern_mounts:
        raise OSError("mount(2) only")


def _seccomp() -> None:
    # One instruction: return SECCOMP_RET_ALLOW.
    sandbox.install_filter(b"\x06\x00\x00\x00\x00\x00\xff\x7f")


def _control_groups() -> None:
    groups = control_groups.ControlGroups(b"pybuild-%d" % os.getpid(), guard=sandbox.attach_device_program)
    if groups.devices is None:
        raise OSError("there are none")
    groups.make_base(force=True)
    if groups.base is None:
        raise OSError("not writable")
    groups.remove_base()


def main() -> None:
    folder = os.fsencode(sys.argv[1])
    userns.enter()
    results = {
        f"namespace {name}": attempt(functools.partial(sandbox.unshare, flag)) for name, flag in NAMESPACES.items()
    }
    results["overlay"] = attempt(functools.partial(_overlay, folder))
    results["proc"] = attempt(_own_proc)
    results["calls"] = attempt(_mount_calls)
    results["seccomp"] = attempt(_seccomp)
    results["groups"] = attempt(_control_groups)
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
