"""Makes an ordinary user root of a user namespace, so that the engine can mount and own files as in an image.

Decides which ids are mapped and tells what had to be left out. The system calls are ``daemon/sandbox.py``'s. Changes nothing on
the host: no file, no setting.

    initial namespace          user namespace
    uid 1000 (the user)   ◀──▶ 0
    subuid 100000…165535  ◀──▶ 1…65536      by newuidmap(1), if /etc/subuid gives a range
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from pybuild.errors import PybuildError
from pybuild.values import dataclass

IdMap = tuple[int, int, int]
"""First id inside, first id outside, how many (user_namespaces(7), uid_map)."""

CAP_SYS_ADMIN = 21


class UserNamespaceError(PybuildError):
    """No user namespace can be had, and without one this user can't build."""


class IdentityKind(Enum):
    """Whose rights the engine has. ROOT: root with the right to mount; SUBIDS: root of a user namespace with many
    ids; SINGLE_ID: root of a user namespace that has this one id only."""

    ROOT = "root"
    SUBIDS = "subids"
    SINGLE_ID = "single-id"


@dataclass(frozen=True, slots=True)
class Identity:
    """What the engine is. ``uid`` and ``gid`` are those outside; ``ids``: how many user ids there are; ``notices``: what it falls
    back to, one line each."""

    kind: IdentityKind
    uid: int
    gid: int
    ids: int
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class IdPlan:
    """The maps of a namespace to be made. ``by_helper``: newuidmap and newgidmap write them, else the kernel takes ours."""

    uids: tuple[IdMap, ...]
    gids: tuple[IdMap, ...]
    by_helper: bool
    kind: IdentityKind
    notices: tuple[str, ...] = ()


def needs_user_namespace() -> bool:
    """True unless this process has CAP_SYS_ADMIN already (as root, or as root of a user namespace)."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        for line in lines:
            if line.startswith("CapEff:"):
                return not int(line.split()[1], 16) >> CAP_SYS_ADMIN & 1
    return True


def identity() -> Identity:
    """What this process is now, read from its own maps; call it after ``enter``."""
    uids, gids = _read_map("uid_map"), _read_map("gid_map")
    count = sum(size for _, _, size in uids)
    uid, gid = _outside(uids, os.geteuid()), _outside(gids, os.getegid())
    if uids == ((0, 0, 4294967295),):
        return Identity(IdentityKind.ROOT, uid, gid, ids=count)
    kind = IdentityKind.SINGLE_ID if count == 1 else IdentityKind.SUBIDS
    return Identity(kind, uid, gid, ids=count, notices=SINGLE_ID_NOTICES if count == 1 else ())


SINGLE_ID_NOTICES = (
    "only this user's own id is mapped: files of other owners in base images become root's, and steps can run as root only",
)


def enter() -> Identity:
    """Become root of a user namespace if this process can't mount; nothing otherwise. Idempotent.

    Must be called before the first thread is started (unshare(2), EINVAL). Raises UserNamespaceError.
    """
    if not needs_user_namespace():
        return identity()
    if len(os.listdir("/proc/self/task")) > 1:
        raise UserNamespaceError("a user namespace can be entered by a process with one thread only")
    from . import sandbox

    plan = make_plan()
    try:
        sandbox.enter_user_namespace(lambda process: write_maps(plan, process))
    except OSError as error:
        raise _explain(error) from error
    found = identity()
    return Identity(plan.kind, found.uid, found.gid, ids=found.ids, notices=plan.notices)


def make_plan(*, subuid: Path = Path("/etc/subuid"), subgid: Path = Path("/etc/subgid")) -> IdPlan:
    """Which ids to map for this process: all of a root's; a user's own and its sub-ids; or its own alone, with the reason."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        # Root without the right to mount: keep every id as it is. The very last one is left out, so that the new namespace
        # can be told from the initial one by its map.
        uids = tuple((inside, inside, min(size, 4294967294)) for inside, _, size in _read_map("uid_map"))
        gids = tuple((inside, inside, min(size, 4294967294)) for inside, _, size in _read_map("gid_map"))
        count = sum(size for _, _, size in uids)
        kind = IdentityKind.SINGLE_ID if count == 1 else IdentityKind.SUBIDS
        return IdPlan(uids, gids, by_helper=False, kind=kind)
    import shutil

    name = _user_name(uid)
    uid_ranges = sub_ids(subuid, name=name, number=uid)
    gid_ranges = sub_ids(subgid, name=name, number=uid)
    missing = [program for program in ("newuidmap", "newgidmap") if shutil.which(program) is None]
    if uid_ranges and gid_ranges and not missing:
        return IdPlan(_stack(uid, uid_ranges), _stack(gid, gid_ranges), by_helper=True, kind=IdentityKind.SUBIDS)
    reason = (
        f"{' and '.join(missing)} not installed" if missing else f"no range for {name or uid} in {subuid} and {subgid}"
    )
    return IdPlan(
        ((0, uid, 1),),
        ((0, gid, 1),),
        by_helper=False,
        kind=IdentityKind.SINGLE_ID,
        notices=(f"{reason}: {SINGLE_ID_NOTICES[0]}",),
    )


