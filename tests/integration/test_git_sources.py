"""Git sources, from repositories made here and served by files, git daemon and an HTTP server with a password."""

from __future__ import annotations

import base64
import os
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pybuild.daemon.git import GitChecksumMismatch, RefNotFound
from pybuild.daemon.git_checkout import BadSubdirectory
from pybuild.daemon.git_command import GitFailed, GitSettings
from pybuild.daemon.remotes import RemoteFetcher
from pybuild.errors import Cancelled, PybuildError
from pybuild.registry_client.transport import Transport

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("git") is None, reason="the program git is not installed"),
]

ENV = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.com",
    "GIT_COMMITTER_NAME": "C",
    "GIT_COMMITTER_EMAIL": "c@example.com",
    "GIT_AUTHOR_DATE": "1600000000 +0000",
    "GIT_COMMITTER_DATE": "1600000001 +0000",
}


def git(directory: Path, *arguments: str, check: bool = True) -> str:
    finished = subprocess.run(
        ["git", "-c", "protocol.file.allow=always", "-c", "safe.directory=*", *arguments],
        cwd=directory, env=ENV, capture_output=True, text=True,
    )  # fmt: skip
    assert not check or finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


class Origin:
    """A repository with a history: main (2 commits), branch ``feature/x``, tags ``v1`` (light) and ``v2`` (annotated)."""

    def __init__(self, path: Path, *, object_format: str = "sha1") -> None:
        self.path = path
        self.url = f"file://{path}"
        path.mkdir(parents=True)
        git(path, "init", "-q", "-b", "main", f"--object-format={object_format}")
        self.first = self.commit(
            "first", {"file": "1", "sub/dir/deep": "deep", "run.sh": "#!/bin/sh\n"}, executable="run.sh"
        )
        git(path, "tag", "v1")
        (path / "link").symlink_to("file")
        self.second = self.commit("second", {"file": "2"})
        git(path, "tag", "-a", "v2", "-m", "two")
        self.tag = git(path, "rev-parse", "v2")
        git(path, "checkout", "-q", "-b", "feature/x")
        self.feature = self.commit("feature", {"feature": "f"})
        git(path, "checkout", "-q", "main")

    def commit(self, message: str, files: dict[str, str], *, executable: str = "") -> str:
        for name, content in files.items():
            target = self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content)
            target.chmod(0o755 if name == executable else 0o644)
        git(self.path, "add", "-A")
        git(self.path, "commit", "-q", "-m", message)
        return git(self.path, "rev-parse", "HEAD")


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    return Origin(tmp_path / "origin")


@pytest.fixture
def transport() -> Iterator[Transport]:
    with Transport() as transport:
        yield transport


def fetcher(
    tmp_path: Path, transport: Transport, *, secrets: dict[str, bytes] | None = None, protocols: str = "file http git"
) -> RemoteFetcher:
    """A new build's remote sources over one cache."""
    settings = GitSettings(environment=os.environ, protocols=tuple(protocols.split()))
    return RemoteFetcher(tmp_path / "cache", transport, wall_clock=time.time, git=settings, secrets=secrets)


@pytest.fixture
def remotes(tmp_path: Path, transport: Transport) -> RemoteFetcher:
    return fetcher(tmp_path, transport)


def files(root: str) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in Path(root).rglob("*") if ".git/" not in f"{path}/")


def tree(
    remotes: RemoteFetcher,
    url: str,
    commit: str,
    *,
    ref: str = "",
    subdir: str = "",
    keep: bool = False,
    submodules: bool = True,
):  # type: ignore[no-untyped-def]  # a context manager passed on
    return remotes.git_tree(url, commit=commit, ref=ref, subdir=subdir, keep_git_dir=keep, submodules=submodules)


# --- references ------------------------------------------------------------------------------------------------------


def test_references_name_commits(remotes: RemoteFetcher, origin: Origin) -> None:
    assert remotes.git_commit(origin.url, "") == origin.second
    assert remotes.git_commit(origin.url, "main") == origin.second
    assert remotes.git_commit(origin.url, "refs/heads/main") == origin.second
    assert remotes.git_commit(origin.url, "heads/main") == origin.second
    assert remotes.git_commit(origin.url, "feature/x") == origin.feature
    assert remotes.git_commit(origin.url, "v1") == origin.first
    assert remotes.git_commit(origin.url, "v2") == origin.second
    assert remotes.git_commit(origin.url, "refs/tags/v2") == origin.second
    assert remotes.git_commit(origin.url, origin.first) == origin.first


