"""The sessions that clients have open, by id. A session is a connection whose client answers calls: files, secrets, credentials, agents.

Owns registering, waiting for one that a build names, and its end. What can be called is the business of ``session_*.py``.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from .calling import Channel
from .http2 import Http2Connection
from .messages import health_pb2
from .rpc import Code, Metadata, RpcError

ID: Final = "x-docker-expose-session-uuid"
NAME: Final = "x-docker-expose-session-name"
SHARED_KEY: Final = "x-docker-expose-session-sharedkey"
METHOD: Final = "x-docker-expose-session-grpc-method"
_HEALTH: Final = "/grpc.health.v1.Health/Check"
_WAIT_SECONDS: Final = 5.0
_CHECK_SECONDS: Final = 5.0
_AGAIN_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 15.0
_FAILURES: Final = 2
"""BuildKit checks its clients at these intervals; a client that has stopped serving may wait for us to end its connection (docker's own does)."""

_LONGEST_ID: Final = 256


class Session:
    """One open session. ``shared_key``: the same for builds of the same directory by the same client, or empty; ``ended`` is set when it is gone."""

    def __init__(self, connection: Http2Connection, headers: Metadata) -> None:
        self.id = headers.first(ID)
        self.name = headers.first(NAME)
        self.shared_key = headers.first(SHARED_KEY)
        self.channel = Channel(connection)
        self.ended = connection.closed
        self._methods = frozenset(method.lower() for method in headers.all(METHOD))

    def offers(self, path: str) -> bool:
        """Whether the client said that it answers calls of ``path``."""
        return path.lower() in self._methods

    def require(self, path: str, what: str) -> None:
        """Raises RpcError if the client doesn't answer calls of ``path``: ``what`` it would be for."""
        if not self.offers(path):
            raise RpcError(Code.UNIMPLEMENTED, f"the client offers no {what} (it has no {path.strip('/')})")


class Sessions:
    """All sessions of a daemon."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._changed = asyncio.Event()
        self._watching: set[asyncio.Future[None]] = set()

    def check(self, headers: Metadata) -> None:
        """Raises RpcError if no session can be begun with these headers."""
        identifier = headers.first(ID)
        if not identifier or len(identifier) > _LONGEST_ID:
            raise RpcError(Code.INVALID_ARGUMENT, "a session needs an id")
        found = self._sessions.get(identifier)
        if found is not None and not found.ended.is_set():
            raise RpcError(Code.ALREADY_EXISTS, f"session {identifier} already exists")

    def begin(self, headers: Metadata) -> Session:
        """Register a session on a new connection, which is its ``channel.connection`` and yet to be connected. Raises RpcError."""
        self.check(headers)
        session = Session(Http2Connection(), headers)
        self._sessions[session.id] = session
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        watching = asyncio.ensure_future(self._watch(session))
        self._watching.add(watching)
        watching.add_done_callback(self._watching.discard)
        return session

    async def _watch(self, session: Session) -> None:
        """End a session whose client doesn't serve it any more."""
        failures = 0
        while failures < _FAILURES:
            with suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN_SECONDS if failures else _CHECK_SECONDS):
                    await session.ended.wait()
                return
            failures = 0 if await _is_served(session) else failures + 1
        self.end(session)

    def end(self, session: Session) -> None:
        """Forget a session, ending its connection if that is still open."""
        session.channel.connection.close()
        if self._sessions.get(session.id) is session:
            del self._sessions[session.id]

    async def get(self, identifier: str, *, wait_seconds: float = _WAIT_SECONDS) -> Session:
        """The session, waiting for it: clients open it beside the request that names it. Raises RpcError."""
        # Some clients put a namespace in front.
        identifier = identifier.partition(":")[2] or identifier
        try:
            async with asyncio.timeout(wait_seconds):
                while True:
                    found = self._sessions.get(identifier)
                    if found is not None and not found.ended.is_set():
                        return found
                    await self._changed.wait()
        except TimeoutError as error:
            raise RpcError(Code.NOT_FOUND, f"no active session for {identifier[:_LONGEST_ID]}") from error

    def close(self) -> None:
        """End all."""
        for session in list(self._sessions.values()):
            self.end(session)


async def _is_served(session: Session) -> bool:
    try:
        await session.channel.unary(
            _HEALTH,
            health_pb2.HealthCheckRequest(),
            response=health_pb2.HealthCheckResponse,
            timeout_seconds=_ANSWER_SECONDS,
        )
    except RpcError as error:
        # Any other answer is one.
        return error.code is Code.UNIMPLEMENTED
    return True
