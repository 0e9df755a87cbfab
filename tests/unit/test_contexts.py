"""Build contexts: what of a directory a build sees, and opening what a user typed."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.builder.contexts import ContextKind, ContextNotFound, DockerfileNotFound, OpenedContext, open_context
from pybuild.builder.contexts_archive import BadContextArchive, is_archive, unpack_archive
from pybuild.builder.contexts_listing import explain_path, list_context
from pybuild.builder.contexts_local import LocalContext, UnreadableContext
from pybuild.builder.protocols import HttpFile
from pybuild.errors import PybuildError, UsageError
from pybuild.layers.digest import Digest
from pybuild.layers.entries import Kind
from pybuild.parser.dockerignore import IgnoreMatcher


def tree(root: Path, *paths: str) -> Path:
    """Make files (content: their path) and, where a path ends in a slash, directories."""
    for path in paths:
        target = root / path
        if path.endswith("/"):
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(path)
    return root


def shown(view: LocalContext, directory: str = "") -> list[str]:
    out = []
    for name, node in view.children(directory):
        path = f"{directory}/{name}" if directory else name
        out.append(path)
        if node.kind is Kind.DIRECTORY:
            out += shown(view, path)
    return out


def context(root: Path, *patterns: str) -> LocalContext:
    return LocalContext(root, ignore=IgnoreMatcher(patterns))


# --- directories -----------------------------------------------------------------------------------------------------


def test_children_are_sorted_by_bytes(tmp_path: Path) -> None:
    for name in (b"b", b"a", b"A", "é".encode(), b"\xff"):
        (tmp_path / os.fsdecode(name)).touch()
    assert [os.fsencode(name) for name, _ in LocalContext(tmp_path).children("")] == [
        b"A",
        b"a",
        b"b",
        "é".encode(),
        b"\xff",
    ]


def test_nodes_carry_what_a_copy_needs(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "file").chmod(0o4751)
    os.utime(tmp_path / "file", ns=(1, 1_700_000_000_123_456_789))
    os.link(tmp_path / "file", tmp_path / "twin")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir(0o711)
    nodes = dict(LocalContext(tmp_path).children(""))
    file = nodes["file"]
    assert (file.kind, file.mode, file.size, file.mtime_ns) == (Kind.FILE, 0o4751, 5, 1_700_000_000_123_456_789)
    assert file.identity is not None
    assert file.identity == nodes["twin"].identity
    assert file.host_path == str(tmp_path / "file")
    assert (nodes["link"].kind, nodes["link"].target) == (Kind.SYMLINK, "file")
    assert nodes["pipe"].kind is Kind.FIFO
    assert (nodes["folder"].kind, nodes["folder"].mode, nodes["folder"].identity) == (Kind.DIRECTORY, 0o711, None)


def test_a_socket_is_shown_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        assert LocalContext(tmp_path).children("")[0][1].kind is Kind.SOCKET


def test_links_are_never_followed(tmp_path: Path) -> None:
    tree(tmp_path / "outside", "secret")
    root = tree(tmp_path / "root", "real/file")
    (root / "way").symlink_to("../outside")
    (root / "inside").symlink_to("real")
    view = LocalContext(root)
    assert view.lookup("way/secret") is None
    assert view.lookup("inside/file") is None
    assert view.children("inside") == ()
    assert view.lookup("../outside/secret") is None
    assert view.lookup("real/../../outside/secret") is None
    link = view.lookup("way")
    assert link is not None
    assert link.kind is Kind.SYMLINK
    with pytest.raises(UnreadableContext):
        view.open("way/secret")
    with pytest.raises(UnreadableContext):
        view.open("inside")


def test_the_root_may_itself_be_reached_by_a_link(tmp_path: Path) -> None:
    tree(tmp_path / "real", "file")
    (tmp_path / "link").symlink_to("real")
    view = LocalContext(tmp_path / "link")
    node = view.lookup("")
    assert node is not None
    assert node.kind is Kind.DIRECTORY
    assert shown(view) == ["file"]


def test_excluded_paths_are_neither_listed_nor_found_nor_opened(tmp_path: Path) -> None:
    tree(tmp_path, "a.log", "keep", "d/x.log", "node_modules/p/index.js")
    view = context(tmp_path, "**/*.log", "node_modules")
    assert shown(view) == ["d", "keep"]
    assert view.lookup("a.log") is None
    assert view.lookup("node_modules") is None
    assert view.lookup("node_modules/p/index.js") is None
    assert view.children("node_modules") == ()
    with pytest.raises(UnreadableContext):
        view.open("d/x.log")
    with view.open("keep") as stream:
        assert stream.read() == b"keep"


def test_an_excluded_directory_is_shown_only_for_what_is_kept_below(tmp_path: Path) -> None:
    tree(tmp_path, "a/b/keep", "a/b/other", "a/c/other", "e/deep/")
    view = context(tmp_path, "*", "!a/b/keep")
    assert shown(view) == ["a", "a/b", "a/b/keep"]
    assert view.lookup("a/b") is not None
    assert view.lookup("a/c") is None
    assert view.lookup("e") is None


def test_an_excluded_directory_need_not_be_readable(tmp_path: Path) -> None:
    tree(tmp_path, "f")
    (tmp_path / "secret").mkdir(0o000)
    try:
        assert shown(context(tmp_path, "secret")) == ["f"]
        assert shown(context(tmp_path, "secret", "!secret/x")) == ["f"]
    finally:
        (tmp_path / "secret").chmod(0o700)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir(0o000)
    with pytest.raises(UnreadableContext, match=r"'secret'.*permission denied"):
        LocalContext(tmp_path).children("secret")


def test_capabilities_are_read_when_asked_for(tmp_path: Path) -> None:
    file = tree(tmp_path, "f") / "f"
    value = b"\x01\x00\x00\x02\x00\x04\x00\x00" + bytes(12)
    try:
        os.setxattr(file, "user.note", b"x")
        os.setxattr(file, "security.capability", value)
    except OSError:
        pytest.skip("this file system or user can't set file capabilities")
    assert LocalContext(tmp_path).xattrs("f") == {"security.capability": value}


def test_one_view_shows_one_state(tmp_path: Path) -> None:
    view = LocalContext(tree(tmp_path, "a"))
    before = view.children("")
    tree(tmp_path, "b")
    assert view.children("") == before


ignore_lines = st.lists(
    st.sampled_from(["a", "b", "*", "**", "a/*", "!a", "!a/b", "**/c", "!**/c", "a/b/c", "*/b", "!*/b/*", "b/**"]),
    max_size=5,
)


@given(ignore_lines)
@settings(deadline=None, max_examples=60)
def test_the_view_shows_exactly_what_is_kept_and_its_parents(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    root = tmp_path_factory.getbasetemp() / "shared-tree"
    if not root.exists():
        tree(root, *(f"{x}/{y}/{z}" for x in "abd" for y in "abd" for z in "abc"), "c", "d/c")
    matcher = IgnoreMatcher(lines)
    everything = [str(path.relative_to(root)) for path in root.rglob("*")]
    kept = {path for path in everything if not matcher.excluded(path)}
    expected = set(kept)
    for path in kept:
        while "/" in path:
            path = path.rpartition("/")[0]
            expected.add(path)
    assert set(shown(LocalContext(root, ignore=matcher))) == expected
    fresh = LocalContext(root, ignore=IgnoreMatcher(lines))
    assert {path for path in everything if fresh.lookup(path) is not None} == expected


def test_every_file_of_many_is_shown(tmp_path: Path) -> None:
    for number in range(40):
        directory = tmp_path / f"d{number}"
        directory.mkdir()
        for file in range(100):
            os.close(os.open(f"{directory}/f{file}", os.O_CREAT | os.O_WRONLY))
    view = context(tmp_path, "**/*.pyc", ".git", "node_modules")
    assert len(shown(view)) == 4_040


# --- listing ---------------------------------------------------------------------------------------------------------


def test_the_listing_tells_sizes_and_the_biggest_directories(tmp_path: Path) -> None:
    tree(tmp_path, "big/sub/file", "small/f", "x.log")
    (tmp_path / "big/sub/file").write_bytes(bytes(1000))
    listing = list_context(context(tmp_path, "*.log"))
    assert [entry.path for entry in listing.entries] == ["big", "big/sub", "big/sub/file", "small", "small/f"]
    assert listing.size == 1007
    assert [(d.path, d.size, d.entries) for d in listing.directories] == [
        ("big", 1000, 2),
        ("big/sub", 1000, 1),
        ("small", 7, 1),
    ]


def test_the_explanation_names_the_deciding_line(tmp_path: Path) -> None:
    tree(tmp_path, "src/a.o", "src/a.c", "README")
    ignore = IgnoreMatcher.from_text("# objects\n**/*.o\n!src/b.o\n")

    def explained(path: str) -> str:
        return str(explain_path(path, root=str(tmp_path), ignore=ignore, ignore_name=".dockerignore"))

    assert explained("src/a.o") == "src/a.o is excluded: .dockerignore:2 decides with '**/*.o'"
    assert explained("./src/b.o") == "src/b.o does not exist: .dockerignore:3 decides with '!src/b.o'"
    assert explained("README") == "README is in the build context: no line of the ignore file matches it"


# --- opening ---------------------------------------------------------------------------------------------------------


class Fetched:
    """Remote sources for these tests: real files on disk, no network."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.git_requests: list[tuple[str, str, str, bool, bool]] = []

    def http(self, url: str, *, checksum: Digest | None) -> HttpFile:
        path = self.root / url.rpartition("/")[2]
        if not path.exists():
            raise PybuildError(f"{url}: 404")
        return HttpFile(str(path), Digest.of(path.read_bytes()), path.name, 1_600_000_000.0 if "dated" in url else None)

    def git_commit(self, remote: str, ref: str, *, checksum: str = "") -> str:
        commit = "c0ffee" + "0" * 34
        if not commit.startswith(checksum):
            raise PybuildError(f"expected checksum to match {checksum}, got {commit}")
        return commit

    def git_commit_time(self, remote: str, commit: str) -> float:
        return 1_500_000_000.0

    @contextlib.contextmanager
    def git_tree(
        self, remote: str, *, commit: str, ref: str, subdir: str, keep_git_dir: bool, submodules: bool
    ) -> Iterator[str]:
        self.git_requests.append((remote, ref, subdir, keep_git_dir, submodules))
        yield str(self.root / "repository" / subdir)


