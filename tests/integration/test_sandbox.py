"""Steps in real namespaces, on a root file system made of busybox."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import pybuild
from pybuild.builder.protocols import (
    DataMount,
    ExitStatus,
    HostMount,
    OverlayMount,
    ProcessSpec,
    SocketMount,
    TemporaryMount,
)
from pybuild.daemon.executor import NamespaceExecutor, ProgramNotStarted, SandboxError
from pybuild.daemon.launcher import LauncherError
from pybuild.errors import Cancelled
from pybuild.layers.entries import RootOverlay

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not Path("/bin/busybox").exists(), reason="needs a static /bin/busybox"),
]


@pytest.fixture(scope="session")
def busybox_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("busybox")
    (root / "bin").mkdir()
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for name in subprocess.check_output(["/bin/busybox", "--list"], text=True).split():
        if name != "busybox":
            (root / "bin" / name).symlink_to("busybox")
    for name in ("etc", "root", "tmp", "home"):
        (root / name).mkdir()
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n")
    return root


@pytest.fixture(scope="module", params=["new mount calls", "mount(2)"])
def executor(request: pytest.FixtureRequest) -> Iterator[NamespaceExecutor]:
    with NamespaceExecutor(old_mount_calls=request.param == "mount(2)") as executor:
        yield executor


@pytest.fixture
def overlay(tmp_path: Path, busybox_root: Path) -> RootOverlay:
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    return RootOverlay(lower=(str(busybox_root),), upper=str(tmp_path / "upper"), work=str(tmp_path / "work"))


Shell = Callable[..., tuple[ExitStatus, str]]


@pytest.fixture
def shell(executor: NamespaceExecutor, overlay: RootOverlay) -> Shell:
    def run(script: str, **fields: object) -> tuple[ExitStatus, str]:
        output: list[bytes] = []
        values = {"env": (("PATH", "/bin"),), "cwd": "/", "args": ("/bin/sh", "-c", script), **fields}
        spec = ProcessSpec(root=overlay, **values)  # type: ignore[arg-type]  # fields are the caller's
        status = executor.run(spec, on_output=lambda stream, data: output.append(data), cancel=threading.Event())
        return status, b"".join(output).decode()

    return run


def test_a_step_runs_as_pid_1_with_the_exit_code_of_its_program(shell: Shell) -> None:
    status, output = shell("echo $$; exit 7")
    assert (status, output) == (ExitStatus(7), "1\n")


def test_a_killed_program_gives_its_signal(shell: Shell) -> None:
    status, _ = shell("kill -9 $$; sleep 1 & kill -TERM $!; wait $!")
    assert status.code in (0, 143)
    status, _ = shell("x", args=("/bin/sh", "-c", "trap - ABRT; kill -ABRT $$; exit 3"))
    # pid 1 of a pid namespace ignores signals that it doesn't handle (pid_namespaces(7)).
    assert status == ExitStatus(3)


def test_both_streams_arrive_whole_and_apart(executor: NamespaceExecutor, overlay: RootOverlay) -> None:
    streams: dict[int, bytes] = {1: b"", 2: b""}

    def collect(stream: int, data: bytes) -> None:
        streams[stream] += data

    script = "i=0; while [ $i -lt 2000 ]; do echo out$i; echo err$i >&2; i=$((i+1)); done"
    spec = ProcessSpec(root=overlay, args=("sh", "-c", script), env=(("PATH", "/bin"),), cwd="/")
    executor.run(spec, on_output=collect, cancel=threading.Event())
    assert streams[1] == b"".join(b"out%d\n" % number for number in range(2000))
    assert streams[2] == b"".join(b"err%d\n" % number for number in range(2000))


def test_the_environment_is_the_one_given_with_home_from_the_roots_passwd(shell: Shell) -> None:
    _, output = shell("env | sort", env=(("PATH", "/bin"), ("A", "1"), ("A", "2"), ("Z", "ü x")))
    lines = output.splitlines()
    assert "A=2" in lines
    assert "A=1" not in lines
    assert "HOME=/root" in lines
    assert "Z=ü x" in lines
    assert not [line for line in lines if line.startswith(("PYTHON", "USER", "LANG"))]
    assert "HOME=/home/app\n" in shell("env", uid=1000)[1]
    assert "HOME=/\n" in shell("env", uid=4321)[1]
    assert "HOME=/h\n" in shell("env", env=(("PATH", "/bin"), ("HOME", "/h")))[1]


def test_user_groups_and_umask(shell: Shell) -> None:
    _, output = shell(
        "id -u; id -g; id -G; umask; grep -E 'NoNewPrivs|CapEff|CapBnd' /proc/self/status",
        uid=1000,
        gid=7,
        groups=(8, 9),
    )
    assert output.split("\n")[:4] == ["1000", "7", "7 8 9", "0022"]
    assert "CapEff:\t0000000000000000" in output
    assert "CapBnd:\t00000000a80425fb" in output
    assert "NoNewPrivs:\t0" in output


def test_root_has_dockers_fourteen_capabilities(shell: Shell) -> None:
    _, output = shell("grep Cap /proc/self/status")
    assert dict(line.split(":\t") for line in output.splitlines()) == {
        "CapInh": "0000000000000000",
        "CapPrm": "00000000a80425fb",
        "CapEff": "00000000a80425fb",
        "CapBnd": "00000000a80425fb",
        "CapAmb": "0000000000000000",
    }


def test_insecure_steps_keep_every_capability_even_as_another_user(shell: Shell) -> None:
    with open("/proc/self/status") as status:
        bounding = next(line.split()[1] for line in status if line.startswith("CapBnd"))
    _, output = shell("grep -E 'Cap|Seccomp:' /proc/self/status; mount | grep ' /sys '", insecure=True, uid=1000)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert f"{name}:\t{bounding}" in output
    assert "Seccomp:\t0" in output
    assert "(rw," in output
    assert "fuse" in shell("ls /dev", insecure=True)[1]
    assert "tmpfs" not in shell("mount | grep /proc/", insecure=True)[1]


def test_the_host_name_is_the_steps_own(shell: Shell) -> None:
    assert shell("hostname")[1] == "buildkitsandbox\n"
    assert shell("hostname", hostname="other")[1] == "other\n"
    assert os.uname().nodename != "buildkitsandbox"


def test_etc_hosts_has_localhost_the_host_name_and_extra_hosts(shell: Shell) -> None:
    _, output = shell("cat /etc/hosts; echo x >> /etc/hosts", extra_hosts=(("db", "10.0.0.9"),), hostname="me")
    assert output.startswith("127.0.0.1\tlocalhost me\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.9\tdb\n")
    assert "Read-only file system" in output


def test_resolv_conf_can_be_given(shell: Shell) -> None:
    assert shell("cat /etc/resolv.conf", resolv_conf="nameserver 192.0.2.1\n")[1] == "nameserver 192.0.2.1\n"


def test_standard_file_systems_and_devices(shell: Shell) -> None:
    _, output = shell(
        "mount; ls -l /dev; echo x > /dev/null; head -c 3 /dev/zero | wc -c; readlink /dev/fd; ls -d /dev/shm/. "
    )
    for text in (
        "proc on /proc",
        "tmpfs on /dev ",
        "devpts on /dev/pts",
        "tmpfs on /dev/shm",
        "mqueue on /dev/mqueue",
        "sysfs on /sys",
    ):
        assert text in output
    assert "\n3\n/proc/self/fd\n" in output
    for name in ("full", "null", "random", "tty", "urandom", "zero"):
        assert f" {name}\n" in output


def test_dev_shm_has_the_size_asked_for(shell: Shell) -> None:
    assert "size=65536k" in shell("mount | grep /dev/shm")[1]
    assert "size=1024k" in shell("mount | grep /dev/shm", shm_size=1 << 20)[1]


def test_masked_and_read_only_paths(shell: Shell) -> None:
    _, output = shell(
        "cat /proc/keys /proc/interrupts | wc -c; ls /sys/firmware | wc -l; echo 1 > /proc/sys/kernel/shmmax; "
        "touch /sys/x; mount"
    )
    lines = output.splitlines()
    assert [line.strip() for line in lines[:2]] == ["0", "0"]
    assert len([line for line in lines if "Read-only file system" in line]) == 2
    assert "on /proc/irq type proc (ro," in output


def test_devices_beyond_the_standard_ones_cannot_be_used(shell: Shell) -> None:
    status, output = shell(
        "mknod /tmp/disk b 254 0 && mknod /dev/disk b 254 0; head -c 1 /tmp/disk; head -c 1 /dev/disk"
    )
    assert status.code != 0
    assert output.count("Operation not permitted") == 2
    status, _ = shell("mknod /tmp/null c 1 3 && echo x > /tmp/null")
    assert status.code == 0


def test_network_none_has_loopback_only(shell: Shell) -> None:
    _, output = shell("ip -o link; ping -c 1 -W 1 127.0.0.1 > /dev/null && echo pong", network="none")
    assert [line.split(":")[1].strip() for line in output.splitlines() if ":" in line] == ["lo"]
    assert "pong" in output


def test_default_network_is_the_hosts(shell: Shell) -> None:
    host = {name for _, name in socket.if_nameindex()}
    _, output = shell("ls /sys/class/net")
    assert set(output.split()) == host


def test_a_missing_working_directory_is_made_in_the_steps_own_root(shell: Shell, overlay: RootOverlay) -> None:
    assert shell("pwd; stat -c %u:%g:%a .", cwd="/made/here", uid=1000)[1] == "/made/here\n0:0:755\n"
    # Links that would lead out of the root lead to its own top, also when nothing is there.
    shell("ln -s ../../../../../outside/of/it /link")
    assert shell("pwd -P", cwd="/link/below")[1] == "/outside/of/it/below\n"
    assert (Path(overlay.upper) / "outside/of/it/below").is_dir()
    with pytest.raises(SandboxError, match="can't enter the working directory /etc/passwd: Not a directory"):
        shell("pwd", cwd="/etc/passwd")


@pytest.mark.parametrize(
    ("args", "message", "status"),
    [
        (("foo",), 'exec: "foo": executable file not found in $PATH', 127),
        (("/foo",), 'exec: "/foo": stat /foo: no such file or directory', 127),
        (("/etc/passwd",), 'exec: "/etc/passwd": permission denied', 126),
        (("/etc",), 'exec: "/etc": is a directory', 126),
        (("/tmp/text",), "exec /tmp/text: exec format error", 126),
        (("/tmp/noloader",), "exec /tmp/noloader: no such file or directory", 127),
    ],
)
def test_a_program_that_cannot_start_is_named(
    shell: Shell, overlay: RootOverlay, args: tuple[str, ...], message: str, status: int
) -> None:
    temporary = Path(overlay.upper) / "tmp"
    temporary.mkdir()
    for name, content in (("text", "neither"), ("noloader", "#!/no/such/interpreter\n")):
        (temporary / name).write_text(content)
        (temporary / name).chmod(0o755)
    with pytest.raises(ProgramNotStarted) as caught:
        shell("", args=args)
    assert caught.value.message == message
    assert caught.value.status == status


def test_ulimits_apply(shell: Shell) -> None:
    assert (
        shell("ulimit -n; ulimit -Hn; ulimit -c", ulimits=(("nofile", 100, 200), ("core", -1, -1)))[1]
        == "100\n200\nunlimited\n"
    )
    with pytest.raises(SandboxError, match="unknown ulimit 'bogus'"):
        shell("true", ulimits=(("bogus", 1, 1),))


def test_background_processes_end_with_the_step_and_do_not_hold_its_output(shell: Shell) -> None:
    begin = time.monotonic()
    status, output = shell("sleep 1000 & (setsid sleep 1001 &) ; echo done")
    assert (status.code, output) == (0, "done\n")
    assert time.monotonic() - begin < 5
    assert not _processes_like("sleep", "1000") + _processes_like("sleep", "1001")


def _processes_like(*arguments: str) -> list[int]:
    wanted = "\0".join(arguments).encode()
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if wanted in Path(f"/proc/{name}/cmdline").read_bytes():
                    found.append(int(name))
            except OSError:
                continue
    return found


def test_cancel_kills_within_a_second(executor: NamespaceExecutor, overlay: RootOverlay) -> None:
    cancel = threading.Event()
    seen: list[float] = []

    def on_output(stream: int, data: bytes) -> None:
        seen.append(time.monotonic())
        cancel.set()

    script = "trap '' TERM INT; setsid sleep 2002 & echo started; sleep 2002"
    spec = ProcessSpec(root=overlay, args=("sh", "-c", script), env=(("PATH", "/bin"),), cwd="/")
    with pytest.raises(Cancelled):
        executor.run(spec, on_output=on_output, cancel=cancel)
    assert time.monotonic() - seen[0] < 1
    assert not _processes_like("sleep", "2002")


def test_several_steps_run_at_once(executor: NamespaceExecutor, busybox_root: Path, tmp_path: Path) -> None:
    def step(number: int) -> str:
        folder = tmp_path / str(number)
        for name in ("upper", "work"):
            (folder / name).mkdir(parents=True)
        root = RootOverlay(lower=(str(busybox_root),), upper=str(folder / "upper"), work=str(folder / "work"))
        output: list[bytes] = []
        spec = ProcessSpec(root=root, args=("sh", "-c", f"sleep 0.5; echo {number}"), env=(("PATH", "/bin"),), cwd="/")
        executor.run(spec, on_output=lambda stream, data: output.append(data), cancel=threading.Event())
        return b"".join(output).decode()

    begin = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(step, range(8))) == [f"{number}\n" for number in range(8)]
    assert time.monotonic() - begin < 3


def test_nothing_is_mounted_where_the_host_sees_it(executor: NamespaceExecutor, overlay: RootOverlay) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    seen: list[str] = []
    spec = ProcessSpec(root=overlay, args=("sh", "-c", "echo x; sleep 0.1"), env=(("PATH", "/bin"),), cwd="/")
    executor.run(
        spec, on_output=lambda *_: seen.append(Path("/proc/self/mountinfo").read_text()), cancel=threading.Event()
    )
    assert seen
    assert set(seen) == {before} == {Path("/proc/self/mountinfo").read_text()}


def test_stubs_leave_no_trace_and_dev_proc_sys_stay(shell: Shell, overlay: RootOverlay, busybox_root: Path) -> None:
    lower_etc = (busybox_root / "etc").stat().st_mtime_ns
    upper_time = os.stat(overlay.upper).st_mtime_ns
    shell("true", mounts=(TemporaryMount("/a/b/c"), DataMount("/run/secrets/x", b"s", mode=0o400, uid=0, gid=0)))
    upper = Path(overlay.upper)
    assert sorted(path.name for path in upper.iterdir()) == ["dev", "etc", "proc", "sys"]
    assert {stat.S_IMODE((upper / name).stat().st_mode) for name in ("dev", "proc", "sys")} == {0o755}
    assert list((upper / "etc").iterdir()) == []
    assert (upper / "etc").stat().st_mtime_ns == lower_etc
    assert upper.stat().st_mtime_ns == upper_time


def test_a_stubs_parent_keeps_what_the_step_made_there(shell: Shell, overlay: RootOverlay) -> None:
    shell("touch /etc/new /a/b/kept; touch -d '2001-02-03 04:05:06' /etc", mounts=(TemporaryMount("/a/b/c"),))
    upper = Path(overlay.upper)
    assert sorted(path.name for path in (upper / "etc").iterdir()) == ["new"]
    assert time.gmtime((upper / "etc").stat().st_mtime)[:6] == (2001, 2, 3, 4, 5, 6)
    assert sorted(path.name for path in (upper / "a/b").iterdir()) == ["kept"]


def test_resolv_conf_that_is_a_dangling_link_is_mounted_where_it_leads(shell: Shell, overlay: RootOverlay) -> None:
    etc = Path(overlay.upper) / "etc"
    etc.mkdir()
    (etc / "resolv.conf").symlink_to("../run/stub/resolv.conf")
    assert shell("cat /etc/resolv.conf /run/stub/resolv.conf", resolv_conf="x\n")[1] == "x\nx\n"
    assert not (Path(overlay.upper) / "run").exists()


def test_mount_targets_never_leave_the_root(shell: Shell, overlay: RootOverlay, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (Path(overlay.upper) / "out").symlink_to(outside)
    (Path(overlay.upper) / "up").symlink_to("../../../../../../../..")
    shell("touch /out/f", mounts=(TemporaryMount("/out/deep"), TemporaryMount("/up/top")))
    assert list(outside.iterdir()) == []
    inside = Path(overlay.upper + str(outside))
    assert [path.name for path in inside.iterdir()] == ["f"]


def test_host_mounts(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/file").write_text("content")
    mounts = (
        HostMount(str(tmp_path / "tree"), "/ro", readonly=True),
        HostMount(str(tmp_path / "tree"), "/rw", readonly=False),
        HostMount(str(tmp_path / "tree/file"), "/etc/one", readonly=True),
    )
    _, output = shell("cat /ro/file /etc/one; touch /ro/sub/x; touch /rw/sub/y; echo x > /etc/one", mounts=mounts)
    assert output.startswith("contentcontent")
    assert output.count("Read-only file system") == 2
    assert [path.name for path in (tmp_path / "tree/sub").iterdir()] == ["y"]


def test_a_host_mounts_source_that_is_a_link_is_not_followed(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(SandboxError, match="it is a symbolic link"):
        shell("ls /m", mounts=(HostMount(str(tmp_path / "link"), "/m", readonly=True),))


def test_writes_to_an_overlay_mount_are_thrown_away(shell: Shell, tmp_path: Path) -> None:
    for name in ("lower/a/b", "scratch", "scratch2", "lower2/a"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "lower/a/b/f").write_text("f")
    (tmp_path / "lower2/a/g").write_text("g")
    lower = (str(tmp_path / "lower"), str(tmp_path / "lower2"))
    mounts = (
        OverlayMount(lower, source="/a", target="/rw", readonly=False, scratch=str(tmp_path / "scratch")),
        OverlayMount(lower, source="a/b/f", target="/file", readonly=True, scratch=str(tmp_path / "scratch2")),
    )
    _, output = shell("cat /rw/g /rw/b/f /file; rm /rw/g; touch /rw/new && ls /rw; touch /file", mounts=mounts)
    assert output.startswith("gffb\nnew\n")
    assert "Read-only file system" in output
    assert sorted(path.name for path in (tmp_path / "lower2/a").iterdir()) == ["g"]


def test_an_overlay_mount_shows_nothing_outside_its_source(shell: Shell, tmp_path: Path) -> None:
    for name in ("lower", "scratch"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "lower/evil").symlink_to("/etc")
    mount = OverlayMount(
        (str(tmp_path / "lower"),), source="/evil", target="/m", readonly=True, scratch=str(tmp_path / "scratch")
    )
    with pytest.raises(SandboxError, match="can't mount /evil on /m: No such file or directory"):
        shell("ls /m", mounts=(mount,))


def test_temporary_and_data_mounts(shell: Shell) -> None:
    mounts = (
        TemporaryMount("/scratch", size=1 << 20),
        DataMount("/scratch/secret", b"s3cret", mode=0o400, uid=1000, gid=7),
        DataMount("/dev/pipes/run", b"#!/bin/sh\necho script\n", mode=0o755, uid=0, gid=0),
    )
    _, output = shell(
        "stat -c '%a %u %g' /scratch/secret; cat /scratch/secret; echo; /dev/pipes/run; mount | grep /scratch",
        mounts=mounts,
    )
    assert output.startswith("400 1000 7\ns3cret\nscript\n")
    assert "tmpfs on /scratch type tmpfs (rw,nosuid,relatime,size=1024k)" in output


def test_a_target_of_the_wrong_kind_is_named(shell: Shell) -> None:
    with pytest.raises(SandboxError, match="can't mount on /etc/passwd: Not a directory"):
        shell("true", mounts=(TemporaryMount("/etc/passwd"),))


def host_python(code: str) -> tuple[tuple[HostMount, ...], tuple[str, ...]]:
    """Mounts and arguments that run ``code`` in the host's Python inside a step."""
    folders = {"/usr", "/lib", "/lib64", sys.base_prefix}
    mounts = tuple(
        HostMount(os.path.realpath(folder), folder, readonly=True)
        for folder in sorted(folders)
        if os.path.exists(folder)
    )
    return mounts, (os.path.realpath(sys.executable), "-I", "-S", "-c", code)


