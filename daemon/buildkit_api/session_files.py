"""A client's directories, received into trees that are kept: fsutil's protocol (moby.filesync.v1.FileSync/DiffCopy), this side asking.

    client → us   STAT …, STAT without content       everything that the patterns select, in order; a file's id is its place in the row
    us → client   REQ id …                           what differs from the kept tree
    client → us   DATA id bytes …, DATA id           several files at a time
    both          FIN

Owns the exchange. What is compared and written is ``kept_contexts``'s.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from typing import Final
from urllib.parse import quote_plus

from pybuild.daemon.context_listing import ListedPath, listing_text
from pybuild.daemon.kept_contexts import ArrivingFile, KeptContext
from pybuild.layers.entries import Kind
from pybuild.values import dataclass

from .calling import ClientCall
from .file_modes import row_of
from .messages import files_pb2
from .rpc import Code, RpcError
from .sessions import Session

DIFF_COPY: Final = "/moby.filesync.v1.FileSync/DiffCopy"
_BATCH_BYTES: Final = 1 << 20
_BATCH_PACKETS: Final = 256
_FILES_AT_A_TIME: Final = 64
"""Clients send four."""

_Files = ClientCall[files_pb2.Packet, files_pb2.Packet]


@dataclass(frozen=True, slots=True)
class Received:
    """What a transfer brought: how many paths the client listed, how many files it sent, and their bytes."""

    paths: int
    files: int
    bytes: int


class FileSync:
    """moby.filesync.v1.FileSync."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def receive(
        self,
        name: str,
        *,
        tree: KeptContext,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        follow: Sequence[str] = (),
    ) -> Received:
        """Make ``tree`` what the client's directory ``name`` is, as far as the patterns select it. Raises RpcError, WireError, OSError."""
        self._session.require(DIFF_COPY, "files")
        metadata = [*_texts("dir-name", (name,))]
        for key, values in (("include-patterns", include), ("exclude-patterns", exclude), ("followpaths", follow)):
            metadata += _texts(key, values)
        call: _Files = self._session.channel.stream(DIFF_COPY, files_pb2.Packet, metadata=metadata)
        async with call:
            rows, numbers = await _listing(call)
            text = await asyncio.to_thread(listing_text, rows)
            needed: list[ListedPath] = []
            is_current = await asyncio.to_thread(tree.is_current, text)
            if not is_current or any(row.kind is Kind.FILE and not row.stamp for row in rows):
                needed = await asyncio.to_thread(tree.missing, rows)
            transfer = _Transfer(call, tree, {numbers[row.path]: row.path for row in needed})
            await transfer.run()
            await _part(call)
            if needed or not is_current:
                await asyncio.to_thread(tree.finish, rows)
        return Received(len(rows), len(needed), transfer.bytes)


def _texts(name: str, values: Iterable[str]) -> list[tuple[str, str]]:
    """Metadata with any text in it: quoted, with a mark, where a header can't hold it as it is."""
    texts = [value for value in values if value]
    if all(text.isascii() and text.isprintable() and text == text.strip() for text in texts):
        return [(name, text) for text in texts]
    quoted = [(name, quote_plus(os.fsencode(text))) for text in texts]
    return [*quoted, (f"{name}-encoded", "1")]


async def _packet(call: _Files) -> files_pb2.Packet:
    packet = await call.receive()
    if packet is None:
        raise RpcError(Code.INTERNAL, "the client ended sending files early")
    if packet.type == files_pb2.Packet.ERR:
        raise RpcError(
            Code.UNKNOWN, f"the client can't send its files: {packet.data.decode('utf-8', 'replace')[:2000]}"
        )
    return packet


async def _listing(call: _Files) -> tuple[list[ListedPath], dict[str, int]]:
    """The rows, and the numbers of the files that can be asked for."""
    rows: list[ListedPath] = []
    numbers: dict[str, int] = {}
    now = time.time_ns()
    number = 0
    while True:
        packet = await _packet(call)
        if packet.type != files_pb2.Packet.STAT:
            raise RpcError(Code.INTERNAL, "the client sends files before it has listed them")
        if not packet.HasField("stat"):
            return rows, numbers
        row = row_of(packet.stat, now_ns=now)
        if row is not None:
            rows.append(row)
            numbers[row.path] = number
        number += 1


async def _part(call: _Files) -> None:
    """Both sides say that they are through."""
    await call.send(files_pb2.Packet(type=files_pb2.Packet.FIN))
    while (await _packet(call)).type != files_pb2.Packet.FIN:
        pass
    await call.finish_sending()
    while await call.receive() is not None:
        pass


class _Transfer:
    """The contents of files, written by threads in batches so that a slow disk doesn't stop the daemon."""

    def __init__(self, call: _Files, tree: KeptContext, waiting: dict[int, str]) -> None:
        self._call = call
        self._tree = tree
        self._waiting = waiting
        self._open: dict[int, ArrivingFile] = {}
        self.bytes = 0

    async def run(self) -> None:
        """Ask for all of them, and write them as they come. Raises RpcError, OSError."""
        if not self._waiting:
            return
        asking = asyncio.ensure_future(self._ask(tuple(self._waiting)))
        writing: asyncio.Future[None] | None = None
        try:
            async for batch in self._batches():
                # The next batch comes in while this one is written.
                if writing is not None:
                    await writing
                writing = asyncio.ensure_future(asyncio.to_thread(self._write, batch))
            if writing is not None:
                await writing
            await asking
        finally:
            asking.cancel()
            with suppress(asyncio.CancelledError, RpcError):
                await asking
            if writing is not None:
                # A thread can't be cancelled, and the files are its own until it is through.
                await asyncio.wait([writing])
            for file in self._open.values():
                file.drop()

    async def _batches(self) -> AsyncIterator[list[tuple[int, bytes]]]:
        """The packets of all files, together where they come together."""
        unfinished = len(self._waiting)
        batch: list[tuple[int, bytes]] = []
        batched = 0
        while unfinished:
            packet = await _packet(self._call)
            if packet.type != files_pb2.Packet.DATA:
                raise RpcError(Code.INTERNAL, "the client sends something else than the files it was asked for")
            unfinished -= not packet.data
            batch.append((packet.id, packet.data))
            batched += len(packet.data)
            if not unfinished or batched >= _BATCH_BYTES or len(batch) >= _BATCH_PACKETS:
                yield batch
                batch, batched = [], 0

    async def _ask(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            await self._call.send(files_pb2.Packet(type=files_pb2.Packet.REQ, id=number))

    def _write(self, batch: Iterable[tuple[int, bytes]]) -> None:
        for number, data in batch:
            file = self._open.get(number)
            if file is None:
                path = self._waiting.pop(number, None)
                if path is None or len(self._open) >= _FILES_AT_A_TIME:
                    raise RpcError(Code.INTERNAL, "the client sends a file that it was not asked for")
                file = self._open[number] = self._tree.arriving(path)
            if data:
                file.write(data)
                self.bytes += len(data)
            else:
                self._open.pop(number).finish()
