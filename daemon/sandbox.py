"""Owns every namespace, mount and privilege system call: a launcher process that runs steps, each isolated like a container.

Never decides what a step may do (capabilities, the seccomp program and its mounts come in the request), never touches a
store, a registry or an image. Uses the standard library and ``daemon/control_groups.py`` only, and imports little, because it is
the main program of the launcher process, which forks once per step: what isn't imported needn't be started or copied. It is
beyond the usual size so that all that is privileged can be read in one place.

    engine ──control socket──▶ keeper ──fork──▶ launcher (pid 1 of a pid namespace) ──clone3──▶ step (pid 1 of its own)

The launcher has its own mount namespace, a step another one below it: nothing is ever mounted where the host sees it. When
the engine dies the control socket ends and the launcher exits; when the keeper or the launcher is killed, the kernel kills
the launcher's whole pid namespace, steps included; with the last process of a mount namespace go its mounts.

One message on the control socket starts one step. It carries file descriptors: the request (a memfd with a marshalled
``Request``), the step's socket, standard output, standard error, and standard input if it has any. On the step's socket the launcher answers marshalled
``Event`` tuples: ``("ready", …)`` before the program is executed, ``("failed", …)`` instead of it, ``("exit", wait status)``
at the end. Anything the engine sends there, or its end, kills the step.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal itself imports enum and re: 5 ms more per start
import _socket
import ctypes
import errno
import fcntl
import gc
import marshal
import os
import select
import struct
import sys
import termios

from .control_groups import ControlGroups, StepGroups, control_group_paths, device_program, unescape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import NoReturn, TypeAlias, TypedDict

    StepMount: TypeAlias = tuple[object, ...]

    class Request(TypedDict):
        """One step. Paths are bytes; ``mounts`` are tagged tuples in the order they are made:

        ``("host", source, target, readonly)``, ``("overlay", lowers, source, target, readonly, scratch)``,
        ``("tmpfs", target, size)``, ``("data", target, data, mode, uid, gid)``, ``("socket", target, mode, uid, gid)``.
        """

        lower: list[bytes]
        upper: bytes
        work: bytes
        args: list[bytes]
        env: list[tuple[bytes, bytes]]
        cwd: bytes
        uid: int
        gid: int
        groups: list[int]
        mounts: list[StepMount]
        files: list[tuple[bytes, bytes]]
        new_network: bool
        hostname: str
        shm_size: int
        rlimits: list[tuple[int, int, int]]
        bounding: int
        permitted: int
        inheritable: int
        ambient: int
        seccomp: bytes
        devices: list[tuple[bytes, int, int, int, int]]
        privileged: bool
        control_group_parent: str
        limits: list[tuple[str, str]]
        terminal: tuple[int, int] | None


# --- system calls ----------------------------------------------------------------------------------------------------

# Numbers of the calls that C libraries don't export. They are the same on every architecture since Linux 5.1
# (include/uapi/asm-generic/unistd.h).
SYS_OPEN_TREE = 428
SYS_MOVE_MOUNT = 429
SYS_FSOPEN = 430
SYS_FSCONFIG = 431
SYS_FSMOUNT = 432
SYS_CLONE3 = 435
SYS_OPENAT2 = 437
SYS_MOUNT_SETATTR = 442
SYS_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "loongarch64": 219, "ppc64le": 271, "s390x": 280}

# include/uapi/linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# include/uapi/linux/mount.h
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MNT_DETACH = 2
FSOPEN_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
FSMOUNT_CLOEXEC = 1
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
RDONLY = 0x1
NOSUID = 0x2
NODEV = 0x4
NOEXEC = 0x8
"""Mount attributes: MOUNT_ATTR_x and MS_x have the same values for these four."""

# include/uapi/linux/fcntl.h, include/uapi/linux/openat2.h
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_IN_ROOT = 0x10

# include/uapi/linux/prctl.h, include/uapi/linux/capability.h
PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_SET_SECCOMP = 22
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4
SECCOMP_MODE_FILTER = 2
LINUX_CAPABILITY_VERSION_3 = 0x20080522

KEYCTL_JOIN_SESSION_KEYRING = 1
OVERLAYFS_SUPER_MAGIC = 0x794C7630
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1

# PyDLL keeps the interpreter's lock: there is one thread, and after clone3 nothing must wait for a lock.
_libc = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class SandboxFailure(Exception):
    """A step can't be set up or its program can't be started. ``kind``: ``setup``, ``mount``, ``identity`` or ``program``."""

    def __init__(self, kind: str, message: str, *, number: int = 0) -> None:
        super().__init__(message)
        self.kind = kind
        self.number = number
        self.message = message


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def _syscall(what: str, number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    converted = [
        ctypes.c_long(argument)
        if isinstance(argument, int)
        else ctypes.c_char_p(None)
        if argument is None
        else argument
        for argument in arguments
    ]
    return _check(int(_libc.syscall(ctypes.c_long(number), *converted)), what)


def mount(
    source: bytes, target: bytes, kind: bytes | None = None, *, flags: int = 0, options: bytes | None = None
) -> None:
    """mount(2)."""
    result = _libc.mount(
        ctypes.c_char_p(source),
        ctypes.c_char_p(target),
        ctypes.c_char_p(kind),
        ctypes.c_ulong(flags),
        ctypes.c_char_p(options),
    )
    _check(result, f"mount {(kind or b'').decode()} on {os.fsdecode(target)}")


def unmount(target: bytes) -> None:
    """umount2(2) with MNT_DETACH."""
    _check(_libc.umount2(ctypes.c_char_p(target), MNT_DETACH), "umount")


def unshare(flags: int) -> None:
    """unshare(2): leave the namespaces named by CLONE_NEW… ``flags`` for new ones."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def prctl(option: int, *arguments: int) -> int:
    """prctl(2)."""
    padded = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    return _check(_libc.prctl(ctypes.c_int(option), *padded), "prctl")


def clone(flags: int) -> int:
    """Fork into the namespaces of ``flags``; returns as fork(2) does. Only for a process with one thread."""
    arguments = struct.pack("=11Q", flags, 0, 0, 0, _signal.SIGCHLD, 0, 0, 0, 0, 0, 0)[:64]
    try:
        return _syscall("clone3", SYS_CLONE3, arguments, 64)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
        if error.errno == errno.EPERM and flags == 0:
            raise
        numbers = {"x86_64": 56, "aarch64": 220, "riscv64": 220, "loongarch64": 220, "ppc64le": 120}
        machine = os.uname().machine
        if machine not in numbers:
            raise
        return _syscall("clone", numbers[machine], flags | _signal.SIGCHLD, 0, 0, 0, 0)


class Machine:
    """What there is here, found out once per process by ``examine``.

    ``modern_mounts``: the file-descriptor calls of Linux 5.12 (fsopen, move_mount, mount_setattr), else mount(2) serves;
    ``user_namespace``: not the initial one. ``stage``: with mount(2), where a step's binds get their attributes before
    they are moved to their place. ``bounding``: the bounding set, as a mask.
    """

    modern_mounts = False
    user_namespace = False
    bounding = 0
    stage = b""


def examine() -> None:
    """Fill in ``Machine``."""
    Machine.user_namespace = in_user_namespace()
    Machine.bounding = read_bounding()
    try:
        fd = _new_mount("tmpfs", (), 0)
    except OSError:
        return
    try:
        _mount_setattr(fd, RDONLY, recursive=False)
        Machine.modern_mounts = True
    except OSError:
        pass
    finally:
        os.close(fd)


def _mount_setattr(fd: int, attributes: int, *, recursive: bool) -> None:
    arguments = struct.pack("=4Q", attributes, 0, 0, 0)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _syscall("mount_setattr", SYS_MOUNT_SETATTR, fd, b"", flags, arguments, len(arguments))