@pytest.fixture
def fetched(tmp_path: Path) -> Fetched:
    return Fetched(tmp_path)


@contextlib.contextmanager
def opened(
    spec: str, fetched: Fetched, *, dockerfile: str | None = None, stdin: bytes | None = None
) -> Iterator[OpenedContext]:
    scratch = fetched.root / "scratch"
    scratch.mkdir(exist_ok=True)
    with open_context(
        spec,
        directory=str(fetched.root),
        dockerfile=dockerfile,
        stdin=None if stdin is None else io.BytesIO(stdin),
        remotes=fetched,
        scratch=scratch,
    ) as result:
        yield result
    assert list(scratch.iterdir()) == []


def tar_of(*entries: tuple[str, bytes], mtime: int = 1_000_000_000) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in entries:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.mtime = mtime
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def test_a_directory_with_its_dockerfile_and_ignore_file(fetched: Fetched, tmp_path: Path) -> None:
    tree(tmp_path / "app", "Dockerfile", "x.log", "main.py")
    (tmp_path / "app/.dockerignore").write_text("*.log\nDockerfile\n")
    with opened("app", fetched) as result:
        assert result.kind is ContextKind.LOCAL
        assert (result.dockerfile, result.dockerfile_name) == (b"Dockerfile", "Dockerfile")
        assert result.ignore_name == ".dockerignore"
        assert [name for name, _ in result.view.children("")] == [".dockerignore", "main.py"]
        assert result.time is None


