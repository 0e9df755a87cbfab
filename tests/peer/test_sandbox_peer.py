"""What a step sees and may do, beside crun and libseccomp given Docker's settings. Known differences are listed here."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
from fakes.seccomp_kernel import call_number, evaluate

from pybuild.builder.protocols import ProcessSpec
from pybuild.daemon import capabilities, sandbox, seccomp
from pybuild.daemon.executor import NamespaceExecutor
from pybuild.layers.entries import RootOverlay

MASKED_PATHS = [f"/{path.decode()}" for path in (*sandbox.MASKED_PATHS, *sandbox.sensitive_sys_paths())]
READONLY_PATHS = [f"/{path.decode()}" for path in sandbox.READONLY_PATHS]

pytestmark = pytest.mark.peer

SECTIONS = {
    "status": "grep -E '^(Cap|NoNewPrivs|Umask|SigBlk|SigIgn|SigCgt|NSpid)' /proc/self/status; id -u; id -g",
    "devices": "cd /dev; stat -c '%F %a %t:%T %N' * pts/* | sort",
    "mounts": "cat /proc/self/mounts",
    "masked": "for p in MASKED; do [ -e $p ] && { [ -d $p ] && ls -A $p || cat $p; } && echo $p; done",
    "readonly": 'for p in READONLY; do [ -e $p ] && grep -q " $p .* ro," /proc/self/mounts && echo $p; done; touch /proc/sys/x 2>&1',
    "limits": "ulimit -a; cat /proc/self/oom_score_adj",
    "streams": "readlink /proc/self/fd/0; ls /proc/self/fd",
    "places": "pwd; hostname; stat -c '%a %n' /proc /sys /dev /dev/shm /dev/mqueue /dev/pts; echo $$; ls -d /proc/[0-9]*",
    "environment": "env | sort",
}


def _script() -> str:
    masked, readonly = " ".join(MASKED_PATHS), " ".join(READONLY_PATHS)
    parts = [f"echo '== {name}'; ({text})" for name, text in SECTIONS.items()]
    return "; ".join(parts).replace("MASKED", masked).replace("READONLY", readonly)


def _sections(output: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for part in output.split("== ")[1:]:
        name, _, text = part.partition("\n")
        found[name] = text.splitlines()
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not Path("/bin/busybox").exists():
        pytest.skip("needs a static /bin/busybox")
    root = tmp_path_factory.mktemp("peer") / "rootfs"
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for name in subprocess.check_output(["/bin/busybox", "--list"], text=True).split():
        if name != "busybox":
            (root / "bin" / name).symlink_to("busybox")
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n")
    return root


def _crun(root: Path, script: str, *, uid: int) -> str:
    names = list(capabilities.DEFAULT_NAMES)
    bundle = Path(tempfile.mkdtemp(dir=root.parent))
    standard = ["nosuid", "noexec", "nodev"]
    configuration = {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": uid, "gid": uid},
            "args": ["/bin/sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {"bounding": names, "effective": names, "permitted": names},
            "noNewPrivileges": False,
        },
        "root": {"path": str(root)},
        "hostname": "buildkitsandbox",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": standard},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
            },
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            },
            {
                "destination": "/dev/shm",
                "type": "tmpfs",
                "source": "shm",
                "options": [*standard, "mode=1777", "size=65536k"],
            },
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": standard},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*standard, "ro"]},
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READONLY_PATHS),
        },
    }
    (bundle / "config.json").write_text(json.dumps(configuration))
    # crun refuses a host with both versions of control groups; it gets a view of one, in a mount namespace of its own.
    command = f"mount -t cgroup2 none /sys/fs/cgroup; exec crun --cgroup-manager=disabled run --bundle {bundle} pybuild-peer-{os.getpid()}"
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def _ours(root: Path, script: str, *, uid: int, folder: Path) -> str:
    for name in ("upper", "work"):
        (folder / name).mkdir()
    output: list[bytes] = []
    spec = ProcessSpec(
        root=RootOverlay(lower=(str(root),), upper=str(folder / "upper"), work=str(folder / "work")),
        args=("/bin/sh", "-c", script),
        env=(("PATH", "/bin"),),
        cwd="/",
        uid=uid,
        gid=uid,
    )
    with NamespaceExecutor(filtered=False) as executor:
        executor.run(spec, on_output=lambda stream, data: output.append(data), cancel=threading.Event())
    return b"".join(output).decode()


def _mounts(lines: list[str]) -> dict[str, tuple[str, frozenset[str]]]:
    """Type and options by mount point, without what differs by design or by kernel bookkeeping."""
    found = {}
    for line in lines:
        _, point, kind, options, *_ = line.split()
        if point == "/" or point.startswith(("/sys/fs/cgroup", "/etc/")):
            continue  # an overlay here, a bind there; control groups by what crun was shown; names are bound by us only
        kept = {
            option
            for option in options.split(",")
            # relatime or strictatime; sizes and inodes of the host's devtmpfs, from which crun binds /dev/null
            if option not in ("relatime", "strictatime") and not re.match(r"(nr_inodes|size=\d{5,}k|mode=755)", option)
        }
        if point in MASKED_PATHS:
            # An empty directory or /dev/null, read-only or not: runc binds the latter writable, crun read-only.
            found[point] = ("masked", frozenset())
        elif point in READONLY_PATHS:
            found[point] = (kind, frozenset(kept & {"ro", "rw"}))
        else:
            found[point] = (kind, frozenset(kept))
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.skipif(shutil.which("crun") is None, reason="needs crun")
@pytest.mark.parametrize("uid", [0, 1000])
def test_a_step_sees_what_a_crun_container_sees(root: Path, tmp_path: Path, uid: int) -> None:
    theirs = _sections(_crun(root, _script(), uid=uid))
    ours = _sections(_ours(root, _script(), uid=uid, folder=tmp_path))
    assert list(ours) == list(theirs) == list(SECTIONS)
    mounts, peer_mounts = _mounts(ours.pop("mounts")), _mounts(theirs.pop("mounts"))
    assert mounts == peer_mounts
    # Which namespaces lie in between shows in the number of process ids.
    for sections in (ours, theirs):
        sections["status"] = [line.split("\t")[0] + line.split("\t")[-1] for line in sections["status"]]
    if not Path("/proc/kcore").exists():
        # runc leaves the link out where the kernel has no such file, crun makes it all the same.
        assert not any("core" in line for line in ours["devices"])
        theirs["devices"] = [line for line in theirs["devices"] if "core" not in line]
    assert ours == theirs


class _Argument(ctypes.Structure):
    _fields_ = (("index", ctypes.c_uint), ("operator", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


# seccomp.h of libseccomp
OPERATORS = {"<": 2, "==": 4, ">": 6, "&==": 7}
LIBSECCOMP_ARCHITECTURES = {"x86": 0x40000003, "x32": 0x4000003E, "arm": 0x40000028}


@pytest.mark.skipif(ctypes.util.find_library("seccomp") is None, reason="needs libseccomp")
@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="compares x86_64 and aarch64")
@pytest.mark.parametrize("bounding", [capabilities.DEFAULT, capabilities.ALL, 0])
def test_the_program_answers_as_libseccomps_does(bounding: int, tmp_path: Path) -> None:
    library = ctypes.CDLL(ctypes.util.find_library("seccomp"))
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(0x00050000 | errno.EPERM)))
    machine = os.uname().machine
    profile = json.loads((Path(seccomp.__file__).parent / "seccomp_default.json").read_text())
    architectures = [machine, *profile["compatible"][machine]]
    for name in architectures[1:]:
        assert library.seccomp_arch_add(context, ctypes.c_uint32(LIBSECCOMP_ARCHITECTURES[name])) == 0
    known: set[str] = set()
    for rule in profile["rules"]:
        if not seccomp._applies(rule, bounding=bounding, machine=machine, kernel=(6, 1)):
            continue
        action = (0x00050000 | rule["errno"]) if "errno" in rule else 0x7FFF0000
        for call in rule["calls"]:
            number = library.seccomp_syscall_resolve_name(call.encode())
            if number == -1:
                continue  # newer than this libseccomp
            known.add(call)
            arguments = (
                [_Argument(rule["argument"][0], OPERATORS[rule["argument"][1]], *[*rule["argument"][2:], 0][:2])]
                if "argument" in rule
                else []
            )
            array = (_Argument * len(arguments))(*arguments)
            assert (
                library.seccomp_rule_add_array(
                    context, ctypes.c_uint32(action), ctypes.c_int(number), ctypes.c_uint(len(arguments)), array
                )
                == 0
            )
    with open(tmp_path / "filter", "wb") as file:
        assert library.seccomp_export_bpf(context, file.fileno()) == 0
    theirs = (tmp_path / "filter").read_bytes()
    ours = seccomp.default_program(bounding, machine=machine, kernel=(6, 1))
    compared = 0
    for architecture in architectures:
        audit = profile["audit"][architecture]
        flag = seccomp.X32_BIT if architecture == "x32" else 0
        calls = {call_number(call, architecture): call for call in profile["numbers"]}
        newest = max(number for number in calls if number is not None and number < 0xF0000)
        for number in range(newest + 1):
            if number in calls and calls[number] not in known:
                continue
            samples = [()]
            if calls.get(number) in ("socket", "personality", "clone"):
                samples = [
                    (value,)
                    for value in (
                        0,
                        1,
                        8,
                        0x11,
                        37,
                        38,
                        39,
                        40,
                        41,
                        0x20000,
                        0x20008,
                        0x10000000,
                        0x7E020000,
                        0xFFFFFFFF,
                        1 << 40,
                    )
                ]
            if architecture != machine:
                # Registers of the compatible architectures have 32 bits.
                samples = [arguments for arguments in samples if max(arguments, default=0) < 1 << 32]
            for arguments in samples:
                answer = evaluate(ours, audit=audit, number=number | flag, arguments=arguments)
                expected = evaluate(theirs, audit=audit, number=number | flag, arguments=arguments)
                if answer == seccomp.RET_ERRNO | errno.ENOSYS and number not in calls:
                    continue  # beyond the newest call that the rules of this set name
                assert answer == expected, (architecture, number, calls.get(number), arguments)
                compared += 1
    assert compared > 300 * len(architectures)
