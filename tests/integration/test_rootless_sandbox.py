"""Steps started by an ordinary user, in a user namespace with sub-ids and in one with a single id."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pybuild
from pybuild.daemon import userns

PYTHON = "/usr/bin/python3"
SOURCE = Path(pybuild.__file__).resolve().parent.parent


def _usable() -> str:
    if os.geteuid() != 0:
        return "needs root, to become several ordinary users"
    if not Path("/bin/busybox").exists():
        return "needs a static /bin/busybox"
    if not (SOURCE / "pybuild/daemon").is_dir():
        return "needs src/pybuild/daemon (the links that type checking uses)"
    probe = "import sys; sys.path.insert(0, sys.argv[1]); import pybuild.daemon.executor, pybuild.daemon.userns"
    result = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", PYTHON, "-B", "-c", probe, str(SOURCE)],
        capture_output=True,
    )
    return "" if result.returncode == 0 else f"needs a {PYTHON} 3.11 and sources that an ordinary user can read"


REASON = _usable()
pytestmark = [pytest.mark.integration, pytest.mark.rootless, pytest.mark.skipif(bool(REASON), reason=REASON)]

# Run as root in a mount namespace of its own, so that /etc/subuid is changed for this process only.
BECOME = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pybuild.daemon import sandbox
source, python, driver, request, ranges = sys.argv[1:6]
sandbox.unshare(sandbox.CLONE_NEWNS)
sandbox.mount(b"none", b"/", flags=sandbox.MS_REC | sandbox.MS_PRIVATE)
for name in (b"/etc/subuid", b"/etc/subgid"):
    sandbox.mount(ranges.encode(), name, flags=sandbox.MS_BIND)
if os.environ.get("MASKED_PROC"):
    # As in a container: parts of /proc are hidden, so the kernel lets nobody below mount a new one.
    for line in open("/proc/self/mountinfo", "rb").readlines():
        if b" - proc " in line and line.split()[4] != b"/proc":
            sandbox.unmount(line.split()[4])
    sandbox.mount(b"/dev/null", b"/proc/keys", flags=sandbox.MS_BIND)
if os.environ.get("UNPRIVILEGED_ROOT"):
    # As in a container: root, without the right to mount.
    sandbox.drop_bounding(~(1 << 21), present=sandbox.read_bounding())
else:
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
os.execve(python, [python, "-B", "-c", driver, source, request], {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"})
"""

DRIVER = """
import json, sys, threading
sys.path.insert(0, sys.argv[1])
from pybuild.daemon import userns
from pybuild.daemon.executor import NamespaceExecutor
from pybuild.builder.protocols import ProcessSpec, TemporaryMount, DataMount, HostMount, OverlayMount
from pybuild.layers.entries import RootOverlay
request = json.loads(sys.argv[2])
identity = userns.enter()
again = userns.enter()
output = []
answer = {"kind": identity.kind.value, "ids": identity.ids, "uid": identity.uid, "notices": identity.notices, "again": again.kind.value}
root = RootOverlay(lower=tuple(request["lower"]), upper=request["upper"], work=request["work"])
fields = request["fields"]
mounts = tuple(eval(text) for text in fields.pop("mounts", []))
try:
    python, args = fields.pop("python", sys.executable), fields.pop("args", ("/bin/sh", "-c", request["script"]))
    with NamespaceExecutor(python=python) as executor:
        spec = ProcessSpec(root=root, args=tuple(args), env=(("PATH", "/bin"),), cwd="/", mounts=mounts, **fields)
        status = executor.run(spec, on_output=lambda stream, data: output.append(data), cancel=threading.Event())
        answer["code"] = status.code
        answer["executor"] = executor.notices
except Exception as error:
    answer["error"] = f"{type(error).__name__}: {error}"
answer["output"] = b"".join(output).decode()
print(json.dumps(answer))
"""