def make_readonly(fd: int, *, attributes: int) -> None:
    """Make the mount whose root ``fd`` is read-only; ``attributes`` are those it keeps."""
    if Machine.modern_mounts:
        _mount_setattr(fd, RDONLY, recursive=False)
    else:
        mount(b"none", fd_path(fd), flags=MS_BIND | MS_REMOUNT | MS_RDONLY | attributes)


def fd_path(fd: int) -> bytes:
    """A path that names what ``fd`` has open, for calls that know paths only."""
    return b"/proc/self/fd/%d" % fd


def open_in_root(root: int, path: bytes) -> int:
    """An O_PATH descriptor of ``path`` below ``root``; symbolic links and ``..`` are resolved as if ``root`` were /."""
    how = struct.pack("=3Q", os.O_PATH | os.O_CLOEXEC, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    for _ in range(16):
        try:
            return _syscall("openat2", SYS_OPENAT2, root, path.lstrip(b"/") or b".", how, len(how))
        except OSError as error:
            # EAGAIN: something was renamed or mounted anywhere meanwhile and ".." couldn't be proven safe (openat2(2)).
            if error.errno == errno.ENOSYS:
                break
            if error.errno != errno.EAGAIN:
                raise OSError(error.errno, error.strerror, os.fsdecode(path)) from None
    return _walk(root, path, create=None, stubs=None)


def attach_filesystem(
    kind: str, target: int | bytes, *, options: Sequence[tuple[str, str | None]] = (), attributes: int = 0
) -> None:
    """Mount a new file system of ``kind`` on ``target`` (an O_PATH descriptor, or a path)."""
    if not Machine.modern_mounts:
        text = ",".join(key if value is None else f"{key}={value}" for key, value in options)
        path = fd_path(target) if isinstance(target, int) else target
        mount(kind.encode(), path, kind.encode(), flags=attributes, options=text.encode() or None)
        return
    fd = _new_mount(kind, options, attributes)
    try:
        _move_mount(fd, target)
    finally:
        os.close(fd)


def _new_mount(kind: str, options: Sequence[tuple[str, str | None]], attributes: int) -> int:
    context = _syscall(f"fsopen {kind}", SYS_FSOPEN, kind.encode(), FSOPEN_CLOEXEC)
    try:
        for key, value in (("source", kind), *options):
            how = FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_STRING
            content = None if value is None else value.encode()
            _syscall(f"{kind} option {key}", SYS_FSCONFIG, context, how, key.encode(), content, 0)
        _syscall(f"mount {kind}", SYS_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
        return _syscall(f"mount {kind}", SYS_FSMOUNT, context, FSMOUNT_CLOEXEC, attributes)
    finally:
        os.close(context)


def _move_mount(fd: int, target: int | bytes) -> None:
    if isinstance(target, int):
        flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
        _syscall("move_mount", SYS_MOVE_MOUNT, fd, b"", target, b"", flags)
    else:
        _syscall("move_mount", SYS_MOVE_MOUNT, fd, b"", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH)


def attach_tree(source: int, target: int | bytes, *, attributes: int = 0, recursive: bool = False) -> None:
    """Bind what the descriptor ``source`` has open on ``target``, adding ``attributes`` (to submounts too if ``recursive``)."""
    if Machine.modern_mounts:
        flags = OPEN_TREE_CLONE | os.O_CLOEXEC | AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
        fd = _syscall("open_tree", SYS_OPEN_TREE, source, b"", flags)
        try:
            if attributes:
                _mount_setattr(fd, attributes, recursive=recursive)
            _move_mount(fd, target)
        finally:
            os.close(fd)
        return
    flags = MS_BIND | (MS_REC if recursive else 0)
    path = fd_path(target) if isinstance(target, int) else target
    if not attributes:
        mount(fd_path(source), path, flags=flags)
        return
    # A remount changes one mount, found by its path (mount(2), "Remounting"). What is bound below the new root has none that leads
    # to it, so it is first bound where it has.
    stage = path
    if isinstance(target, int):
        stage = Machine.stage + (b"/directory" if is_directory_fd(source) else b"/file")
    before = _mount_points()
    mount(fd_path(source), stage, flags=flags)
    for identifier, (point, kept) in _mount_points().items():
        if identifier not in before:
            mount(b"none", point, flags=MS_BIND | MS_REMOUNT | attributes | kept)
    if stage != path:
        mount(stage, path, flags=MS_MOVE)


def _mount_points() -> dict[bytes, tuple[bytes, int]]:
    """Mounts by identifier: where, and with which flags (proc(5), mountinfo fields 1, 5 and 6)."""
    names = {b"ro": MS_RDONLY, b"nosuid": MS_NOSUID, b"nodev": MS_NODEV, b"noexec": MS_NOEXEC}
    points = {}
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            fields = line.split(b" ")
            flags = 0
            for option in fields[5].split(b","):
                flags |= names.get(option, 0)
            points[fields[0]] = (unescape(fields[4]), flags)
    return points


# --- paths inside the root -------------------------------------------------------------------------------------------


class Stubs:
    """Files and directories made for mounts in the root file system itself, to be removed after the step."""

    def __init__(self, root: int) -> None:
        self.mount = _mount_identity(root)
        self.made: list[tuple[bytes, bool]] = []

    def add(self, parent: int, path: bytes, *, directory: bool) -> None:
        if _mount_identity(parent) == self.mount:
            self.made.append((path, directory))


def _mount_identity(fd: int) -> bytes:
    with open(b"/proc/self/fdinfo/%d" % fd, "rb") as lines:
        for line in lines:
            if line.startswith(b"mnt_id:"):
                return line[7:].strip()
    return b""


def _walk(root: int, path: bytes, *, create: str | None, stubs: Stubs | None) -> int:
    """Open ``path`` below ``root`` component by component, never leaving it; make what is missing (``create`` is ``"file"``,
    ``"directory"`` or None for nothing), giving parents their old times back."""
    pending = [part for part in path.split(b"/") if part not in (b"", b".")][::-1]
    held = [os.open(b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)]
    names: list[bytes] = []
    links = 0
    try:
        while pending:
            name = pending.pop()
            if name == b"..":
                if names:
                    names.pop()
                    os.close(held.pop())
                continue
            if name == b".":
                continue
            try:
                fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=held[-1])
            except FileNotFoundError:
                if create is None:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(path)) from None
                fd = _make_stub(
                    held[-1],
                    name,
                    b"/".join([*names, name]),
                    directory=bool(pending) or create == "directory",
                    stubs=stubs,
                )
            try:
                target = os.readlink(b"", dir_fd=fd)
            except OSError:
                # Not a symbolic link (readlinkat(2) with an empty path says EINVAL or ENOENT).
                held.append(fd)
                names.append(name)
                continue
            os.close(fd)
            links += 1
            if links > 40:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fsdecode(path))
            if target.startswith(b"/"):
                while len(held) > 1:
                    os.close(held.pop())
                names.clear()
            pending.extend([part for part in target.split(b"/") if part not in (b"", b".")][::-1])
        return os.dup(held[-1])
    finally:
        for fd in held:
            os.close(fd)


def _make_stub(parent: int, name: bytes, path: bytes, *, directory: bool, stubs: Stubs | None) -> int:
    times = os.stat(fd_path(parent))
    if directory:
        os.mkdir(name, 0o755, dir_fd=parent)
    else:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=parent))
    os.utime(fd_path(parent), ns=(times.st_atime_ns, times.st_mtime_ns))
    if stubs is not None:
        stubs.add(parent, path, directory=directory)
    return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)