def test_a_dockerfiles_own_ignore_file_wins(fetched: Fetched, tmp_path: Path) -> None:
    tree(tmp_path, "app/a", "app/b", "build/prod.Dockerfile")
    (tmp_path / "app/.dockerignore").write_text("a\n")
    (tmp_path / "build/prod.Dockerfile.dockerignore").write_text("b\n")
    with opened("app", fetched, dockerfile="build/prod.Dockerfile") as result:
        assert result.dockerfile_name == "prod.Dockerfile"
        assert result.ignore_name == "prod.Dockerfile.dockerignore"
        assert [name for name, _ in result.view.children("")] == [".dockerignore", "a"]


def test_a_lower_case_dockerfile_is_found(fetched: Fetched, tmp_path: Path) -> None:
    tree(tmp_path, "app/dockerfile")
    with opened("app", fetched) as result:
        assert (result.dockerfile, result.dockerfile_name) == (b"app/dockerfile", "dockerfile")


def test_a_dockerfile_may_be_a_link_and_outside(fetched: Fetched, tmp_path: Path) -> None:
    tree(tmp_path, "common/base.Dockerfile", "app/x")
    (tmp_path / "app/Dockerfile").symlink_to("../common/base.Dockerfile")
    with opened("app", fetched) as result:
        assert result.dockerfile == b"common/base.Dockerfile"


