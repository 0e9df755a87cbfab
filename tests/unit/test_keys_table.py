"""Cache keys: what must and what must not change them, and that they stay what they are."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[1] / "fakes"))

from solver_fakes import MemoryCache, MemorySnapshots  # found by the line above

from pybuild.builder.content import ContentReader, DigestRules
from pybuild.builder.contexts_local import LocalContext
from pybuild.builder.graph import (
    BindMount,
    CacheMount,
    CacheSharing,
    Exec,
    FileCopy,
    FileMake,
    HttpSource,
    ImageSource,
    InlineFile,
    Network,
    Op,
    Security,
    TmpfsMount,
    Unpack,
)
from pybuild.builder.keys import EPOCH, content_key, definition_key, plain, stack_identity
from pybuild.builder.selection import select_copy, select_path
from pybuild.layers.descriptor import Platform
from pybuild.layers.digest import Digest

AMD64 = Platform("linux", "amd64")
DIFF_A, DIFF_B = Digest.of(b"a"), Digest.of(b"b")
RUN = Exec(("/bin/sh", "-c", "make"), (("A", "1"), ("B", "2")), "/src", "app", AMD64)
COPY = FileCopy(("/src", "/lib"), "/app/", owner="app", mode="755", exclude=("*.pyc",))


def key(op: Op, *inputs: str) -> str:
    return definition_key(op, inputs or ("root", "tree", "other")).key


# --- golden values ------------------------------------------------------------------------------------------------------


def test_keys_are_what_they_were() -> None:
    """If this fails, raise EPOCH and write the new values down: caches of older versions are then not used by mistake."""
    assert EPOCH == 1
    golden = {
        "run": key(RUN),
        "copy": key(COPY),
        "make": key(FileMake("/srv", "app")),
        "image": key(ImageSource("debian", None, (DIFF_A, DIFF_B), AMD64)),
        "content": content_key(RUN, ("x", "y", "z")).key,
        "stack": stack_identity((DIFF_A, DIFF_B)),
    }
    assert golden == {
        "run": "sha256:010b51eb8b4dfd951ece27167e8504074a88edc37496d2297afa94e72485ec56",
        "copy": "sha256:9cfed71ce69fb3fcc876dce8f7523fdc5aa88440ec9514c9eaceb3fcc4267a1f",
        "make": "sha256:d213950ecf09270e58b2a4168f5be8d4bd8668aaf0d1e2085fecbc96bba1a109",
        "image": "sha256:93687c6961b0148f802be0f31ba6448c12f14546b6b64fd31cfb8c0711176d0f",
        "content": "sha256:a094c070312692f16c0ca8ce0b5659e8b658b6ce54cf20543848947692fd3459",
        "stack": "stack:6ea095cdf310c04b9af77ac7212dad5df1ca5fe30d9939e5badfa8d65d415212",
    }


def test_a_recipe_is_readable_and_complete() -> None:
    recipe = definition_key(FileMake("/srv", "app"), ("sha256:abc",))
    assert recipe.text == (
        '{"by":"definition","op":{"directory":"/srv","mode":493,"nonce":null,"root":"sha256:abc",'
        '"type":"make directory","user":"app"}}'
    )


def test_every_field_of_the_operations_is_accounted_for() -> None:
    """A new field must be put into the key, or here among those that can't matter."""
    left_out = {
        Exec: {"hidden_env", "cgroup_parent"},
        FileCopy: set[str](),
        FileMake: set[str](),
        ImageSource: {"reference", "manifest"},
    }
    other: dict[str, object] = {
        "args": ("x",), "env": (("A", "2"),), "cwd": "/x", "user": "x", "platform": Platform("linux", "arm64"),
        "mounts": (TmpfsMount("/t"),), "scripts": (InlineFile("s", b"x"),), "network": Network.NONE,
        "security": Security.INSECURE, "hostname": "x", "extra_hosts": (("h", "1.2.3.4"),), "shm_size": 5,
        "ulimits": (("nofile", 1, 2),), "nonce": "x", "sources": ("/x",), "destination": "/x", "inline": (InlineFile("s", b"x"),),
        "owner": "x", "keep_owner": True, "mode": "700", "exclude": ("x",), "parents": True, "unpack": Unpack.LOCAL,
        "link": True, "must_exist": False, "directory": "/x", "chain": (DIFF_A,), "hidden_env": (("P", "1"),),
        "cgroup_parent": "x", "reference": "x", "manifest": DIFF_A,
    }  # fmt: skip
    for op in (RUN, COPY, FileMake("/d"), ImageSource("r", None, (), AMD64)):
        for field in fields(op):
            value = 0o700 if isinstance(op, FileMake) and field.name == "mode" else other[field.name]
            changed = replace(op, **{field.name: value})
            assert (key(changed) == key(op)) is (field.name in left_out[type(op)]), field.name


# --- definitions --------------------------------------------------------------------------------------------------------

