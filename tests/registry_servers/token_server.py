"""A token server for docker-registry (distribution's token specification), and for FaultRegistry, on a loopback port.

Users, what each may do, lifetimes and refresh tokens are settable; every request is remembered.
"""

from __future__ import annotations

import base64
import json
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from registry_servers.private_ca import PrivateCa


@dataclass
class TokenRequest:
    """What a client asked for. ``user`` is None for an anonymous request."""

    method: str
    user: str | None
    scopes: tuple[str, ...]
    fields: dict[str, str]


@dataclass
class Rights:
    """Users with their secrets; ``public``: actions that everybody may do; refresh tokens by value."""

    users: dict[str, str] = field(default_factory=dict)
    public: tuple[str, ...] = ("pull",)
    refresh: dict[str, str] = field(default_factory=dict)


class TokenServer:
    """The server. ``realm`` is its URL; ``lifetime_seconds`` of its tokens; ``requests`` what was asked."""

    def __init__(
        self,
        rights: Rights,
        *,
        ca: PrivateCa | None = None,
        service: str = "tests",
        issuer: str = "tests-issuer",
        lifetime_seconds: int = 300,
        make_token: Callable[[], str] | None = None,
    ) -> None:
        self.rights = rights
        self.service, self.issuer = service, issuer
        self.lifetime_seconds = lifetime_seconds
        self.requests: list[TokenRequest] = []
        self.refuse_post = False
        self._ca = ca
        self._make_token = make_token
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                return None

            def do_GET(self) -> None:
                fields = parse_qs(urlsplit(self.path).query)
                self._answer(*server._basic(self.headers.get("Authorization")), fields)

            def do_POST(self) -> None:
                fields = parse_qs(self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode())
                if server.refuse_post:
                    self._send(404, {})
                    return
                user = server.rights.refresh.get(fields.get("refresh_token", [""])[0])
                self._answer(user is not None, user, fields)

            def _answer(self, ok: bool, user: str | None, fields: dict[str, list[str]]) -> None:
                scopes = tuple(part for text in fields.get("scope", []) for part in text.split())
                with server._lock:
                    server.requests.append(
                        TokenRequest(self.command, user, scopes, {k: v[-1] for k, v in fields.items()})
                    )
                if not ok:
                    self._send(401, {"errors": [{"code": "UNAUTHORIZED", "message": "wrong user name or password"}]})
                    return
                value: dict[str, Any] = {"token": server.token(user, scopes), "expires_in": server.lifetime_seconds}
                if fields.get("offline_token") == ["true"] and user is not None:
                    value["refresh_token"] = uuid.uuid4().hex
                    server.rights.refresh[value["refresh_token"]] = user
                self._send(200, value)

            def _send(self, status: int, value: object) -> None:
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.realm = f"http://127.0.0.1:{self._http.server_address[1]}/token"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> TokenServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def settings(self, directory: Path) -> dict[str, str]:
        """The ``token`` section of docker-registry's configuration."""
        assert self._ca is not None
        return {
            "realm": self.realm,
            "service": self.service,
            "issuer": self.issuer,
            "rootcertbundle": str(self._ca.ca),
        }

    def token(self, user: str | None, scopes: tuple[str, ...]) -> str:
        """A token with what ``user`` may do of ``scopes``."""
        if self._make_token is not None:
            return self._make_token()
        assert self._ca is not None
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            allowed = [a for a in actions.split(",") if user is not None or a in self.rights.public]
            if allowed:
                access.append({"type": kind, "name": name, "actions": allowed})
        now = int(time.time())
        chain = [
            base64.b64encode(base64.b64decode("".join(self._ca.server.read_text().split("-----")[2].split()))).decode()
        ]
        header = {"typ": "JWT", "alg": "RS256", "x5c": chain}
        claims = {
            "iss": self.issuer,
            "sub": user or "",
            "aud": self.service,
            "exp": now + self.lifetime_seconds,
            "nbf": now - 10,
            "iat": now,
            "jti": uuid.uuid4().hex,
            "access": access,
        }
        signed = f"{_encoded(json.dumps(header).encode())}.{_encoded(json.dumps(claims).encode())}"
        done = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", str(self._ca.server_key)],
            input=signed.encode(),
            capture_output=True,
            check=True,
        )
        return f"{signed}.{_encoded(done.stdout)}"

    def _basic(self, header: str | None) -> tuple[bool, str | None]:
        if header is None:
            return True, None
        user, _, secret = base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")
        return self.rights.users.get(user) == secret, user


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