def test_a_missing_dockerfile_says_where_it_was_looked_for(fetched: Fetched, tmp_path: Path) -> None:
    tree(tmp_path, "app/x")
    with pytest.raises(DockerfileNotFound) as caught, opened("app", fetched):
        pass
    assert str(caught.value) == "failed to read dockerfile: open Dockerfile: no such file or directory"
    assert caught.value.hint is not None
    assert str(tmp_path / "app/Dockerfile") in caught.value.hint


def test_a_directory_as_dockerfile_is_refused(fetched: Fetched, tmp_path: Path) -> None:
    tree(tmp_path, "app/Dockerfile/")
    with pytest.raises(DockerfileNotFound, match="read Dockerfile: is a directory"), opened("app", fetched):
        pass


def test_a_context_that_is_nothing_is_named(fetched: Fetched, tmp_path: Path) -> None:
    tree(tmp_path, "file")
    with pytest.raises(ContextNotFound, match="path 'nowhere' not found"), opened("nowhere", fetched):
        pass
    with pytest.raises(ContextNotFound, match="path 'file' is not a directory"), opened("file", fetched):
        pass


def test_a_dockerfile_from_standard_input_beside_a_directory(fetched: Fetched, tmp_path: Path) -> None:
    tree(tmp_path, "app/x", "app/y")
    (tmp_path / "app/.dockerignore").write_text("x\n")
    with opened("app", fetched, dockerfile="-", stdin=b"FROM scratch\n") as result:
        assert result.dockerfile == b"FROM scratch\n"
        assert result.view.lookup("x") is None
        assert result.view.lookup("y") is not None


def test_a_dockerfile_alone_on_standard_input_has_an_empty_context(fetched: Fetched) -> None:
    with opened("-", fetched, stdin=b"FROM scratch\n" + b"# long\n" * 5000) as result:
        assert result.kind is ContextKind.EMPTY
        assert len(result.dockerfile) == 13 + 35000
        assert result.view.children("") == ()


@pytest.mark.parametrize(
    "pack",
    [bytes, gzip.compress, bz2.compress, lzma.compress, zstandard.ZstdCompressor().compress],
    ids=["tar", "gz", "bz2", "xz", "zst"],
)
def test_a_tar_on_standard_input_is_recognised_by_content(fetched: Fetched, pack: object) -> None:
    assert callable(pack)
    data = pack(tar_of(("Dockerfile", b"FROM scratch\n"), ("dir/file", b"content"), (".dockerignore", b"dir\n")))
    with opened("-", fetched, stdin=data) as result:
        assert result.kind is ContextKind.ARCHIVE
        assert result.dockerfile == b"FROM scratch\n"
        assert result.time == 1_000_000_000
        with result.view.open("dir/file") as stream:
            assert stream.read() == b"content"


def test_dash_f_names_a_file_inside_an_archive(fetched: Fetched) -> None:
    data = tar_of(("sub/My.Dockerfile", b"FROM a\n"), ("Dockerfile", b"FROM b\n"))
    with opened("-", fetched, stdin=data, dockerfile="sub/My.Dockerfile") as result:
        assert result.dockerfile == b"FROM a\n"
    with (
        pytest.raises(DockerfileNotFound, match="open missing: no such file"),
        opened("-", fetched, stdin=data, dockerfile="missing"),
    ):
        pass


