"""Benchmarks compare whole processes: the same work by pybuild and by a peer, side by side in one run, each result checked.

Run them with ``make bench``; ``benchmarks/report.py`` turns the figures into the ratios of ``benchmarks/README.md``.
"""

from __future__ import annotations

import abc
import functools
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the benchmarks' own modules

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = ("parser", "layers", "builder", "registry_client", "daemon")
_SCRIPT = Path(sys.executable).parent / "pybuild"
PROGRAM = [str(_SCRIPT)] if _SCRIPT.exists() else [sys.executable, "-m", "pybuild"]


@dataclass(slots=True)
class Tool(abc.ABC):
    """One builder: how it builds, pushes, pulls; each on a store of its own below ``root``.

    ``cpu_seconds``: what each run of the program and its children took; ``peak_bytes``: the memory of its largest process so far;
    ``said``: what the last run printed to stderr, after what it printed to stdout.
    """

    name: str
    root: Path
    count: int = field(default=0)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = field(default=0)
    said: str = field(default="")

    @abc.abstractmethod
    def command(self, *arguments: str) -> list[str]:
        """The command line that runs the tool on its own store."""

    def run(self, *arguments: str) -> bytes:
        """Run to the end and return what was printed; a failure shows the tool's own words."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(self.command(*arguments), stdout=out, stderr=err, stdin=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self.cpu_seconds.append(usage.ru_utime + usage.ru_stime)
            self.peak_bytes = max(self.peak_bytes, usage.ru_maxrss << 10)
            out.seek(0)
            err.seek(0)
            printed, words = out.read(), err.read().decode(errors="replace")
            self.said = printed.decode(errors="replace") + words
            if process.returncode != 0:
                raise AssertionError(f"{self.name} {' '.join(arguments)}: {process.returncode}\n{words[-2000:]}")
            return printed

    @abc.abstractmethod
    def fresh(self) -> None:
        """Forget everything but the base image."""

    @abc.abstractmethod
    def build(self, context: Path, *, tag: str = "bench", extra: Sequence[str] = ()) -> None:
        """Build the Dockerfile of ``context``."""

    @abc.abstractmethod
    def name_image(self, tag: str, target: str) -> None:
        """Prepare the local image ``tag`` for a push to ``target``."""

    @abc.abstractmethod
    def push(self, tag: str, target: str) -> None:
        """Push what ``name_image`` prepared."""


@dataclass(slots=True)
class Pybuild(Tool):
    def command(self, *arguments: str) -> list[str]:
        return [*PROGRAM, "--root", str(self.root / "store"), *arguments]

    def fresh(self) -> None:
        shutil.rmtree(self.root / "store", ignore_errors=True)
        self.run("import", str(self.root.parent / "base.tar"), "base:latest")

    def build(self, context: Path, *, tag: str = "bench", extra: Sequence[str] = ()) -> None:
        self.run("build", "--progress=quiet", "-t", tag, *extra, str(context))

    def layers(self, tag: str) -> int:
        return len(json.loads(self.run("inspect", tag))[0]["RootFS"]["Layers"])

    def name_image(self, tag: str, target: str) -> None:
        self.run("tag", tag, target)

    def push(self, tag: str, target: str) -> None:
        self.run("push", target)

    def pull(self, target: str) -> None:
        self.run("pull", target)

    def forget(self, tag: str) -> None:
        self.run("rmi", "-f", tag)
        self.run("prune", "--all", "--force")


@dataclass(slots=True)
class Buildah(Tool):
    isolation: str = field(default="oci")

    def command(self, *arguments: str) -> list[str]:
        return [
            "buildah", "--root", str(self.root / "store"), "--runroot", str(self.root / "run"), "--storage-driver", "overlay", *arguments,
        ]  # fmt: skip

    def fresh(self) -> None:
        subprocess.run(self.command("rmi", "--all", "--force"), capture_output=True, check=False)
        container = self.run("from", "scratch").decode().strip()
        self.run("add", container, str(self.root.parent / "base.tar"), "/")
        self.run("config", "--env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", container)
        probe = subprocess.run(
            self.command("run", "--isolation=oci", container, "true"), capture_output=True, check=False
        )
        # Where the OCI runtime doesn't work (crun with hybrid control groups), steps run with less around them, which is faster.
        self.isolation = "oci" if probe.returncode == 0 else "chroot"
        self.run("commit", "--rm", container, "localhost/base:latest")

    def build(self, context: Path, *, tag: str = "bench", extra: Sequence[str] = ()) -> None:
        isolation = f"--isolation={self.isolation}"
        self.run("build", "--layers", "--pull-never", isolation, "-q", "-t", tag, *extra, str(context))

    def layers(self, tag: str) -> int:
        return len(json.loads(self.run("inspect", "--type", "image", tag))["OCIv1"]["rootfs"]["diff_ids"])

    def name_image(self, tag: str, target: str) -> None:
        """An image can be pushed to any name."""

    def push(self, tag: str, target: str) -> None:
        self.run("push", "--tls-verify=false", tag, f"docker://{target}")

    def pull(self, target: str) -> None:
        self.run("pull", "--tls-verify=false", target)

    def forget(self, tag: str) -> None:
        self.run("rmi", "--force", tag)


def _measure(
    benchmark: Any,  # Any: the plugin has no types
    tool: Tool,
    work: Callable[..., None],
    *,
    rounds: int,
    setup: Callable[[], Any] | None = None,  # Any: as pytest-benchmark takes it
    warmup_rounds: int = 0,
) -> None:
    """Time ``work``, and note the least CPU time of a round and the peak memory beside it."""
    times: list[float] = []

    def counted(*arguments: object) -> None:
        before = len(tool.cpu_seconds)
        work(*arguments)
        times.append(sum(tool.cpu_seconds[before:]))

    tool.peak_bytes = 0
    benchmark.pedantic(counted, setup=setup, rounds=rounds, warmup_rounds=warmup_rounds)
    benchmark.extra_info["cpu"] = min(times)
    # A process starts with its parent's peak (getrusage(2) counts what was before execve(2)): a smaller one can't be seen.
    if tool.peak_bytes > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10:
        benchmark.extra_info["peak"] = tool.peak_bytes


@pytest.fixture
def measure(benchmark: Any) -> Callable[..., None]:  # Any: the plugin has no types
    """``measure(tool, work, rounds=…)``: see ``_measure``."""
    return functools.partial(_measure, benchmark)


@pytest.fixture(scope="session", autouse=True)
def compiled() -> None:
    """An installed pybuild has its bytecode beside it; see to it that a checkout does, too, whatever the environment says."""
    import pybuild

    folders = [Path(pybuild.__file__).parent, *(REPOSITORY / name for name in FOLDERS)]
    subprocess.run([sys.executable, "-m", "compileall", "-q", *map(str, folders)], check=True)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the base image's tar."""
    directory = tmp_path_factory.mktemp("bench")
    subprocess.run([str(REPOSITORY / "tools/base_image.sh"), "busybox", str(directory / "base.tar")], check=True)
    return directory


@pytest.fixture(scope="session")
def new_tool(workspace: Path) -> Callable[[str, str], Tool]:
    """``new_tool(name, directory)``: a builder with the base image in a store of its own."""

    def make(name: str, directory: str) -> Tool:
        if name == "buildah" and shutil.which("buildah") is None:
            pytest.skip("the program buildah is not installed")
        root = workspace / directory
        root.mkdir(exist_ok=True)
        made = Pybuild(name, root) if name == "pybuild" else Buildah(name, root)
        made.fresh()
        return made

    return make


@pytest.fixture(scope="session", params=["pybuild", "buildah"])
def tool(request: pytest.FixtureRequest, new_tool: Callable[[str, str], Tool]) -> Tool:
    """Each builder in turn, with the base image in its store."""
    return new_tool(request.param, request.param)


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