def open_target(root: int, path: bytes, *, directory: bool, stubs: Stubs | None) -> int:
    """The mount point ``path`` below ``root``, made if it is missing. Raises NotADirectoryError or IsADirectoryError when
    what is there is of the other kind."""
    try:
        fd = open_in_root(root, path)
    except FileNotFoundError:
        fd = _walk(root, path, create="directory" if directory else "file", stubs=stubs)
    is_directory = is_directory_fd(fd)
    if is_directory != directory:
        os.close(fd)
        number = errno.EISDIR if is_directory else errno.ENOTDIR
        raise OSError(number, os.strerror(number), os.fsdecode(path))
    return fd


def is_directory_fd(fd: int) -> bool:
    """True if ``fd`` has a directory open."""
    return os.fstat(fd).st_mode & 0o170000 == 0o040000


# --- the root file system --------------------------------------------------------------------------------------------


def mount_overlay(lower: Sequence[bytes], upper: bytes, work: bytes, target: bytes, *, attributes: int = 0) -> None:
    """Mount an overlay on ``target``, a whole path. ``lower`` lowest first, as callers have it; overlayfs wants the topmost first.

    mount(2) takes one page of options. Layers are opened and named by their numbers in /proc/self/fd, the working directory
    meanwhile, which makes room for overlayfs's own limit of 500 layers and leaves no comma or colon to escape.
    """
    fds: list[int] = []
    try:
        for path in (upper, work, *reversed(lower)):
            fds += [os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
        # Layers say all by whiteouts and opaque marks. nofollow rather than off, which userxattr refuses.
        features = [b"index=off", b"redirect_dir=nofollow", b"metacopy=off"]
        if Machine.user_namespace:
            features.append(b"userxattr")
        features.append(b"volatile")
        # The mark of an earlier volatile mount, which would refuse a second one (overlayfs.rst, "Volatile mount").
        # Nothing that was lost can have been counted on: a snapshot interrupted by a crash is discarded.
        _forget_volatile(work)
        options = b"upperdir=%d,workdir=%d,lowerdir=%s" % (fds[0], fds[1], b":".join(b"%d" % fd for fd in fds[2:]))
        os.chdir("/proc/self/fd")
        while True:
            try:
                mount(b"overlay", target, b"overlay", flags=attributes, options=b",".join([options, *features]))
                return
            except OSError as error:
                # An old kernel refuses what it doesn't know: volatile came with Linux 5.10, userxattr with 5.11.
                if error.errno != errno.EINVAL or not features:
                    raise
                features.pop()
    finally:
        os.chdir("/")
        for fd in fds:
            os.close(fd)


def _forget_volatile(work: bytes) -> None:
    mark = os.path.join(work, b"work/incompat/volatile")
    try:
        os.unlink(os.path.join(mark, b"dirty"))
        os.rmdir(mark)
    except OSError:
        pass


def in_user_namespace() -> bool:
    """True unless this process's user namespace is the initial one, whose map is everything to itself (user_namespaces(7))."""
    with open("/proc/self/uid_map", "rb") as text:
        return text.read().split() != [b"0", b"0", b"4294967295"]


def _explain_overlay(error: OSError, upper: bytes) -> SandboxFailure:
    kind = 0
    buffer = ctypes.create_string_buffer(256)
    if _libc.statfs(ctypes.c_char_p(upper), buffer) == 0:
        kind = struct.unpack_from("=l" if struct.calcsize("l") == 4 else "=q", buffer)[0]
    if kind == OVERLAYFS_SUPER_MAGIC:
        return SandboxFailure(
            "overlay", "the store lies on an overlay file system, which can't hold another overlay's upper layer"
        )
    if error.errno == errno.ENODEV:
        return SandboxFailure("overlay", "this kernel has no overlay file system")
    if error.errno == errno.EPERM:
        return SandboxFailure(
            "overlay", "this kernel doesn't let an ordinary user mount an overlay (Linux 5.11 or newer does)"
        )
    return SandboxFailure("overlay", f"can't mount the root file system: {error.strerror}", number=error.errno or 0)


def mount_root(request: Request, *, attributes: int) -> int:
    """Mount the root file system on its own upper directory and return a descriptor of it."""
    upper = request["upper"]
    if request["lower"]:
        try:
            mount_overlay(request["lower"], upper, request["work"], upper, attributes=attributes)
        except OSError as error:
            raise _explain_overlay(error, upper) from None
    else:
        source = os.open(upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        attach_tree(source, upper, attributes=attributes)
        os.close(source)
    return os.open(upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


# --- standard mounts -------------------------------------------------------------------------------------------------

# What Docker hides from containers and what it makes read-only there, besides ``sensitive_sys_paths``.
MASKED_PATHS = (
    *(b"proc/acpi", b"proc/asound", b"proc/interrupts", b"proc/kcore", b"proc/keys", b"proc/latency_stats"),
    *(b"proc/sched_debug", b"proc/scsi", b"proc/timer_list", b"proc/timer_stats"),
)
READONLY_PATHS = (b"proc/bus", b"proc/fs", b"proc/irq", b"proc/sys", b"proc/sysrq-trigger")

STANDARD_DEVICES = (
    (b"null", 1, 3),
    (b"zero", 1, 5),
    (b"full", 1, 7),
    (b"random", 1, 8),
    (b"urandom", 1, 9),
    (b"tty", 5, 0),
)
DEVICE_LINKS = (
    (b"fd", b"/proc/self/fd"),
    (b"stdin", b"/proc/self/fd/0"),
    (b"stdout", b"/proc/self/fd/1"),
    (b"stderr", b"/proc/self/fd/2"),
    (b"ptmx", b"pts/ptmx"),
    (b"core", b"/proc/kcore"),
)


class Step:
    """A step while it is set up: its request, its root, and what was found out or made on the way."""

    def __init__(self, request: Request, root: int, *, nodev: int) -> None:
        self.request = request
        self.root = root
        self.nodev = nodev
        self.stubs = Stubs(root)
        self.notices: list[str] = []
        self.listeners: list[_socket.socket] = []
        self.scratch = -1
        self.files = 0

    def target(self, path: bytes, *, directory: bool, remove: bool = True) -> int:
        try:
            return open_target(self.root, path, directory=directory, stubs=self.stubs if remove else None)
        except OSError as error:
            raise SandboxFailure(
                "mount", f"can't mount on {os.fsdecode(path)}: {error.strerror}", number=error.errno or 0
            ) from None


def mount_proc(step: Step) -> None:
    """/proc of the step's pid namespace, or the host's where the kernel refuses a new one (a masked /proc outside)."""
    target = step.target(b"proc", directory=True, remove=False)
    try:
        attach_filesystem("proc", target, attributes=NOSUID | NODEV | NOEXEC)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        source = os.open(b"/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        attach_tree(source, target, attributes=NOSUID | NODEV | NOEXEC, recursive=True)
        os.close(source)
        step.notices.append(
            "/proc shows, and lets steps reach, the processes outside them: this container may not mount its own"
        )
    os.close(target)


def mount_dev(step: Step) -> None:
    """/dev as the OCI runtime specification wants it (config-linux.md, "Default Devices" and "Default Filesystems")."""
    request = step.request
    target = step.target(b"dev", directory=True, remove=False)
    attach_filesystem("tmpfs", target, options=(("mode", "755"), ("size", "65536k")), attributes=NOSUID | step.nodev)
    os.close(target)
    bind = bool(step.nodev) or Machine.user_namespace
    dev = open_in_root(step.root, b"dev")
    old_mask = os.umask(0)
    try:
        for name, major, minor in STANDARD_DEVICES:
            _make_device(dev, name, kind=0o020000, device=(major, minor), mode=0o666, bind=bind)
        for path, kind, major, minor, mode in request["devices"]:
            if b"/" in path:
                try:
                    os.mkdir(path.rpartition(b"/")[0], 0o755, dir_fd=dev)
                except FileExistsError:
                    pass
            try:
                _make_device(dev, path, kind=kind, device=(major, minor), mode=mode, bind=bind)
            except FileNotFoundError:
                continue
        for name, destination in DEVICE_LINKS:
            if name == b"core" and not os.path.lexists(destination):
                continue  # a kernel without CONFIG_PROC_KCORE; runc leaves the link out as well
            os.symlink(destination, name, dir_fd=dev)
        for name in (b"pts", b"shm", b"mqueue"):
            os.mkdir(name, 0o755, dir_fd=dev)
    finally:
        os.umask(old_mask)
    pts_options: list[tuple[str, str | None]] = [("newinstance", None), ("ptmxmode", "0666"), ("mode", "0620")]
    for options in ((*pts_options, ("gid", "5")), pts_options):
        try:
            _attach_below(dev, b"pts", "devpts", options=options, attributes=NOSUID | NOEXEC)
            break
        except OSError as error:
            # gid 5 (tty) isn't mapped with a single sub-id.
            if error.errno != errno.EINVAL:
                raise
    shm: list[tuple[str, str | None]] = [("mode", "1777"), ("size", str(request["shm_size"]))]
    _attach_below(dev, b"shm", "tmpfs", options=shm, attributes=NOSUID | NODEV | NOEXEC)
    try:
        _attach_below(dev, b"mqueue", "mqueue", attributes=NOSUID | NODEV | NOEXEC)
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.EPERM):
            raise
        step.notices.append("/dev/mqueue is missing: this kernel doesn't offer it here")
    os.close(dev)


def _attach_below(
    parent: int, name: bytes, kind: str, *, options: Sequence[tuple[str, str | None]] = (), attributes: int = 0
) -> None:
    target = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        attach_filesystem(kind, target, options=options, attributes=attributes)
    finally:
        os.close(target)


def _make_device(dev: int, name: bytes, *, kind: int, device: tuple[int, int], mode: int, bind: bool) -> None:
    if not bind:
        os.mknod(name, kind | mode, os.makedev(*device), dir_fd=dev)
        return
    # Where devices can't be made, or not be opened on this mount, the host's own are bound.
    source = os.open(b"/dev/" + name, os.O_PATH | os.O_CLOEXEC)
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=dev))
    target = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=dev)
    attach_tree(source, target)
    os.close(source)
    os.close(target)


