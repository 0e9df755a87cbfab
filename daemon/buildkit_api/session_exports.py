"""Results that go to the client: one stream of bytes (an archive), or a directory by fsutil's protocol (moby.filesync.v1.FileSend/DiffCopy).

Owns the exchange. What is in an archive or a directory is the exporters' business.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from .calling import ClientCall
from .file_modes import stat_of
from .messages import files_pb2, session_pb2
from .rpc import Code, RpcError
from .sessions import Session

DIFF_COPY: Final = "/moby.filesync.v1.FileSend/DiffCopy"
_STREAM_PIECE: Final = 256 << 10
_FILE_PIECE: Final = 32 << 10
"""What fsutil's own sender sends at a time."""

_Bytes = ClientCall[session_pb2.BytesMessage, session_pb2.BytesMessage]
_Files = ClientCall[files_pb2.Packet, files_pb2.Packet]


class ByteSink:
    """Where the bytes of one archive go."""

    def __init__(self, call: _Bytes) -> None:
        self._call = call

    async def write(self, data: bytes) -> None:
        """Send bytes, waiting while the client doesn't take them. Raises RpcError."""
        for start in range(0, len(data), _STREAM_PIECE):
            await self._call.send(session_pb2.BytesMessage(data=data[start : start + _STREAM_PIECE]))


class FileSend:
    """moby.filesync.v1.FileSend. ``exporter``: which of the build's outputs it is for, counting from 0."""

    def __init__(self, session: Session, *, exporter: int = 0) -> None:
        self._session = session
        self._exporter = ("buildkit-attachable-exporter-id", str(exporter))

    @asynccontextmanager
    async def archive(self, attributes: Mapping[str, str]) -> AsyncIterator[ByteSink]:
        """One file for the client, complete when the context ends without an error. ``attributes``: what it is told of it (image names and the like).
        Raises RpcError; ALREADY_EXISTS: the client has one already."""
        self._session.require(DIFF_COPY, "place for results")
        metadata = [self._exporter, *((f"exporter-md-{name.lower()}", value) for name, value in attributes.items())]
        call: _Bytes = self._session.channel.stream(DIFF_COPY, session_pb2.BytesMessage, metadata=metadata)
        async with call:
            yield ByteSink(call)
            await call.finish_sending()
            # The client answers when it has written everything.
            while await call.receive() is not None:
                pass

    async def directory(self, root: Path) -> None:
        """All that is below ``root``, into the client's directory. Raises RpcError, OSError."""
        self._session.require(DIFF_COPY, "place for results")
        metadata = [self._exporter, ("buildkit-exporter-multi-platform", "1")]
        call: _Files = self._session.channel.stream(DIFF_COPY, files_pb2.Packet, metadata=metadata)
        async with call:
            await _Sender(call, root).run()


class _Sender:
    """One directory's way to the client: the list goes out while the client asks already."""

    def __init__(self, call: _Files, root: Path) -> None:
        self._call = call
        self._root = root
        self._paths: dict[int, bytes] = {}
        self._wanted: asyncio.Queue[int | None] = asyncio.Queue()

    async def run(self) -> None:
        """Send the list and what is asked for, to the end. Raises RpcError, OSError."""
        tasks = [asyncio.ensure_future(work) for work in (self._list(), self._send_wanted(), self._listen())]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
                with suppress(BaseException):
                    await task
        await self._call.finish_sending()
        while await self._call.receive() is not None:
            pass

    async def _list(self) -> None:
        walk = _walk(os.fsencode(self._root))
        number = 0
        while batch := await asyncio.to_thread(_up_to, walk, 256):
            for path, described in batch:
                if described.mode & ~0o7777 == 0 or not described.linkname:
                    self._paths[number] = path
                number += 1
                await self._call.send(files_pb2.Packet(type=files_pb2.Packet.STAT, stat=described))
        await self._call.send(files_pb2.Packet(type=files_pb2.Packet.STAT))

    async def _listen(self) -> None:
        while True:
            packet = await self._call.receive()
            if packet is None:
                raise RpcError(Code.INTERNAL, "the client ended taking files early")
            match packet.type:
                case files_pb2.Packet.REQ:
                    self._wanted.put_nowait(packet.id)
                case files_pb2.Packet.FIN:
                    self._wanted.put_nowait(None)
                    return
                case files_pb2.Packet.ERR:
                    reason = packet.data.decode("utf-8", "replace")[:2000]
                    raise RpcError(Code.UNKNOWN, f"the client can't take the files: {reason}")
                case _:
                    raise RpcError(Code.INTERNAL, "the client sends something else than questions for files")

    async def _send_wanted(self) -> None:
        while (number := await self._wanted.get()) is not None:
            path = self._paths.pop(number, None)
            if path is None:
                raise RpcError(Code.INTERNAL, "the client asks for a file that there isn't")
            await self._send_file(number, path)
        await self._call.send(files_pb2.Packet(type=files_pb2.Packet.FIN))

    async def _send_file(self, number: int, path: bytes) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            while data := await asyncio.to_thread(os.read, descriptor, _STREAM_PIECE):
                for start in range(0, len(data), _FILE_PIECE):
                    piece = data[start : start + _FILE_PIECE]
                    await self._call.send(files_pb2.Packet(type=files_pb2.Packet.DATA, id=number, data=piece))
        finally:
            os.close(descriptor)
        await self._call.send(files_pb2.Packet(type=files_pb2.Packet.DATA, id=number))


def _up_to(walk: Iterator[tuple[bytes, files_pb2.Stat]], count: int) -> list[tuple[bytes, files_pb2.Stat]]:
    return [found for _, found in zip(range(count), walk, strict=False)]


def _walk(root: bytes) -> Iterator[tuple[bytes, files_pb2.Stat]]:
    """Host path and description of all below ``root``: names in order, a directory before what it holds."""
    first_of: dict[tuple[int, int], bytes] = {}
    pending = [b""]
    while pending:
        relative = pending.pop()
        path = os.path.join(root, relative)
        status = os.lstat(path)
        if relative:
            link = b""
            if stat.S_ISLNK(status.st_mode):
                link = os.readlink(path)
            elif stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                earlier = first_of.setdefault((status.st_dev, status.st_ino), relative)
                link = b"" if earlier == relative else earlier
            described = stat_of(relative, status, link=link)
            if described is None:
                continue
            yield path, described
        if stat.S_ISDIR(status.st_mode):
            pending += [os.path.join(relative, name) for name in sorted(os.listdir(path), reverse=True)]
