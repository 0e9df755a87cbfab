"""Builds: cold, warm, one file changed, the cost of one step, many cached steps, several at once."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

STEPS = """\
FROM base
ENV A=1
WORKDIR /work
RUN echo one > one
RUN mkdir -p deep/er && echo two > deep/er/two
RUN echo three > three
COPY stable/ stable/
RUN ls stable | wc -l > count
RUN echo four > four
COPY src/ src/
RUN find src -type f | wc -l > files
RUN echo five > five
RUN cat one three > six
"""


def make_context(directory: Path, *, files: int, size: int) -> Path:
    """A context of ``files`` files in directories of 100, ``size`` bytes each, random and so incompressible."""
    if directory.exists():
        return directory
    source = random.Random(files)
    (directory / "stable").mkdir(parents=True)
    (directory / "stable/file").write_text("stable\n")
    for number in range(files):
        folder = directory / f"src/d{number // 100:03d}"
        if number % 100 == 0:
            folder.mkdir(parents=True)
        (folder / f"f{number:06d}").write_bytes(source.randbytes(size))
    (directory / "Dockerfile").write_text(STEPS)
    return directory


SIZES = pytest.mark.parametrize("files", [2000, 20_000], ids=["2000-files", "20000-files"])


def rounds(tool: Any, files: int) -> int:
    """Fewer rounds of what takes the peer a minute."""
    return 1 if tool.name == "buildah" and files > 10_000 else 5


@SIZES
def test_warm_build(benchmark: Any, measure: Any, tool: Any, workspace: Path, files: int) -> None:
    benchmark.group = f"warm build, 12 cached steps, {files:,} files"
    context = make_context(workspace / f"context-{files}", files=files, size=20_000)
    tool.build(context)
    measure(tool, lambda: tool.build(context), rounds=rounds(tool, files))
    assert tool.layers("bench") >= 10


@SIZES
def test_one_file_changed(benchmark: Any, measure: Any, tool: Any, workspace: Path, files: int) -> None:
    benchmark.group = f"one small file changed, 6 steps again, {files:,} files"
    context = make_context(workspace / f"context-{files}", files=files, size=20_000)
    changed = context / "src/d000/f000000"
    counter = iter(range(1_000_000))

    def change() -> None:
        changed.write_text(f"{tool.name} change {next(counter)}")

    change()
    tool.build(context)
    measure(tool, lambda: tool.build(context), setup=change, rounds=min(3, rounds(tool, files)))
    assert tool.layers("bench") >= 10


def test_cold_build(benchmark: Any, measure: Any, tool: Any, workspace: Path) -> None:
    benchmark.group = "cold build, 12 steps (8 RUN)"
    context = make_context(workspace / "context-200", files=200, size=2000)
    measure(tool, lambda: tool.build(context, extra=["--no-cache"]), rounds=5, warmup_rounds=1)
    assert tool.layers("bench") >= 10


@pytest.mark.parametrize("steps", [1, 11])
def test_run_true(benchmark: Any, measure: Any, tool: Any, workspace: Path, steps: int) -> None:
    benchmark.group = f"{steps} RUN of true"
    context = write_dockerfile(workspace / f"true-{steps}", "FROM base\n" + "RUN true\n" * steps)
    measure(tool, lambda: tool.build(context, extra=["--no-cache"]), rounds=5, warmup_rounds=1)
    assert tool.layers("bench") >= 1


@pytest.mark.parametrize("steps", [200, 1000])
def test_cached_steps(benchmark: Any, measure: Any, tool: Any, workspace: Path, steps: int) -> None:
    benchmark.group = f"{steps:,} cached steps"
    if tool.name == "buildah" and steps > 200:
        pytest.skip("takes buildah minutes")
    lines = [f"RUN echo {number} > /n" if number % 20 == 0 else f"ENV N{number}={number}" for number in range(steps)]
    context = write_dockerfile(workspace / f"steps-{steps}", "\n".join(["FROM base", *lines]) + "\n")
    tool.build(context)
    measure(tool, lambda: tool.build(context), rounds=3 if tool.name == "buildah" else 5)
    assert tool.layers("bench") >= 10


def test_six_independent_stages(benchmark: Any, measure: Any, tool: Any, workspace: Path) -> None:
    benchmark.group = "6 independent stages of sleep 1"
    stages = "".join(f"FROM base AS s{number}\nRUN sleep 1; echo > /done{number}\n" for number in range(6))
    copies = "".join(f"COPY --from=s{number} /done{number} /\n" for number in range(6))
    context = write_dockerfile(workspace / "stages", f"{stages}FROM base\n{copies}")
    extra = ["--no-cache", *(["--jobs=6"] if tool.name == "buildah" else [])]
    measure(tool, lambda: tool.build(context, extra=extra), rounds=3)
    assert tool.layers("bench") >= 6


def test_eight_builds_at_once(benchmark: Any, measure: Any, tool: Any, workspace: Path) -> None:
    benchmark.group = "8 builds at once in one store"
    contexts = [
        write_dockerfile(workspace / f"at-once-{number}", f"FROM base\nRUN echo {number} > /a\nRUN echo two > /b\nRUN true\n")
        for number in range(8)
    ]  # fmt: skip

    def build() -> None:
        with ThreadPoolExecutor(8) as pool:
            list(
                pool.map(lambda number: tool.build(contexts[number], tag=f"b{number}", extra=["--no-cache"]), range(8))
            )

    measure(tool, build, rounds=3)
    assert all(tool.layers(f"b{number}") >= 3 for number in range(8))


def write_dockerfile(directory: Path, text: str) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "Dockerfile").write_text(text)
    return directory
