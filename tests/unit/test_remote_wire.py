"""What goes between ``pybuild -H`` and a daemon: values, frames, lists of contexts, and the trees that a daemon keeps."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.builder.contexts_local import LocalContext
from pybuild.builder.outputs import Output, OutputType
from pybuild.builder.progress import StepDone, StepLog, StepStarted
from pybuild.builder.request import BuildRequest, SecretSource
from pybuild.daemon.connection import DaemonAddress
from pybuild.daemon.context_listing import ListedPath, checked, entries_to_send, list_view
from pybuild.daemon.kept_contexts import kept_context
from pybuild.daemon.wire import (
    WireError,
    dumps,
    error_from,
    error_payload,
    frame,
    loads,
    read_frames,
)
from pybuild.errors import PybuildError, UsageError
from pybuild.layers.descriptor import Descriptor, Platform
from pybuild.layers.digest import Digest
from pybuild.layers.entries import Kind
from pybuild.layers.tar_write import write_tar
from pybuild.parser.dockerignore import IgnoreMatcher

VALUES = [
    None,
    True,
    -5,
    1.5,
    "text \udc80 é",
    b"\0\xff",
    (1, ("a", None)),
    frozenset({"a", "b"}),
    {"k": (1, 2), 3: "x"},
    Path("/a/b"),
    OutputType.OCI,
    Digest.of(b"x"),
    Descriptor("t", Digest.of(b"x"), 5, platform=Platform("linux", "amd64"), annotations={"a": "b"}),
    StepStarted("s", "title", 1.0, ("i",), (1, 2)),
    StepLog("s", 1, b"\xff\0", 1.0),
    StepDone("s", 1.0, cached=True),
    BuildRequest(
        context=".",
        directory="/d",
        tags=("a",),
        build_args={"k": "v"},
        platforms=(Platform("linux", "arm", "v7"),),
        secrets=(SecretSource("id", value=b"s"),),
        outputs=(Output(OutputType.LOCAL, dest="out"),),
        no_cache_filter=frozenset({"x"}),
    ),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_arrive_as_they_were_sent(value: object) -> None:
    assert loads(dumps(value)) == value


def test_only_known_classes_are_made() -> None:
    for text in (
        b'{"$d": "Popen", "args": "x"}',
        b'{"$d": "Digest"}',
        b'{"x": 1}',
        b'{"$e": ["OutputType", "NONE"]}',
        b"[[",
        b'{"$b": "?"}',
    ):
        with pytest.raises(WireError):
            loads(text)
    with pytest.raises(WireError):
        dumps(object())


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=200)
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    try:
        loads(data)
    except WireError:
        pass
    try:
        list(read_frames(io.BytesIO(data).read))
    except WireError:
        pass


def test_frames_arrive_whole_or_not_at_all() -> None:
    data = frame(b"E", b"one") + frame(b"D", b"") + frame(b"R", b"x" * 1000)
    assert list(read_frames(io.BytesIO(data).read)) == [(b"E", b"one"), (b"D", b""), (b"R", b"x" * 1000)]
    with pytest.raises(WireError, match="broke in the middle"):
        list(read_frames(io.BytesIO(data[:-1]).read))


def test_errors_keep_what_a_person_sees() -> None:
    received = error_from(error_payload(UsageError("it is wrong", hint="do it right")))
    assert (received.message, received.hint, received.exit_code) == ("it is wrong", "do it right", 2)
    assert isinstance(received, PybuildError)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("unix:///a/b", ("/a/b", "", 0)), ("/a", ("/a", "", 0)), ("tcp://h:5", ("", "h", 5)), ("tcp://h", ("", "h", 2375)), ("tcp://[::1]:7", ("", "::1", 7))],
)  # fmt: skip
def test_addresses_are_read(text: str, expected: tuple[str, str, int]) -> None:
    address = DaemonAddress.parse(text, {})
    assert (address.path, address.host, address.port) == expected


@pytest.mark.parametrize("text", ["", "http://x", "tcp://", "tcp://h:x", "unix://a", "ssh://h"])
def test_addresses_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        DaemonAddress.parse(text, {})


# --- contexts --------------------------------------------------------------------------------------------------------


@pytest.fixture
def context(tmp_path: Path) -> Path:
    root = tmp_path / "context"
    (root / "sub/deep").mkdir(parents=True)
    (root / "Dockerfile").write_text("FROM scratch\n")
    (root / "sub/file").write_text("content")
    (root / "sub/deep/other").write_text("other")
    (root / "link").symlink_to("sub/file")
    os.link(root / "sub/file", root / "sub/hard")
    os.mkfifo(root / "pipe")
    (root / "sub/deep").chmod(0o750)
    return root


def bring(
    remotes: Path, context: Path, *, ignore: str = "", now_ns: int | None = None, also: tuple[str, ...] = ()
) -> tuple[list[str], Path]:
    """What a daemon asks for, and the tree that it has afterwards."""
    view = LocalContext(context, ignore=IgnoreMatcher.from_text(ignore) if ignore else None)
    rows = list_view(view, also=also, now_ns=now_ns)
    with kept_context(remotes, client="c", place=str(context)) as tree:
        needed = tree.missing(rows)
        out = io.BytesIO()
        if needed:
            write_tar(entries_to_send(str(context), needed), out.write)
        out.seek(0)
        tree.fill(needed, out)
        tree.finish(rows)
        return sorted(row.path for row in needed), tree.root


LATER = time.time_ns() + 3600 * 10**9


def seen(root: Path) -> list[tuple[str, int, int, str]]:
    found = []
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else ""
        mode = 0 if path.is_symlink() else status.st_mode
        found.append((str(path.relative_to(root)), mode, status.st_mtime_ns, content))
    return found


def test_a_context_arrives_as_it_is(context: Path, tmp_path: Path) -> None:
    needed, root = bring(tmp_path / "remotes", context)
    assert needed == ["Dockerfile", "sub/deep/other", "sub/file"]
    assert seen(root) == seen(context)
    assert (root / "sub/file").stat().st_ino == (root / "sub/hard").stat().st_ino


def test_long_runs_of_zeros_take_no_space_where_they_arrive(tmp_path: Path) -> None:
    (tmp_path / "sent").mkdir()
    contents = {
        "end": b"a" + bytes(3 << 20),
        "middle": bytes(3 << 20) + b"b" + bytes(3 << 20) + b"c",
        "all": bytes(3 << 20),
    }
    for name, content in contents.items():
        (tmp_path / "sent" / name).write_bytes(content)
    _, root = bring(tmp_path / "remotes", tmp_path / "sent")
    assert {name: (root / name).read_bytes() for name in contents} == contents
    assert sum((root / name).stat().st_blocks * 512 for name in contents) < 6 << 20  # of 12 MiB


def test_only_what_changed_is_asked_for(context: Path, tmp_path: Path) -> None:
    remotes = tmp_path / "remotes"
    bring(remotes, context, now_ns=LATER)
    assert bring(remotes, context, now_ns=LATER)[0] == []
    before = (context / "sub/deep/other").stat()
    (context / "sub/deep/other").write_text("OTHER")
    os.utime(context / "sub/deep/other", ns=(before.st_atime_ns, before.st_mtime_ns))
    (context / "new").write_text("new")
    (context / "link").unlink()
    (context / "Dockerfile").chmod(0o600)
    needed, root = bring(remotes, context, now_ns=LATER)
    assert needed == ["Dockerfile", "new", "sub/deep/other"], (
        "the size and the time are the same, the change time is not"
    )
    assert seen(root) == seen(context)


def test_a_file_that_changed_just_now_is_always_sent(context: Path, tmp_path: Path) -> None:
    bring(tmp_path / "remotes", context)
    assert bring(tmp_path / "remotes", context)[0] == ["Dockerfile", "sub/deep/other", "sub/file"]


def test_a_path_may_become_something_else(context: Path, tmp_path: Path) -> None:
    remotes = tmp_path / "remotes"
    bring(remotes, context, now_ns=LATER)
    for path in ("sub/deep/other", "sub/file", "sub/hard"):
        (context / path).unlink()
    (context / "sub/deep").rmdir()
    (context / "sub/deep").write_text("a file now")
    (context / "sub/file").mkdir()
    (context / "link").unlink()
    (context / "link").mkdir()
    (context / "link/inside").write_text("x")
    _, root = bring(remotes, context, now_ns=LATER)
    assert seen(root) == seen(context)


def test_ignore_rules_hold_but_the_definition_is_sent(context: Path, tmp_path: Path) -> None:
    (context / ".dockerignore").write_text("*\n!sub/file\n")
    needed, root = bring(
        tmp_path / "remotes",
        context,
        ignore="*\n!sub/file\n",
        also=("Dockerfile", ".dockerignore", "missing", "../outside"),
    )
    assert needed == [".dockerignore", "Dockerfile", "sub/file"]
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*")) == [
        ".dockerignore",
        "Dockerfile",
        "sub",
        "sub/file",
    ]


def test_what_a_killed_daemon_left_is_not_trusted(context: Path, tmp_path: Path) -> None:
    _, root = bring(tmp_path / "remotes", context, now_ns=LATER)
    (root.parent / "index").unlink()
    (root / "stray").write_text("x")
    needed, again = bring(tmp_path / "remotes", context, now_ns=LATER)
    assert needed == ["Dockerfile", "sub/deep/other", "sub/file"]
    assert seen(again) == seen(context)


def test_two_builds_of_one_directory_have_trees_of_their_own(tmp_path: Path) -> None:
    with (
        kept_context(tmp_path, client="c", place="/p") as one,
        kept_context(tmp_path, client="c", place="/p") as two,
        kept_context(tmp_path, client="other", place="/p") as three,
    ):
        assert len({one.root, two.root, three.root}) == 3
        first = one.root
    with kept_context(tmp_path, client="c", place="/p") as again:
        assert again.root == first


@pytest.mark.parametrize(
    "rows",
    [
        [ListedPath("../x", Kind.FILE, 0o644)],
        [ListedPath("/x", Kind.FILE, 0o644)],
        [ListedPath("a/b", Kind.FILE, 0o644)],
        [ListedPath("a", Kind.SYMLINK, 0o777, link="/etc"), ListedPath("a/b", Kind.FILE, 0o644)],
        [ListedPath("a", Kind.FILE, 0o644), ListedPath("a", Kind.FILE, 0o644)],
        [ListedPath("a\0b", Kind.FILE, 0o644)],
        [ListedPath(".", Kind.DIRECTORY, 0o755)],
        [ListedPath("h", Kind.HARDLINK, 0o644, link="/etc/passwd")],
        [ListedPath("x" * 5000, Kind.FILE, 0o644)],
    ],
)
def test_a_list_that_leads_out_of_the_tree_is_refused(rows: list[ListedPath]) -> None:
    with pytest.raises(WireError):
        checked(rows)


@given(
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=5), st.lists(st.integers(), max_size=2)), max_size=8)
)
@settings(deadline=None, max_examples=100)
def test_no_row_crashes(value: list[object]) -> None:
    try:
        row = ListedPath.from_json(value)
    except WireError:
        return
    assert ListedPath.from_json(row.to_json()) == row


def test_content_that_was_not_asked_for_is_refused(context: Path, tmp_path: Path) -> None:
    rows = list_view(LocalContext(context))
    out = io.BytesIO()
    write_tar(entries_to_send(str(context), [row for row in rows if row.path == "sub/file"]), out.write)
    out.seek(0)
    with kept_context(tmp_path / "remotes", client="c", place="p") as tree:
        tree.missing(rows)
        with pytest.raises(WireError, match="was not asked for"):
            tree.fill([rows[0]], out)
