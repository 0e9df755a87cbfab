"""Servers on loopback for the conformance tests: files over HTTP, directories over HTTP (which is how git's dumb protocol works).

Serves what it is given and remembers what it was asked for; decides nothing.
"""

from __future__ import annotations

import functools
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Quiet(SimpleHTTPRequestHandler):
    """Serves a directory without a word."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def running(handler: object) -> Iterator[str]:
    """A server with this handler; the value is its URL without a slash at the end."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)  # type: ignore[arg-type]  # a partial makes handlers as well
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serve_directory(directory: Path) -> Iterator[str]:
    """Serve a directory."""
    with running(functools.partial(Quiet, directory=str(directory))) as url:
        yield url


@contextmanager
def serve_files(files: dict[str, tuple[bytes, dict[str, str]]]) -> Iterator[str]:
    """Serve path → (body, headers)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path not in files:
                self.send_error(404)
                return
            body, headers = files[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with running(Handler) as url:
        yield url


def git(directory: Path, *arguments: str, time: int = 1600000000) -> str:
    """Run git in a directory, with fixed names and times; gives what it printed."""
    finished = subprocess.run(
        ["git", "-c", "protocol.file.allow=always", "-c", "init.defaultBranch=master", *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        env={
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "A",
            "GIT_AUTHOR_EMAIL": "a@example.com",
            "GIT_COMMITTER_NAME": "C",
            "GIT_COMMITTER_EMAIL": "c@example.com",
            "GIT_AUTHOR_DATE": f"{time} +0000",
            "GIT_COMMITTER_DATE": f"{time} +0000",
        },
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()
