"""Benchmarks compare whole processes: the same work by pybuild and by a peer, side by side in one run, each result checked.

Run them with ``make bench``; ``benchmarks/report.py`` turns the figures into the ratios of ``benchmarks/README.md``.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(slots=True)
class Tool:
    """One builder: how it builds, pushes, pulls; each on a store of its own below ``root``."""

    name: str
    root: Path
    count: int = field(default=0)

    def command(self, *arguments: str) -> list[str]:
        raise NotImplementedError

    def run(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run to the end; a failure shows the tool's own words."""
        done = subprocess.run(
            self.command(*arguments), capture_output=True, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, check=False
        )  # fmt: skip
        if done.returncode != 0:
            raise AssertionError(
                f"{self.name} {' '.join(arguments)}: {done.returncode}\n{done.stderr.decode()[-2000:]}"
            )
        return done

    def fresh(self) -> None:
        """Forget everything but the base image."""
        raise NotImplementedError

    def build(self, context: Path, *, tag: str = "bench", extra: Sequence[str] = ()) -> None:
        raise NotImplementedError


class Pybuild(Tool):
    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "pybuild", "--root", str(self.root / "store"), *arguments]

    def fresh(self) -> None:
        shutil.rmtree(self.root / "store", ignore_errors=True)
        self.run("import", str(self.root.parent / "base.tar"), "base:latest")

    def build(self, context: Path, *, tag: str = "bench", extra: Sequence[str] = ()) -> None:
        self.run("build", "--progress=quiet", "-t", tag, *extra, str(context))

    def layers(self, tag: str) -> int:
        import json

        return len(json.loads(self.run("inspect", tag).stdout)[0]["RootFS"]["Layers"])

    def push(self, tag: str, target: str) -> None:
        self.run("tag", tag, target)
        self.run("push", target)

    def pull(self, target: str) -> None:
        self.run("pull", target)

    def forget(self, tag: str) -> None:
        self.run("rmi", "-f", tag)
        self.run("prune", "--all", "--force")


class Buildah(Tool):
    def command(self, *arguments: str) -> list[str]:
        return [
            "buildah", "--root", str(self.root / "store"), "--runroot", str(self.root / "run"), "--storage-driver", "overlay", *arguments,
        ]  # fmt: skip

    def fresh(self) -> None:
        subprocess.run(self.command("rmi", "--all", "--force"), capture_output=True, check=False)
        container = self.run("from", "scratch").stdout.decode().strip()
        self.run("add", container, str(self.root.parent / "base.tar"), "/")
        self.run("config", "--env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", container)
        self.run("commit", "--rm", container, "localhost/base:latest")

    def build(self, context: Path, *, tag: str = "bench", extra: Sequence[str] = ()) -> None:
        self.run("build", "--layers", "--pull-never", "-q", "-t", tag, *extra, str(context))

    def layers(self, tag: str) -> int:
        import json

        return len(json.loads(self.run("inspect", "--type", "image", tag).stdout)["OCIv1"]["rootfs"]["diff_ids"])

    def push(self, tag: str, target: str) -> None:
        self.run("push", "--tls-verify=false", tag, f"docker://{target}")

    def pull(self, target: str) -> None:
        self.run("pull", "--tls-verify=false", target)

    def forget(self, tag: str) -> None:
        self.run("rmi", "--force", tag)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the base image's tar."""
    directory = tmp_path_factory.mktemp("bench")
    subprocess.run([str(REPOSITORY / "tools/base_image.sh"), "busybox", str(directory / "base.tar")], check=True)
    return directory


@pytest.fixture(scope="session", params=["pybuild", "buildah"])
def tool(request: pytest.FixtureRequest, workspace: Path) -> Pybuild | Buildah:
    """Each builder in turn, with the base image in its store."""
    name = request.param
    directory = workspace / name
    directory.mkdir(exist_ok=True)
    if name == "buildah" and shutil.which("buildah") is None:
        pytest.skip("the program buildah is not installed")
    made = Pybuild(name, directory) if name == "pybuild" else Buildah(name, directory)
    made.fresh()
    return made


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Debian's docker-registry on loopback: ``host:port``."""
    directory = tmp_path_factory.mktemp("registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = directory / "config.yml"
    config.write_text(
        f"version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {directory}/data\n"
        f"http:\n  addr: 127.0.0.1:{port}\n"
    )
    process = subprocess.Popen(
        ["docker-registry", "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
