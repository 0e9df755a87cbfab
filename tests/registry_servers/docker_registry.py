"""Debian's docker-registry on a loopback port of its own, in the configurations that the tests need.

A module for tests to import; starts one process and ends just that one.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAM = shutil.which("docker-registry")


@dataclass(frozen=True)
class RunningRegistry:
    """``host`` as in references (127.0.0.1:PORT); ``storage`` on disk; ``log`` its access log."""

    host: str
    port: int
    storage: Path
    log: Path

    def requests(self) -> list[str]:
        """The access log's lines: one per answered request."""
        return [
            line for line in self.log.read_text(errors="replace").splitlines() if '"' in line and " HTTP/1." in line
        ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def docker_registry(
    directory: Path,
    *,
    htpasswd: tuple[str, str] | None = None,
    token: dict[str, str] | None = None,
    tls: tuple[Path, Path] | None = None,
    client_ca: Path | None = None,
    mirror_of: str | None = None,
    storage: Path | None = None,
    port: int | None = None,
) -> Iterator[RunningRegistry]:
    """Run a registry whose state is below ``directory``.

    ``htpasswd``: (user, secret) for basic authentication; ``token``: realm, service, issuer, rootcertbundle; ``tls``: (certificate,
    key); ``client_ca``: require client certificates of it; ``mirror_of``: the URL of the registry to pull through from.
    """
    if PROGRAM is None:
        raise RuntimeError("docker-registry is not installed")
    directory.mkdir(parents=True, exist_ok=True)
    storage = storage or directory / "storage"
    port = port or free_port()
    http: dict[str, object] = {"addr": f"127.0.0.1:{port}", "secret": "tests"}
    if tls is not None:
        http["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
        if client_ca is not None:
            http["tls"]["clientcas"] = [str(client_ca)]  # type: ignore[index]
    config: dict[str, object] = {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": False}},
        "storage": {
            "filesystem": {"rootdirectory": str(storage)},
            "delete": {"enabled": True},
            "cache": {"blobdescriptor": "inmemory"},
        },
        "http": http,
    }
    if htpasswd is not None:
        file = directory / "htpasswd"
        subprocess.run(["htpasswd", "-Bbc", str(file), *htpasswd], check=True, capture_output=True)
        config["auth"] = {"htpasswd": {"realm": "tests", "path": str(file)}}
    if token is not None:
        config["auth"] = {"token": token}
    if mirror_of is not None:
        config["proxy"] = {"remoteurl": mirror_of}
    path = directory / "config.yml"
    path.write_text(json.dumps(config))  # JSON is YAML
    log = directory / "registry.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [PROGRAM, "serve", str(path)],
            stdout=output,
            stderr=output,
            env={"PATH": os.environ.get("PATH", ""), "OTEL_TRACES_EXPORTER": "none"},
        )
        try:
            _wait(process, port, log)
            yield RunningRegistry(f"127.0.0.1:{port}", port, storage, log)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            probe.settimeout(0.5)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError(f"docker-registry did not start:\n{log.read_text(errors='replace')[-2000:]}")