def test_a_socket_mount_forwards_to_the_host(shell: Shell, tmp_path: Path) -> None:
    upstream = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(upstream))
        listener.listen()

        def echo() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    while data := connection.recv(65536):
                        connection.sendall(data.upper())

        thread = threading.Thread(target=echo, daemon=True)
        thread.start()
        mount = SocketMount("/run/agent/sock", str(upstream), mode=0o600, uid=1000, gid=7)
        code = (
            "import os, socket, sys\n"
            "status = os.stat('/run/agent/sock')\n"
            "print(oct(status.st_mode), status.st_uid, status.st_gid)\n"
            "for data in (b'hello', b'a' * 3000000):\n"
            "    with socket.socket(socket.AF_UNIX) as agent:\n"
            "        agent.connect('/run/agent/sock')\n"
            "        import threading\n"
            "        threading.Thread(target=lambda: (agent.sendall(data), agent.shutdown(socket.SHUT_WR))).start()\n"
            "        answer = b''.join(iter(lambda: agent.recv(65536), b''))\n"
            "        print(answer[:5], len(answer))\n"
        )
        mounts, args = host_python(code)
        _, output = shell("", args=args, mounts=(*mounts, mount), uid=0)
        thread.join(5)
    assert output.split("\n")[:3] == ["0o140600 1000 7", "b'HELLO' 5", "b'AAAAA' 3000000"]