def test_a_branch_wins_over_a_tag_of_its_name(remotes: RemoteFetcher, origin: Origin) -> None:
    git(origin.path, "tag", "feature/x", origin.first)
    assert remotes.git_commit(origin.url, "feature/x") == origin.feature
    assert remotes.git_commit(origin.url, "refs/tags/feature/x") == origin.first


def test_an_unknown_reference_is_named(remotes: RemoteFetcher, origin: Origin) -> None:
    with pytest.raises(RefNotFound, match="repository does not contain ref nowhere"):
        remotes.git_commit(origin.url, "nowhere")
    with pytest.raises(PybuildError, match="invalid git ref"):
        remotes.git_commit(origin.url, "--upload-pack=touch /tmp/x")
    with pytest.raises(PybuildError, match="invalid git remote"):
        remotes.git_commit("ext::sh -c true", "main")
    with pytest.raises(GitFailed, match="failed to fetch remote"):
        remotes.git_commit(f"{origin.url}-missing", "main")


def test_a_checksum_is_the_beginning_of_the_commit_or_of_its_tag(remotes: RemoteFetcher, origin: Origin) -> None:
    for checksum in (origin.second, origin.second[:7], origin.tag, origin.tag[:10]):
        assert remotes.git_commit(origin.url, "v2", checksum=checksum) == origin.second
    with pytest.raises(GitChecksumMismatch) as caught:
        remotes.git_commit(origin.url, "main", checksum="deadbeef")
    assert str(caught.value) == f"expected checksum to match deadbeef, got {origin.second}"
    with pytest.raises(GitChecksumMismatch, match=f"got {origin.tag} or {origin.second}"):
        remotes.git_commit(origin.url, "v2", checksum="deadbeef")
    with pytest.raises(PybuildError, match="invalid checksum xyz for Git URL, expected hex commit hash"):
        remotes.git_commit(origin.url, "main", checksum="xyz")
    with pytest.raises(GitChecksumMismatch):
        remotes.git_commit(origin.url, origin.first, checksum="deadbeef")


def test_one_build_asks_for_a_reference_once(
    remotes: RemoteFetcher, origin: Origin, tmp_path: Path, transport: Transport
) -> None:
    before = remotes.git_commit(origin.url, "main")
    after = origin.commit("third", {"file": "3"})
    assert remotes.git_commit(origin.url, "main") == before
    assert fetcher(tmp_path, transport).git_commit(origin.url, "main") == after


# --- trees -----------------------------------------------------------------------------------------------------------


def test_a_tree_has_the_commits_files_modes_and_time(remotes: RemoteFetcher, origin: Origin) -> None:
    old = os.umask(0o077)
    try:
        with tree(remotes, origin.url, origin.second, ref="main") as root:
            assert files(root) == ["file", "link", "run.sh", "sub", "sub/dir", "sub/dir/deep"]
            modes = {
                path: stat.S_IMODE(os.lstat(f"{root}/{path}").st_mode)
                for path in ("file", "run.sh", "sub", "sub/dir", ".")
            }
            assert modes == {"file": 0o644, "run.sh": 0o755, "sub": 0o755, "sub/dir": 0o755, ".": 0o755}
            assert os.readlink(f"{root}/link") == "file"
            assert {os.lstat(f"{root}/{path}").st_mtime for path in [*files(root), "."]} == {1600000001.0}
    finally:
        os.umask(old)


def test_any_commit_of_the_history_can_be_had(remotes: RemoteFetcher, origin: Origin) -> None:
    for commit, content in ((origin.second, "2"), (origin.first, "1"), (origin.feature, "2")):
        with tree(remotes, origin.url, commit) as root:
            assert Path(root, "file").read_text() == content


def test_a_tree_is_made_once_and_kept(
    remotes: RemoteFetcher, origin: Origin, tmp_path: Path, transport: Transport
) -> None:
    with tree(remotes, origin.url, origin.second) as first:
        inode = os.stat(f"{first}/file").st_ino
    shutil.rmtree(origin.path)
    with tree(fetcher(tmp_path, transport), origin.url, origin.second) as again:
        assert (again, os.stat(f"{again}/file").st_ino) == (first, inode)


def test_a_later_build_fetches_what_is_new(
    remotes: RemoteFetcher, origin: Origin, tmp_path: Path, transport: Transport
) -> None:
    with tree(remotes, origin.url, origin.second, ref="main"):
        pass
    git(origin.path, "branch", "feature-old", "feature/x")
    git(origin.path, "branch", "-D", "feature/x")
    git(origin.path, "checkout", "-q", "-b", "feature")  # now a name where a directory of names was
    third = origin.commit("third", {"file": "3"})
    later = fetcher(tmp_path, transport)
    with tree(later, origin.url, later.git_commit(origin.url, "feature"), ref="feature") as root:
        assert Path(root, "file").read_text() == "3"
    assert later.git_commit_time(origin.url, third) == 1600000001.0


