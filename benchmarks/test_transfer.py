"""Exports, pushes and pulls."""

from __future__ import annotations

import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def layered(tool: Any, workspace: Path) -> str:
    """An image of three layers with 60 MB of files that compress to about a half."""
    context = workspace / "layered"
    if not context.exists():
        context.mkdir()
        source = random.Random(7)
        for number in range(3):
            folder = context / f"part{number}"
            folder.mkdir()
            for index in range(20):
                (folder / f"file{index}").write_bytes(source.randbytes(500_000) + b"pybuild " * 62_500)
        (context / "Dockerfile").write_text("FROM base\nCOPY part0 /part0\nCOPY part1 /part1\nCOPY part2 /part2\n")
    tool.build(context, tag="layered")
    return "layered"


@pytest.mark.parametrize("kind", ["many-small", "few-big"])
def test_copy_and_export_oci(benchmark: Any, measure: Any, tool: Any, workspace: Path, kind: str) -> None:
    benchmark.group = f"COPY and export as OCI, {kind}"
    context = workspace / f"export-{kind}"
    if not context.exists():
        source = random.Random(3)
        count, size = (20_000, 5_000) if kind == "many-small" else (8, 128_000_000)
        for number in range(count):
            folder = context / f"data/d{number // 200:03d}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"f{number}").write_bytes(
                source.randbytes(size // 2) + b"a text that repeats itself. " * (size // 56)
            )
        (context / "Dockerfile").write_text("FROM scratch\nCOPY data /data\n")
    target = workspace / f"{tool.name}-{kind}.tar"

    def export() -> None:
        target.unlink(missing_ok=True)
        if tool.name == "pybuild":
            tool.run("build", "--no-cache", "--progress=quiet", "-o", f"type=oci,dest={target}", str(context))
        else:
            tool.run("build", "--no-cache", "-q", "-t", f"oci-archive:{target}", str(context))

    def forget() -> None:
        # Else the blob that the last round compressed would be found.
        if tool.name == "pybuild":
            tool.run("prune", "--all", "--force")

    measure(tool, export, setup=forget, rounds=3)
    with tarfile.open(target) as archive:
        assert json.load(archive.extractfile("index.json"))["manifests"]  # type: ignore[arg-type]  # the member is a file
    benchmark.extra_info["bytes"] = target.stat().st_size


def test_push_fresh(benchmark: Any, measure: Any, tool: Any, layered: str, registry: str) -> None:
    benchmark.group = "push, fresh repository"
    counter = iter(range(1000))

    def target() -> tuple[tuple[str, str], dict[str, str]]:
        address = f"{registry}/{tool.name}-fresh-{next(counter)}:latest"
        tool.name_image(layered, address)
        return (layered, address), {}

    # A repository that the registry knows nothing of; blobs may be known to the registry under another name.
    measure(tool, tool.push, setup=target, rounds=3)


def test_push_unchanged(benchmark: Any, measure: Any, tool: Any, layered: str, registry: str) -> None:
    benchmark.group = "push, nothing changed"
    target = f"{registry}/{tool.name}-unchanged:latest"
    tool.name_image(layered, target)
    tool.push(layered, target)
    measure(tool, lambda: tool.push(layered, target), rounds=5)


def test_push_last_layer(benchmark: Any, measure: Any, tool: Any, layered: str, workspace: Path, registry: str) -> None:
    benchmark.group = "push, only the last layer is new"
    context = workspace / "last-layer"
    context.mkdir(exist_ok=True)
    (context / "Dockerfile").write_text(
        f"FROM {'localhost/' if tool.name == 'buildah' else ''}{layered}\nCOPY new /new\n"
    )
    target = f"{registry}/{tool.name}-last:latest"
    tool.name_image(layered, target)
    tool.push(layered, target)
    counter = iter(range(1000))

    def change() -> None:
        (context / "new").write_text(f"{tool.name} {next(counter)}\n" * 10_000)
        tool.build(context, tag="last")
        tool.name_image("last", target)

    measure(tool, lambda: tool.push("last", target), setup=change, rounds=3)


def test_pull(benchmark: Any, measure: Any, tool: Any, layered: str, registry: str) -> None:
    benchmark.group = "pull, unpacked"
    target = f"{registry}/{tool.name}-pull:latest"
    tool.name_image(layered, target)
    tool.push(layered, target)
    other = type(tool)(tool.name, tool.root.parent / f"{tool.name}-pull")
    other.root.mkdir(exist_ok=True)

    def forget() -> None:
        if other.count:
            other.forget(target)
        other.count += 1

    measure(other, lambda: other.pull(target), setup=forget, rounds=3)