def test_contradictory_uses_of_standard_input_are_refused(fetched: Fetched) -> None:
    with pytest.raises(UsageError, match="can't use stdin for both"), opened("-", fetched, stdin=b"x", dockerfile="-"):
        pass
    with (
        pytest.raises(UsageError, match="ambiguous Dockerfile source"),
        opened("-", fetched, stdin=b"FROM x", dockerfile="f"),
    ):
        pass
    with pytest.raises(ContextNotFound, match="standard input is empty"), opened("-", fetched, stdin=b""):
        pass


def test_a_git_url_gives_tree_commit_and_time(fetched: Fetched, tmp_path: Path) -> None:
    tree(tmp_path / "repository/sub", "Dockerfile", ".dockerignore")
    with opened("https://example.com/r.git#main:sub", fetched) as result:
        assert result.kind is ContextKind.GIT
        assert result.dockerfile == b"Dockerfile"
        assert result.time == 1_500_000_000
        assert result.git is not None
        assert (result.git.ref, result.git.subdir, result.git.commit) == ("main", "sub", "c0ffee" + "0" * 34)
    with opened("github.com/owner/r?subdir=sub&submodules=0&keep-git-dir=1", fetched):
        pass
    assert fetched.git_requests == [
        ("https://example.com/r.git", "main", "sub", False, True),
        ("https://github.com/owner/r", "", "sub", True, False),
    ]


def test_a_git_checksum_that_does_not_match_is_refused(fetched: Fetched) -> None:
    with pytest.raises(PybuildError, match="expected checksum to match deadbeef, got c0ffee"):
        with opened("https://example.com/r.git?checksum=deadbeef", fetched):
            pass


def test_a_links_target_inside_a_repository_is_read_but_not_outside(fetched: Fetched, tmp_path: Path) -> None:
    root = tree(tmp_path / "repository", "docker/main", "outside/x").resolve()
    (root / "Dockerfile").symlink_to("docker/../docker/main")
    with opened("https://example.com/r.git", fetched) as result:
        assert result.dockerfile == b"docker/main"
    (root / "Dockerfile").unlink()
    (root / "Dockerfile").symlink_to("../outside")
    tree(tmp_path, "outside")
    with pytest.raises(DockerfileNotFound), opened("https://example.com/r.git", fetched):
        pass


def test_an_http_dockerfile_is_the_whole_context(fetched: Fetched, tmp_path: Path) -> None:
    (tmp_path / "dated").write_bytes(b"FROM scratch\n")
    with opened("https://example.com/dated", fetched) as result:
        assert result.kind is ContextKind.HTTP_DOCKERFILE
        assert (result.dockerfile, result.dockerfile_name) == (b"FROM scratch\n", "context")
        assert [name for name, _ in result.view.children("")] == ["context"]
        assert result.time == 1_600_000_000


def test_an_http_archive_takes_its_time_from_the_server_or_its_newest_file(fetched: Fetched, tmp_path: Path) -> None:
    data = gzip.compress(tar_of(("Dockerfile", b"FROM scratch\n")))
    (tmp_path / "dated.tgz").write_bytes(data)
    (tmp_path / "plain.tgz").write_bytes(data)
    with opened("https://example.com/dated.tgz", fetched) as result:
        assert (result.kind, result.time) == (ContextKind.HTTP_ARCHIVE, 1_600_000_000)
        assert result.digest == Digest.of(data)
    with opened("https://example.com/plain.tgz", fetched) as result:
        assert result.time == 1_000_000_000


# --- archives --------------------------------------------------------------------------------------------------------


def archive_with(*members: tarfile.TarInfo) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)) if member.isreg() else None)
    out.seek(0)
    return out


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", mode: int = 0o644, size: int = 0
) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode, member.size = kind, link, mode, size
    member.mtime = 1_234_567_890
    return member


