"""gRPC's notions, independent of the connection: status codes, errors, metadata, and services as handlers by path. Moves no bytes.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md and doc/statuscodes.md.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Iterable, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pybuild.errors import PybuildError
from pybuild.values import dataclass

if TYPE_CHECKING:
    from google.protobuf.message import Message

    Q = TypeVar("Q", bound=Message)
    R = TypeVar("R", bound=Message)
    Q_co = TypeVar("Q_co", bound=Message, covariant=True)
    R_contra = TypeVar("R_contra", bound=Message, contravariant=True)
else:  # nothing here needs protobuf when it runs
    Q, R = TypeVar("Q"), TypeVar("R")
    Q_co, R_contra = TypeVar("Q_co", covariant=True), TypeVar("R_contra", contravariant=True)


class Code(IntEnum):
    """How a call ended."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class Detail:
    """A typed part of an error: a message's type URL (google.protobuf.Any) and its bytes."""

    type_url: str
    value: bytes


class RpcError(PybuildError):
    """A call failed with a status: ours, to be sent, or the peer's, received."""

    def __init__(self, code: Code, message: str, *, details: Iterable[Detail] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.details = tuple(details)


class Metadata:
    """What goes with a call: names in lower case, each with any number of values. Immutable."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._pairs = tuple((name.lower(), value) for name, value in pairs)

    def __iter__(self) -> Any:  # Any: an iterator of pairs
        return iter(self._pairs)

    def first(self, name: str, default: str = "") -> str:
        """The first value of ``name``."""
        return next((value for key, value in self._pairs if key == name), default)

    def all(self, name: str) -> tuple[str, ...]:
        """Every value of ``name``."""
        return tuple(value for key, value in self._pairs if key == name)

    def binary(self, name: str) -> bytes:
        """The first value of a name that ends in ``-bin``; empty if it is missing or can't be decoded."""
        text = self.first(name)
        try:
            return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError):
            return b""


class ServerCall(Protocol[Q_co, R_contra]):
    """One call of a service of ours, seen by its handler. ``path``: ``/package.Service/Method``."""

    path: str
    metadata: Metadata

    async def receive(self) -> Q_co | None:
        """The next message; None when the caller has sent its last. Raises RpcError if it can't be understood or is too large."""

    async def send(self, message: R_contra, /) -> None:
        """Send a message, waiting while the caller doesn't read."""


Unary = Callable[[Q, ServerCall[Q, R]], Awaitable[R]]
ServerStream = Callable[[Q, ServerCall[Q, R]], Awaitable[None]]
Stream = Callable[[ServerCall[Q, R]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Method:
    """One method: the type of its requests, and ``handler``, which gets the call and receives and sends by itself."""

    request: Any  # Any: a class of messages
    handler: Callable[[Any], Awaitable[None]]


class Services:
    """Handlers by path.

    A handler is a coroutine function. It is cancelled when the caller cancels the call or its connection ends. What it raises becomes the status: an
    RpcError its own, another PybuildError UNKNOWN with its message (as BuildKit's own errors are), anything else INTERNAL.
    """

    def __init__(self) -> None:
        self._methods: dict[str, Method] = {}

    @property
    def methods(self) -> Mapping[str, Method]:
        return self._methods

    def unary(self, path: str, request: type[Q], handler: Unary[Q, R]) -> None:
        """One request, one response: ``handler(request, call)`` returns the response."""

        async def run(call: ServerCall[Q, R]) -> None:
            await call.send(await handler(await only(call), call))

        self.stream(path, request, run)

    def server_stream(self, path: str, request: type[Q], handler: ServerStream[Q, R]) -> None:
        """One request, any number of responses: ``handler(request, call)`` sends them."""

        async def run(call: ServerCall[Q, R]) -> None:
            await handler(await only(call), call)

        self.stream(path, request, run)

    def stream(self, path: str, request: type[Q], handler: Stream[Q, R]) -> None:
        """Any number of both: ``handler(call)`` receives and sends."""
        self._methods[path] = Method(request, handler)


async def only(call: ServerCall[Q, R]) -> Q:
    """The single request of a call. Raises RpcError if there is none."""
    request = await call.receive()
    if request is None:
        raise RpcError(Code.INVALID_ARGUMENT, "the call has no request")
    return request
