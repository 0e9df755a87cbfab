"""Both ends of a gRPC connection in one process, over a socket pair; and the services that a client's session has, over real files."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pybuild.daemon.buildkit_api.calling import Channel
from pybuild.daemon.buildkit_api.http2 import Http2Connection
from pybuild.daemon.buildkit_api.messages import files_pb2, session_pb2
from pybuild.daemon.buildkit_api.rpc import Code, Metadata, RpcError, Services
from pybuild.daemon.buildkit_api.serving import Server
from pybuild.daemon.buildkit_api.session_exports import _walk
from pybuild.daemon.buildkit_api.session_files import FileSync, Received
from pybuild.daemon.buildkit_api.sessions import ID, METHOD, SHARED_KEY, Session, Sessions
from pybuild.daemon.kept_contexts import kept_context


@asynccontextmanager
async def connected(services: Services) -> AsyncIterator[Channel]:
    """A channel to a server of ``services``."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    server = Server(services)
    await loop.create_connection(server.connection, sock=theirs)
    connection = Http2Connection()
    await loop.create_connection(lambda: connection, sock=ours)
    try:
        yield Channel(connection)
    finally:
        connection.close()
        server.close()
        await asyncio.sleep(0)


@asynccontextmanager
async def session_with(services: Services, *, shared_key: str = "key") -> AsyncIterator[Session]:
    """An open session whose client offers all of ``services``."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    server = Server(services)
    await loop.create_connection(server.connection, sock=theirs)
    sessions = Sessions()
    headers = [(ID, "s1"), (SHARED_KEY, shared_key), *((METHOD, path) for path in services.methods)]
    session = sessions.begin(Metadata(headers))
    await loop.create_connection(lambda: session.channel.connection, sock=ours)
    try:
        yield session
    finally:
        sessions.close()
        server.close()
        await asyncio.sleep(0)


class Directories:
    """FileSync of directories, as fsutil's sender does it. ``asked``: what was asked for, ``metadata``: with which it was called last."""

    def __init__(self, directories: Mapping[str, Path]) -> None:
        self._directories = directories
        self.asked: list[str] = []
        self.metadata = Metadata()

    def register(self, services: Services) -> None:
        services.stream("/moby.filesync.v1.FileSync/DiffCopy", files_pb2.Packet, self._send)

    async def _send(self, call: Any) -> None:
        self.metadata = call.metadata
        packet = files_pb2.Packet
        root = self._directories.get(call.metadata.first("dir-name"))
        if root is None:
            raise RpcError(Code.NOT_FOUND, "no access allowed to dir")
        listed = []
        for path, described in _walk(os.fsencode(root)):
            described.uid = described.gid = 0
            listed.append((path, described.path))
            await call.send(packet(type=packet.STAT, stat=described))
        await call.send(packet(type=packet.STAT))
        while (asked := await call.receive()) is not None:
            if asked.type == packet.FIN:
                await call.send(packet(type=packet.FIN))
                return
            path, name = listed[asked.id]
            self.asked.append(os.fsdecode(name))
            data = Path(os.fsdecode(path)).read_bytes()
            for start in range(0, len(data), 32768):
                await call.send(packet(type=packet.DATA, id=asked.id, data=data[start : start + 32768]))
            await call.send(packet(type=packet.DATA, id=asked.id))


class Results:
    """FileSend: archives are kept in ``archives`` with their metadata; with ``directory``, fsutil's receiver writes there what it gets."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self.archives: list[tuple[Metadata, bytes]] = []

    def register(self, services: Services) -> None:
        path = "/moby.filesync.v1.FileSend/DiffCopy"
        if self._directory is None:
            services.stream(path, session_pb2.BytesMessage, self._archive)
        else:
            services.stream(path, files_pb2.Packet, self._receive)

    async def _archive(self, call: Any) -> None:
        data = b""
        while (message := await call.receive()) is not None:
            data += message.data
        self.archives.append((call.metadata, data))

    async def _receive(self, call: Any) -> None:
        packet = files_pb2.Packet
        assert self._directory is not None
        stats = []
        while (got := await call.receive()).HasField("stat"):
            stats.append(got.stat)
        wanted = {}
        for number, each in enumerate(stats):
            place = self._directory / os.fsdecode(each.path)
            if each.mode & 1 << 31:
                place.mkdir()
            elif each.mode & 1 << 27:
                place.symlink_to(os.fsdecode(each.linkname))
            elif each.linkname:
                wanted[number] = None
            else:
                wanted[number] = place
                await call.send(packet(type=packet.REQ, id=number))
        left = sum(place is not None for place in wanted.values())
        while left:
            got = await call.receive()
            place = wanted[got.id]
            assert place is not None
            with place.open("ab") as out:
                out.write(got.data)
            left -= not got.data
        for number, place in wanted.items():
            if place is None:
                target = self._directory / os.fsdecode(stats[number].linkname)
                (self._directory / os.fsdecode(stats[number].path)).hardlink_to(target)
        await call.send(packet(type=packet.FIN))
        assert (await call.receive()).type == packet.FIN


@asynccontextmanager
async def received(
    session: Session, name: str, *, remotes: Path, **patterns: Any
) -> AsyncIterator[tuple[Path, Received]]:
    """The client's directory ``name`` as a tree of ours."""
    with kept_context(remotes, client=session.shared_key, place=name) as tree:
        brought = await FileSync(session).receive(name, tree=tree, **patterns)
        yield tree.root, brought