def prepare_sys() -> None:
    """In the launcher: cover its /sys with what steps get to see, so that a step binds this tree instead of making a dozen mounts."""
    root = os.open(b"/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mount_fresh_sys(root, attributes=NOSUID | NODEV | NOEXEC)
    except OSError:
        pass  # a user namespace below the host's network: steps get the host's /sys, read-only
    mask_paths(root, sensitive_sys_paths())
    os.close(root)


def mount_fresh_sys(root: int, *, attributes: int) -> list[str]:
    """Mount sysfs and the control groups that this process sees below ``root``; returns notices. Raises OSError when sysfs is
    refused, which is so where this network namespace belongs to another user namespace."""
    target = open_in_root(root, b"sys")
    try:
        attach_filesystem("sysfs", target, attributes=attributes)
    finally:
        os.close(target)
    try:
        mount_control_groups(root, attributes=attributes)
    except OSError as error:
        return [f"/sys/fs/cgroup is empty in steps: {error.strerror}"]
    return []


def mount_sys(step: Step, *, own: bool) -> None:
    """/sys read-only: a fresh one if the step has a network or control groups of its own, else the launcher's."""
    privileged = step.request["privileged"]
    attributes = NOSUID | NODEV | NOEXEC | (0 if privileged else RDONLY)
    os.close(step.target(b"sys", directory=True, remove=False))
    if own:
        try:
            step.notices += mount_fresh_sys(step.root, attributes=attributes)
            if not privileged:
                mask_paths(step.root, sensitive_sys_paths())
            return
        except OSError as error:
            if error.errno != errno.EPERM:
                raise
    source = os.open(b"/sys", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    target = open_in_root(step.root, b"sys")
    attach_tree(source, target, attributes=attributes, recursive=True)
    os.close(source)
    os.close(target)


def mount_control_groups(root: int, *, attributes: int) -> None:
    """What the host has at /sys/fs/cgroup, seen from this process's own groups: one version 2 tree, or a folder of version 1 ones."""
    hierarchies = control_group_paths("self")
    if not hierarchies:
        return
    point = open_in_root(root, b"sys/fs/cgroup")
    try:
        if list(hierarchies) == [""]:
            attach_filesystem("cgroup2", point, attributes=attributes)
            return
        attach_filesystem("tmpfs", point, options=(("mode", "755"),), attributes=NOSUID | NODEV | NOEXEC)
    finally:
        os.close(point)
    folder = open_in_root(root, b"sys/fs/cgroup")
    for controllers in hierarchies:
        name = (controllers or "unified").removeprefix("name=").encode()
        os.mkdir(name, 0o755, dir_fd=folder)
        if not controllers:
            _attach_below(folder, name, "cgroup2", attributes=attributes)
            continue
        options: list[tuple[str, str | None]] = []
        for part in controllers.split(","):
            key, equals, value = part.partition("=")
            options.append((key, value if equals else None))
        _attach_below(folder, name, "cgroup", options=options, attributes=attributes)
        if "," in controllers:
            for part in controllers.split(","):
                os.symlink(name, part.encode(), dir_fd=folder)
    if attributes & RDONLY:
        make_readonly(folder, attributes=attributes)
    os.close(folder)


def mask_paths(root: int, paths: Iterable[bytes]) -> None:
    """Hide what exists of ``paths`` behind /dev/null or an empty read-only directory."""
    null = empty = -1
    for path in paths:
        try:
            target = open_in_root(root, path)
        except OSError:
            continue
        if not is_directory_fd(target):
            if null < 0:
                null = open_in_root(root, b"dev/null")
            attach_tree(null, target)
        elif empty < 0:
            attach_filesystem("tmpfs", target, options=(("size", "0k"),), attributes=RDONLY | NOSUID | NODEV | NOEXEC)
            empty = open_in_root(root, path)
        else:
            attach_tree(empty, target)
        os.close(target)
    for fd in (null, empty):
        if fd >= 0:
            os.close(fd)


def freeze_paths(root: int, paths: Iterable[bytes]) -> None:
    """Make what exists of ``paths`` read-only."""
    for path in paths:
        try:
            target = open_in_root(root, path)
        except OSError:
            continue
        attach_tree(target, target, attributes=RDONLY, recursive=True)
        os.close(target)


def sensitive_sys_paths() -> list[bytes]:
    """What Docker hides below /sys, with the sensors of every processor."""
    processors = b"sys/devices/system/cpu"
    try:
        names = os.listdir(b"/" + processors)
    except OSError:
        names = []
    sensors = [b"%s/%s/thermal_throttle" % (processors, name) for name in names if name[3:].isdigit()]
    return [b"sys/firmware", b"sys/devices/virtual/powercap", *sensors]


# --- the step's own mounts -------------------------------------------------------------------------------------------


def open_scratch(step: Step) -> None:
    """A private tmpfs for files that are made for this step: stacked on the root's mount point, where only its descriptor
    reaches it, and detached again before the root becomes /."""
    attach_filesystem("tmpfs", step.request["upper"], options=(("mode", "700"),), attributes=NOSUID | NODEV)
    step.scratch = os.open(step.request["upper"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if not Machine.modern_mounts:
        Machine.stage = step.request["upper"]
        os.mkdir(b"directory", 0o700, dir_fd=step.scratch)
        os.close(os.open(b"file", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=step.scratch))


def close_scratch(step: Step) -> None:
    """Detach the scratch tmpfs; what was bound from it stays."""
    unmount(step.request["upper"])
    os.close(step.scratch)


def _bind_data(step: Step, path: bytes, data: bytes, *, mode: int, owner: tuple[int, int], attributes: int) -> None:
    step.files += 1
    name = b"%d" % step.files
    fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=step.scratch)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    _give(fd, owner, os.fsdecode(path))
    os.fchmod(fd, mode)
    os.close(fd)
    source = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=step.scratch)
    target = step.target(path, directory=False)
    attach_tree(source, target, attributes=attributes)
    os.close(source)
    os.close(target)


def _give(fd: int, owner: tuple[int, int], name: str) -> None:
    if owner == (0, 0):
        return
    try:
        os.chown(fd_path(fd), *owner)
    except OSError as error:
        raise SandboxFailure(
            "identity", f"can't give {name} to {owner[0]}:{owner[1]}: {error.strerror}", number=error.errno or 0
        ) from None


def _bind_host(step: Step, source: bytes, path: bytes, *, readonly: bool) -> None:
    try:
        fd = os.open(source, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise SandboxFailure(
            "mount", f"can't mount {os.fsdecode(source)} on {os.fsdecode(path)}: {error.strerror}"
        ) from None
    if os.fstat(fd).st_mode & 0o170000 == 0o120000:
        raise SandboxFailure(
            "mount", f"can't mount {os.fsdecode(source)} on {os.fsdecode(path)}: it is a symbolic link"
        )
    target = step.target(path, directory=is_directory_fd(fd))
    attach_tree(fd, target, attributes=step.nodev | (RDONLY if readonly else 0), recursive=True)
    os.close(fd)
    os.close(target)


def _bind_overlay(
    step: Step, lower: list[bytes], source: bytes, path: bytes, *, readonly: bool, scratch: bytes
) -> None:
    upper = os.path.join(scratch, b"upper")
    work = os.path.join(scratch, b"work")
    for folder in (upper, work):
        os.makedirs(folder, 0o755, exist_ok=True)
    if not lower:
        mounted = os.open(upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    else:
        if len(lower) == 1:
            # The root of an overlay takes its mode and owner from the upper directory (overlayfs.rst, "Upper and Lower").
            _copy_attributes(lower[0], upper)
        else:
            _copy_attributes(lower[-1], upper)
        try:
            mount_overlay(lower, upper, work, scratch)
        except OSError as error:
            raise _explain_overlay(error, upper) from None
        mounted = os.open(scratch, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        shown = open_in_root(mounted, source)
    except OSError as error:
        raise SandboxFailure(
            "mount", f"can't mount {os.fsdecode(source)} on {os.fsdecode(path)}: {error.strerror}"
        ) from None
    target = step.target(path, directory=is_directory_fd(shown))
    attach_tree(shown, target, attributes=step.nodev | (RDONLY if readonly else 0))
    for fd in (shown, mounted, target):
        os.close(fd)
    if lower:
        unmount(scratch)


def _copy_attributes(source: bytes, target: bytes) -> None:
    status = os.stat(source)
    try:
        os.chown(target, status.st_uid, status.st_gid)
    except OSError:
        pass  # an identifier that this user namespace doesn't map
    os.chmod(target, status.st_mode & 0o7777)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _bind_socket(step: Step, path: bytes, *, mode: int, owner: tuple[int, int]) -> None:
    step.files += 1
    name = b"%d" % step.files
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    listener.bind(fd_path(step.scratch) + b"/" + name)
    listener.listen(16)
    source = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=step.scratch)
    _give(source, owner, os.fsdecode(path))
    os.chmod(fd_path(source), mode)
    target = step.target(path, directory=False)
    attach_tree(source, target, attributes=NOSUID | NODEV | NOEXEC)
    os.close(source)
    os.close(target)
    step.listeners.append(listener)


def mount_for_step(step: Step, item: StepMount) -> None:
    """Make one of the request's mounts."""
    match item:
        case ("host", bytes(source), bytes(path), bool(readonly)):
            _bind_host(step, source, path, readonly=readonly)
        case ("overlay", list(lower), bytes(source), bytes(path), bool(readonly), bytes(scratch)):
            _bind_overlay(step, lower, source, path, readonly=readonly, scratch=scratch)
        case ("tmpfs", bytes(path), int(size)):
            target = step.target(path, directory=True)
            options = (("size", str(size)),) if size else ()
            attach_filesystem("tmpfs", target, options=options, attributes=NOSUID | step.nodev)
            os.close(target)
        case ("data", bytes(path), bytes(data), int(mode), int(uid), int(gid)):
            attributes = RDONLY | NOSUID | NODEV | (0 if mode & 0o111 else NOEXEC)
            _bind_data(step, path, data, mode=mode, owner=(uid, gid), attributes=attributes)
        case ("socket", bytes(path), int(mode), int(uid), int(gid)):
            _bind_socket(step, path, mode=mode, owner=(uid, gid))
        case _:
            raise SandboxFailure("setup", f"unknown mount {item[:1]!r}")


# --- identity --------------------------------------------------------------------------------------------------------


def last_capability() -> int:
    """The highest capability number that this kernel knows."""
    try:
        with open("/proc/sys/kernel/cap_last_cap", "rb") as text:
            return int(text.read())
    except OSError:
        return 40


def drop_bounding(keep: int, *, present: int) -> None:
    """Leave only the capabilities in the mask ``keep`` in the bounding set, which is ``present``."""
    for capability in range(64):
        if present >> capability & ~(keep >> capability) & 1:
            prctl(PR_CAPBSET_DROP, capability)


def read_bounding() -> int:
    """The bounding set of this process as a mask."""
    mask = 0
    for capability in range(last_capability() + 1):
        mask |= prctl(PR_CAPBSET_READ, capability) << capability
    return mask


def set_capabilities(*, effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) for this process, as masks."""
    header = struct.pack("=Ii", LINUX_CAPABILITY_VERSION_3, 0)
    low = [mask & 0xFFFFFFFF for mask in (effective, permitted, inheritable)]
    high = [mask >> 32 for mask in (effective, permitted, inheritable)]
    _check(_libc.capset(header, struct.pack("=6I", *low, *high)), "capset")


def install_filter(program: bytes) -> None:
    """Install a seccomp program (struct sock_filter array) without setting no_new_privs: needs CAP_SYS_ADMIN."""
    code = ctypes.create_string_buffer(program, len(program))
    address = ctypes.addressof(code)
    # struct sock_fprog (include/uapi/linux/filter.h): a length and, aligned, a pointer.
    header = ctypes.create_string_buffer(struct.pack("HP", len(program) // 8, address))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(header))


def become(step: Step) -> None:
    """Take the step's capabilities, seccomp filter and user, in the order that keeps each possible."""
    request = step.request
    bounding = request["bounding"] & Machine.bounding
    drop_bounding(bounding, present=Machine.bounding)
    # The filter must come while CAP_SYS_ADMIN is still there (seccomp(2)); it lets all that follows through.
    if request["seccomp"]:
        try:
            install_filter(request["seccomp"])
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            step.notices.append("steps run without a seccomp filter: this kernel has none")
    prctl(PR_SET_KEEPCAPS, 1)
    try:
        os.setgroups(request["groups"])
    except PermissionError:
        if set(request["groups"]) - {request["gid"]}:
            step.notices.append("supplementary groups are left out: this user namespace doesn't allow setgroups")
    try:
        os.setresgid(request["gid"], request["gid"], request["gid"])
        os.setresuid(request["uid"], request["uid"], request["uid"])
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise SandboxFailure(
            "identity", f"can't run as {request['uid']}:{request['gid']}: that id isn't mapped in this user namespace"
        ) from None
    prctl(PR_SET_KEEPCAPS, 0)
    permitted = request["permitted"] & bounding
    set_capabilities(effective=permitted, permitted=permitted, inheritable=request["inheritable"] & bounding)
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(64):
        if request["ambient"] & bounding & permitted & request["inheritable"] & 1 << capability:
            prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability)


def home_directory(uid: int) -> bytes:
    """The home directory that the root's own /etc/passwd gives to ``uid``; ``/`` if none."""
    try:
        with open(b"/etc/passwd", "rb") as lines:
            for line in lines:
                fields = line.rstrip(b"\n").split(b":")
                if len(fields) >= 6 and fields[2] == b"%d" % uid:
                    return fields[5] or b"/"
    except OSError:
        pass
    return b"/"


def find_program(name: bytes, environment: dict[bytes, bytes]) -> bytes:
    """Where ``name`` is, looked up in the step's own PATH. The messages are those that users of containers know."""
    shown = os.fsdecode(name)
    if b"/" in name:
        try:
            status = os.stat(name)
        except OSError as error:
            if error.errno == errno.EACCES:
                raise SandboxFailure("program", f'exec: "{shown}": permission denied', number=errno.EACCES) from None
            reason = (error.strerror or "").lower()
            raise SandboxFailure(
                "program", f'exec: "{shown}": stat {shown}: {reason}', number=error.errno or 0
            ) from None
        if status.st_mode & 0o170000 == 0o040000:
            raise SandboxFailure("program", f'exec: "{shown}": is a directory', number=errno.EISDIR)
        if not os.access(name, os.X_OK):
            raise SandboxFailure("program", f'exec: "{shown}": permission denied', number=errno.EACCES)
        return name
    for folder in environment.get(b"PATH", b"").split(b":"):
        path = (folder or b".") + b"/" + name
        try:
            if os.stat(path).st_mode & 0o170000 != 0o040000 and os.access(path, os.X_OK):
                return path
        except OSError:
            continue
    raise SandboxFailure("program", f'exec: "{shown}": executable file not found in $PATH', number=errno.ENOENT)


# --- one step --------------------------------------------------------------------------------------------------------


def set_up(request: Request, groups: StepGroups) -> Step:
    """Build everything around the program: mounts, host name, network. Runs in the step's new namespaces."""
    own_sys = request["privileged"] or request["new_network"] or bool(groups.made)
    # Nothing mounted from here on may reach another namespace, and nothing mounted elsewhere may come in.
    mount(b"none", b"/", flags=MS_REC | MS_PRIVATE)
    # Without a device control group a step could make the host's disk with mknod and open it, so devices are
    # made unusable on everything it can write to. A user namespace can't make any (mknod(2)).
    nodev = NODEV if not (groups.devices or request["privileged"] or Machine.user_namespace) else 0
    step = Step(request, mount_root(request, attributes=nodev), nodev=nodev)
    open_scratch(step)
    mount_proc(step)
    mount_dev(step)
    mount_sys(step, own=own_sys)
    for path, data in request["files"]:
        _bind_data(step, path, data, mode=0o644, owner=(0, 0), attributes=RDONLY | NOSUID | NODEV | NOEXEC)
    for item in request["mounts"]:
        mount_for_step(step, item)
    if not request["privileged"]:
        mask_paths(step.root, MASKED_PATHS)
        freeze_paths(step.root, READONLY_PATHS)
    close_scratch(step)
    set_hostname(request["hostname"])
    if request["new_network"]:
        bring_up_loopback()
    return step


def set_hostname(name: str) -> None:
    """sethostname(2)."""
    encoded = name.encode()
    _check(_libc.sethostname(ctypes.c_char_p(encoded), ctypes.c_size_t(len(encoded))), "sethostname")


def bring_up_loopback() -> None:
    """Set the loopback interface of a new network namespace up (netdevice(7))."""
    link = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    answer = fcntl.ioctl(link.fileno(), SIOCGIFFLAGS, struct.pack("16sh22x", b"lo", 0))
    flags = struct.unpack_from("16sh", answer)[1]
    fcntl.ioctl(link.fileno(), SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | IFF_UP))
    link.close()


def enter_root(step: Step) -> None:
    """Make the new root /, and let go of the old one (pivot_root(2), "pivot_root(".", ".")")."""
    os.fchdir(step.root)
    _check(_libc.pivot_root(ctypes.c_char_p(b"."), ctypes.c_char_p(b".")), "pivot_root")
    unmount(b".")
    os.chdir("/")


def _stop_imports() -> None:
    """Leave only the modules that are built in: below the new root, the paths of the others are the step's own files."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "__name__", "") != "PathFinder"]


def open_terminal(size: tuple[int, int]) -> tuple[int, int]:
    """A pseudo-terminal of the step's own devpts, of ``size`` rows and columns, as this process's controlling terminal:
    descriptors of its master and its slave."""
    master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    _check(_libc.unlockpt(master), "unlockpt")
    name = ctypes.create_string_buffer(64)
    if _libc.ptsname_r(master, name, ctypes.c_size_t(len(name))):
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY), "/dev/pts/ptmx")
    slave = os.open(name.value, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", *size, 0, 0))
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    return master, slave


def run_step(request: Request, channel: _socket.socket, given: Sequence[int], *, groups: StepGroups) -> NoReturn:
    """In the step's process: set up, tell, execute. Never returns."""
    try:
        groups.join()
        if groups.made or groups.joined:
            _unshare_control_groups()
        # The rest has its default since ``main``.
        for number in (_signal.SIGINT, _signal.SIGCHLD, _signal.SIGPIPE, _signal.SIGXFSZ):
            _signal.signal(number, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
        os.umask(0o022)
        os.setsid()
        step = set_up(request, groups)
        step.notices += groups.notices
        _stop_imports()
        enter_root(step)
        descriptors = [listener.fileno() for listener in step.listeners]
        if request["terminal"] is not None:
            master, slave = open_terminal(request["terminal"])
            descriptors.append(master)
            streams = (slave, slave, slave)
        else:
            out, err, *rest = given
            streams = (rest[0] if rest else os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), out, err)
        # Above 2 first, so that none is overwritten before it is copied.
        safe = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in streams]
        for number, fd in enumerate(safe):
            os.dup2(fd, number)
        cwd = request["cwd"] or b"/"
        try:
            try:
                os.chdir(cwd)
            except FileNotFoundError:
                # As runc does. Links lead nowhere but into the step's own root by now.
                os.makedirs(os.path.realpath(cwd), 0o755, exist_ok=True)
                os.chdir(cwd)
            entered = True
        except PermissionError:
            entered = False  # perhaps only the step's own user may enter
        except OSError as error:
            raise SandboxFailure(
                "setup", f"can't enter the working directory {os.fsdecode(cwd)}: {error.strerror}"
            ) from None
        for resource, soft, hard in request["rlimits"]:
            _set_limit(step, resource, soft, hard)
        keyctl = SYS_KEYCTL.get(os.uname().machine)
        if keyctl is not None:
            try:
                _syscall("keyctl", keyctl, KEYCTL_JOIN_SESSION_KEYRING, None, 0, 0, 0)
            except OSError:
                pass  # a kernel without key rings, or an outer seccomp filter
        environment = dict(request["env"])
        if not environment.get(b"HOME"):
            environment[b"HOME"] = home_directory(request["uid"])
        become(step)
        if not entered:
            try:
                os.chdir(cwd)
            except OSError as error:
                raise SandboxFailure(
                    "setup", f"can't enter the working directory {os.fsdecode(cwd)}: {error.strerror}"
                ) from None
        # Last, because a change of identity clears it (prctl(2)).
        prctl(PR_SET_PDEATHSIG, _signal.SIGKILL)
        send(channel, ("ready", step.stubs.made, step.notices), descriptors)
        program = find_program(request["args"][0], environment)
        _execute(program, request["args"], environment)
    except SandboxFailure as failure:
        send(channel, ("failed", failure.kind, failure.number, failure.message), ())
    except OSError as error:
        send(channel, ("failed", "setup", error.errno or 0, f"can't set up the step: {_describe(error)}"), ())
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        line = trace.tb_lineno if trace is not None else 0
        send(
            channel, ("failed", "setup", 0, f"can't set up the step: {type(error).__name__}: {error} (line {line})"), ()
        )
    finally:
        os._exit(126)


def _describe(error: OSError) -> str:
    if error.filename is None:
        return error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {error.strerror}"


def _execute(program: bytes, args: list[bytes], environment: dict[bytes, bytes]) -> NoReturn:
    try:
        os.execve(program, args, environment)
    except OSError as error:
        reason = "exec format error" if error.errno == errno.ENOEXEC else (error.strerror or "").lower()
        raise SandboxFailure("program", f"exec {os.fsdecode(program)}: {reason}", number=error.errno or 0) from None


def _set_limit(step: Step, resource: int, soft: int, hard: int) -> None:
    """setrlimit(2); -1 is unlimited. A hard limit that only another root could raise stays as it is, with a notice."""
    unlimited = 0xFFFFFFFFFFFFFFFF
    wanted = (soft & unlimited, hard & unlimited)
    try:
        _check(_libc.setrlimit(ctypes.c_int(resource), (ctypes.c_ulong * 2)(*wanted)), "setrlimit")
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        present = (ctypes.c_ulong * 2)()
        _check(_libc.getrlimit(ctypes.c_int(resource), present), "getrlimit")
        clamped = (ctypes.c_ulong * 2)(*(min(one, present[1]) for one in wanted))
        _check(_libc.setrlimit(ctypes.c_int(resource), clamped), "setrlimit")
        step.notices.append(f"a ulimit of {wanted[1]} is cut to {present[1]}, the limit of this user")


# --- control groups --------------------------------------------------------------------------------------------------

SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280, "ppc64le": 361, "s390x": 351}
BPF_PROG_LOAD = 5
BPF_PROG_ATTACH = 8
BPF_PROG_TYPE_CGROUP_DEVICE = 15
BPF_CGROUP_DEVICE = 6
BPF_F_ALLOW_MULTI = 2


