"""The SSH agents of a build: sockets that RUN --mount=type=ssh forwards to, for keys from files or for the agent of the person who builds.

Speaks the agent protocol (draft-ietf-sshm-ssh-agent) as far as a step needs it: lists keys and signs. Whatever would change an agent is
refused, also when another agent stands behind: a build step must not add, remove or lock anybody's keys. Stores nothing.
"""

from __future__ import annotations

import os
import socket
import socketserver
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final, Protocol

from pybuild.builder.request import SshSource
from pybuild.errors import PybuildError

from .ssh_keys import PrivateKey, parse_private_key, string

_FAILURE, _REQUEST_IDENTITIES, _IDENTITIES, _SIGN_REQUEST, _SIGNATURE = 5, 11, 12, 13, 14
_LONGEST_MESSAGE: Final = 256 << 10
_LONGEST_KEY_FILE: Final = 100 << 10


class AgentUnusable(PybuildError):
    """What ``--ssh`` names is neither an agent's socket nor a private key."""


class _Answers(Protocol):
    """Answers one request of the agent protocol; both without the length before them."""

    def __call__(self, message: bytes) -> bytes: ...


class KeyRing:
    """Answers from keys."""

    def __init__(self, keys: Sequence[tuple[PrivateKey, str]]) -> None:
        self._keys = {key.public: (key, comment) for key, comment in keys}

    def __call__(self, message: bytes) -> bytes:
        kind = message[0]
        if kind == _REQUEST_IDENTITIES:
            listed = b"".join(string(blob) + string(os.fsencode(name)) for blob, (_, name) in self._keys.items())
            return bytes([_IDENTITIES]) + len(self._keys).to_bytes(4, "big") + listed
        if kind == _SIGN_REQUEST:
            blob, rest = _string(message[1:])
            data, rest = _string(rest)
            if blob in self._keys:
                signature = self._keys[blob][0].sign(data, flags=int.from_bytes(rest[:4], "big"))
                return bytes([_SIGNATURE]) + string(signature)
        return bytes([_FAILURE])


class Upstream:
    """Answers from another agent's socket, one connection for each of ours."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._connection: socket.socket | None = None

    def __call__(self, message: bytes) -> bytes:
        if message[0] not in (_REQUEST_IDENTITIES, _SIGN_REQUEST):
            return bytes([_FAILURE])
        try:
            if self._connection is None:
                self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._connection.connect(self._path)
            self._connection.sendall(string(message))
            return _message(self._connection) or bytes([_FAILURE])
        except OSError:
            self.close()
            return bytes([_FAILURE])

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@contextmanager
def serve_agents(sources: Sequence[SshSource], directory: str) -> Iterator[Mapping[str, str]]:
    """Sockets by id, made in the empty ``directory``, until the context ends; for this process and its children. Raises AgentUnusable,
    InvalidKey."""
    opened = {source.id: _opened(source) for source in sources}
    with ExitStack() as held:
        sockets: dict[str, str] = {}
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        held.callback(os.close, descriptor)
        for number, (id, source) in enumerate(opened.items()):
            if isinstance(source, str):
                sockets[id] = source
                continue
            # Reached by its directory's descriptor: the path of a socket has little room (unix(7), 108 bytes).
            path = f"/proc/{os.getpid()}/fd/{descriptor}/{number}"
            server = held.enter_context(_Server(path, source))
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
            thread.start()
            held.callback(server.shutdown)
            sockets[id] = path
        yield sockets


def _opened(source: SshSource) -> str | list[str] | KeyRing:
    """What stands behind a source: a socket as it is (raw), an agent's socket in a list, or keys."""
    keys: list[tuple[PrivateKey, str]] = []
    found = ""
    for path in source.paths:
        try:
            status = os.stat(path)
            if stat.S_ISSOCK(status.st_mode):
                if found or keys:
                    raise AgentUnusable(
                        f"--ssh {source.id}: " + ("only single socket allowed" if found else _MIXED),
                        hint="one socket, or any number of private keys",
                    )
                found = path
                continue
            with open(path, "rb") as file:
                data = file.read(_LONGEST_KEY_FILE)
        except OSError as error:
            raise AgentUnusable(f"--ssh {source.id}: can't read {path}: {error.strerror}") from error
        if found:
            raise AgentUnusable(f"--ssh {source.id}: {_MIXED}", hint="one socket, or any number of private keys")
        keys.append((parse_private_key(data, name=path), ""))
    if source.raw and not found:
        raise AgentUnusable(f"--ssh {source.id}: raw mode only supported with socket paths")
    if not found:
        return KeyRing(keys)
    return found if source.raw else [found]


_MIXED: Final = "invalid combination of keys and sockets"


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, path: str, source: list[str] | KeyRing) -> None:
        self.source = source
        super().__init__(path, _Connection)


class _Connection(socketserver.BaseRequestHandler):
    request: socket.socket
    server: _Server

    def handle(self) -> None:
        source = self.server.source
        with ExitStack() as held:
            answers: _Answers
            if isinstance(source, KeyRing):
                answers = source
            else:
                answers = Upstream(source[0])
                held.callback(answers.close)
            try:
                while message := _message(self.request):
                    try:
                        answer = answers(message)
                    except (ValueError, IndexError):
                        answer = bytes([_FAILURE])
                    self.request.sendall(string(answer))
            except OSError:
                return


def _message(connection: socket.socket) -> bytes:
    """The next message, b"" at the end or for one that is too long."""
    size = int.from_bytes(_exactly(connection, 4), "big")
    return _exactly(connection, size) if size <= _LONGEST_MESSAGE else b""


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        data = connection.recv(min(size, 1 << 16))
        if not data:
            return b""
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def _string(data: bytes) -> tuple[bytes, bytes]:
    size = int.from_bytes(data[:4], "big")
    if len(data) < 4 + size:
        raise ValueError("a field ends early")
    return data[4 : 4 + size], data[4 + size :]
