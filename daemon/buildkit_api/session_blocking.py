"""A session's credentials, secrets and agents for the engine's threads: mappings and credentials that ask the client when they are asked.

Each waits for the event loop: never to be used on it. Every answer is remembered for as long as the build lasts.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from pybuild.errors import Cancelled
from pybuild.registry_client.credentials import Credential, normal_host

from .calling import ClientCall
from .messages import session_pb2
from .rpc import RpcError
from .session_services import Auth, Secrets, Ssh
from .sessions import Session

T = TypeVar("T")
_PIECE: Final = 32 << 10
_LOOK_SECONDS: Final = 0.2


def ask(
    loop: asyncio.AbstractEventLoop, question: Coroutine[Any, Any, T], *, cancel: threading.Event | None = None
) -> T:  # Any: what no coroutine here uses
    """The answer, from a thread. Raises what the question raises, and Cancelled: ``cancel`` was set."""
    answer = asyncio.run_coroutine_threadsafe(question, loop)
    while True:
        try:
            return answer.result(None if cancel is None else _LOOK_SECONDS)
        except TimeoutError:
            if answer.done():
                raise
            if cancel is not None and cancel.is_set():
                answer.cancel()
                raise Cancelled from None


class SessionCredentials:
    """The client's logins for registries: a ``registry_client`` Credentials."""

    def __init__(self, session: Session, loop: asyncio.AbstractEventLoop) -> None:
        self._auth = Auth(session)
        self._loop = loop
        self._lock = threading.Lock()
        self._known: dict[str, Credential | None] = {}

    def get(self, host: str, repository: str = "") -> Credential | None:
        """See Credentials. A client that has gone counts as one without a login: the build ends anyway."""
        host = normal_host(host)
        with self._lock:
            if host not in self._known:
                self._known[host] = self._fetch(host)
            return self._known[host]

    def _fetch(self, host: str) -> Credential | None:
        try:
            login = ask(self._loop, self._auth.credentials(host))
        except RpcError:
            return None
        if login is None:
            return None
        if not login.username:
            return Credential(identity_token=login.secret)
        return Credential(username=login.username, secret=login.secret)


class SessionSecrets(Mapping[str, bytes]):
    """The client's secrets by id. Which there are isn't known before each is asked for: iterating gives those that were."""

    def __init__(self, session: Session, loop: asyncio.AbstractEventLoop) -> None:
        self._secrets = Secrets(session)
        self._loop = loop
        self._lock = threading.Lock()
        self._known: dict[str, bytes | None] = {}

    def __getitem__(self, id: str) -> bytes:
        """Raises KeyError, RpcError."""
        with self._lock:
            if id not in self._known:
                self._known[id] = ask(self._loop, self._secrets.get(id))
            found = self._known[id]
        if found is None:
            raise KeyError(id)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter([id for id, value in self._known.items() if value is not None])

    def __len__(self) -> int:
        return sum(value is not None for value in self._known.values())

    def __bool__(self) -> bool:
        # That none has been asked for yet doesn't mean that there are none.
        return True


class SessionAgents(Mapping[str, str]):
    """The client's agents by id, each as a unix socket in ``directory`` (closed to others), made when it is first asked for: for this process and its
    children. ``close``, to be called once, ends all."""

    def __init__(self, session: Session, loop: asyncio.AbstractEventLoop, *, directory: Path) -> None:
        self._ssh = Ssh(session)
        self._loop = loop
        # A socket's path may have 108 bytes only (unix(7)), and roots can be anywhere.
        self._directory = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._known: dict[str, str | None] = {}
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()

    def __getitem__(self, id: str) -> str:
        """Raises KeyError, RpcError."""
        with self._lock:
            if id not in self._known:
                self._known[id] = ask(self._loop, self._open(id))
            found = self._known[id]
        if found is None:
            raise KeyError(id)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter([id for id, path in self._known.items() if path is not None])

    def __len__(self) -> int:
        return sum(path is not None for path in self._known.values())

    def __bool__(self) -> bool:
        # That none has been asked for yet doesn't mean that there are none.
        return True

    def close(self) -> None:
        """Stop listening, end what is connected, remove the sockets."""
        with suppress(RuntimeError):  # the loop has ended, and everything with it
            ask(self._loop, self._close())
        for path in self._known.values():
            if path is not None:
                with suppress(OSError):
                    os.unlink(path)
        os.close(self._directory)

    async def _open(self, id: str) -> str | None:
        if not await self._ssh.has(id):
            return None
        path = f"/proc/{os.getpid()}/fd/{self._directory}/agent-{len(self._servers)}"

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._connections.add(task)
            try:
                await _forward(self._ssh.connect(id), reader, writer)
            except (RpcError, ConnectionError):
                pass
            finally:
                self._connections.discard(task)
                writer.close()

        self._servers.append(await asyncio.start_unix_server(connected, path))
        # Nobody was faster, as the directory is closed; the process's mask would also be that of files that threads make meanwhile.
        os.chmod(path, 0o600)
        return path

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for task in list(self._connections):
            task.cancel()


async def _forward(
    opened: ClientCall[session_pb2.BytesMessage, session_pb2.BytesMessage],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    async with opened as call:

        async def outgoing() -> None:
            while data := await reader.read(_PIECE):
                await call.send(session_pb2.BytesMessage(data=data))
            await call.finish_sending()

        async def incoming() -> None:
            while (message := await call.receive()) is not None:
                writer.write(message.data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()

        tasks = [asyncio.ensure_future(outgoing()), asyncio.ensure_future(incoming())]
        try:
            # The agent's end is the end; ours lets it answer first.
            await tasks[1]
        finally:
            for task in tasks:
                task.cancel()
                with suppress(BaseException):
                    await task
