"""RUN --mount=type=ssh, seen from the command line: keys from files, agents of the one who builds."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, build_files, refused, write_files
from conformance.loopback import git

pytestmark = pytest.mark.integration

KEY = """-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIMWqjfQ/n4N77bdEMfHLN9XbNpUDVwb5SFzjoraLRPdZ
-----END PRIVATE KEY-----
"""


@dataclass
class Agent:
    """An agent that has no keys, on a socket; counts how many connections are open at once."""

    path: str
    open: int = 0
    most_open: int = 0
    messages: list[bytes] = field(default_factory=list)

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self.talk, args=(connection,), daemon=True).start()

    def talk(self, connection: socket.socket) -> None:
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        with connection:
            while data := connection.recv(1000):
                self.messages.append(data)
                connection.sendall(bytes.fromhex("000000050c00000000"))
        self.open -= 1


@pytest.fixture
def agent() -> Iterator[Agent]:
    """The path is short: a socket's has little room."""
    directory = tempfile.mkdtemp()
    listener = socket.socket(socket.AF_UNIX)
    agent = Agent(f"{directory}/agent")
    listener.bind(agent.path)
    listener.listen()
    thread = threading.Thread(target=agent.serve, args=(listener,), daemon=True)
    thread.start()
    yield agent
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    shutil.rmtree(directory)


def test_the_socket_has_the_mode_and_owner_that_are_asked_for(pybuild: Command, tmp_path: Path, agent: Agent) -> None:
    (tmp_path / "key").write_text(KEY)
    result = pybuild.build(
        """
FROM busybox
RUN --mount=type=ssh,mode=741,uid=100,gid=102 [ "$(stat -c "%u %g %f" $SSH_AUTH_SOCK)" = "100 102 c1e1" ]
RUN --mount=type=ssh [ "$(stat -c "%u %g %a" $SSH_AUTH_SOCK)" = "0 0 600" ] && [ $SSH_AUTH_SOCK = /run/buildkit/ssh_agent.0 ]
RUN --mount=type=ssh,id=other,target=/here --mount=type=ssh [ -S /here ] && [ $SSH_AUTH_SOCK = /here ] && [ -S /run/buildkit/ssh_agent.1 ]
RUN --mount=type=ssh,id=none [ ! -e /run/buildkit/ssh_agent.0 ]
RUN [ -z "$SSH_AUTH_SOCK" ] && [ ! -e /run/buildkit ] && [ ! -e /here ]
""",
        tmp_path / "c",
        f"--ssh=default={tmp_path / 'key'}",
        f"--ssh=other={agent.path}",
    )
    assert "ERROR" not in result.stderr


def test_a_missing_agent_matters_only_where_it_is_required(pybuild: Command, tmp_path: Path) -> None:
    message = refused(pybuild, "FROM busybox\nRUN --mount=type=ssh,required true\n", tmp_path / "c")
    assert 'no SSH key "default" forwarded from the client' in message
    assert ">>> RUN --mount=type=ssh,required true" in message


def test_a_step_talks_to_the_agent_and_leaves_no_connection_behind(
    pybuild: Command, tmp_path: Path, agent: Agent
) -> None:
    context = tmp_path / "c"
    context.mkdir()
    ask = tmp_path / "c/ask"
    source = tmp_path / "ask.c"
    # Says three times, on a connection of its own, the message of the number given, and shows the answers.
    source.write_text(
        "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <sys/socket.h>\n#include <sys/un.h>\n#include <unistd.h>\n"
        'int main(int c, char **v) { for (int i = 0; i < 3; i++) { struct sockaddr_un a = {AF_UNIX}; strcpy(a.sun_path, getenv("SSH_AUTH_SOCK"));'
        "int s = socket(AF_UNIX, SOCK_STREAM, 0); if (connect(s, (void *)&a, sizeof a)) return 1;"
        "char m[5] = {0, 0, 0, 1, atoi(v[1])}; unsigned char b[99]; write(s, m, 5); int n = read(s, b, 99);"
        'for (int k = 0; k < n && k < 9; k++) printf("%02x", b[k]); puts(""); close(s); } return 0; }\n'
    )
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("the program cc is not installed")
    subprocess.run([compiler, "-static", "-w", "-o", str(ask), str(source)], check=True)
    (tmp_path / "key").write_text(KEY)
    out = build_files(
        pybuild,
        """
FROM busybox AS base
COPY ask /
RUN --mount=type=ssh /ask 11 > /agent && /ask 19 > /remove
RUN --mount=type=ssh,id=keys /ask 11 | cut -c 9- > /keys
FROM scratch
COPY --from=base /agent /remove /keys /
""",
        context,
        f"--ssh=default={agent.path}",
        f"--ssh=keys={tmp_path / 'key'}",
    )
    assert (out / "agent").read_text() == "000000050c00000000\n" * 3
    assert (out / "remove").read_text() == "0000000105\n" * 3
    assert (out / "keys").read_text() == "0c00000001\n" * 3
    assert agent.most_open == 1
    assert {message[4] for message in agent.messages} == {11}


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="the program ssh-keygen is not installed")
def test_what_can_not_be_an_agent_is_refused_before_the_build(pybuild: Command, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(tmp_path / "locked")], check=True)
    (tmp_path / "text").write_text("no key")
    for spec, text in [
        (f"default={tmp_path / 'locked'}", "passphrase protected"),
        (f"default={tmp_path / 'text'}", "no key found"),
    ]:
        assert text in refused(pybuild, "FROM busybox\nRUN --mount=type=ssh true\n", tmp_path / "c", f"--ssh={spec}")
    missing = pybuild.run("build", f"--ssh=default={tmp_path / 'missing'}", str(tmp_path / "c"), check=False)
    assert missing.returncode != 0
    assert f"{tmp_path / 'missing'}" in missing.stderr.splitlines()[-1]


@pytest.mark.skipif(shutil.which("git") is None, reason="the program git is not installed")
def test_a_repository_behind_ssh_is_reached_by_way_of_the_agent(
    pybuild: Command, tmp_path: Path, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = write_files(tmp_path / "repository", {"Dockerfile": "FROM scratch\nCOPY Dockerfile /out\n"})
    git(repository, "init", "-q")
    git(repository, "add", "Dockerfile")
    git(repository, "commit", "-q", "-m", "first")
    # Stands for ssh and the other machine: talks to the agent, then runs there what git wants to be run.
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "ssh").write_text(
        f"#!{sys.executable}\nimport os, socket, sys\n"
        "agent = socket.socket(socket.AF_UNIX)\nagent.connect(os.environ['SSH_AUTH_SOCK'])\n"
        "agent.sendall(bytes([0, 0, 0, 1, 11]))\nassert len(agent.recv(100)) == 9\n"
        "command = sys.argv[-1]\nos.execvp('sh', ['sh', '-c', command])\n"
    )
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    url = f"ssh://git@example.com{repository}"
    monkeypatch.setenv("SSH_AUTH_SOCK", agent.path)
    pybuild.run("build", "-o", str(tmp_path / "o"), url)
    assert (tmp_path / "o/out").exists()
    monkeypatch.delenv("SSH_AUTH_SOCK")
    out = build_files(pybuild, f"FROM scratch\nADD {url} /\n", tmp_path / "c", f"--ssh=default={agent.path}")
    assert (out / "Dockerfile").exists()
    assert len(agent.messages) >= 2
