"""Calls of a client's small services: credentials, secrets, agents, uploads. Each class is a client of one service of a session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from pybuild.registry_client.credentials import DOCKER_HUB_KEY, normal_host
from pybuild.values import dataclass, field

from .calling import ClientCall
from .messages import session_pb2
from .rpc import Code, RpcError
from .sessions import Session

_CREDENTIALS: Final = "/moby.filesync.v1.Auth/Credentials"
_SECRET: Final = "/moby.buildkit.secrets.v1.Secrets/GetSecret"
_SSH: Final = "/moby.sshforward.v1.SSH/"
_PULL: Final = "/moby.upload.v1.Upload/Pull"
_SECONDS: Final = 60.0
"""For questions that a client answers from memory, a file, or a credential helper."""


@dataclass(frozen=True, slots=True)
class Login:
    """A user name and secret for a registry; a user name that is empty makes the secret an identity token."""

    username: str
    secret: str = field(repr=False)


class Auth:
    """moby.filesync.v1.Auth: its logins; clients that give tokens give these, too."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def credentials(self, host: str) -> Login | None:
        """The client's login for a registry, None if it has none. Raises RpcError."""
        if not self._session.offers(_CREDENTIALS):
            return None
        request = session_pb2.CredentialsRequest(host=_asked_host(host))
        try:
            found = await self._session.channel.unary(
                _CREDENTIALS, request, response=session_pb2.CredentialsResponse, timeout_seconds=_SECONDS
            )
        except RpcError as error:
            if error.code in (Code.UNIMPLEMENTED, Code.NOT_FOUND):
                return None
            raise
        return Login(found.username, found.secret) if found.secret else None


def _asked_host(host: str) -> str:
    """Clients know Docker Hub by the host that answers its API."""
    return "registry-1.docker.io" if normal_host(host) == normal_host(DOCKER_HUB_KEY) else host


class Secrets:
    """moby.buildkit.secrets.v1.Secrets."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def get(self, id: str) -> bytes | None:
        """The value of a secret, None if the client has none of that name. Raises RpcError."""
        if not self._session.offers(_SECRET):
            return None
        try:
            found = await self._session.channel.unary(
                _SECRET,
                session_pb2.GetSecretRequest(id=id),
                response=session_pb2.GetSecretResponse,
                timeout_seconds=_SECONDS,
            )
        except RpcError as error:
            if error.code in (Code.UNIMPLEMENTED, Code.NOT_FOUND):
                return None
            raise
        return found.data


class Ssh:
    """moby.sshforward.v1.SSH: forwarded agents and sockets by id."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def has(self, id: str) -> bool:
        """Whether the client forwards an agent of that name. Raises RpcError."""
        if not self._session.offers(_SSH + "CheckAgent"):
            return False
        try:
            await self._session.channel.unary(
                _SSH + "CheckAgent",
                session_pb2.CheckAgentRequest(id=id),
                response=session_pb2.CheckAgentResponse,
                timeout_seconds=_SECONDS,
            )
        except RpcError as error:
            if error.code in (Code.UNAVAILABLE, Code.CANCELLED, Code.DEADLINE_EXCEEDED):
                raise
            return False
        return True

    def connect(self, id: str) -> ClientCall[session_pb2.BytesMessage, session_pb2.BytesMessage]:
        """A connection to the agent, as a call whose messages are its bytes. Raises RpcError."""
        return self._session.channel.stream(
            _SSH + "ForwardAgent", session_pb2.BytesMessage, metadata=[("buildkit.ssh.id", id)]
        )


class Upload:
    """moby.upload.v1.Upload: what a client has on its standard input, under a URL that it made up for it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def pull(self, host: str, path: str) -> AsyncIterator[bytes]:
        """The bytes of ``http://{host}{path}``. Raises RpcError."""
        self._session.require(_PULL, "upload")
        call: ClientCall[session_pb2.BytesMessage, session_pb2.BytesMessage] = self._session.channel.stream(
            _PULL, session_pb2.BytesMessage, metadata=[("urlpath", path), ("urlhost", host)]
        )
        async with call:
            while (message := await call.receive()) is not None:
                yield message.data