def attach_device_program(folder: bytes) -> None:
    """Attach ``device_program`` to a version 2 group (bpf(2))."""
    number = SYS_BPF.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    code = ctypes.create_string_buffer(device_program())
    license_name = ctypes.create_string_buffer(b"Apache-2.0")
    length = (len(code) - 1) // 8
    load = struct.pack(
        "=IIQQIIQII",
        BPF_PROG_TYPE_CGROUP_DEVICE,
        length,
        ctypes.addressof(code),
        ctypes.addressof(license_name),
        0,
        0,
        0,
        0,
        0,
    )
    load = load.ljust(120, b"\0")
    program = _syscall("bpf", number, BPF_PROG_LOAD, load, len(load))
    try:
        group = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            attach = struct.pack("=IIII", group, program, BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI).ljust(120, b"\0")
            _syscall("bpf", number, BPF_PROG_ATTACH, attach, len(attach))
        finally:
            os.close(group)
    finally:
        os.close(program)


def _unshare_control_groups() -> None:
    try:
        unshare(CLONE_NEWCGROUP)
    except OSError:
        pass  # a kernel without control groups


# --- messages --------------------------------------------------------------------------------------------------------


def send(channel: _socket.socket, message: tuple[object, ...], descriptors: Sequence[int]) -> None:
    """Send one marshalled message with descriptors; a peer that has gone doesn't matter."""
    extra = (
        [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(descriptors)}i", *descriptors))]
        if descriptors
        else []
    )
    try:
        channel.sendmsg([marshal.dumps(message)], extra)  # type: ignore[arg-type]  # nested tuples of plain values
    except OSError:
        pass


