"""Steps in real namespaces, on a root file system made of busybox."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pybuild.builder.protocols import ExitStatus, ProcessSpec
from pybuild.daemon.executor import NamespaceExecutor
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


@pytest.fixture(scope="module")
def executor() -> Iterator[NamespaceExecutor]:
    with NamespaceExecutor() as executor:
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