IRRELEVANT: dict[str, tuple[Op, Op]] = {
    "proxy settings": (RUN, replace(RUN, hidden_env=(("HTTP_PROXY", "http://p"),))),
    "the order of variables": (RUN, replace(RUN, env=(("B", "2"), ("A", "1")))),
    "a variable that is set again": (RUN, replace(RUN, env=(("A", "0"), ("A", "1"), ("B", "2")))),
    "the address of a host": (
        replace(RUN, extra_hosts=(("h", "10.0.0.1"),)),
        replace(RUN, extra_hosts=(("h", "10.0.0.2"),)),
    ),
    "which cache is mounted": (
        replace(RUN, mounts=(CacheMount("/c", "one"),)),
        replace(RUN, mounts=(CacheMount("/c", "two", CacheSharing.LOCKED),)),
    ),
    "the order of mounts": (
        replace(RUN, mounts=(TmpfsMount("/a"), TmpfsMount("/b"))),
        replace(RUN, mounts=(TmpfsMount("/b"), TmpfsMount("/a"))),
    ),
    "the name of the base": (
        ImageSource("python:3", DIFF_A, (DIFF_B,), AMD64),
        ImageSource("mirror/python:3.12", None, (DIFF_B,), AMD64),
    ),
    "the address of a file whose content is known": (
        HttpSource("http://a/f", "f", DIFF_A),
        HttpSource("http://b/f?token=1", "f", DIFF_A),
    ),
}


@pytest.mark.parametrize("case", IRRELEVANT)
def test_nothing_irrelevant_changes_a_definition_key(case: str) -> None:
    first, second = IRRELEVANT[case]
    assert key(first) == key(second)


RELEVANT: dict[str, tuple[Op, Op]] = {
    "absent is not empty": (replace(COPY, mode=None), replace(COPY, mode="")),
    "a variable set to nothing": (replace(RUN, env=()), replace(RUN, env=(("A", ""),))),
    "the order of sources": (COPY, replace(COPY, sources=("/lib", "/src"))),
    "the order of exclusions": (replace(COPY, exclude=("a", "!b")), replace(COPY, exclude=("!b", "a"))),
    "a heredoc's content": (
        replace(COPY, inline=(InlineFile("f", b"1"),)),
        replace(COPY, inline=(InlineFile("f", b"2"),)),
    ),
    "the slash behind a destination": (COPY, replace(COPY, destination="/app")),
    "what is mounted where": (
        replace(RUN, mounts=(BindMount("/a", 1), BindMount("/b", 2))),
        replace(RUN, mounts=(BindMount("/a", 2), BindMount("/b", 1))),
    ),
    "what is mounted read-only": (
        replace(RUN, mounts=(BindMount("/a", 1),)),
        replace(RUN, mounts=(BindMount("/a", 1, readonly=False),)),
    ),
    "a base's layers": (ImageSource("x", None, (DIFF_A,), AMD64), ImageSource("x", None, (DIFF_B,), AMD64)),
    "one argument or two": (replace(RUN, args=("a b",)), replace(RUN, args=("a", "b"))),
}


@pytest.mark.parametrize("case", RELEVANT)
def test_everything_relevant_changes_a_definition_key(case: str) -> None:
    first, second = RELEVANT[case]
    assert key(first) != key(second)


def test_the_inputs_are_part_of_the_key() -> None:
    assert key(RUN, "one") != key(RUN, "two")
    assert key(COPY, "root", "one") != key(COPY, "root", "two")


def test_a_nonce_is_not_part_of_what_later_builds_look_for() -> None:
    forced = replace(RUN, nonce="n")
    assert key(plain(forced)) == key(RUN)
    assert content_key(forced, ("x",)).key == content_key(RUN, ("x",)).key


# --- contents -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "context"
    (root / "src/sub").mkdir(parents=True)
    (root / "src/app.py").write_text("print(1)")
    (root / "src/sub/run.sh").write_text("#!/bin/sh")
    (root / "src/link").symlink_to("app.py")
    (root / "other").write_text("other")
    for path in (root / "src/app.py", root / "src/sub/run.sh"):
        path.chmod(0o644)
    (root / "src/sub").chmod(0o755)
    return root


def digest(root: Path, op: FileCopy | None = None) -> str:
    reader = ContentReader(MemoryCache(MemorySnapshots()), cancel=threading.Event())
    view = LocalContext(root)
    op = op or FileCopy(("/src",), "/app")
    return reader.digest(view, select_copy(view, op), DigestRules.of_copy(op)).text


def touch(root: Path) -> None:
    os.utime(root / "src/app.py", (1, 1))
    os.utime(root / "src", (1, 1))


def move(root: Path) -> None:
    """The context is somewhere else: same content, other path, other inodes."""
    shutil.copytree(root, root.parent / "elsewhere", symlinks=True)
    shutil.rmtree(root)
    (root.parent / "elsewhere").rename(root)