def test_a_root_without_layers_is_its_upper_directory(
    executor: NamespaceExecutor, busybox_root: Path, tmp_path: Path
) -> None:
    upper = tmp_path / "upper"
    shutil.copytree(busybox_root, upper, symlinks=True)
    spec = ProcessSpec(
        root=RootOverlay(lower=(), upper=str(upper), work=str(tmp_path / "work")),
        args=("sh", "-c", "touch /made"),
        env=(("PATH", "/bin"),),
        cwd="/",
    )
    assert executor.run(spec, on_output=lambda *_: None, cancel=threading.Event()) == ExitStatus(0)
    assert (upper / "made").exists()
    assert not (upper / "etc/hosts").exists()


@pytest.mark.parametrize("count", [120, 490])
def test_many_layers(executor: NamespaceExecutor, busybox_root: Path, tmp_path: Path, count: int) -> None:
    lower = [str(busybox_root)]
    for number in range(count):
        folder = tmp_path / f"a-rather-long-name-for-a-layer, with: odd characters {number:03}"
        folder.mkdir()
        (folder / f"f{number}").touch()
        (folder / "which").write_text(str(number))
        lower.append(str(folder))
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    spec = ProcessSpec(
        root=RootOverlay(lower=tuple(lower), upper=str(tmp_path / "upper"), work=str(tmp_path / "work")),
        args=("sh", "-c", "ls / | grep -c ^f; cat /which"),
        env=(("PATH", "/bin"),),
        cwd="/",
    )
    output: list[bytes] = []
    executor.run(spec, on_output=lambda stream, data: output.append(data), cancel=threading.Event())
    assert b"".join(output).decode() == f"{count}\n{count - 1}"


