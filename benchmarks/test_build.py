"""Builds: cold, warm, one file changed, the cost of one step, many cached steps."""

from __future__ import annotations

import random
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


@pytest.mark.parametrize(("files", "size"), [(2000, 20_000), (20_000, 20_000)], ids=["2000-files", "20000-files"])
def test_warm_build(benchmark: Any, tool: Any, workspace: Path, files: int, size: int) -> None:
    benchmark.group = f"warm build, 12 cached steps, {files} files"
    context = make_context(workspace / f"context-{files}", files=files, size=size)
    tool.build(context)
    benchmark.pedantic(lambda: tool.build(context), rounds=5)
    assert tool.layers("bench") >= 10


@pytest.mark.parametrize(("files", "size"), [(2000, 20_000), (20_000, 20_000)], ids=["2000-files", "20000-files"])
def test_one_file_changed(benchmark: Any, tool: Any, workspace: Path, files: int, size: int) -> None:
    benchmark.group = f"one small file changed, {files} files"
    context = make_context(workspace / f"context-{files}", files=files, size=size)
    tool.build(context)
    changed = context / "src/d000/f000000"
    counter = iter(range(1_000_000))

    def change() -> None:
        changed.write_text(f"{tool.name} change {next(counter)}")

    benchmark.pedantic(lambda: tool.build(context), setup=change, rounds=3)
    assert tool.layers("bench") >= 10


def test_cold_build(benchmark: Any, tool: Any, workspace: Path) -> None:
    benchmark.group = "cold build, 12 steps (8 RUN)"
    context = make_context(workspace / "context-200", files=200, size=2000)
    benchmark.pedantic(lambda: tool.build(context, extra=["--no-cache"]), rounds=5, warmup_rounds=1)
    assert tool.layers("bench") >= 10


@pytest.mark.parametrize("steps", [1, 11])
def test_run_true(benchmark: Any, tool: Any, workspace: Path, steps: int) -> None:
    benchmark.group = f"{steps} RUN of true"
    context = workspace / f"true-{steps}"
    context.mkdir(exist_ok=True)
    (context / "Dockerfile").write_text("FROM base\n" + "RUN true\n" * steps)
    benchmark.pedantic(lambda: tool.build(context, extra=["--no-cache"]), rounds=5, warmup_rounds=1)
    assert tool.layers("bench") >= 1


def test_200_cached_steps(benchmark: Any, tool: Any, workspace: Path) -> None:
    benchmark.group = "200 cached steps"
    context = workspace / "steps-200"
    context.mkdir(exist_ok=True)
    lines = [f"RUN echo {number} > /n" if number % 20 == 0 else f"ENV N{number}={number}" for number in range(200)]
    (context / "Dockerfile").write_text("\n".join(["FROM base", *lines]) + "\n")
    tool.build(context)
    benchmark.pedantic(lambda: tool.build(context), rounds=5)
    assert tool.layers("bench") >= 10
