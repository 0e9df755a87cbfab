"""What a daemon fetches for its clients: contexts from elsewhere, images of registries that want credentials; and a daemon without root."""

from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.loopback import git, serve_directory, serve_files
from conftest import Pybuild, require_program
from daemons.running_daemon import RunningDaemon, context_tar, require_docker, running_daemon
from registry_servers.docker_registry import RunningRegistry, docker_registry

pytestmark = pytest.mark.integration

DOCKERFILE = b"FROM busybox\nCOPY f /f\nRUN cat /f\n"


@pytest.fixture(scope="module")
def daemon(_seed_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    directory = tmp_path_factory.mktemp("daemon")
    subprocess.run(["cp", "-a", str(_seed_root), str(directory / "root")], check=True)
    with running_daemon(directory, directory / "root") as running:
        yield running


def test_contexts_may_be_compressed_in_any_usual_way(daemon: RunningDaemon) -> None:
    import bz2

    import zstandard

    plain = context_tar({"Dockerfile": DOCKERFILE, "f": "packed\n"})
    for pack in (lambda data: data, gzip.compress, bz2.compress, lzma.compress, zstandard.ZstdCompressor().compress):
        answer = daemon.request("POST", "/build", pack(plain))
        assert answer.status == 200, answer.body
        assert "Successfully built" in answer.text()


def test_a_context_may_be_a_url_or_a_repository(daemon: RunningDaemon, tmp_path: Path) -> None:
    archive = gzip.compress(context_tar({"sub/Dockerfile": DOCKERFILE, "f": "from-archive\n"}))
    with serve_files({"/c.tar.gz": (archive, {}), "/Dockerfile": (b"FROM busybox\nRUN echo alone\n", {})}) as url:
        by_archive = daemon.request(
            "POST", "/build", query={"remote": f"{url}/c.tar.gz", "dockerfile": "sub/Dockerfile"}
        )
        assert "from-archive" in by_archive.text()
        assert "alone" in daemon.request("POST", "/build", query={"remote": f"{url}/Dockerfile"}).text()
        missing = daemon.request("POST", "/build", query={"remote": f"{url}/nothing"})
        assert missing.status >= 400
    repository = tmp_path / "repo"
    repository.mkdir()
    (repository / "Dockerfile").write_bytes(DOCKERFILE)
    (repository / "f").write_text("from-git\n")
    git(repository, "init", "-q", "-b", "main")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "x")
    git(repository, "update-server-info")
    with serve_directory(repository) as url:
        answer = daemon.request("POST", "/build", query={"remote": f"{url}/.git#main"})
        assert "from-git" in answer.text(), answer.body


def test_a_remote_context_with_the_docker_cli(daemon: RunningDaemon) -> None:
    require_docker()
    archive = context_tar({"Dockerfile": DOCKERFILE, "f": "by-cli\n"})
    with serve_files({"/c.tar": (archive, {"Content-Type": "application/x-tar"})}) as url:
        assert "by-cli" in daemon.docker("build", f"{url}/c.tar").stdout


# --- credentials -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    require_program("docker-registry")
    require_program("htpasswd")
    with docker_registry(tmp_path_factory.mktemp("private"), htpasswd=("user", "secret")) as running:
        yield running


def test_credentials_of_a_client_are_used_for_its_request_and_for_no_other(
    daemon: RunningDaemon, private: RunningRegistry
) -> None:
    require_docker()
    name = f"{private.host}/private/app:1"
    daemon.docker("tag", "busybox", name)
    assert daemon.docker("push", name, check=False).returncode == 1
    wrong = daemon.docker("login", "-u", "user", "--password-stdin", private.host, stdin=b"wrong", check=False)
    assert wrong.returncode == 1
    daemon.docker("login", "-u", "user", "--password-stdin", private.host, stdin=b"secret")
    daemon.docker("push", name)
    daemon.docker("rmi", name)
    daemon.docker("pull", name)
    daemon.docker("rmi", name)
    dockerfile = f"FROM {name}\nRUN echo from-private\n".encode()
    assert "from-private" in daemon.docker("build", "--pull", "-", stdin=dockerfile).stdout
    daemon.docker("logout", private.host)
    assert daemon.docker("pull", name, check=False).returncode == 1
    assert daemon.docker("build", "--pull", "-", stdin=dockerfile, check=False).returncode == 1
    assert "secret" not in daemon.log


def test_credentials_of_the_command_line_go_with_its_calls(
    daemon: RunningDaemon, private: RunningRegistry, tmp_path: Path
) -> None:
    config = tmp_path / "docker"
    config.mkdir()
    client = Pybuild(Path("/proc/no-store"), {"DOCKER_CONFIG": str(config), "PYBUILD_HOST": daemon.address})
    name = f"{private.host}/private/own:1"
    client.run("tag", "busybox", name)
    assert client.run("push", name, check=False).returncode == 1
    local = Pybuild(tmp_path / "local", {"DOCKER_CONFIG": str(config)})
    local.run("login", "-u", "user", "--password-stdin", private.host, stdin=b"secret")
    client.run("push", name)
    client.run("rmi", name)
    client.run("pull", name)
    pushed = client.run("build", "-t", f"{private.host}/private/own:2", "--push", "-", stdin=f"FROM {name}\n".encode())
    assert pushed.returncode == 0


# --- without root ----------------------------------------------------------------------------------------------------


@pytest.mark.rootless
def test_an_ordinary_user_can_run_a_daemon(tmp_path_factory: pytest.TempPathFactory, busybox_tar: Path) -> None:
    """In the user's runtime directory, without any option."""
    import os
    import sysconfig
    import tempfile
    import time

    import pybuild as product

    python, source = "/usr/bin/python3", Path(product.__file__).resolve().parent.parent
    libraries = sysconfig.get_path("purelib")
    probe = "import sys; sys.path[:0] = sys.argv[1:]; import pybuild.daemon.api_run, sqlite3"
    usable = subprocess.run(
        [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            python,
            "-B",
            "-c",
            probe,
            str(source),
            libraries,
        ],
        capture_output=True,
        check=False,
    )
    if usable.returncode != 0:
        pytest.skip(f"needs a {python} 3.11 with aiohttp, and sources that an ordinary user can read")
    home = Path(tempfile.mkdtemp(prefix="rootless-daemon-"))
    try:
        os.chown(home, 65534, 65534)
        home.chmod(0o755)
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(home),
            "PYTHONPATH": f"{source}:{libraries}",
        }
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    "setpriv",
                    "--reuid=65534",
                    "--regid=65534",
                    "--clear-groups",
                    python,
                    "-B",
                    "-m",
                    "pybuild",
                    "daemon",
                ],
                env=environment,
                cwd=home,
                stdout=log,
                stderr=log,
            )
        daemon = RunningDaemon(home / "root", home / "pybuild.sock", home)
        try:
            deadline = time.monotonic() + 30
            while not daemon.socket.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            assert daemon.socket.stat().st_uid == 65534, daemon.log
            assert "name=rootless" in daemon.request("GET", "/info").json()["SecurityOptions"]
            imported = daemon.request(
                "POST", "/images/create", busybox_tar.read_bytes(), query={"fromSrc": "-", "repo": "busybox"}
            )
            assert imported.status == 200, imported.body
            assert "uid=0(root)" in daemon.build({"Dockerfile": "FROM busybox\nRUN id\n"}).text()
        finally:
            process.terminate()
            assert process.wait(20) == 0
    finally:
        shutil.rmtree(home)