def test_the_same_upper_can_be_used_again(shell: Shell) -> None:
    shell("echo 1 > /tmp/x")
    assert shell("cat /tmp/x")[1] == "1\n"


def test_control_groups_are_joined_below_the_parent_and_removed(shell: Shell) -> None:
    hierarchies = [path.parent for path in Path("/sys/fs/cgroup").glob("*/devices.allow")]
    if not hierarchies or not os.access(hierarchies[0], os.W_OK):
        pytest.skip("needs writable version 1 control groups")
    parent = f"pybuild-test-{os.getpid()}"
    try:
        _, output = shell(
            "cat /sys/fs/cgroup/devices/devices.list | wc -l; cat /proc/self/cgroup", cgroup_parent=f"{parent}/steps"
        )
        assert output.startswith("11\n")
        assert len(list(Path("/sys/fs/cgroup").glob(f"*/{parent}/steps"))) > 5
        assert [path for path in Path("/sys/fs/cgroup").glob(f"*/{parent}/steps/*") if path.is_dir()] == []
    finally:
        for folder in [*Path("/sys/fs/cgroup").glob(f"*/{parent}/steps"), *Path("/sys/fs/cgroup").glob(f"*/{parent}")]:
            folder.rmdir()


DRIVER = """
import sys, threading
from pybuild.builder.protocols import ProcessSpec
from pybuild.daemon.executor import NamespaceExecutor
from pybuild.layers.entries import RootOverlay
lower, upper, work = sys.argv[1:4]
root = RootOverlay(lower=(lower,), upper=upper, work=work)
spec = ProcessSpec(root=root, args=("sh", "-c", "sleep 3003 & echo started; sleep 3003"), env=(("PATH", "/bin"),), cwd="/")
def show(stream, data):
    print(data.decode(), end="", flush=True)
with NamespaceExecutor() as executor:
    executor.run(spec, on_output=show, cancel=threading.Event())
"""


