"""Debian's docker command with BuildKit's protocol against our daemon: sessions, files, secrets, agents, results, cancelling."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from daemons.running_daemon import RunningDaemon, running_daemon

pytestmark = [pytest.mark.peer, pytest.mark.integration]

TOOLS = Path(__file__).resolve().parents[2] / ".test-tools"


class Client:
    """The docker command, its environment, and the daemon that it talks to."""

    def __init__(self, daemon: RunningDaemon) -> None:
        self.daemon = daemon
        self.environment = {
            **os.environ,
            **daemon.client_variables,
            "DOCKER_BUILDKIT": "1",
            "BUILDKIT_PROGRESS": "plain",
        }
        plugin = TOOLS / "docker-buildx"
        if plugin.exists():
            plugins = Path(self.environment["DOCKER_CONFIG"]) / "cli-plugins"
            plugins.mkdir(exist_ok=True)
            (plugins / "docker-buildx").symlink_to(plugin)

    def build(self, *arguments: str, stdin: bytes = b"", status: int = 0) -> tuple[bytes, str]:
        """Standard output and standard error of ``docker build``."""
        command = [str(TOOLS / "docker"), "build", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, env=self.environment, timeout=120, check=False)
        assert done.returncode == status, done.stderr.decode() + self.daemon.log[-2000:]
        return done.stdout, done.stderr.decode()


@pytest.fixture(scope="module")
def client(_seed_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    if not (TOOLS / "docker").exists():
        pytest.skip("tools/setup.sh has not fetched the docker command")
    directory = tmp_path_factory.mktemp("daemon")
    subprocess.run(["cp", "-a", str(_seed_root), str(directory / "root")], check=True)
    with running_daemon(directory, directory / "root") as running:
        yield Client(running)


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nCOPY . /w/\nRUN ls /w > /list\n")
    (tmp_path / "data").write_bytes(b"x" * 300_000)
    (tmp_path / "left").write_text("not sent")
    (tmp_path / ".dockerignore").write_text("left\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/link").symlink_to("../data")
    old = 1_600_000_000
    for path in tmp_path.rglob("*"):
        os.utime(path, (old, old), follow_symlinks=False)
    return tmp_path


def test_a_build_makes_an_image_and_the_next_one_is_cached(client: Client, context: Path) -> None:
    client.build("-t", "peer:1", str(context))
    names = client.daemon.request("GET", "/images/peer:1/json").json()["RepoTags"]
    assert "peer:1" in names
    _, shown = client.build("-t", "peer:2", str(context))
    # What docker shows of a step that didn't run.
    assert shown.count("CACHED") >= 2
    ids = {
        client.daemon.request("GET", f"/images/peer:{number}/json").json()["RootFS"]["Layers"][-1] for number in "12"
    }
    assert len(ids) == 1


def test_results_come_as_a_directory_and_as_an_archive(client: Client, context: Path, tmp_path: Path) -> None:
    (context / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    target = tmp_path / "out"
    client.build("-o", str(target), str(context))
    assert (target / "data").read_bytes() == (context / "data").read_bytes()
    assert os.readlink(target / "sub/link") == "../data"
    assert not (target / "left").exists()
    data, _ = client.build("-o", "-", str(context))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        member = archive.extractfile("data")
        assert member is not None
        assert len(member.read()) == 300_000


def test_dockerfiles_and_contexts_come_from_standard_input(client: Client, context: Path) -> None:
    client.build("-t", "peer:stdin", "-f", "-", str(context), stdin=b"FROM scratch\nCOPY data /\nLABEL from=stdin\n")
    config = client.daemon.request("GET", "/images/peer:stdin/json").json()["Config"]
    assert config["Labels"] == {"from": "stdin"}
    archive = io.BytesIO()
    # Docker takes an archive whose first header is an extended one for a Dockerfile.
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as made:
        made.add(context / "data", "data")
        text = b"FROM scratch\nCOPY data /d\n"
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(text)
        made.addfile(entry, io.BytesIO(text))
    client.build("-t", "peer:tar", "-", stdin=archive.getvalue())
    assert client.daemon.request("GET", "/images/peer:tar/json").status == 200


def test_only_what_the_dockerfile_names_is_sent(client: Client, context: Path) -> None:
    (context / "unread").write_bytes(b"mine alone")
    (context / "also").symlink_to("sub/link")
    remotes = client.daemon.root / "remotes"
    for dockerfile, there in (
        ("FROM scratch AS unread\nCOPY unread /\nFROM scratch\nCOPY also /a\n", {"also", "link", "data"}),
        ("FROM scratch\nCOPY d* sub /x/\n", {"data", "link"}),
        ("FROM scratch\nCOPY . /x/\n", {"also", "link", "data", "unread", "Dockerfile", ".dockerignore"}),
    ):
        (context / "Dockerfile").write_text(dockerfile)
        out = context.parent / f"out-{len(there)}"
        client.build("-o", str(out), str(context))
        assert any(path.is_file() and path.stat().st_size == 300_000 for path in out.rglob("*"))
        kept = [
            {path.name for path in tree.rglob("*") if not path.is_dir()} for tree in remotes.glob("context/*/*/tree")
        ]
        assert there in kept


def test_secrets_and_agents_are_the_clients(client: Client, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(
        "FROM busybox\n"
        "RUN --mount=type=secret,id=key cat /run/secrets/key > /seen\n"
        'RUN --mount=type=ssh test -S "$SSH_AUTH_SOCK"\n'
        "FROM scratch\nCOPY --from=0 /seen /\n"
    )
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    started = subprocess.run(["ssh-agent", "-c"], capture_output=True, text=True, check=True).stdout.split()
    socket, pid = started[2].rstrip(";"), int(started[5].rstrip(";"))
    try:
        client.build(
            "--secret", f"id=key,src={secret}", "--ssh", f"default={socket}", "-o", str(tmp_path / "out"), str(tmp_path)
        )
    finally:
        os.kill(pid, signal.SIGTERM)
    assert (tmp_path / "out/seen").read_text() == "s3cret"
    (tmp_path / "Dockerfile").write_text(
        "FROM busybox\nRUN --mount=type=secret,id=none,required cat /run/secrets/none\n"
    )
    assert "none" in client.build(str(tmp_path), status=1)[1]


def test_a_step_that_fails_ends_the_client_with_its_line(client: Client, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo before && exit 7\n")
    _, shown = client.build(str(tmp_path), status=1)
    assert "before" in shown
    assert "exit code: 7" in shown or "exit code 7" in shown


def test_a_client_that_goes_away_ends_its_step(client: Client, tmp_path: Path) -> None:
    seconds = f"98{os.getpid()}"
    (tmp_path / "Dockerfile").write_text(f"FROM busybox\nRUN sleep {seconds}\n")
    command = [str(TOOLS / "docker"), "build", str(tmp_path)]
    with subprocess.Popen(
        command, env=client.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        assert _within(60, lambda: _runs("sleep", seconds))
        process.kill()
    assert _within(60, lambda: not _runs("sleep", seconds))
    assert client.daemon.request("GET", "/_ping").status == 200


def _runs(*words: str) -> bool:
    wanted = b"\0".join(word.encode() for word in words)
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if wanted in path.read_bytes():
                return True
        except OSError:
            continue
    return False


def _within(seconds: float, holds: object) -> bool:
    assert callable(holds)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.1)
    return False
