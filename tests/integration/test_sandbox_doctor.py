"""What the doctor finds on the machine that runs these tests, and on one with less."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import pybuild
from pybuild.daemon import doctor
from pybuild.daemon.doctor import Level

pytestmark = pytest.mark.integration


def test_every_topic_is_reported_once_and_nothing_is_left(tmp_path: Path) -> None:
    report = doctor.probe(root=tmp_path / "not" / "there")
    topics = [finding.topic for finding in report.findings]
    assert len(topics) == len(set(topics))
    assert {"kernel", "identity", "platforms", "git", "store"} <= set(topics)
    assert all(finding.found for finding in report.findings)
    assert all(finding.consequence for finding in report.findings if finding.level is Level.MISSING)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_can_build_here(tmp_path: Path) -> None:
    report = doctor.probe(root=tmp_path)
    levels = {finding.topic: finding.level for finding in report.findings}
    assert report.able
    for topic in ("identity", "namespaces", "overlay", "proc", "seccomp"):
        assert levels[topic] is Level.OK


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_without_user_namespaces_an_ordinary_user_is_told_what_to_do(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from pybuild.daemon import doctor, sandbox\n"
        # As an outer container's filter does it: unshare with CLONE_NEWUSER is refused.
        "import errno, struct\n"
        "number = {'x86_64': 272, 'aarch64': 97}[os.uname().machine]\n"
        "program = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50000 | errno.EPERM), (0x06, 0, 0, 0x7FFF0000)]\n"
        "sandbox.install_filter(b''.join(struct.pack('=HBBI', *one) for one in program))\n"
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "report = doctor.probe(root=Path('/'))\n"
        "assert not report.able\n"
        "found = next(one for one in report.findings if one.topic == 'identity')\n"
        "print(found.level.value, '|', found.found, '|', found.consequence, '|', found.remedy)\n"
    )
    python = "/usr/bin/python3"
    environment = {"PYTHONPATH": str(Path(pybuild.__file__).resolve().parent.parent), "PATH": "/usr/bin:/bin"}
    if subprocess.run([python, "-B", "-c", "import pybuild.daemon.doctor"], env=environment).returncode:
        pytest.skip(f"needs a {python} 3.11 that an ordinary user can run")
    result = subprocess.run([python, "-B", "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    level, found, consequence, remedy = result.stdout.strip().split(" | ")
    assert level == "missing"
    assert found == "user 65534, no user namespace can be had: Operation not permitted"
    assert consequence == "RUN can't be executed"
    assert remedy


def test_only_emulators_that_work_in_containers_count(tmp_path: Path) -> None:
    for name, text in (
        ("qemu-aarch64", "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: OCF\noffset 0\n"),
        ("qemu-arm", "enabled\ninterpreter /usr/bin/qemu-arm\nflags: OC\n"),
        ("qemu-riscv64", "disabled\ninterpreter /x\nflags: F\n"),
        ("python3.11", "enabled\ninterpreter /x\nflags: F\n"),
        ("register", ""),
    ):
        (tmp_path / name).write_text(text)
    assert doctor.emulated_machines(tmp_path) == ("aarch64",)
    assert doctor.emulated_machines(tmp_path / "none") == ()