def receive(channel: _socket.socket, limit: int) -> tuple[bytes, list[int]]:
    """Receive one message and its descriptors; empty at the end of the connection."""
    data, extra, _, _ = channel.recvmsg(limit, _socket.CMSG_SPACE(16 * 4), _socket.MSG_CMSG_CLOEXEC)
    descriptors: list[int] = []
    for level, kind, content in extra:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
            descriptors.extend(struct.unpack(f"{len(content) // 4}i", content))
    return data, descriptors


# --- user namespaces -------------------------------------------------------------------------------------------------


def enter_user_namespace(write_maps: Callable[[int], None]) -> None:
    """Move this process, which must have one thread, into a new user namespace, where it is root, and a mount namespace.

    ``write_maps`` is called with this process's id in a child that stays outside (only there newuidmap(1) has its rights, and
    root its capabilities) once the namespace exists, and raises OSError to refuse. Raises OSError.
    """
    process = os.getpid()
    made_read, made_write = os.pipe2(os.O_CLOEXEC)
    mapped_read, mapped_write = os.pipe2(os.O_CLOEXEC)
    helper = os.fork()
    if helper == 0:
        os.close(made_write)
        os.close(mapped_read)
        answer = b"ok"
        try:
            try:
                if os.read(made_read, 1):
                    write_maps(process)
            except OSError as error:
                answer = f"{error.errno or 0} {_describe(error)}".encode()
            except BaseException as error:
                answer = f"0 {error}".encode()
            os.write(mapped_write, answer[:4000])
        finally:
            # Even if the other side has gone: this child must never go on as its parent.
            os._exit(0)
    os.close(made_read)
    os.close(mapped_write)
    try:
        unshare(CLONE_NEWUSER | CLONE_NEWNS)
        os.write(made_write, b"x")
        answer = os.read(mapped_read, 4096)
    finally:
        os.close(made_write)
        os.close(mapped_read)
        os.waitpid(helper, 0)
    if answer != b"ok":
        number, _, text = answer.decode(errors="replace").partition(" ")
        raise OSError(int(number or 0), text or "the helper that maps ids has died")
    # The capabilities over the new namespace came with it; its user 0 is this process's user now.
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    mount(b"none", b"/", flags=MS_REC | MS_SLAVE)