def test_a_tag_that_moves_is_followed(
    remotes: RemoteFetcher, origin: Origin, tmp_path: Path, transport: Transport
) -> None:
    with tree(remotes, origin.url, origin.first, ref="v1"):
        pass
    git(origin.path, "tag", "-f", "v1", origin.feature)
    later = fetcher(tmp_path, transport)
    with tree(later, origin.url, later.git_commit(origin.url, "v1"), ref="v1") as root:
        assert Path(root, "feature").exists()


def test_a_branch_that_moves_between_resolving_and_fetching_gives_the_resolved_commit(
    remotes: RemoteFetcher, origin: Origin
) -> None:
    commit = remotes.git_commit(origin.url, "main")
    git(origin.path, "commit", "-q", "--amend", "-m", "rewritten", "--allow-empty")
    with tree(remotes, origin.url, commit, ref="main") as root:
        assert Path(root, "file").read_text() == "2"


def test_a_subdirectory_is_the_whole_tree(remotes: RemoteFetcher, origin: Origin) -> None:
    with tree(remotes, origin.url, origin.second, subdir="sub/dir", keep=True) as root:
        assert files(root) == ["deep"]
        assert stat.S_IMODE(os.stat(root).st_mode) == 0o755
    with pytest.raises(BadSubdirectory, match="invalid subdir sub/nowhere"):
        with tree(remotes, origin.url, origin.second, subdir="sub/nowhere"):
            pass
    with pytest.raises(BadSubdirectory, match='git subpath "link" contains non-directory "link"'):
        with tree(remotes, origin.url, origin.second, subdir="link"):
            pass


def test_a_repository_with_sha256_objects(tmp_path: Path, remotes: RemoteFetcher) -> None:
    origin = Origin(tmp_path / "sha256", object_format="sha256")
    commit = remotes.git_commit(origin.url, "v2")
    assert len(commit) == 64
    for keep in (False, True):
        with tree(remotes, origin.url, commit, ref="v2", keep=keep) as root:
            assert Path(root, "file").read_text() == "2"


def test_a_commit_without_files_is_an_empty_tree(tmp_path: Path, remotes: RemoteFetcher) -> None:
    origin = Origin(tmp_path / "emptied")
    git(origin.path, "rm", "-rq", ".")
    git(origin.path, "commit", "-q", "-m", "empty")
    with tree(remotes, origin.url, remotes.git_commit(origin.url, "main")) as root:
        assert files(root) == []


@pytest.mark.parametrize(("ref", "described"), [("main", ""), ("v1", "v1"), ("v2", "v2"), ("", ""), ("feature/x", "")])
def test_a_kept_git_directory_has_a_clean_status_and_no_trace_of_this_machine(
    remotes: RemoteFetcher, origin: Origin, ref: str, described: str
) -> None:
    commit = remotes.git_commit(origin.url, ref)
    with tree(remotes, origin.url, commit, ref=ref, keep=True) as kept:
        copy = origin.path.parent / "copy"
        shutil.copytree(kept, copy, symlinks=True)
    assert git(copy, "status", "--porcelain") == ""
    assert git(copy, "rev-parse", "HEAD") == commit
    assert git(copy, "config", "remote.origin.url") == origin.url
    assert git(copy, "fsck", "--connectivity-only") == ""
    assert git(copy, "describe", "--tags", "--exact-match", check=False) == described
    cache = str(origin.path.parent / "cache").encode()
    assert not [path for path in copy.rglob("*") if path.is_file() and cache in path.read_bytes()]
    branches = git(copy, "for-each-ref", "--format=%(refname)", "refs/heads").split()
    assert branches == {
        "main": ["refs/heads/main"],
        "": ["refs/heads/main"],
        "feature/x": ["refs/heads/feature/x"],
    }.get(ref, [])


def test_kept_git_directories_are_equal_each_time(origin: Origin, tmp_path: Path, transport: Transport) -> None:
    contents = []
    for number in range(2):
        remotes = fetcher(tmp_path / str(number), transport)
        with tree(remotes, origin.url, origin.second, ref="main", keep=True) as root:
            contents.append(
                {str(path.relative_to(root)): path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}
            )
    assert contents[0] == contents[1]
    assert ".git/HEAD" in contents[0]