def same_size_same_time(root: Path) -> None:
    path = root / "src/app.py"
    before = path.stat()
    path.write_text("print(2)")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CONTENT_IRRELEVANT: dict[str, Callable[[Path], object]] = {
    "nothing": lambda root: None,
    "times": touch,
    "the path of the checkout": move,
    "a file that isn't selected": lambda root: (root / "other").write_text("changed"),
    "the mode of the directory whose contents are copied": lambda root: (root / "src").chmod(0o700),
}


@pytest.mark.parametrize("case", CONTENT_IRRELEVANT)
def test_nothing_irrelevant_changes_a_content_digest(tree: Path, case: str) -> None:
    before = digest(tree)
    CONTENT_IRRELEVANT[case](tree)
    assert digest(tree) == before


def replace_by_link(root: Path) -> None:
    (root / "src/link").unlink()
    (root / "src/link").symlink_to("sub/run.sh")


CONTENT_RELEVANT: dict[str, Callable[[Path], object]] = {
    "content": lambda root: (root / "src/app.py").write_text("print(22)"),
    "an edit that keeps size and mtime": same_size_same_time,
    "a file's mode": lambda root: (root / "src/app.py").chmod(0o755),
    "a directory's mode": lambda root: (root / "src/sub").chmod(0o700),
    "a link's target": replace_by_link,
    "a new file": lambda root: (root / "src/new").write_text(""),
    "a new empty directory": lambda root: (root / "src/new").mkdir(),
    "a removed file": lambda root: (root / "src/app.py").unlink(),
    "a renamed file": lambda root: (root / "src/app.py").rename(root / "src/main.py"),
    "a file that became a directory": lambda root: ((root / "src/app.py").unlink(), (root / "src/app.py").mkdir()),
    "a hard link": lambda root: (
        (root / "src/h").unlink(missing_ok=True),
        os.link(root / "src/app.py", root / "src/h"),
    ),
}


@pytest.mark.parametrize("case", CONTENT_RELEVANT)
def test_everything_relevant_changes_a_content_digest(tree: Path, case: str) -> None:
    before = digest(tree)
    CONTENT_RELEVANT[case](tree)
    assert digest(tree) != before


def test_modes_that_chmod_overrides_dont_count(tree: Path) -> None:
    op = FileCopy(("/src",), "/app", mode="0700")
    before = digest(tree, op)
    (tree / "src/app.py").chmod(0o600)
    assert digest(tree, op) == before


def test_a_wildcard_notices_a_rename(tree: Path) -> None:
    op = FileCopy(("/src/*.py",), "/app/")
    before = digest(tree, op)
    (tree / "src/app.py").rename(tree / "src/main.py")
    assert digest(tree, op) != before


def test_a_mount_of_a_directory_counts_its_mode(tree: Path) -> None:
    view = LocalContext(tree)
    reader = ContentReader(MemoryCache(MemorySnapshots()), cancel=threading.Event())
    rules = DigestRules(owners=False, xattrs=False, tops=True)
    before = reader.digest(view, select_path(view, "/src"), rules).text
    (tree / "src").chmod(0o700)
    view = LocalContext(tree)
    assert reader.digest(view, select_path(view, "/src"), rules).text != before


def test_unchanged_files_are_not_read_again(tree: Path) -> None:
    cache = MemoryCache(MemorySnapshots())
    reader = ContentReader(cache, cancel=threading.Event())
    op = FileCopy(("/src",), "/app")
    first = reader.digest(view := LocalContext(tree), select_copy(view, op), DigestRules.of_copy(op))
    second = reader.digest(view := LocalContext(tree), select_copy(view, op), DigestRules.of_copy(op))
    assert (first.text, first.read_bytes > 0, second.read_bytes) == (second.text, True, 0)


def test_paths_are_listed_for_why(tree: Path) -> None:
    view = LocalContext(tree)
    op = FileCopy(("/src",), "/app")
    reader = ContentReader(MemoryCache(MemorySnapshots()), cancel=threading.Event())
    paths = dict(reader.digest(view, select_copy(view, op), DigestRules.of_copy(op)).paths)
    assert paths["src/app.py"] == "file 644 " + Digest.of(b"print(1)").hex[:12]
    assert paths["src/link"] == "symlink app.py"


NAMES = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=4).filter(
    lambda name: name not in (".", "..")
)


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(NAMES, st.binary(max_size=3), max_size=4), st.dictionaries(NAMES, st.binary(max_size=3), max_size=4)
)
def test_two_trees_have_one_digest_only_if_they_are_equal(one: dict[str, bytes], two: dict[str, bytes]) -> None:
    from solver_fakes import Tree

    def of(files: dict[str, bytes]) -> str:
        tree = Tree()
        for name, data in files.items():
            tree.file(name, data)
        op = FileCopy(("/",), "/")
        reader = ContentReader(MemoryCache(MemorySnapshots()), cancel=threading.Event())
        return reader.digest(tree, select_copy(tree, op), DigestRules.of_copy(op)).text

    assert (of(one) == of(two)) is (one == two)