# --- the launcher ----------------------------------------------------------------------------------------------------


class Launcher:
    """Starts steps on request, tells how they ended, and kills those whose engine no longer listens."""

    def __init__(self, control: _socket.socket, groups: ControlGroups) -> None:
        self.control = control
        self.steps: dict[int, tuple[_socket.socket, StepGroups]] = {}
        self.groups = groups
        self.poll = select.poll()

    def serve(self) -> None:
        """Until the control socket ends."""
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        _signal.signal(_signal.SIGCHLD, lambda number, frame: None)
        _signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self.poll.register(self.control, select.POLLIN)
        self.poll.register(wake_read, select.POLLIN)
        by_channel: dict[int, int] = {}
        while True:
            for fd, _ in self.poll.poll():
                if fd == self.control.fileno():
                    if not self.start_step(by_channel):
                        return
                elif fd == wake_read:
                    os.read(wake_read, 4096)
                elif fd in by_channel:
                    # The engine cancels the step, or has gone. What it said must be read: closing a socket with
                    # something unread resets the connection, and the engine would miss how the step ended.
                    try:
                        os.read(fd, 16)
                    except OSError:
                        pass
                    self.poll.unregister(fd)
                    os.kill(by_channel.pop(fd), _signal.SIGKILL)
            self.reap(by_channel)

    def stop(self) -> None:
        """Kill every step and remove its control groups."""
        for process in self.steps:
            os.kill(process, _signal.SIGKILL)
        for process, (_, groups) in self.steps.items():
            os.waitpid(process, 0)
            self.groups.remove(groups)

    def start_step(self, by_channel: dict[int, int]) -> bool:
        try:
            data, descriptors = receive(self.control, 16)
        except OSError:
            return False
        if not data:
            return False
        if len(descriptors) not in (4, 5):
            # No room for more descriptors (recvmsg(2), MSG_CTRUNC); the engine sees its end of the channel closed.
            for fd in descriptors:
                os.close(fd)
            return True
        memory, channel_fd, *streams = descriptors
        channel = _socket.socket(fileno=channel_fd)
        size = os.fstat(memory).st_size
        request: Request = marshal.loads(os.pread(memory, size, 0))
        flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS
        if request["new_network"]:
            flags |= CLONE_NEWNET
        groups = self.groups.make(
            parent=request["control_group_parent"], privileged=request["privileged"], limits=request["limits"]
        )
        try:
            process = clone(flags)
        except OSError as error:
            self.groups.remove(groups)
            send(channel, ("failed", "setup", error.errno or 0, f"can't make namespaces: {error.strerror}"), ())
            send(channel, ("exit", 126 << 8), ())
            process = -1
        if process == 0:
            run_step(request, channel, streams, groups=groups)
        del request  # it may hold secrets
        for fd in (memory, *streams):
            os.close(fd)
        if process > 0:
            self.steps[process] = (channel, groups)
            by_channel[channel_fd] = process
            self.poll.register(channel_fd, select.POLLIN)
        else:
            channel.close()
        return True

    def reap(self, by_channel: dict[int, int]) -> None:
        """Collect every process that has ended."""
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if process == 0:
                return
            known = self.steps.pop(process, None)
            if known is None:
                continue
            channel, groups = known
            self.groups.remove(groups)
            if by_channel.pop(channel.fileno(), None) is not None:
                self.poll.unregister(channel)
            send(channel, ("exit", status), ())
            channel.close()


