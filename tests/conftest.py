"""Fixtures that all kinds of tests share: capabilities of the machine, a busybox root file system, the command, a registry."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]


# Everywhere but in continuous integration the examples are new each time; there, a run says something about the change only.
settings.register_profile("continuous-integration", derandomize=True, deadline=None)
settings.register_profile("default", deadline=None)
settings.load_profile("continuous-integration" if os.environ.get("CI") else "default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Namespaces and mounts need root here; the rootless tests start the product as an ordinary user by themselves."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("integration") or item.get_closest_marker("peer"):
            item.add_marker(pytest.mark.skip(reason="needs root"))


def require_program(name: str) -> str:
    """The path of a program from Debian, or a skip that names it."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"the program {name} is not installed")
    return path


def free_port() -> int:
    """A port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port


@dataclass(slots=True)
class Pybuild:
    """Runs the command on a root of its own."""

    root: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def run(
        self, *arguments: str, cwd: Path | None = None, check: bool = True, stdin: bytes | None = None, timeout: float = 120,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run ``pybuild --root ROOT ARGUMENTS``; with ``check``, a failure shows its whole output."""
        finished = subprocess.run(
            [sys.executable, "-m", "pybuild", "--root", str(self.root), *arguments],
            cwd=cwd,
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            env={**os.environ, **self.variables, **(env or {})},
        )
        result = subprocess.CompletedProcess(
            finished.args,
            finished.returncode,
            finished.stdout.decode("utf-8", "replace"),
            finished.stderr.decode("utf-8", "replace"),
        )
        if check and result.returncode != 0:
            pytest.fail(f"pybuild {' '.join(arguments)} exited {result.returncode}\n{result.stdout}\n{result.stderr}")
        return result

    def build(
        self, dockerfile: str, context: Path, *arguments: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Write ``dockerfile`` into ``context`` and build it with plain progress."""
        context.mkdir(exist_ok=True)
        (context / "Dockerfile").write_text(dockerfile)
        return self.run("build", "--progress=plain", *arguments, str(context), check=check)


@pytest.fixture(scope="session")
def busybox_tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of a root file system with busybox-static in it."""
    require_program("busybox")
    out = tmp_path_factory.mktemp("base") / "busybox.tar"
    subprocess.run([str(REPOSITORY / "tools/base_image.sh"), "busybox", str(out)], check=True)
    return out


@pytest.fixture(scope="session")
def busybox_root(busybox_tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, unpacked. Tests must not change it."""
    root = tmp_path_factory.mktemp("busybox-root")
    subprocess.run(["tar", "-xf", str(busybox_tar), "-C", str(root)], check=True)
    return root


@pytest.fixture(scope="session")
def _seed_root(busybox_tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds the image ``busybox``, to be copied."""
    root = tmp_path_factory.mktemp("seed") / "root"
    Pybuild(root).run("import", str(busybox_tar), "busybox:latest")
    return root


@pytest.fixture
def pybuild(_seed_root: Path, tmp_path: Path) -> Pybuild:
    """The command, on a fresh store that holds the image ``busybox``."""
    root = tmp_path / "pybuild-root"
    subprocess.run(["cp", "-a", str(_seed_root), str(root)], check=True)
    config = tmp_path / "docker-config"
    config.mkdir()
    return Pybuild(root, {"DOCKER_CONFIG": str(config)})


@pytest.fixture
def empty_pybuild(tmp_path: Path) -> Pybuild:
    """The command, on a store that holds nothing."""
    config = tmp_path / "docker-config"
    config.mkdir(exist_ok=True)
    return Pybuild(tmp_path / "empty-root", {"DOCKER_CONFIG": str(config)})


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Debian's docker-registry on loopback; the fixture's value is its ``host:port``."""
    program = require_program("docker-registry")
    directory = tmp_path_factory.mktemp("registry")
    port = free_port()
    config = directory / "config.yml"
    config.write_text(
        "version: 0.1\n"
        f"storage:\n  filesystem:\n    rootdirectory: {directory}/data\n  delete:\n    enabled: true\n"
        f"http:\n  addr: 127.0.0.1:{port}\nlog:\n  level: error\n"
    )
    process = subprocess.Popen([program, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        else:
            pytest.fail("docker-registry did not start")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
