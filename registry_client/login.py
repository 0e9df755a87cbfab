"""Logging in: find out whether a registry accepts a user name and a secret, and what is to be kept for the next time.

Never stores anything: ``credentials.DockerConfig`` does.
"""

from __future__ import annotations

import base64

from .auth import LoginFailed
from .challenges import parse_challenges
from .client import RegistryClient
from .credentials import Credential
from .endpoints import Place
from .transport import Request, Response


def login(client: RegistryClient, host: str, credential: Credential) -> Credential:
    """Check ``credential`` at ``host`` and return what to keep: an identity token instead of the secret where the registry gives one.

    A registry that asks for nothing accepts everything, as with docker. Raises LoginFailed, RegistryError.
    """
    endpoint = client.endpoint(Place(host))
    with endpoint.probe() as response:
        if response.status == 200:
            return credential
        if response.status != 401:
            raise response.error()
        url = response.url
        challenges = parse_challenges(response.headers.get("WWW-Authenticate", ""))
    for challenge in challenges:
        if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
            token = client.auth.token(challenge, url, credential=credential, scopes=(), offline=True)
            _check(client, url, f"Bearer {token.value}", host)
            if token.refresh and not credential.identity_token:
                return Credential(credential.username, identity_token=token.refresh)
            return credential
    if any(challenge.scheme == "basic" for challenge in challenges):
        pair = f"{credential.username}:{credential.secret}".encode()
        _check(client, url, "Basic " + base64.b64encode(pair).decode("ascii"), host)
        return credential
    raise LoginFailed(f"{host} asks for a kind of authentication that is not supported")


def _check(client: RegistryClient, url: str, header: str, host: str) -> None:
    with client.transport.send(Request("GET", url, headers={"Authorization": header})) as response:
        if response.status == 200:
            return
        if response.status in (401, 403):
            raise LoginFailed(f"{host} refused the user name or the password{_said(response)}")
        raise response.error()


def _said(response: Response) -> str:
    detail = response.error().detail
    return f": {detail}" if detail else ""