def main(*, old_mount_calls: bool = False) -> None:
    """Be the keeper: start the launcher in a new pid namespace and outlive it. Descriptor 0 is the control socket.

    ``old_mount_calls`` uses mount(2) even where the kernel has better, for tests.
    """
    engine = os.getppid()
    control = _socket.socket(fileno=os.dup(0))
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    _reset_signals()
    Machine.user_namespace = in_user_namespace()
    groups = ControlGroups(b"pybuild-%d" % os.getpid(), guard=None if Machine.user_namespace else attach_device_program)
    groups.make_base()
    try:
        process = clone(CLONE_NEWPID | CLONE_NEWNS)
        if process == 0:
            prctl(PR_SET_PDEATHSIG, _signal.SIGKILL)
            mount(b"none", b"/", flags=MS_REC | MS_SLAVE)
            if not Machine.user_namespace or os.access(b"/proc/self/exe", os.W_OK):
                _execute_protected(control, groups, old_mount_calls=old_mount_calls)
            else:
                serve(control, groups, old_mount_calls=old_mount_calls)
    except OSError as error:
        send(control, ("failed", "setup", error.errno or 0, f"can't make namespaces: {_describe(error)}"), ())
        groups.remove_base()
        os._exit(1)
    control.close()
    _outlive(process, engine)
    groups.remove_base()
    os._exit(0)


def import_statement() -> str:
    """Python that imports this module as ``sandbox`` in an interpreter without site packages.

    Importing uses the compiled form, which running it as a file wouldn't; the path is appended, so that nothing there shadows the
    standard library.
    """
    package, name = os.path.split(os.path.dirname(os.path.abspath(__file__)))
    return f"import sys; sys.path.append({package!r}); from {name} import sandbox"


def _reset_signals() -> None:
    """What the engine ignores mustn't be ignored in steps; what a terminal sends must not end the launcher."""
    for number in range(1, _signal.NSIG):
        if number not in (_signal.SIGKILL, _signal.SIGSTOP):
            try:
                _signal.signal(number, _signal.SIG_DFL)
            except (OSError, ValueError):
                continue  # kept by the C library for itself
    for number in (_signal.SIGINT, _signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_IGN)


def _execute_protected(control: _socket.socket, groups: ControlGroups, *, old_mount_calls: bool) -> NoReturn:
    """Become the launcher by executing the interpreter anew, from a read-only mount of it.

    A step could have itself replaced by the launcher's interpreter, as a script of /proc/self/exe, and, being root, write to that file
    on the host (CVE-2019-5736 of another runtime). The mount that an executed file was opened through stays with it, so it is
    made read-only. In a user namespace that matters where the interpreter is the user's own.
    """
    interpreter = os.readlink(b"/proc/self/exe")
    # What the mount has of these a user namespace may not take away; ST_* and MS_* have the same values (statvfs(3)).
    kept = os.statvfs(interpreter).f_flag & (NOSUID | NODEV | NOEXEC)
    mount(interpreter, interpreter, flags=MS_BIND)
    mount(b"none", interpreter, flags=MS_BIND | MS_REMOUNT | MS_RDONLY | kept)
    os.dup2(control.fileno(), 0)
    values = (groups.name, groups.base, old_mount_calls)
    code = f"{import_statement()}; sandbox.launch(*{values!r})"
    os.execv(interpreter, [os.fsencode(sys.executable), b"-I", b"-S", b"-c", os.fsencode(code)])


def launch(name: bytes, base: bytes | None, old_mount_calls: bool) -> None:
    """Be the launcher after ``_execute_protected``."""
    control = _socket.socket(fileno=os.dup(0))
    os.dup2(1, 0)
    _reset_signals()
    guard = None if in_user_namespace() else attach_device_program
    groups = ControlGroups(name, guard=guard)
    groups.base = base
    serve(control, groups, old_mount_calls=old_mount_calls)


def serve(control: _socket.socket, groups: ControlGroups, *, old_mount_calls: bool) -> NoReturn:
    """Start steps until the engine is gone."""
    # Nothing here makes cycles worth collecting, and a collection would touch, so copy, every page in a step.
    gc.disable()
    try:
        examine()
        Machine.modern_mounts = Machine.modern_mounts and not old_mount_calls
        groups.join_base()
        _unshare_control_groups()
        groups.hold()
        prepare_sys()
        launcher = Launcher(control, groups)
        send(control, ("started", Machine.modern_mounts), ())
    except OSError as error:
        send(control, ("failed", "setup", error.errno or 0, _describe(error)), ())
        os._exit(1)
    launcher.serve()
    launcher.stop()
    os._exit(0)


def _outlive(launcher: int, engine: int) -> None:
    """Wait for the launcher's end; end it when the engine has died.

    The launcher sees that itself as the end of the control socket, unless another child of the engine has inherited that.
    """
    try:
        fds = [os.pidfd_open(launcher), os.pidfd_open(engine)]
    except OSError:
        fds = []  # before Linux 5.3, or an engine that has died already
    if fds and os.getppid() == engine:
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        if fds[0] not in dict(poll.poll()):
            poll.unregister(fds[1])
            if not poll.poll(500):
                os.kill(launcher, _signal.SIGKILL)
    os.waitpid(launcher, 0)
