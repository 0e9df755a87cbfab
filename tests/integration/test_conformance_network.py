"""The network of RUN steps, and the resources they get, seen from the command line."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, build_files, build_image, refused

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server of this machine that says ``foo``."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.sendall(b"foo\n")

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_a_step_has_no_network_or_the_hosts(pybuild: Command, tmp_path: Path, port: int) -> None:
    dockerfile = f"""
FROM busybox
RUN --network=none ! ip link show eth0 2>/dev/null && ip link show lo && ! nc -w 1 127.0.0.1 {port}
RUN --network=host nc 127.0.0.1 {port} | grep foo
"""
    pybuild.build(dockerfile, tmp_path / "c", "--allow=network.host")
    message = refused(pybuild, dockerfile, tmp_path / "c")
    assert "entitlement network.host is not allowed" in message
    assert ">>> RUN --network=host" in message


def test_all_steps_have_the_hosts_network(pybuild: Command, tmp_path: Path, port: int) -> None:
    dockerfile = f"FROM busybox\nRUN nc 127.0.0.1 {port} | grep foo\nRUN --network=none ! nc -w 1 127.0.0.1 {port}\n"
    pybuild.build(dockerfile, tmp_path / "c", "--network=host", "--allow=network.host")
    pybuild.build(dockerfile, tmp_path / "c", "--network=host", "--no-cache")
    pybuild.build(f"FROM busybox\nRUN ! nc -w 1 127.0.0.1 {port}\n", tmp_path / "c", "--network=none")


def test_the_configuration_may_forbid_the_hosts_network(pybuild: Command, tmp_path: Path) -> None:
    config = tmp_path / "pybuild.toml"
    config.write_text("insecure-entitlements = []\n")
    context = tmp_path / "c"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM busybox\nRUN --network=host true\n")
    result = pybuild.run("--config", str(config), "build", "--allow=network.host", str(context), check=False)
    assert result.returncode == 1
    assert "entitlement network.host is not allowed" in result.stderr.splitlines()[-1]


def test_resources_are_those_asked_for(pybuild: Command, tmp_path: Path) -> None:
    out = build_files(
        pybuild,
        """
FROM busybox AS base
RUN mount | grep /dev/shm > /shmsize; ulimit -n > /ulimit; ulimit -Hn >> /ulimit
RUN cat /etc/hosts > /hosts; hostname > /hostname
FROM scratch
COPY --from=base /shmsize /ulimit /hosts /hostname /
""",
        tmp_path / "c",
        "--shm-size=134217728",
        "--ulimit=nofile=1062:2000",
        "--add-host=one.example:10.1.2.3",
        "--add-host=six.example=[::7]",
        "--build-arg=BUILDKIT_SANDBOX_HOSTNAME=testbuilder",
    )
    assert "size=131072k" in (out / "shmsize").read_text()
    assert (out / "ulimit").read_text() == "1062\n2000\n"
    assert {"10.1.2.3\tone.example", "::7\tsix.example"} <= set((out / "hosts").read_text().splitlines())
    assert (out / "hostname").read_text() == "testbuilder\n"


def test_files_made_for_the_network_are_not_in_the_layer(pybuild: Command, tmp_path: Path) -> None:
    image = build_image(
        pybuild,
        "FROM busybox\nRUN cat /etc/hosts /etc/resolv.conf > /dev/null\n",
        tmp_path / "c",
        "--add-host=a.example:10.0.0.1",
    )
    assert [name for name in image.names(-1) if name.startswith("etc")] == []


def test_a_parent_group_limits_a_step(pybuild: Command, tmp_path: Path) -> None:
    unified = Path("/sys/fs/cgroup/cgroup.subtree_control")
    root = Path("/sys/fs/cgroup") if unified.exists() else Path("/sys/fs/cgroup/pids")
    if not (root / "cgroup.procs").exists():
        pytest.skip("no control group hierarchy with pids")
    group = root / "test.conformance"
    try:
        group.mkdir()
        (group / "pids.max").write_text("10")
    except OSError as error:
        pytest.skip(f"control groups can't be made here: {error.strerror}")
    dockerfile = """
FROM busybox AS base
RUN mkdir /out; (for i in $(seq 1 10); do sleep 1 & done 2>/out/error); cat /proc/self/cgroup > /out/cgroup
FROM scratch
COPY --from=base /out /
"""
    try:
        out = build_files(pybuild, dockerfile, tmp_path / "c", "--cgroup-parent=test.conformance")
        assert "test.conformance" not in (out / "cgroup").read_text()
        assert "Resource temporarily unavailable" in (out / "error").read_text()
    finally:
        group.rmdir()


def test_limits_hold_for_a_step_and_change_no_key(pybuild: Command, tmp_path: Path) -> None:
    unified = Path("/sys/fs/cgroup/cgroup.subtree_control").exists()
    if unified:
        files = "memory.max cpu.max cpuset.cpus"
    elif Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists():
        files = "memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpuset/cpuset.cpus"
    else:
        pytest.skip("no control groups for memory")
    dockerfile = f"""
FROM busybox AS base
RUN cd /sys/fs/cgroup && cat {files} > /limits
FROM scratch
COPY --from=base /limits /
"""
    out = build_files(
        pybuild, dockerfile, tmp_path / "c", "--resource=memory=64m", "--resource=cpu-quota=50000", "--cpuset-cpus=0"
    )
    assert (out / "limits").read_text().split("\n") == ["67108864", "50000 100000" if unified else "50000", "0", ""]
    out = build_files(pybuild, dockerfile, tmp_path / "c", "-m", "32m")
    assert (out / "limits").read_text().startswith("67108864\n")
    for text in ("memory=0", "cpu-shares=x", "speed=1", "cpuset-cpus=a"):
        result = pybuild.run("build", f"--resource={text}", str(tmp_path / "c"), check=False)
        assert result.returncode != 0
        assert "invalid" in result.stderr.splitlines()[-1]


def test_what_can_not_be_had_is_told(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = "FROM busybox\nRUN true\n"
    assert "had to do without" not in pybuild.build(dockerfile, tmp_path / "c").stderr
    if not any(Path("/sys/fs/cgroup", name).exists() for name in ("cpuset/cpuset.cpus", "cgroup.subtree_control")):
        pytest.skip("no control groups for CPUs")
    result = pybuild.build(dockerfile, tmp_path / "c", "--no-cache", "--resource=cpuset-cpus=9999")
    assert "[internal] what steps had to do without" in result.stderr
    assert "the limit cpuset.cpus=9999 can't be set" in result.stderr
