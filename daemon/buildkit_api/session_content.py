"""A client's stores of blobs, by name: layouts that a build reads, and caches that it reads and writes (containerd.services.content.v1.Content).

Verifies sizes; digests are verified by whoever keeps the bytes.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import Final

from pybuild.layers.digest import Digest

from .calling import ClientCall
from .messages import content_pb2
from .rpc import Code, RpcError
from .sessions import Session

_SERVICE: Final = "/containerd.services.content.v1.Content/"
_PIECE: Final = 1 << 20

_Write = ClientCall[content_pb2.WriteContentRequest, content_pb2.WriteContentResponse]
_Read = ClientCall[content_pb2.ReadContentRequest, content_pb2.ReadContentResponse]


class Content:
    """The store ``store``: clients name an OCI layout ``oci:<its id>``, a cache ``local:<its directory>``."""

    def __init__(self, session: Session, store: str) -> None:
        self._session = session
        self._metadata = (("buildkit-attachable-store-id", store),)

    async def size(self, digest: Digest) -> int | None:
        """The size of a blob in bytes, None if the store hasn't got it. Raises RpcError."""
        self._session.require(_SERVICE + "Info", "store of blobs")
        try:
            found = await self._session.channel.unary(
                _SERVICE + "Info",
                content_pb2.InfoRequest(digest=str(digest)),
                response=content_pb2.InfoResponse,
                metadata=self._metadata,
            )
        except RpcError as error:
            if error.code is Code.NOT_FOUND:
                return None
            raise
        return found.info.size

    async def read(self, digest: Digest, *, offset: int = 0) -> AsyncIterator[bytes]:
        """A blob's bytes from ``offset`` on. Raises RpcError."""
        self._session.require(_SERVICE + "Read", "store of blobs")
        opened: _Read = self._session.channel.stream(
            _SERVICE + "Read", content_pb2.ReadContentResponse, metadata=self._metadata
        )
        async with opened as call:
            await call.send(content_pb2.ReadContentRequest(digest=str(digest), offset=offset), end=True)
            while (message := await call.receive()) is not None:
                if message.offset != offset:
                    raise RpcError(Code.DATA_LOSS, f"the client's store skips bytes of {digest}")
                offset += len(message.data)
                yield message.data

    async def write(self, digest: Digest, size: int, *, data: AsyncIterable[bytes]) -> None:
        """Put a blob of ``size`` bytes there, unless it is there. Raises RpcError."""
        self._session.require(_SERVICE + "Write", "store of blobs")
        action = content_pb2.WriteContentRequest
        opened: _Write = self._session.channel.stream(
            _SERVICE + "Write", content_pb2.WriteContentResponse, metadata=self._metadata
        )
        reference = f"pybuild-{digest}"
        try:
            async with opened as call:
                await _answered(call, action(action=action.STAT, ref=reference, total=size, expected=str(digest)))
                offset = 0
                async for chunk in data:
                    for start in range(0, len(chunk), _PIECE):
                        piece = chunk[start : start + _PIECE]
                        request = action(action=action.WRITE, ref=reference, offset=offset, data=piece)
                        offset = (await _answered(call, request)).offset
                await _answered(
                    call,
                    action(action=action.COMMIT, ref=reference, offset=offset, total=size, expected=str(digest)),
                )
                await call.finish_sending()
        except RpcError as error:
            if error.code is not Code.ALREADY_EXISTS:
                raise


async def _answered(call: _Write, request: content_pb2.WriteContentRequest) -> content_pb2.WriteContentResponse:
    await call.send(request)
    answer = await call.receive()
    if answer is None:
        raise RpcError(Code.INTERNAL, "the client's store ended early")
    return answer