def with_submodule(tmp_path: Path, origin: Origin, url: str) -> tuple[Origin, str]:
    outer = Origin(tmp_path / "outer")
    git(outer.path, "submodule", "--quiet", "add", url, "module")
    git(outer.path, "commit", "-q", "-m", "submodule")
    return outer, git(outer.path, "rev-parse", "HEAD")


def test_submodules_come_along_unless_told_otherwise(tmp_path: Path, remotes: RemoteFetcher, origin: Origin) -> None:
    outer, commit = with_submodule(tmp_path, origin, "../origin")
    with tree(remotes, outer.url, commit) as root:
        assert Path(root, "module/file").read_text() == "2"
        assert not Path(root, "module/.git").exists()
    with tree(remotes, outer.url, commit, submodules=False) as root:
        assert files(f"{root}/module") == []
    with tree(remotes, outer.url, commit, ref="main", keep=True) as root:
        assert Path(root, "module/file").read_text() == "2"
        assert git(Path(root), "status", "--porcelain") == ""


def test_a_submodule_cant_reach_this_machines_files(tmp_path: Path, origin: Origin, transport: Transport) -> None:
    outer, commit = with_submodule(tmp_path, origin, origin.url)
    daemon = Daemon(tmp_path)
    try:
        with pytest.raises(GitFailed, match="failed to update submodules"):
            with tree(fetcher(tmp_path, transport, protocols="git http https ssh"), f"{daemon.url}/outer", commit):
                pass
    finally:
        daemon.close()
    assert outer.path.exists()


# --- servers ---------------------------------------------------------------------------------------------------------


class Daemon:
    """``git daemon`` on loopback for the repositories below a directory."""

    def __init__(self, base: Path) -> None:
        import socket

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"git://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            ["git", "-c", "safe.directory=*", "daemon", "--listen=127.0.0.1", f"--port={port}", "--export-all", f"--base-path={base}", "--reuseaddr"],
            env={**ENV, "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"},
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return
            except OSError:
                time.sleep(0.02)
        pytest.fail("git daemon doesn't listen")

    def close(self) -> None:
        os.killpg(self.process.pid, 15)
        self.process.wait()


def test_a_repository_behind_git_daemon(tmp_path: Path, origin: Origin, remotes: RemoteFetcher) -> None:
    daemon = Daemon(tmp_path)
    try:
        url = f"{daemon.url}/origin"
        assert remotes.git_commit(url, "v2") == origin.second
        for commit in (origin.second, origin.first):
            with tree(remotes, url, commit, ref="main") as root:
                assert Path(root, "run.sh").exists()
    finally:
        daemon.close()


class Http:
    """A smart HTTP server (git http-backend) that wants a password, and one that serves plain files."""

    def __init__(self, base: Path, *, expected: str = "") -> None:
        self.seen: list[str] = []
        http = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer()

            def do_POST(self) -> None:
                self.answer()

            def answer(self) -> None:
                authorization = self.headers.get("Authorization", "")
                http.seen.append(authorization)
                if expected and authorization != expected:
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="x"')
                    self.end_headers()
                    return
                path, _, query = self.path.partition("?")
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                env = {
                    **ENV, "GIT_PROJECT_ROOT": str(base), "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": path, "QUERY_STRING": query,
                    "REQUEST_METHOD": self.command, "CONTENT_TYPE": self.headers.get("Content-Type", ""), "CONTENT_LENGTH": str(len(body)),
                    "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""), "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                    "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
                }  # fmt: skip
                out = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True).stdout
                head, _, content = out.partition(b"\r\n\r\n")
                status = 200
                headers = []
                for line in head.decode().split("\r\n"):
                    name, _, value = line.partition(": ")
                    if name == "Status":
                        status = int(value[:3])
                    else:
                        headers.append((name, value))
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def basic(user: str, password: str) -> str:
    return "basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_secrets_authenticate_and_stay_secret(tmp_path: Path, origin: Origin, transport: Transport) -> None:
    http = Http(tmp_path, expected=basic("x-access-token", "t0ken"))
    url = f"http://{http.host}/origin"
    try:
        for secrets in ({"GIT_AUTH_TOKEN": b"t0ken\n"}, {f"GIT_AUTH_TOKEN.{http.host}": b"t0ken", "GIT_AUTH_TOKEN": b"wrong"},
                        {"GIT_AUTH_HEADER": basic("x-access-token", "t0ken").encode()}):  # fmt: skip
            remotes = fetcher(tmp_path, transport, secrets=secrets)
            assert remotes.git_commit(url, "main") == origin.second
            with tree(remotes, url, origin.second, ref="main", keep=True) as root:
                assert not [path for path in Path(root).rglob("*") if path.is_file() and b"t0ken" in path.read_bytes()]
        with pytest.raises(GitFailed) as caught:
            fetcher(tmp_path, transport, secrets={"GIT_AUTH_TOKEN": b"wr0ng"}).git_commit(url, "main")
        assert "wr0ng" not in f"{caught.value} {caught.value.output}"
        with pytest.raises(GitFailed):
            fetcher(tmp_path, transport).git_commit(url, "main")
    finally:
        http.close()
    everything = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert b"t0ken" not in everything