@pytest.mark.parametrize(
    ("victim", "number"),
    [
        ("engine", signal.SIGKILL),
        ("engine", signal.SIGINT),
        ("engine", signal.SIGTERM),
        ("keeper", signal.SIGKILL),
        ("launcher", signal.SIGKILL),
    ],
)
def test_a_dead_engine_leaves_no_processes_mounts_or_groups(
    overlay: RootOverlay, victim: str, number: signal.Signals
) -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, overlay.lower[0], overlay.upper, overlay.work],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as engine:
        assert engine.stdout is not None
        assert engine.stdout.readline() == b"started\n"
        keeper = _children(engine.pid)[0]
        launcher = _children(keeper)[0]
        os.kill({"engine": engine.pid, "keeper": keeper, "launcher": launcher}[victim], number)
        engine.wait(10)
    deadline = time.monotonic() + 3
    while _processes_like("sleep", "3003") or Path(f"/proc/{launcher}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert Path("/proc/self/mountinfo").read_text() == mounts
    if victim != "keeper":
        while list(Path("/sys/fs/cgroup").glob(f"*/pybuild-{keeper}")):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_a_step_does_not_see_the_engines_descriptors_or_processes(shell: Shell) -> None:
    _, output = shell("ls /proc/self/fd | wc -l; ls -d /proc/[0-9]* | wc -l")
    # ls has its own directory open besides 0, 1 and 2; the processes are the shell, ls and wc.
    assert output.split() == ["4", "3"]


def test_a_terminal_is_the_steps_controlling_terminal(overlay: RootOverlay) -> None:
    script = DRIVER.replace(
        '"sleep 3003 & echo started; sleep 3003"', "'tty; stty size; read x; echo got $x; ps -o pid,tty | head -3'"
    )
    script = script.replace('cwd="/")', 'cwd="/", terminal=Terminal((40, 111)))').replace(
        "import ProcessSpec", "import ProcessSpec, Terminal"
    )
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 40, 111, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-c", script, overlay.lower[0], overlay.upper, overlay.work],
        stdin=slave,
        stdout=slave,
        start_new_session=True,
    ) as engine:
        os.close(slave)
        seen = b""
        while b"111" not in seen:
            seen += os.read(master, 4096)
        os.write(master, b"words\n")
        while b"got" not in seen:
            seen += os.read(master, 4096)
        assert engine.wait(10) == 0
    os.close(master)
    assert b"/dev/pts/0" in seen
    assert b"40 111" in seen
    assert b"got words" in seen


