"""Answering a registry's challenges: Basic, and Bearer with tokens per scope (distribution's token specification and its OAuth2 form).

Owns the tokens of one process, in memory. Never stores them, never logs them, and never shows a secret to another place
than the registry's own token server.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import urlencode, urlsplit

from pybuild.values import dataclass, field

from .challenges import Challenge, parse_challenges
from .credentials import Credential, Credentials
from .links import is_http
from .redaction import redact_url
from .settings import is_loopback
from .transport import BytesBody, RegistryError, Request, Response, Transport, UnexpectedStatus, origin

_TOKEN_BYTES: Final = 1 << 20
_DEFAULT_LIFETIME_SECONDS: Final = 60.0
_EARLY_SECONDS: Final = 10.0


class LoginFailed(RegistryError):
    """The token server or the registry refused the user name and the secret."""


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token. ``expires``: on the transport's monotonic clock; ``refresh``: an identity token that came with it."""

    value: str = field(repr=False)
    expires: float
    refresh: str = field(default="", repr=False)


@dataclass(slots=True)
class _Place:
    """What is known of one registry: its last challenge, its tokens by scopes, a Basic header once it asked for one."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    bearer: Challenge | None = None
    tokens: dict[frozenset[str], Token] = field(default_factory=dict, repr=False)
    refused: LoginFailed | None = None
    basic_header: str = field(default="", repr=False)


class Authenticator:
    """Gives requests their Authorization header. Thread-safe: requests that need the same token wait for one fetch."""

    def __init__(self, transport: Transport, credentials: Credentials, *, clock: Callable[[], float]) -> None:
        self._transport = transport
        self._credentials = credentials
        self._clock = clock
        self._lock = threading.Lock()
        self._places: dict[tuple[tuple[str, str, int], str], _Place] = {}

    def header(self, url: str, *, host: str, scopes: frozenset[str], repository: str = "") -> str | None:
        """The header for a request to ``url``, from what is known already: no request is made unless a known token ran out.

        ``host``: the name that the credentials are kept under.
        """
        place = self._place(url, repository)
        with place.lock:
            if place.bearer is not None:
                token = _covering(place, scopes)
                if token is not None and token.expires > self._clock():
                    return f"Bearer {token.value}"
                return f"Bearer {self._fetch(place, url, host=host, scopes=scopes, repository=repository).value}"
            return place.basic_header or None

    def answer(
        self, response: Response, *, host: str, scopes: frozenset[str], sent: str | None, repository: str = ""
    ) -> str | None:
        """A header to try after ``response``, a 401 to a request that carried ``sent``. None if there is nothing (else) to try.

        Raises LoginFailed and the transport's errors.
        """
        challenges = parse_challenges(response.headers.get("WWW-Authenticate", ""))
        bearer = next((c for c in challenges if c.scheme == "bearer" and c.parameters.get("realm")), None)
        offers_basic = any(c.scheme == "basic" for c in challenges)
        place = self._place(response.url, repository)
        with place.lock:
            if bearer is not None:
                wanted = merged_scopes(scopes | frozenset(bearer.parameters.get("scope", "").split()))
                known = _covering(place, wanted)
                if known is not None and sent != f"Bearer {known.value}" and known.expires > self._clock():
                    return f"Bearer {known.value}"  # another thread was faster
                for stale in [key for key, token in place.tokens.items() if sent == f"Bearer {token.value}"]:
                    del place.tokens[stale]
                place.bearer = bearer
                try:
                    return f"Bearer {self._fetch(place, response.url, host=host, scopes=wanted, repository=repository).value}"
                except RegistryError:
                    place.bearer = None
                    if not offers_basic:
                        raise
            if offers_basic:
                header = self._basic(host, repository)
                if header is not None and header != sent:
                    place.basic_header = header
                    return header
        return None

    def token(
        self,
        challenge: Challenge,
        url: str,
        *,
        credential: Credential | None,
        scopes: Iterable[str],
        offline: bool = False,
    ) -> Token:
        """Fetch a token as ``challenge`` says. ``offline`` also asks for an identity token (for a login). Raises LoginFailed."""
        realm = challenge.parameters["realm"]
        if not is_http(realm):
            raise RegistryError(f"the registry names a token server that is not a URL: {redact_url(realm)}")
        parts = urlsplit(realm)
        if (
            parts.scheme == "http"
            and urlsplit(url).scheme == "https"
            and not is_loopback(parts.netloc.rpartition("@")[2])
        ):
            raise RegistryError(
                f"the registry names a token server without TLS: {redact_url(realm)}",
                hint="secrets are not sent there; the registry's configuration needs an https realm",
            )
        service = challenge.parameters.get("service", "")
        ordered = sorted(scopes)
        if credential is not None and credential.registry_token:
            return Token(credential.registry_token, float("inf"))
        if credential is not None and credential.identity_token:
            response = self._oauth(realm, service, ordered, credential)
        else:
            response = self._simple(realm, service, ordered, credential, offline=offline)
        with response:
            if response.status in (400, 401, 403):
                raise LoginFailed(
                    f"{redact_url(realm)} refused {'the credentials' if credential else 'an anonymous request'}"
                    f"{_said(response.error())}",
                    hint="log in again with pybuild login" if credential else "log in with pybuild login",
                )
            if response.status != 200:
                raise response.error()
            return self._read_token(realm, response.read(_TOKEN_BYTES))

    def refused(self, url: str, repository: str = "") -> LoginFailed | None:
        """Why the credentials for ``url`` weren't used: then a refusal has this as its cause."""
        return self._place(url, repository).refused

    def _place(self, url: str, repository: str) -> _Place:
        # Entries of config.json may be per namespace, so what is known is kept per repository's namespace as well.
        key = (origin(url), repository.rpartition("/")[0])
        with self._lock:
            return self._places.setdefault(key, _Place())

    def _basic(self, host: str, repository: str) -> str | None:
        credential = self._credentials.get(host, repository)
        if credential is None or not (credential.username or credential.secret):
            return None
        pair = f"{credential.username}:{credential.secret}".encode()
        return "Basic " + base64.b64encode(pair).decode("ascii")

    def _fetch(self, place: _Place, url: str, *, host: str, scopes: frozenset[str], repository: str) -> Token:
        if place.bearer is None:
            raise RegistryError(f"{redact_url(url)} has not asked for a token")
        credential = self._credentials.get(host, repository)
        try:
            token = self.token(place.bearer, url, credential=credential, scopes=scopes)
            place.refused = None
        except LoginFailed as error:
            # Credentials that ran out shouldn't stop anybody from reading what is public.
            if credential is None or not all(scope.endswith(":pull") for scope in scopes):
                raise
            place.refused = error
            try:
                token = self.token(place.bearer, url, credential=None, scopes=scopes)
            except RegistryError:
                raise error from None
        place.tokens[scopes] = token
        return token

    def _simple(
        self, realm: str, service: str, scopes: list[str], credential: Credential | None, *, offline: bool
    ) -> Response:
        query = [("service", service)] if service else []
        query += [("scope", scope) for scope in scopes]
        headers = {}
        if credential is not None and (credential.username or credential.secret):
            if offline:
                query += [("offline_token", "true"), ("client_id", "pybuild")]
            query.append(("account", credential.username))
            pair = f"{credential.username}:{credential.secret}".encode()
            headers["Authorization"] = "Basic " + base64.b64encode(pair).decode("ascii")
        url = realm + ("&" if urlsplit(realm).query else "?") + urlencode(query) if query else realm
        return self._transport.send(Request("GET", url, headers=headers))

    def _oauth(self, realm: str, service: str, scopes: list[str], credential: Credential) -> Response:
        form = {
            "grant_type": "refresh_token",
            "service": service,
            "client_id": "pybuild",
            "scope": " ".join(scopes),
            "refresh_token": credential.identity_token,
        }
        return self._transport.send(
            Request(
                "POST",
                realm,
                headers={"Content-Type": "application/x-www-form-urlencoded"},
                body=BytesBody(urlencode({k: v for k, v in form.items() if v}).encode()),
                follow=False,  # a refresh token goes to the realm and nowhere else
            )
        )

    def _read_token(self, realm: str, data: bytes) -> Token:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise RegistryError(f"{redact_url(realm)} gave no readable token")
        text = value.get("token") or value.get("access_token")
        if not isinstance(text, str) or not text.isprintable() or not text.isascii():
            raise RegistryError(f"{redact_url(realm)} gave no token")
        lifetime = value.get("expires_in")
        seconds = float(lifetime) if isinstance(lifetime, int | float) and lifetime > 0 else _DEFAULT_LIFETIME_SECONDS
        refresh = value.get("refresh_token")
        # A token is renewed a little before its end, but one that lives for seconds only still has to be used.
        usable = seconds - _EARLY_SECONDS if seconds > 3 * _EARLY_SECONDS else seconds * 0.8
        return Token(text, self._clock() + usable, refresh if isinstance(refresh, str) else "")


def _covering(place: _Place, scopes: frozenset[str]) -> Token | None:
    exact = place.tokens.get(scopes)
    if exact is not None:
        return exact
    wanted = _actions(scopes)
    for key, token in place.tokens.items():
        have = _actions(key)
        if all(actions <= have.get(name, frozenset()) for name, actions in wanted.items()):
            return token
    return None


def merged_scopes(scopes: Iterable[str]) -> frozenset[str]:
    """The same rights with one scope per resource: ``repository:a:pull`` and ``repository:a:push`` are ``repository:a:pull,push``."""
    return frozenset(
        f"{name}:{','.join(sorted(actions))}" if name else ",".join(actions)
        for name, actions in _actions(scopes).items()
    )


def _actions(scopes: Iterable[str]) -> dict[str, frozenset[str]]:
    out: dict[str, frozenset[str]] = {}
    for scope in scopes:
        name, _, actions = scope.rpartition(":")
        out[name] = out.get(name, frozenset()) | frozenset(actions.split(","))
    return out


def _said(error: UnexpectedStatus) -> str:
    return f": {error.detail}" if error.detail else ""