class User:
    """An ordinary user with a directory and, if ``ranges``, sub-ids."""

    def __init__(self, folder: Path, ranges: str) -> None:
        self.folder = folder
        (folder / "ranges").write_text(ranges)
        lower = folder / "lower"
        (lower / "bin").mkdir(parents=True)
        shutil.copy("/bin/busybox", lower / "bin/busybox")
        for name in subprocess.check_output(["/bin/busybox", "--list"], text=True).split():
            if name != "busybox":
                (lower / "bin" / name).symlink_to("busybox")
        for name in ("etc", "root", "tmp"):
            (lower / name).mkdir()
        (lower / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        for name in ("upper", "work", "mine"):
            (folder / name).mkdir()
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, 65534, 65534, follow_symlinks=False)

    def run(self, script: str, *, settings: tuple[str, ...] = (), **fields: object) -> dict[str, Any]:
        request = {
            "lower": [str(self.folder / "lower")],
            "upper": str(self.folder / "upper"),
            "work": str(self.folder / "work"),
            "script": script,
            "fields": fields,
        }
        result = subprocess.run(
            [PYTHON, "-B", "-c", BECOME, str(SOURCE), PYTHON, DRIVER, json.dumps(request), str(self.folder / "ranges")],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **dict.fromkeys(settings, "1")},
        )
        assert result.returncode == 0, result.stderr
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer


def _user(ranges: str) -> Iterator[User]:
    # Not below pytest's own directory, which an ordinary user can't enter.
    folder = Path(tempfile.mkdtemp(prefix="pybuild-rootless-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield User(folder, ranges)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def single_id() -> Iterator[User]:
    yield from _user("")


@pytest.fixture
def sub_ids() -> Iterator[User]:
    if shutil.which("newuidmap") is None:
        pytest.skip("needs newuidmap")
    yield from _user("nobody:300000:65536\n")


def test_a_single_id_is_root_inside(single_id: User) -> None:
    answer = single_id.run(
        "id -u; echo x > /tmp/f; cat /proc/self/uid_map; grep -E 'CapEff|Seccomp:|NoNewPrivs' /proc/self/status"
    )
    assert answer["kind"] == answer["again"] == "single-id"
    assert answer["ids"] == 1
    assert answer["uid"] == 65534
    assert len(answer["notices"]) == 1
    assert "no range for nobody in /etc/subuid" in answer["notices"][0]
    assert answer["code"] == 0
    lines = answer["output"].split("\n")
    assert lines[0] == "0"
    assert lines[1].split() == ["0", "65534", "1"]
    assert "CapEff:\t00000000a80425fb" in lines
    assert "Seccomp:\t2" in lines
    status = (single_id.folder / "upper/tmp/f").stat()
    assert (status.st_uid, status.st_gid) == (65534, 65534)


def test_a_single_id_cannot_become_another_user(single_id: User) -> None:
    answer = single_id.run("id", uid=1000)
    assert answer["error"] == "SandboxError: can't run as 1000:0: that id isn't mapped in this user namespace"


def test_supplementary_groups_are_left_out_with_a_notice(single_id: User) -> None:
    answer = single_id.run("id -u", groups=[10])
    assert answer["output"] == "0\n"
    assert answer["executor"] == ["supplementary groups are left out: this user namespace doesn't allow setgroups"]


def test_sub_ids_give_many_users(sub_ids: User) -> None:
    answer = sub_ids.run("touch /tmp/f; chown 1000:7 /tmp/f; stat -c %u:%g /tmp/f; id -G", groups=[5, 6])
    assert (answer["kind"], answer["ids"], answer["notices"]) == ("subids", 65537, [])
    assert answer["output"] == "1000:7\n0 5 6\n"
    status = (sub_ids.folder / "upper/tmp/f").stat()
    assert (status.st_uid, status.st_gid) == (300999, 300006)
    answer = sub_ids.run("id -u; echo x > /root/x", uid=1000, gid=1000)
    assert answer["output"].startswith("1000\n")
    assert "Permission denied" in answer["output"]


def test_the_step_looks_as_roots_does(sub_ids: User) -> None:
    answer = sub_ids.run(
        "mount; ls -l /dev; echo x > /dev/null; cat /proc/keys; ls /sys/fs/cgroup; touch /sys/x; cat /etc/hosts; hostname"
    )
    for text in (
        "proc on /proc",
        "tmpfs on /dev ",
        "devpts on /dev/pts",
        "mqueue on /dev/mqueue",
        " on /sys type sysfs (ro",
        "localhost buildkitsandbox",
    ):
        assert text in answer["output"]
    assert "touch: /sys/x: Read-only file system" in answer["output"]
    assert answer["executor"] == []


def test_mounts_of_every_kind(sub_ids: User) -> None:
    mine = sub_ids.folder / "mine"
    (mine / "file").write_text("host")
    os.chown(mine / "file", 65534, 65534)
    (mine / "scratch").mkdir()
    os.chown(mine / "scratch", 65534, 65534)
    answer = sub_ids.run(
        "cat /host/file /over/file /secret; stat -c %u /secret; touch /host/x; rm /over/file; touch /shm/y && echo fine",
        mounts=[
            f"HostMount({str(mine)!r}, '/host', readonly=True)",
            f"OverlayMount(({str(mine)!r},), source='/', target='/over', readonly=False, scratch={str(mine / 'scratch')!r})",
            "DataMount('/secret', b'S\\n', mode=0o400, uid=9, gid=9)",
            "TemporaryMount('/shm')",
        ],
    )
    assert answer["output"].startswith("hosthostS\n9\n")
    assert "touch: /host/x: Read-only file system" in answer["output"]
    assert "\nfine\n" in answer["output"]  # the two streams may overtake each other
    assert (mine / "file").exists()
    assert sorted(path.name for path in (sub_ids.folder / "upper").iterdir()) == ["dev", "etc", "proc", "sys"]


def test_network_none(sub_ids: User) -> None:
    answer = sub_ids.run("ls /sys/class/net; ping -c 1 -W 1 127.0.0.1 > /dev/null && echo pong", network="none")
    assert answer["output"].split() == ["lo", "pong"]


def test_the_hosts_network_is_the_default(sub_ids: User) -> None:
    answer = sub_ids.run("readlink /proc/self/ns/net")
    assert answer["output"].strip() == os.readlink("/proc/self/ns/net")


def test_removed_files_leave_whiteouts_that_root_understands(single_id: User) -> None:
    (single_id.folder / "lower/etc/gone").write_text("x")
    single_id.run("rm /etc/gone; mkdir /tmp/d")
    status = (single_id.folder / "upper/etc/gone").lstat()
    assert (status.st_mode & 0o170000, status.st_rdev) == (0o020000, 0)


def test_subuid_lines_that_are_not_understood_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "subuid"
    path.write_text("# comment\nme:1:2:3\nme:x:5\nme:100:0\n:100:5\nme:1000:10\n1234:5000:5\nyou:1:1\nme:²:5\n")
    assert userns.sub_ids(path, name="me", number=1234) == ((1000, 10), (5000, 5))
    assert userns.sub_ids(tmp_path / "none", name="me", number=1) == ()


def test_root_without_the_right_to_mount_keeps_its_ids(single_id: User) -> None:
    for path in single_id.folder.rglob("*"):
        os.chown(path, 0, 0, follow_symlinks=False)
    answer = single_id.run(
        "touch /tmp/f; chown 1000:7 /tmp/f; id -u; cat /proc/self/uid_map", settings=("UNPRIVILEGED_ROOT",)
    )
    assert (answer["kind"], answer["notices"], answer["uid"]) == ("subids", [], 0)
    assert answer["output"].split() == ["0", "0", "0", "4294967294"]
    status = (single_id.folder / "upper/tmp/f").stat()
    assert (status.st_uid, status.st_gid) == (1000, 7)


def test_below_a_masked_proc_steps_see_the_outer_one_with_a_notice(single_id: User) -> None:
    answer = single_id.run(
        "readlink /proc/self/exe; cat /proc/keys | wc -c; sleep 1000 & echo done", settings=("MASKED_PROC",)
    )
    assert answer["code"] == 0
    assert answer["output"].split() == ["/bin/busybox", "0", "done"]
    assert answer["executor"] == [
        "/proc shows, and lets steps reach, the processes outside them: this container may not mount its own"
    ]


def test_a_step_cannot_write_to_an_interpreter_of_the_users_own(single_id: User) -> None:
    own = single_id.folder / "python3"
    shutil.copy(os.path.realpath(PYTHON), own)
    own.chmod(0o755)
    os.chown(own, 65534, 65534)
    evil = single_id.folder / "lower/evil"
    # The kernel runs what /proc/self/exe is before the program replaces it: the launcher's interpreter, on the host.
    evil.write_text(
        "#!/proc/self/exe -I\n"
        "import errno, os\n"
        "print(os.readlink('/proc/self/exe'))\n"
        "try:\n"
        "    os.chmod('/proc/self/exe', 0o777)\n"
        "    print('written')\n"
        "except OSError as error:\n"
        "    print(errno.errorcode[error.errno])\n"
    )
    evil.chmod(0o755)
    folders = [folder for folder in ("/usr", "/lib", "/lib64") if os.path.exists(folder)]
    mounts = [f"HostMount({os.path.realpath(folder)!r}, {folder!r}, readonly=True)" for folder in folders]
    answer = single_id.run("", python=str(own), args=["/evil"], mounts=mounts)
    assert answer["output"].split() == [str(own), "EROFS"], answer