def test_seccomp_answers_as_dockers_profile_does(shell: Shell) -> None:
    code = (
        "import ctypes, errno, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def call(number, *arguments):\n"
        "    ctypes.set_errno(0)\n"
        "    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments))\n"
        "    return 'ok' if result >= 0 else errno.errorcode[ctypes.get_errno()]\n"
        "print(libc.unshare(0x10000000), errno.errorcode[ctypes.get_errno()])\n"
        "print(call(435, 0, 0), call(600), call(428, -100, 0, 0), call(434, os.getpid(), 0))\n"
        "import socket\n"
        "for family in (38, 40, 1):\n"
        "    try:\n"
        "        socket.socket(family, socket.SOCK_SEQPACKET if family == 38 else socket.SOCK_STREAM)\n"
        "        print('ok')\n"
        "    except OSError as error:\n"
        "        print(errno.errorcode[error.errno])\n"
        "print(libc.personality(ctypes.c_ulong(0xffffffff)) >= 0, libc.personality(ctypes.c_ulong(0x4000)))\n"
        "print(open('/proc/self/status').read().split('Seccomp:')[1].split()[0])\n"
    )
    mounts, args = host_python(code)
    _, output = shell("", args=args, mounts=mounts)
    assert output.splitlines() == [
        "-1 EPERM",
        "ENOSYS ENOSYS EPERM ok",
        "EPERM",
        "EPERM",
        "ok",
        "True -1",
        "2",
    ]