def test_modes_times_and_links_survive_unpacking(tmp_path: Path) -> None:
    unpack_archive(
        archive_with(
            entry("dir", tarfile.DIRTYPE, mode=0o2755),
            entry("dir/file", mode=0o4711, size=3),
            entry("dir/twin", tarfile.LNKTYPE, link="dir/file"),
            entry("away", tarfile.SYMTYPE, link="/etc/passwd"),
            entry("implied/parent/file"),
        ),
        str(tmp_path),
    )
    assert (tmp_path / "dir").stat().st_mode & 0o7777 == 0o2755
    assert (tmp_path / "dir").stat().st_mtime == 1_234_567_890
    assert (tmp_path / "dir/file").stat().st_mode & 0o7777 == 0o4711
    assert (tmp_path / "dir/file").stat().st_mtime == 1_234_567_890
    assert (tmp_path / "dir/twin").samefile(tmp_path / "dir/file")
    assert os.readlink(tmp_path / "away") == "/etc/passwd"
    assert (tmp_path / "implied/parent").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    "members",
    [
        [entry("../escape")],
        [entry("a/../../escape")],
        [entry("link", tarfile.SYMTYPE, link=".."), entry("link/escape")],
        [entry("link", tarfile.SYMTYPE, link="/tmp"), entry("link/deep/escape")],
        [entry("hard", tarfile.LNKTYPE, link="../../etc/passwd")],
        [entry("hard", tarfile.LNKTYPE, link="/etc/passwd")],
        [entry("link", tarfile.SYMTYPE, link="/etc"), entry("hard", tarfile.LNKTYPE, link="link/passwd")],
    ],
)
def test_nothing_leaves_the_directory(tmp_path: Path, members: list[tarfile.TarInfo]) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(BadContextArchive):
        unpack_archive(archive_with(*members), str(root))
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_absolute_names_mean_the_archives_root(tmp_path: Path) -> None:
    unpack_archive(archive_with(entry("/etc/file")), str(tmp_path))
    assert (tmp_path / "etc/file").is_file()


def test_a_later_entry_replaces_an_earlier_one(tmp_path: Path) -> None:
    unpack_archive(
        archive_with(
            entry("x", tarfile.SYMTYPE, link="/etc/passwd"),
            entry("x", size=2),
            entry("d", tarfile.SYMTYPE, link="/"),
            entry("d", tarfile.DIRTYPE),
        ),
        str(tmp_path),
    )
    assert (tmp_path / "x").read_bytes() == bytes(2)
    assert not (tmp_path / "x").is_symlink()
    assert not (tmp_path / "d").is_symlink()


def test_sizes_are_bounded(tmp_path: Path) -> None:
    bomb = io.BytesIO(gzip.compress(archive_with(entry("zeros", size=50_000_000)).getvalue()))
    with pytest.raises(BadContextArchive, match="1000000 bytes"):
        unpack_archive(bomb, str(tmp_path), limit_bytes=1_000_000)
    with pytest.raises(BadContextArchive, match="more than 3 entries"):
        unpack_archive(archive_with(*(entry(f"f{n}") for n in range(10))), str(tmp_path), limit_entries=3)


@pytest.mark.parametrize(
    "pack", [bytes, gzip.compress, bz2.compress, lzma.compress, zstandard.ZstdCompressor().compress]
)
def test_a_truncated_archive_is_refused(tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    data = pack(tar_of(("file", os.urandom(100_000))))
    with pytest.raises(BadContextArchive):
        unpack_archive(io.BytesIO(data[: len(data) // 2]), str(tmp_path))


@given(st.binary(max_size=2048))
@settings(deadline=None, max_examples=200)
def test_any_bytes_are_an_archive_or_not_and_unpack_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    is_archive(data)
    with contextlib.suppress(BadContextArchive):
        unpack_archive(io.BytesIO(data), str(tmp_path_factory.mktemp("any")))


def test_dockerfiles_are_not_taken_for_archives() -> None:
    assert not is_archive(b"FROM scratch\n" * 100)
    assert not is_archive(b"")
    assert is_archive(tar_of(("f", b"")))
    assert is_archive(bytes(1024))


@pytest.mark.parametrize("depth", [5, 1900])
def test_an_archive_may_be_as_deep_as_paths_go(tmp_path: Path, depth: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a/" * depth + "f"))
    directory = tmp_path / "u"
    directory.mkdir()
    unpacked = unpack_archive(io.BytesIO(out.getvalue()), str(directory))
    assert unpacked.entries == 1
    assert (directory / ("a/" * depth + "f")).exists()
    # As deep as that, nothing but a loop or a shell gets rid of it.
    subprocess.run(["rm", "-rf", directory], check=True)


def test_a_path_beyond_what_the_kernel_takes_is_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a/" * 20_000 + "f"))
    with pytest.raises(BadContextArchive, match="too long a path"):
        unpack_archive(io.BytesIO(out.getvalue()), str(tmp_path))
