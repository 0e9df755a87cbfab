"""``pybuild -H``, on a unix socket and with TLS, with what the client's machine has: agents and keys, a terminal, standard input, files, caches in
directories."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import tarfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import Pybuild, free_port
from daemons.running_daemon import RunningDaemon, running_daemon
from registry_servers.private_ca import private_ca

pytestmark = pytest.mark.integration

KEY = """-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIMWqjfQ/n4N77bdEMfHLN9XbNpUDVwb5SFzjoraLRPdZ
-----END PRIVATE KEY-----
"""


@pytest.fixture(scope="module")
def daemon(_seed_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """On a unix socket, and on TCP for clients with a certificate where openssl can make some."""
    directory = tmp_path_factory.mktemp("channels")
    subprocess.run(["cp", "-a", str(_seed_root), str(directory / "root")], check=True)
    options: list[str] = []
    if shutil.which("openssl") is not None:
        made = private_ca(directory / "ca")
        options += ["--host", f"unix://{directory}/d/s.sock", "--host", f"tcp://127.0.0.1:{free_port()}"]
        options += ["--tlscacert", str(made.ca), "--tlscert", str(made.server), "--tlskey", str(made.server_key)]
        certificates = directory / "d/certificates"
        certificates.mkdir(parents=True)
        for source, name in ((made.ca, "ca.pem"), (made.client, "cert.pem"), (made.client_key, "key.pem")):
            shutil.copy(source, certificates / name)
    with running_daemon(directory / "d", directory / "root", *options) as running:
        yield running


@pytest.fixture(params=["unix", "tls"])
def over(request: pytest.FixtureRequest, daemon: RunningDaemon, tmp_path: Path) -> Pybuild:
    variables = {"DOCKER_CONFIG": str(tmp_path), "PYBUILD_HOST": daemon.address}
    if request.param == "tls":
        address = next((option for option in daemon.options if option.startswith("tcp://")), None)
        if address is None:
            pytest.skip("the program openssl is not installed")
        certificates = str(daemon.directory / "certificates")
        variables |= {"PYBUILD_HOST": address, "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": certificates}
    # A root that can't be used: a daemon's client must not touch a store of its own.
    return Pybuild(Path("/proc/no-store"), variables)


def _idle(daemon: RunningDaemon) -> None:
    deadline = time.monotonic() + 10
    while daemon.request("GET", "/health").json()["running"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert daemon.request("GET", "/health").json()["running"] == 0


def test_a_step_talks_to_a_key_of_the_clients_machine(over: Pybuild, daemon: RunningDaemon, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("the program cc is not installed")
    context = tmp_path / "c"
    context.mkdir()
    source = tmp_path / "ask.c"
    source.write_text(
        "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <sys/socket.h>\n#include <sys/un.h>\n#include <unistd.h>\n"
        'int main(int c, char **v) { for (int i = 0; i < 3; i++) { struct sockaddr_un a = {AF_UNIX}; strcpy(a.sun_path, getenv("SSH_AUTH_SOCK"));'
        "int s = socket(AF_UNIX, SOCK_STREAM, 0); if (connect(s, (void *)&a, sizeof a)) return 1;"
        "char m[5] = {0, 0, 0, 1, atoi(v[1])}; unsigned char b[99]; write(s, m, 5); int n = read(s, b, 99);"
        'for (int k = 4; k < n && k < 9; k++) printf("%02x", b[k]); puts(""); close(s); } return 0; }\n'
    )
    subprocess.run([compiler, "-static", "-w", "-o", str(context / "ask"), str(source)], check=True)
    (tmp_path / "key").write_text(KEY)
    dockerfile = 'FROM busybox\nCOPY ask /\nRUN --mount=type=ssh echo "keys $(/ask 11)" && echo "lock $(/ask 22)"\n'
    over.build(dockerfile, context, "--no-cache", f"--ssh=default={tmp_path / 'key'}")
    _idle(daemon)
    before = daemon.open_files()
    out = over.build(dockerfile, context, "--no-cache", f"--ssh=default={tmp_path / 'key'}")
    # One key in the list, three times; locking an agent is refused by the client.
    assert out.stderr.count("0c00000001") == 3
    assert out.stderr.count(" 05\n") == 3
    _idle(daemon)
    assert daemon.open_files() <= before + 4
    refused = over.build("FROM busybox\n", context, f"--ssh=default={source}", check=False)
    assert refused.returncode == 1
    assert "no key found" in refused.stderr


def test_a_failed_step_gets_a_shell_in_the_clients_terminal(
    over: Pybuild, daemon: RunningDaemon, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo partial > /made && exit 3\n")
    process, master = pty.fork()
    if process == 0:
        os.environ.update(over.variables, TERM="dumb")
        command = [sys.executable, "-m", "pybuild", "--root", "/proc/no-store", "build", "--progress=plain"]
        os.execv(sys.executable, [*command, "--on-error=shell", str(tmp_path)])
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", 33, 77, 0, 0))
    seen = _until(master, b"shell in the failed step")
    os.write(master, b"cat /made; stty size; echo $TERM-kind\n")
    seen = _until(master, b"dumb-kind")
    assert b"partial" in seen
    assert b"33 77" in seen
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", 44, 99, 0, 0))
    time.sleep(1)  # the size is looked at four times a second
    os.write(master, b"stty size; echo again-$((1+1))\n")
    assert b"44 99" in _until(master, b"again-2")
    os.write(master, b"exit\n")
    assert b"exit code: 3" in _until(master, b"ERROR: ")
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 1
    os.close(master)
    _idle(daemon)


def _until(master: int, text: bytes) -> bytes:
    seen = b""
    deadline = time.monotonic() + 20
    while text not in seen or select.select([master], [], [], 0.3)[0]:
        assert time.monotonic() < deadline, seen
        if select.select([master], [], [], 1)[0]:
            try:
                seen += os.read(master, 4096)
            except OSError:
                break
    return seen


def test_standard_input_reaches_a_process_in_the_daemon(over: Pybuild) -> None:
    data = os.urandom(1 << 20)
    finished = subprocess.run(
        [sys.executable, "-m", "pybuild", "run", "-i", "busybox", "sh", "-c", "cat; echo end >&2"],
        input=data,
        capture_output=True,
        timeout=60,
        env={**os.environ, **over.variables},
    )
    assert finished.stdout == data
    assert finished.stderr == b"end\n"
    # A process that reads nothing ends all the same.
    assert over.run("run", "-i", "busybox", "true", stdin=b"x" * (1 << 20)).returncode == 0


def test_contexts_secrets_and_outputs_travel(over: Pybuild, tmp_path: Path) -> None:
    for name in ("context", "more"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_bytes(os.urandom(3 << 20))
    (tmp_path / "secret").write_text("from-the-client")
    (tmp_path / "context/Dockerfile").write_text(
        "FROM busybox AS made\nCOPY . /c\nCOPY --from=more data /m\nRUN --mount=type=secret,id=s cat /run/secrets/s > /s\n"
        "FROM scratch\nCOPY --from=made /c /m /s /\n"
    )
    out = over.run(
        "build", "--no-cache", "--secret=id=s,src=secret", "--build-context=more=more", "-o", "tree", "-o", "type=tar,dest=out.tar",
        "-o", "type=oci,dest=oci.tar", "context", cwd=tmp_path,
    )  # fmt: skip
    assert "from-the-client" not in out.stderr
    assert (tmp_path / "tree/data").read_bytes() == (tmp_path / "context/data").read_bytes()
    assert (tmp_path / "tree/m").read_bytes() == (tmp_path / "more/data").read_bytes()
    assert (tmp_path / "tree/s").read_text() == "from-the-client"
    with tarfile.open(tmp_path / "out.tar") as archive:
        assert archive.getmember("data").size == 3 << 20
    assert tarfile.is_tarfile(tmp_path / "oci.tar")


def test_caches_lie_in_directories_of_the_client(over: Pybuild, daemon: RunningDaemon, tmp_path: Path) -> None:
    context = tmp_path / "c"
    context.mkdir()
    dockerfile = "FROM busybox\nRUN head -c 300000 /dev/urandom > /r\nRUN echo two > /two\n"
    over_here = lambda *more: over.run("build", "--progress=plain", *more, "c", cwd=tmp_path)  # noqa: E731
    (context / "Dockerfile").write_text(dockerfile)
    over_here("--no-cache", "-t", "cached:1", "--cache-to=type=local,dest=cache,mode=max")
    before = {path: path.stat().st_ino for path in (tmp_path / "cache/blobs/sha256").iterdir()}
    assert sum(path.stat().st_size for path in before) > 300000
    (context / "Dockerfile").write_text(dockerfile + "RUN echo three\n")
    over_here("--cache-to=type=local,dest=cache,mode=max")
    kept = [path for path, inode in before.items() if path.exists() and path.stat().st_ino == inode]
    assert any(path.stat().st_size > 300000 for path in kept)
    over.run("rmi", "-f", "cached:1")
    over.run("prune", "-f", "--all")
    again = over_here("-o", "type=tar,dest=out.tar", "--cache-from=type=local,src=cache")
    assert again.stderr.count(" CACHED") >= 3, again.stderr
    with tarfile.open(tmp_path / "out.tar") as archive:
        assert "two" in archive.getnames()
    (context / "Dockerfile").write_text(dockerfile.replace("two", "four"))
    empty = over_here("--cache-from=type=local,src=nothing")
    assert "there is no cache yet" in empty.stderr


def test_cache_mounts_travel_to_the_clients_directory_and_back(over: Pybuild, tmp_path: Path) -> None:
    dockerfile = b"FROM busybox\nRUN --mount=type=cache,id=travel,target=/m ls /m; echo kept > /m/file\n"
    over.run("build", "--no-cache", "--cache-mounts-to=./mounts", "-", stdin=dockerfile, cwd=tmp_path)
    assert (tmp_path / "mounts/index.json").exists()
    over.run("prune", "-f", "--all", "--filter", "type=exec.cachemount")
    again = over.run(
        "build",
        "--progress=plain",
        "--cache-mounts-from=./mounts",
        "-",
        # A step that has not run before; with --no-cache it would get an empty mount.
        stdin=dockerfile.replace(b"ls /m", b": %b; ls /m" % os.fsencode(tmp_path)),
        cwd=tmp_path,
    )
    assert "restoring cache mount travel" in again.stderr
    assert re.search(r" file$", again.stderr, re.MULTILINE)


def test_a_layout_with_a_tag_is_a_context(over: Pybuild, tmp_path: Path) -> None:
    over.run(
        "build", "-t", "base:tagged", "-o", "type=oci,tar=false,dest=layout", "-", stdin=b"FROM busybox\n", cwd=tmp_path
    )
    out = over.run(
        "build", "--progress=plain", "--build-context", "base=oci-layout://layout:tagged", "-", cwd=tmp_path,
        stdin=b"FROM base\nRUN echo from-the-layout\n",
    )  # fmt: skip
    assert "from-the-layout" in out.stderr


def test_another_version_of_the_client_is_told_so(daemon: RunningDaemon) -> None:
    answer = daemon.request("POST", "/pybuild/call/images", b"{}\n", headers={"User-Agent": "pybuild/99.0"})
    assert answer.status == 400
    assert "the client is pybuild 99.0 and this daemon pybuild" in answer.json()["message"]