NESTED = """
import sys, threading, os, tempfile
sys.path.insert(0, {source!r})
from pybuild.daemon import userns
from pybuild.daemon.executor import NamespaceExecutor
from pybuild.builder.protocols import ProcessSpec
from pybuild.layers.entries import RootOverlay
try:
    print(userns.enter().kind.value, flush=True)
    os.makedirs("/store/upper"); os.makedirs("/store/work")
    root = RootOverlay(lower=("/lower",), upper="/store/upper", work="/store/work")
    spec = ProcessSpec(root=root, args=("/bin/sh", "-c", "echo $$ nested; touch /f; mount | grep -c ."), env=(), cwd="/")
    with NamespaceExecutor() as executor:
        status = executor.run(spec, on_output=lambda n, data: print(data.decode(), end="", flush=True), cancel=threading.Event())
        print(status.code, *executor.notices)
    print(os.listdir("/store/upper"))
except Exception as error:
    print(type(error).__name__, error, getattr(error, "hint", ""))
"""


def nested(busybox_root: Path) -> tuple[tuple[HostMount | TemporaryMount, ...], tuple[str, ...]]:
    source = Path(pybuild.__file__).resolve().parent.parent
    mounts, args = host_python(NESTED.format(source=str(source)))
    extra = (
        HostMount(str(source.parent), str(source.parent), readonly=True),
        HostMount(str(busybox_root), "/lower", readonly=True),
        TemporaryMount("/store"),
    )
    return (*mounts, *extra), args


def test_a_privileged_step_can_run_steps_itself(shell: Shell, busybox_root: Path) -> None:
    mounts, args = nested(busybox_root)
    _, output = shell("", args=args, mounts=mounts, insecure=True)
    lines = output.splitlines()
    assert lines[:2] == ["root", "1 nested"]
    assert "0" in lines
    assert "'f'" in lines[-1]


def test_an_ordinary_step_says_why_it_cannot_run_steps(shell: Shell, busybox_root: Path) -> None:
    mounts, args = nested(busybox_root)
    _, output = shell("", args=args, mounts=mounts)
    assert output.startswith("UserNamespaceError no user namespace can be had: ")
    assert "seccomp profile that allows unshare(2)" in output


def test_a_step_cannot_write_to_the_launchers_interpreter(shell: Shell, overlay: RootOverlay) -> None:
    evil = Path(overlay.upper) / "evil"
    # The kernel runs what /proc/self/exe is before the program replaces it: the launcher's interpreter, on the host.
    evil.write_text(
        "#!/proc/self/exe -I\n"
        "import errno, os\n"
        "print(os.readlink('/proc/self/exe'))\n"
        "for attempt in (lambda: os.chmod('/proc/self/exe', os.stat('/proc/self/exe').st_mode), lambda: os.truncate('/proc/self/exe', 10**9)):\n"
        "    try:\n"
        "        attempt()\n"
        "        print('written')\n"
        "    except OSError as error:\n"
        "        print(errno.errorcode[error.errno])\n"
    )
    evil.chmod(0o755)
    mounts, _ = host_python("")
    _, output = shell("", args=("/evil",), mounts=mounts)
    assert output.splitlines()[1:] == ["EROFS", "EROFS"]
    assert output.startswith(os.path.realpath(sys.executable))


