"""ADD of URLs and git repositories: what is fetched when, and what of it counts."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "fakes"))

from solver_fakes import (  # found by the line above
    Events,
    FunctionExecutor,
    MemoryCache,
    MemoryImages,
    MemorySnapshots,
    Tree,
)

from pybuild.builder.downloads import DownloadedFile, GitTree
from pybuild.builder.graph import FileCopy, GitSource, HttpSource, Note, Op, Scratch, Unpack, Vertex
from pybuild.builder.protocols import HttpFile
from pybuild.builder.solver import Solver, StepFailed
from pybuild.errors import PybuildError
from pybuild.layers.digest import Digest


class Remotes:
    """One file and one repository, in a directory of this machine."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.commit = "c" * 40
        self.calls: list[str] = []
        (directory / "repository").mkdir()
        (directory / "repository/run.sh").write_text("#!/bin/sh\n")
        (directory / "repository/run.sh").chmod(0o775)
        self.serve("content1")

    def serve(self, text: str) -> None:
        (self.directory / "file").write_text(text)

    def http(self, url: str, *, checksum: Digest | None) -> HttpFile:
        self.calls.append(f"http {url}")
        path = self.directory / "file"
        digest = Digest.of(path.read_bytes())
        if checksum is not None and checksum != digest:
            raise PybuildError(f"checksum mismatch {digest}: {checksum}")
        return HttpFile(str(path), digest, "foo", 1234567.0)

    def git_commit(self, remote: str, ref: str, *, checksum: str = "") -> str:
        self.calls.append(f"commit {remote} {ref}")
        return self.commit

    @contextmanager
    def git_tree(self, remote: str, *, commit: str, **_: object) -> Iterator[str]:
        self.calls.append(f"tree {remote} {commit[:4]}")
        yield str(self.directory / "repository")


class World:
    def __init__(self, directory: Path) -> None:
        self.snapshots = MemorySnapshots()
        self.cache = MemoryCache(self.snapshots)
        self.remotes = Remotes(directory)

    def add(self, source: Op, path: str, destination: str, **options: object) -> tuple[Tree, list[str], Events]:
        """ADD on scratch: the resulting tree, what was asked of the network, and the events."""
        self.remotes.calls.clear()
        events = Events()
        tree = Vertex(source, (), Note("download"))
        op = replace(FileCopy((path,), destination), **options)  # type: ignore[arg-type]  # fields by name
        target = Vertex(op, (Vertex(Scratch(), (), Note("")), tree), Note("ADD"))
        with Solver(
            executor=FunctionExecutor(self.snapshots, lambda tree, spec, out: 0),
            snapshots=self.snapshots,
            cache=self.cache,
            images=MemoryImages(self.snapshots),
            contexts={},
            remotes=self.remotes,
            progress=events,
            clock=time.time,
            cancel=threading.Event(),
        ) as solver:
            result = solver.solve([target])[target]
        return self.snapshots.tree(result.stack), self.remotes.calls, events


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


URL = HttpSource("http://h/foo", "foo")


def test_a_file_from_a_url_has_mode_0600_and_its_last_modified(world: World) -> None:
    tree, _, _ = world.add(URL, "/foo", "/dest/")
    node = tree.lookup("dest/foo")
    assert node is not None
    assert (tree.read("dest/foo"), node.mode, node.uid, node.mtime_ns) == ("content1", 0o600, 0, 1234567 * 10**9)


def test_the_content_decides_whether_a_url_is_copied_again(world: World) -> None:
    world.add(URL, "/foo", "/f")
    _, calls, events = world.add(URL, "/foo", "/f")
    assert (calls, events.titles(cached=True), events.titles(cached=False)) == (
        ["http http://h/foo"],
        ["ADD"],
        ["download"],
    )
    world.remotes.serve("content2")
    tree, _, _ = world.add(URL, "/foo", "/f")
    assert tree.read("f") == "content2"


def test_a_checksum_makes_the_network_unnecessary_when_cached(world: World) -> None:
    source = replace(URL, checksum=Digest.of(b"content1"))
    world.add(source, "/foo", "/f")
    _, calls, events = world.add(source, "/foo", "/f")
    assert (calls, events.titles(cached=True)) == ([], ["download", "ADD"])


def test_a_wrong_checksum_fails_and_does_not_poison_the_right_one(world: World) -> None:
    with pytest.raises(StepFailed, match="checksum mismatch"):
        world.add(replace(URL, checksum=Digest.of(b"other")), "/foo", "/f")
    tree, _, _ = world.add(replace(URL, checksum=Digest.of(b"content1")), "/foo", "/f")
    assert tree.read("f") == "content1"


def test_a_files_name_is_no_pattern(world: World) -> None:
    tree, _, _ = world.add(replace(URL, filename="a[1]*.txt"), "/a[1]*.txt", "/d/", unpack=Unpack.LOCAL)
    assert tree.read("d/a[1]*.txt") == "content1"


def test_chmod_applies_to_a_url(world: World) -> None:
    tree, _, _ = world.add(URL, "/foo", "/f", mode="0755")
    node = tree.lookup("f")
    assert node is not None
    assert node.mode == 0o755


def test_a_git_tree_is_copied_with_gits_modes(world: World) -> None:
    tree, calls, _ = world.add(GitSource("https://h/r.git", commit="abcd"), "/", "/src")
    node = tree.lookup("src/run.sh")
    assert node is not None
    assert (node.mode, node.uid, calls) == (0o755, 0, ["tree https://h/r.git abcd"])


def test_a_moving_branch_is_noticed(world: World) -> None:
    source = GitSource("https://h/r.git", ref="main")
    world.add(source, "/", "/src")
    _, calls, events = world.add(source, "/", "/src")
    assert (calls, events.titles(cached=True)) == (["commit https://h/r.git main"], ["download", "ADD"])
    world.remotes.commit = "d" * 40
    _, calls, _ = world.add(source, "/", "/src")
    assert calls == ["commit https://h/r.git main", "tree https://h/r.git dddd"]


def test_views_of_downloads(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("x")
    view = DownloadedFile(HttpFile(str(path), Digest.of(b"x"), "name", None), "name")
    assert [name for name, _ in view.children("")] == ["name"]
    assert view.lookup("other") is None
    node = view.lookup("name")
    assert node is not None
    assert node.mtime_ns == 0
    private = Tree().file("f", mode=0o600).file("x", mode=0o711)
    modes = [node.mode for _, node in GitTree(private).children("")]
    assert modes == [0o644, 0o755]
