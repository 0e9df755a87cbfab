"""Control groups: which hierarchies there are, a group for the launcher that guards devices, groups for steps that ask for a parent.

Reads and writes the files of cgroup file systems only; namespaces, mounts and bpf(2) are ``daemon/sandbox.py``'s. Standard library
only: the launcher imports it.
"""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def unescape(text: bytes) -> bytes:
    """Undo the octal escapes of /proc/self/mountinfo."""
    if b"\\" not in text:
        return text
    for code in (b"040", b"011", b"012", b"134"):
        text = text.replace(b"\\" + code, bytes([int(code, 8)]))
    return text


def control_group_paths(process: str) -> dict[str, str]:
    """A process's control groups: path by hierarchy, the hierarchy's controllers joined by commas, ``""`` for version 2
    (cgroups(7), /proc/pid/cgroup). Hierarchies in the host's order."""
    paths = {}
    try:
        with open(f"/proc/{process}/cgroup", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                paths[controllers] = path
    except OSError:
        pass
    return paths


def control_group_mounts() -> dict[str, tuple[bytes, bytes]]:
    """Where each hierarchy is mounted: (mount point, the group that is its root there) by controllers as above."""
    mounts = {}
    known = set(control_group_paths("self"))
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            before, _, after = line.rstrip(b"\n").partition(b" - ")
            fields, kind = before.split(b" "), after.split(b" ")
            place = (unescape(fields[4]), unescape(fields[3]))
            if kind[0] == b"cgroup2":
                mounts[""] = place
            elif kind[0] == b"cgroup":
                options = set(kind[2].decode().split(","))
                for controllers in known:
                    if controllers and set(controllers.split(",")) <= options:
                        mounts[controllers] = place
    return mounts


# What containers may do with devices, as devices.allow takes it (Documentation/admin-guide/cgroup-v1/devices.rst).
DEVICE_RULES = (
    *("c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm", "c 5:0 rwm"),
    *("c 5:1 rwm", "c 5:2 rwm", "c 136:* rwm"),
)


def device_program() -> bytes:
    """The same rules as an eBPF program for version 2 (include/uapi/linux/bpf.h, struct bpf_cgroup_dev_ctx).

    The context holds access << 16 | type, major, minor; the program returns 1 to allow.
    """

    def instruction(code: int, destination: int = 0, source: int = 0, *, offset: int = 0, value: int = 0) -> bytes:
        return struct.pack("=BBhi", code, source << 4 | destination, offset, value)

    load, move, exit_code, jump_unequal, jump_equal = 0x61, 0xB7, 0x95, 0x55, 0x15
    allow = [instruction(move, 0, value=1), instruction(exit_code)]
    code = [
        instruction(load, 2, 1, offset=0),
        instruction(load, 3, 1, offset=4),
        instruction(load, 4, 1, offset=8),
        instruction(0xBF, 5, 2),
        instruction(0x77, 5, value=16),
        # making a node is allowed, using it isn't
        instruction(jump_unequal, 5, offset=2, value=1),
        *allow,
        instruction(0x57, 2, value=0xFFFF),
        instruction(jump_equal, 2, offset=2, value=2),
        instruction(move, 0, value=0),
        instruction(exit_code),
        instruction(jump_unequal, 3, offset=2, value=136),
        *allow,
    ]
    for major, minors in ((1, (3, 5, 7, 8, 9)), (5, (0, 1, 2))):
        for minor in minors:
            code += [
                instruction(jump_unequal, 3, offset=3, value=major),
                instruction(jump_unequal, 4, offset=2, value=minor),
                *allow,
            ]
    return b"".join([*code, instruction(move, 0, value=0), instruction(exit_code)])


class StepGroups:
    """The control groups that one step is moved into: ``made`` for it, or ``joined`` as they are.

    ``devices``: True if they, or the launcher's own, guard devices.
    """

    def __init__(self, made: list[bytes], *, devices: bool, notices: list[str]) -> None:
        self.made = made
        self.joined: list[bytes] = []
        self.devices = devices
        self.notices = notices

    def join(self) -> None:
        """Move this process into the groups."""
        for folder in (*self.made, *self.joined):
            if not _join_group(folder):
                self.notices.append(f"control group {os.fsdecode(folder)} can't be joined")
                self.devices = False

    def remove(self) -> bool:
        """Remove the groups; False if one is still busy."""
        for folder in self.made:
            if _remove_group(folder) and os.path.basename(os.path.dirname(folder)) == _PARENT_OF_LIMITED.encode():
                _remove_group(os.path.dirname(folder))  # goes with the last step in it
        self.made = [folder for folder in self.made if os.path.isdir(folder)]
        return not self.made


class ControlGroups:
    """Makes groups below this process's own, or below a given parent, where the host lets it.

    The launcher lives in a group of its own that has the device rules, and its steps with it: moving a process between groups
    waits for a grace period of the kernel (some 10 ms), being born in one costs nothing. Only a step that asks for a
    parent, or for all devices, is moved. Version 1: the devices hierarchy, and every other one when a parent is named;
    version 2: the one tree. ``guard`` attaches the device rules to a version 2 group; None: devices need no guarding, which is so
    in a user namespace, where none can be made (mknod(2)).
    """

    def __init__(self, name: bytes, *, guard: Callable[[bytes], None] | None) -> None:
        self.mounts = control_group_mounts()
        self.own = control_group_paths("self")
        self.name = name
        self.guard = guard
        self.count = 0
        self.busy: list[StepGroups] = []
        self.devices: str | None = next((name for name in self.mounts if "devices" in name.split(",")), None)
        if self.devices is None and "" in self.mounts:
            self.devices = ""
        self.base: bytes | None = None

    def make_base(self, *, force: bool = False) -> None:
        """Make the launcher's group if there is something to guard, after removing those that killed launchers left.

        ``force`` makes one in any case, to see whether it can be done.
        """
        if self.devices is None or (self.guard is None and not force):
            return
        parent = self._folder(self.devices, "")
        folder = os.path.join(parent, self.name)
        try:
            for name in os.listdir(parent):
                keeper = name.removeprefix(b"pybuild-")
                if keeper != name and keeper.isdigit() and not os.path.exists(b"/proc/" + keeper):
                    _remove_group(os.path.join(parent, name))
            os.mkdir(folder, 0o755)
            self._restrict(folder)
            self.base = folder
        except OSError:
            _remove_group(folder)

    def join_base(self) -> None:
        """Move this process, the launcher, into its group."""
        if self.base is not None and not _join_group(self.base):
            self.base = None

    def hold(self) -> None:
        """Keep a way to the hierarchies that stays when something else is mounted on /sys."""
        for hierarchy, (point, root) in self.mounts.items():
            try:
                fd = os.open(point, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                continue
            self.mounts[hierarchy] = (b"/proc/self/fd/%d" % fd, root)

    def remove_base(self) -> None:
        """Remove the launcher's group, once the launcher is dead."""
        if self.base is not None:
            _remove_group(self.base)

    def _folder(self, hierarchy: str, parent: str) -> bytes:
        point, root = self.mounts[hierarchy]
        if parent:
            return os.path.join(point, parent.strip("/").encode())
        path = self.own.get(hierarchy, "/").encode()
        # A mount may show a part of the hierarchy only; paths count from its top unless it is another namespace's.
        if root != b"/" and (path + b"/").startswith(root + b"/"):
            path = path[len(root) :]
        return os.path.join(point, path.strip(b"/"))

    def make(self, *, parent: str, privileged: bool, limits: list[tuple[str, str]]) -> StepGroups:
        """Groups for a step, as far as they can be made; what can't be is told in its notices if it was asked for.

        ``limits``: values by the names that ``builder/resources.py`` gives them.
        """
        groups = StepGroups([], devices=self.base is not None and not privileged, notices=[])
        only_limits = bool(limits) and not parent
        if only_limits:
            parent = _PARENT_OF_LIMITED
        if not parent:
            if privileged and self.base is not None and self.devices is not None:
                groups.joined.append(self._folder(self.devices, ""))
            return groups
        self.count += 1
        for hierarchy in self.mounts:
            if not hierarchy and self.devices != "":
                continue  # a version 2 tree without controllers beside version 1 hierarchies
            if only_limits and hierarchy and not _limits_of(hierarchy, limits):
                continue
            folder = os.path.join(self._folder(hierarchy, parent), self.name + b"-%d" % self.count)
            try:
                _make_group(folder, cpuset="cpuset" in hierarchy.split(","))
                groups.made.append(folder)
                self._limit(hierarchy, folder, limits, groups.notices)
                if hierarchy == self.devices and not privileged:
                    self._restrict(folder)
            except OSError as error:
                groups.notices.append(f"control group {os.fsdecode(folder)} can't be used: {error.strerror}")
                if hierarchy == self.devices:
                    groups.devices = False
        return groups

    def _limit(self, hierarchy: str, folder: bytes, limits: list[tuple[str, str]], notices: list[str]) -> None:
        """Write a step's limits into its group of a hierarchy, those that this hierarchy is for."""
        wanted = _limits_of(hierarchy, limits)
        if not hierarchy and wanted:
            _delegate(folder, {name.partition(".")[0] for name, _ in wanted}, top=self.mounts[hierarchy][0])
        for name, value in wanted:
            try:
                with open(os.path.join(folder, name.encode()), "wb", buffering=0) as text:
                    text.write(value.encode())
            except OSError as error:
                notices.append(f"the limit {name}={value} can't be set: {error.strerror}")

    def _restrict(self, folder: bytes) -> None:
        if self.guard is None:
            return
        if not self.devices:
            self.guard(folder)
            return
        for name, rules in ((b"/devices.deny", ("a",)), (b"/devices.allow", DEVICE_RULES)):
            with open(folder + name, "wb", buffering=0) as text:
                for rule in rules:
                    text.write(rule.encode())

    def remove(self, groups: StepGroups) -> None:
        """Remove a step's groups, and those of earlier steps that were still busy then."""
        self.busy.append(groups)
        self.busy = [one for one in self.busy if not one.remove()]


# Where limited steps without a parent go: as with the reference, below the top of the hierarchy.
_PARENT_OF_LIMITED = "pybuild"
_DEFAULT_PERIOD = "100000"


def _limits_of(hierarchy: str, limits: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The files of a hierarchy's groups that limits are written to, with the values."""
    if not hierarchy:
        return version_2_limits(dict(limits))
    controllers = hierarchy.split(",")
    return [pair for pair in version_1_limits(dict(limits)) if pair[0].partition(".")[0] in controllers]


def version_1_limits(limits: dict[str, str]) -> list[tuple[str, str]]:
    """Files of version 1 groups and what is written to them (Documentation/admin-guide/cgroup-v1/), in order."""
    files = {
        "memory": "memory.limit_in_bytes",
        "memory-swap": "memory.memsw.limit_in_bytes",
        "cpu-shares": "cpu.shares",
        "cpu-period": "cpu.cfs_period_us",
        "cpu-quota": "cpu.cfs_quota_us",
        "cpuset-cpus": "cpuset.cpus",
        "cpuset-mems": "cpuset.mems",
    }
    return [(file, limits[name]) for name, file in files.items() if name in limits]


def version_2_limits(limits: dict[str, str]) -> list[tuple[str, str]]:
    """Files of version 2 groups and what is written to them (Documentation/admin-guide/cgroup-v2.rst), in order."""
    out = []
    if "memory" in limits:
        out.append(("memory.max", limits["memory"]))
    if "memory-swap" in limits:
        # Version 1 counted memory and swap together, version 2 swap alone.
        total = int(limits["memory-swap"])
        out.append(("memory.swap.max", "max" if total < 0 else str(max(0, total - int(limits.get("memory", "0"))))))
    if "cpu-shares" in limits:
        # 2…262144 onto 1…10000, as runc converts them.
        shares = min(max(int(limits["cpu-shares"]), 2), 262144)
        out.append(("cpu.weight", str(1 + (shares - 2) * 9999 // 262142)))
    if "cpu-quota" in limits or "cpu-period" in limits:
        out.append(("cpu.max", f"{limits.get('cpu-quota', 'max')} {limits.get('cpu-period', _DEFAULT_PERIOD)}"))
    out += [(f"cpuset.{part}", limits[f"cpuset-{part}"]) for part in ("cpus", "mems") if f"cpuset-{part}" in limits]
    return out


def _delegate(folder: bytes, controllers: set[str], *, top: bytes) -> None:
    """Let the parents of a version 2 group pass controllers on, from the top down; what can't be shows when a limit is written."""
    below = os.path.relpath(os.path.dirname(folder), top)
    parents = [top]
    for name in below.split(b"/") if below != b"." else ():
        parents.append(os.path.join(parents[-1], name))
    for parent in parents:
        for controller in sorted(controllers):
            try:
                with open(os.path.join(parent, b"cgroup.subtree_control"), "wb", buffering=0) as text:
                    text.write(b"+" + controller.encode())
            except OSError:
                pass


def _join_group(folder: bytes) -> bool:
    try:
        with open(folder + b"/cgroup.procs", "wb", buffering=0) as text:
            text.write(b"0")
    except OSError:
        return False
    return True


def _remove_group(folder: bytes) -> bool:
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _make_group(folder: bytes, *, cpuset: bool) -> None:
    """Make a group and its missing parents. A new version 1 cpuset is empty and takes no process (cgroup-v1/cpusets.rst), so
    each gets its parent's."""
    parent = os.path.dirname(folder)
    if not os.path.isdir(parent):
        _make_group(parent, cpuset=cpuset)
    try:
        os.mkdir(folder, 0o755)
    except FileExistsError:
        return
    for name in (b"cpuset.cpus", b"cpuset.mems") if cpuset else ():
        with open(os.path.join(parent, name), "rb") as text:
            value = text.read()
        with open(os.path.join(folder, name), "wb", buffering=0) as text:
            text.write(value)