def test_a_password_in_the_url_works_and_is_shown_nowhere(tmp_path: Path, origin: Origin, transport: Transport) -> None:
    http = Http(tmp_path, expected=basic("me", "pass:word"))
    try:
        remotes = fetcher(tmp_path, transport)
        url = f"http://me:pass%3Aword@{http.host}/origin"
        assert remotes.git_commit(url, "main") == origin.second
        with tree(remotes, url, origin.second, ref="main", keep=True) as root:
            assert git(Path(root), "config", "remote.origin.url") == f"http://{http.host}/origin"
        with pytest.raises(PybuildError) as caught:
            remotes.git_commit(url.replace("word", "wr0ng"), "main")
        assert "wr0ng" not in str(caught.value)
        assert "pass" not in str(caught.value)
    finally:
        http.close()


def test_credentials_are_in_no_processs_arguments(tmp_path: Path, origin: Origin, transport: Transport) -> None:
    http = Http(tmp_path, expected=basic("x-access-token", "t0ken"))
    wrapper = tmp_path / "bin"
    wrapper.mkdir()
    real = shutil.which("git")
    log = tmp_path / "log"
    (wrapper / "git").write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec {real} "$@"\n')
    (wrapper / "git").chmod(0o755)
    settings = GitSettings(environment={"PATH": f"{wrapper}:{os.environ['PATH']}"}, protocols=("http",))
    remotes = RemoteFetcher(
        tmp_path / "cache", transport, wall_clock=time.time, git=settings, secrets={"GIT_AUTH_TOKEN": b"t0ken"}
    )
    try:
        with tree(
            remotes, f"http://{http.host}/origin", remotes.git_commit(f"http://{http.host}/origin", "main"), ref="main"
        ):
            pass
    finally:
        http.close()
    logged = log.read_text()
    assert "ls-remote" in logged
    assert "t0ken" not in logged
    assert base64.b64encode(b"x-access-token:t0ken").decode() not in logged


def test_the_users_configuration_has_no_effect(
    tmp_path: Path, origin: Origin, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text('[url "file:///nowhere/"]\n\tinsteadOf = file:///\n[core]\n\tautocrlf = true\n')
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(home / ".gitconfig"))
    remotes = fetcher(tmp_path, transport)
    assert remotes.git_commit(origin.url, "main") == origin.second
    with tree(remotes, origin.url, origin.second) as root:
        assert Path(root, "run.sh").read_bytes() == b"#!/bin/sh\n"


def test_cancelling_ends_git_and_its_children(tmp_path: Path, transport: Transport) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        cancel = threading.Event()
        settings = GitSettings(environment=os.environ, protocols=("git",))
        remotes = RemoteFetcher(tmp_path / "cache", transport, wall_clock=time.time, git=settings, cancel=cancel)
        threading.Timer(0.3, cancel.set).start()
        start = time.monotonic()
        with pytest.raises(Cancelled):
            remotes.git_commit(f"git://127.0.0.1:{silent.getsockname()[1]}/x", "main")
        assert time.monotonic() - start < 3


def test_unused_trees_and_repositories_are_pruned_but_not_those_in_use(
    tmp_path: Path, origin: Origin, remotes: RemoteFetcher
) -> None:
    with tree(remotes, origin.url, origin.first) as used:
        with tree(remotes, origin.url, origin.second) as unused:
            pass
        remotes.prune(before=time.time() + 10, now=time.time() + 10)
        assert Path(used, "file").exists()
        assert not Path(unused).exists()
    remotes.prune(before=time.time() + 10, now=time.time() + 10)
    left = [path for path in (tmp_path / "cache/git").rglob("*") if path.is_file()]
    assert left == []
    with tree(remotes, origin.url, origin.first) as again:
        assert Path(again, "file").read_text() == "1"
