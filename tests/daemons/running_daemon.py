"""A daemon in a process of its own, and clients of it. A module for tests to import; ends only processes that it started."""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

DOCKER = shutil.which("docker")


@dataclass
class Answer:
    """An HTTP answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def messages(self) -> list[dict[str, Any]]:
        """The messages of a stream."""
        return [json.loads(line) for line in self.body.splitlines() if line.strip()]

    def text(self) -> str:
        """What a build printed."""
        return "".join(message.get("stream", "") for message in self.messages())


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, *, timeout: float = 60) -> None:
        super().__init__("daemon", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclass
class RunningDaemon:
    """A daemon that listens on ``socket``."""

    root: Path
    socket: Path
    directory: Path
    options: Sequence[str] = ()
    config: Path | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    program: Sequence[str] = ("-m", "pybuild")

    @property
    def address(self) -> str:
        return f"unix://{self.socket}"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def command(self) -> list[str]:
        config = ["--config", str(self.config)] if self.config else []
        host = [] if "--host" in self.options else ["--host", self.address]
        return [sys.executable, *self.program, "--root", str(self.root), *config, "daemon", *host, *self.options]

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={**os.environ, **self.variables}
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                pytest.fail(f"the daemon ended with {self.process.returncode}\n{self.log}")
            try:
                if self.request("GET", "/_ping").status == 200:
                    return
            except (OSError, http.client.HTTPException):
                time.sleep(0.05)
        pytest.fail(f"the daemon does not answer\n{self.log}")

    def stop(self) -> int:
        """Ask it to end; its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(40)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        query: Mapping[str, Any] | Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request on a connection of its own."""
        connection = UnixConnection(self.socket)
        try:
            pairs = query.items() if isinstance(query, Mapping) else query
            encoded = urlencode([(key, value if isinstance(value, str) else json.dumps(value)) for key, value in pairs])
            connection.request(method, f"{path}?{encoded}" if encoded else path, body, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), response.read())
        finally:
            connection.close()

    def build(self, files: Mapping[str, bytes | str], **query: Any) -> Answer:
        """``POST /build`` with a context of ``files``."""
        return self.request("POST", "/build", context_tar(files), query=query)

    def docker(
        self, *arguments: str, stdin: bytes | None = None, check: bool = True, env: Mapping[str, str] | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run the docker CLI against this daemon."""
        assert DOCKER is not None
        finished = subprocess.run(
            [DOCKER, *arguments],
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            env={**os.environ, **self.client_variables, "DOCKER_BUILDKIT": "0", **(env or {})},
        )
        result = subprocess.CompletedProcess(
            finished.args, finished.returncode, finished.stdout.decode(errors="replace"), finished.stderr.decode(errors="replace")
        )  # fmt: skip
        if check and result.returncode != 0:
            pytest.fail(f"docker {' '.join(arguments)}\n{result.stdout}\n{result.stderr}\n{self.log[-2000:]}")
        return result

    @property
    def client_variables(self) -> dict[str, str]:
        config = self.directory / "docker-config"
        config.mkdir(exist_ok=True)
        return {"DOCKER_HOST": self.address, "DOCKER_CONFIG": str(config)}

    def resident_bytes(self) -> int:
        with open(f"/proc/{self.pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


@contextmanager
def running_daemon(
    directory: Path,
    root: Path,
    *options: str,
    config: str | None = None,
    variables: Mapping[str, str] | None = None,
    program: Sequence[str] = ("-m", "pybuild"),
) -> Iterator[RunningDaemon]:
    """A daemon on ``root`` for as long as the context lasts. ``config``: the configuration file's text; ``program``: what Python runs."""
    directory.mkdir(parents=True, exist_ok=True)
    file = None
    if config is not None:
        file = directory / "pybuild.toml"
        file.write_text(config)
    daemon = RunningDaemon(root, directory / "s.sock", directory, options, file, variables or {}, program=program)
    daemon.start()
    try:
        yield daemon
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.process.terminate()
            try:
                daemon.process.wait(20)
            except subprocess.TimeoutExpired:
                daemon.process.kill()
                daemon.process.wait(10)


def context_tar(files: Mapping[str, bytes | str]) -> bytes:
    """A tar of ``files``."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def require_docker() -> None:
    if DOCKER is None:
        pytest.skip("the docker CLI is not installed")