def sub_ids(path: Path, *, name: str, number: int) -> tuple[tuple[int, int], ...]:
    """The ranges (first, how many) that a file like /etc/subuid gives to a user by name or number (subuid(5)). Lines that
    aren't understood are skipped."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    ranges: list[tuple[int, int]] = []
    for line in lines:
        fields = line.strip().split(":")
        if len(fields) != 3 or fields[0] not in (name, str(number)) or not fields[0]:
            continue
        if (
            fields[1].isascii()
            and fields[1].isdigit()
            and fields[2].isascii()
            and fields[2].isdigit()
            and int(fields[2])
        ):
            first, count = int(fields[1]), int(fields[2])
            # The kernel refuses maps that overlap: a user may be listed by name and by number, with the same range.
            if not any(first < other + size and other < first + count for other, size in ranges):
                ranges.append((first, count))
    return tuple(ranges)


def write_maps(plan: IdPlan, process: int) -> None:
    """Give ``process``, which has made a user namespace, its maps. Raises OSError."""
    if plan.by_helper:
        import subprocess

        for program, maps in (("newuidmap", plan.uids), ("newgidmap", plan.gids)):
            arguments = [str(number) for one in maps for number in one]
            result = subprocess.run([program, str(process), *arguments], capture_output=True, check=False)
            if result.returncode != 0:
                text = result.stderr.decode(errors="replace").strip() or f"exit status {result.returncode}"
                raise OSError(errno.EPERM, text, program)
        return
    if plan.kind is IdentityKind.SINGLE_ID and os.geteuid() != 0:
        # Or a user could drop a group that denies it something (user_namespaces(7), "setgroups").
        Path(f"/proc/{process}/setgroups").write_text("deny")
    for name, maps in (("uid_map", plan.uids), ("gid_map", plan.gids)):
        with open(f"/proc/{process}/{name}", "wb", buffering=0) as target:
            target.write("".join(f"{inside} {outside} {size}\n" for inside, outside, size in maps).encode())


def _stack(own: int, ranges: Sequence[tuple[int, int]]) -> tuple[IdMap, ...]:
    maps = [(0, own, 1)]
    inside = 1
    for first, size in ranges:
        maps.append((inside, first, size))
        inside += size
    return tuple(maps)


def _read_map(name: str) -> tuple[IdMap, ...]:
    lines = Path(f"/proc/self/{name}").read_text().splitlines()
    return tuple((int(inside), int(outside), int(size)) for inside, outside, size in (line.split() for line in lines))


def _outside(maps: Sequence[IdMap], number: int) -> int:
    for inside, outside, size in maps:
        if inside <= number < inside + size:
            return outside + number - inside
    return number


def _user_name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def _explain(error: OSError) -> UserNamespaceError:
    text = f"no user namespace can be had: {error.strerror or error}"
    for path, value, remedy in (
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1 allows them"),
        ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces allows them"),
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for Python, allows them",
        ),
    ):
        try:
            if Path(path).read_text().strip() == value:
                return UserNamespaceError(text, hint=remedy)
        except OSError:
            continue
    return UserNamespaceError(
        text,
        hint="run as root, or in a container with a seccomp profile that allows unshare(2); `pybuild doctor` tells more",
    )