def test_a_fault_gives_its_signal(shell: Shell) -> None:
    mounts, args = host_python("import ctypes; ctypes.string_at(0)")
    status, _ = shell("", args=args, mounts=mounts)
    assert status == ExitStatus(128 + signal.SIGSEGV, signal=signal.SIGSEGV)


def test_an_empty_command_and_odd_environments_are_refused_clearly(shell: Shell) -> None:
    with pytest.raises(ProgramNotStarted, match="no command to run"):
        shell("", args=())
    with pytest.raises(SandboxError, match="can't set up the step"):
        shell("true", env=(("A", "x\0y"),))
    with pytest.raises(ProgramNotStarted, match="argument list too long"):
        shell("", args=("/bin/true", "x" * (1 << 20)))


def test_what_a_callback_raises_ends_the_step(executor: NamespaceExecutor, overlay: RootOverlay) -> None:
    def fail(stream: int, data: bytes) -> None:
        raise RuntimeError("enough")

    spec = ProcessSpec(root=overlay, args=("sh", "-c", "echo x; sleep 4004"), env=(("PATH", "/bin"),), cwd="/")
    with pytest.raises(RuntimeError, match="enough"):
        executor.run(spec, on_output=fail, cancel=threading.Event())
    deadline = time.monotonic() + 2
    while _processes_like("sleep", "4004"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_executor_can_be_closed_and_used_again(overlay: RootOverlay) -> None:
    spec = ProcessSpec(root=overlay, args=("/bin/true",), env=(), cwd="/")
    executor = NamespaceExecutor()
    for _ in range(2):
        assert executor.run(spec, on_output=lambda *_: None, cancel=threading.Event()) == ExitStatus(0)
        executor.close()
    executor.close()


def test_closing_kills_steps_that_run(overlay: RootOverlay) -> None:
    executor = NamespaceExecutor()
    spec = ProcessSpec(root=overlay, args=("sh", "-c", "echo x; sleep 5005"), env=(("PATH", "/bin"),), cwd="/")
    started = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(executor.run, spec, on_output=lambda *_: started.set(), cancel=threading.Event())
        assert started.wait(5)
        executor.close()
        with pytest.raises(LauncherError):
            future.result(5)
    assert not _processes_like("sleep", "5005")


@pytest.mark.parametrize("parent", ["", "pybuild-test-unified"])
def test_unified_control_groups_guard_devices_too(overlay: RootOverlay, parent: str) -> None:
    """On a host with version 1: the version 2 tree, shown alone in a mount namespace of this test's own."""
    if not any(line.split()[2] == "cgroup2" for line in Path("/proc/mounts").read_text().splitlines()):
        pytest.skip("needs a version 2 control group tree")
    script = DRIVER.replace(
        "sleep 3003 & echo started; sleep 3003",
        "mknod /d b 254 0; head -c 1 /d; mknod /n c 1 3; echo x > /n && echo fine; cat /proc/self/cgroup",
    )
    script = script.replace('cwd="/")', f'cwd="/", cgroup_parent={parent!r})')
    script += "\nimport os\nprint(os.listdir('/sys/fs/cgroup'))\n"
    if parent:
        script += f"os.rmdir('/sys/fs/cgroup/{parent}')\n"
    show = 'umount -l /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'
    arguments = [sys.executable, "-c", script, overlay.lower[0], overlay.upper, overlay.work]
    result = subprocess.run(["unshare", "--mount", "sh", "-c", show, "-", *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "head: /d: Operation not permitted" in result.stdout
    assert "fine" in result.stdout
    assert re.search(r"^0::/$", result.stdout, re.MULTILINE)
    assert not re.search(r"'pybuild-\d", result.stdout)


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("/no/python", "can't start the launcher process /no/python: No such file or directory"),
        ("/bin/false", "the launcher process can't run steps: it ended at once"),
    ],
)
def test_a_launcher_that_does_not_start_is_named_each_time(overlay: RootOverlay, python: str, message: str) -> None:
    spec = ProcessSpec(root=overlay, args=("/bin/true",), env=(), cwd="/")
    with NamespaceExecutor(python=python) as executor:
        for _ in range(2):
            with pytest.raises(LauncherError) as caught:
                executor.run(spec, on_output=lambda *_: None, cancel=threading.Event())
            assert caught.value.message == message
