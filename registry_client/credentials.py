"""User names and secrets per registry: Docker's ``config.json`` and the credential helpers that it names.

Owns reading, login's writing (atomic, 0600) and the helper protocol (docker-credential-helpers: ``get``, ``store``, ``erase`` with
JSON on the standard streams). Never sends a secret anywhere, never shows one, never puts one on a command line.

    {"auths": {"https://index.docker.io/v1/": {"auth": base64("user:secret")},
               "registry.example": {"identitytoken": "…"}},
     "credsStore": "secretservice",
     "credHelpers": {"registry.example": "ecr-login"}}
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from pybuild.errors import PybuildError
from pybuild.layers.references import DEFAULT_HOST
from pybuild.values import dataclass, field

from .redaction import printable

DOCKER_HUB_KEY: Final = "https://index.docker.io/v1/"
_TOKEN_USER: Final = "<token>"
_HELPER_SECONDS: Final = 120
_OTHER_PLACE: Final = "set DOCKER_CONFIG to a directory that you can use"
_HELPER_NAME = re.compile(r"[A-Za-z0-9._-]+\Z")
_HUB_NAMES: Final = frozenset({DEFAULT_HOST, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})


class CredentialError(PybuildError):
    """The configuration with the credentials can't be read or written, or a credential helper failed."""


@dataclass(frozen=True, slots=True)
class Credential:
    """What one registry gets to see. With an ``identity_token`` (OAuth2 refresh token) the secret is not used."""

    username: str = ""
    secret: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


class Credentials(Protocol):
    """Where credentials come from."""

    def get(self, host: str, repository: str = "") -> Credential | None:
        """The credential for ``host`` (a reference's host), or None. ``repository`` lets narrower entries win."""


class NoCredentials:
    """Everything is anonymous."""

    def get(self, host: str, repository: str = "") -> Credential | None:
        return None


class FixedCredentials:
    """Credentials handed in by host: a build request's, or a command line's."""

    def __init__(self, credentials: Mapping[str, Credential], *, fallback: Credentials | None = None) -> None:
        self._credentials = {normal_host(host): credential for host, credential in credentials.items()}
        self._fallback = fallback

    def get(self, host: str, repository: str = "") -> Credential | None:
        found = self._credentials.get(normal_host(host))
        if found is None and self._fallback is not None:
            return self._fallback.get(host, repository)
        return found


def normal_host(key: str) -> str:
    """The host (and path, if any) that a key of ``auths`` means: without scheme and API version; Docker Hub's names are one."""
    text = key.strip()
    if "://" in text:
        parts = urlsplit(text)
        text = parts.netloc.rpartition("@")[2] + parts.path
    text = text.strip("/")
    host, slash, path = text.partition("/")
    if path in ("v1", "v2"):
        path = slash = ""
    host = host.lower()
    if host in _HUB_NAMES:
        host = DEFAULT_HOST
    return f"{host}{slash}{path}" if path else host


def server_key(host: str) -> str:
    """The key under which docker keeps ``host``: Docker Hub's is a URL for historical reasons."""
    return DOCKER_HUB_KEY if normal_host(host) == DEFAULT_HOST else host


class DockerConfig:
    """The credentials of one ``config.json``. Thread-safe; a helper is asked once per host.

    Parameters: ``path`` of the file, which need not exist; ``environment`` for helper programs (their ``PATH`` and what they need);
    ``warn``: told once that the file, or an entry that is wanted, can't be read, which then counts as none, as docker has it; without it
    that is an error. What writes the file refuses in any case.
    """

    def __init__(self, path: str, *, environment: Mapping[str, str], warn: Callable[[str], None] | None = None) -> None:
        self._path = path
        self._warn = warn
        self._environment = dict(environment)
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._warned = False
        self._known: dict[str, Credential | None] = {}
        self.helper_failures: dict[str, str] = {}
        """What went wrong with a helper, by host: shown when the registry then refuses the anonymous request."""

    def get(self, host: str, repository: str = "") -> Credential | None:
        """The credential for ``host``. A helper that fails counts as none and is noted. Raises CredentialError (unreadable file, if nobody
        is to be warned)."""
        try:
            return self._get(normal_host(host), repository)
        except CredentialError as error:
            self._warn_of(error)
            return None

    def _warn_of(self, error: CredentialError) -> None:
        with self._lock:
            if self._warn is None:
                raise error
            if not self._warned:
                self._warned = True
                self._warn(f"Error loading config file: {error.message}")

    def _get(self, host: str, repository: str) -> Credential | None:
        config = self._read()
        helper = self._helper_for(config, host)
        if helper is None:
            return self._from_auths(config, host, repository)
        with self._lock:
            lock = self._locks.setdefault(host, threading.Lock())
        with lock:
            if host not in self._known:
                try:
                    self._known[host] = self._ask(helper, host)
                except CredentialError as error:
                    self.helper_failures[host] = error.message
                    self._known[host] = None
            found = self._known[host]
        return found if found is not None else self._from_auths(config, host, repository)

    def store(self, host: str, credential: Credential) -> str:
        """Keep a credential, in the helper if one is configured. Returns where: the helper's name or the file's path.

        Raises CredentialError.
        """
        host = normal_host(host)
        with self._updating() as config:
            helper = self._helper_for(config, host)
            key = server_key(host)
            if helper is not None:
                token = credential.identity_token
                request = {
                    "ServerURL": key,
                    "Username": _TOKEN_USER if token else credential.username,
                    "Secret": token or credential.secret,
                }
                self._run(helper, "store", json.dumps(request).encode())
                where = f"docker-credential-{helper}"
                entry: dict[str, Any] = {}  # docker leaves an empty entry as a mark that the helper has it
            else:
                where = self._path
                pair = f"{credential.username}:{'' if credential.identity_token else credential.secret}"
                entry = {"auth": base64.b64encode(pair.encode()).decode("ascii")}
                if credential.identity_token:
                    entry["identitytoken"] = credential.identity_token
            auths = config.setdefault("auths", {})
            if not isinstance(auths, dict):
                raise CredentialError(f"{self._path}: auths is not a JSON object")
            for other in [name for name in auths if normal_host(name) == host]:
                del auths[other]
            auths[key] = entry
        with self._lock:
            self._known.pop(host, None)
        return where

    def erase(self, host: str) -> bool:
        """Forget a credential. True if there was one. Raises CredentialError."""
        host = normal_host(host)
        found = False
        with self._updating() as config:
            helper = self._helper_for(config, host)
            if helper is not None:
                try:
                    found = self._ask(helper, host) is not None
                    self._run(helper, "erase", server_key(host).encode())
                except CredentialError:
                    if found:
                        raise
            auths = config.get("auths")
            if isinstance(auths, dict):
                for other in [name for name in auths if normal_host(name) == host]:
                    del auths[other]
                    found = True
        with self._lock:
            self._known.pop(host, None)
        return found

    def hosts(self) -> tuple[str, ...]:
        """The hosts that the file has an entry or a helper for: a daemon's client sends their credentials along."""
        try:
            config = self._read()
        except CredentialError as error:
            self._warn_of(error)
            return ()
        names: set[str] = set()
        for section in ("auths", "credHelpers"):
            value = config.get(section)
            if isinstance(value, dict):
                names |= {normal_host(name) for name in value}
        return tuple(sorted(names))

    # --- the file ---

    def _read(self) -> dict[str, Any]:  # Any: the JSON edge
        try:
            with open(self._path, "rb") as file:
                data = file.read(4 << 20)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise CredentialError(f"{self._path} can't be read ({error.strerror})", hint=_OTHER_PLACE) from error
        if not data.strip():
            return {}
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise CredentialError(
                f"{self._path} is not valid JSON", hint="correct it, or move it away and log in again"
            ) from error
        if not isinstance(value, dict):
            raise CredentialError(f"{self._path} is not a JSON object")
        return value

    @contextmanager
    def _updating(self) -> Iterator[dict[str, Any]]:  # Any: the JSON edge
        # Read, change, replace, under a lock on the directory, so that two logins at a time both last. A symlinked
        # file keeps being a link.
        import fcntl

        path = os.path.realpath(self._path)
        directory = os.path.dirname(path)
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise CredentialError(f"{directory} can't be used ({error.strerror})", hint=_OTHER_PLACE) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            config = self._read()
            before = json.dumps(config)
            yield config
            if json.dumps(config) != before:
                self._replace(path, config)
        finally:
            os.close(fd)

    def _replace(self, path: str, config: Mapping[str, Any]) -> None:  # Any: the JSON edge
        temporary = f"{path}.{os.getpid()}.{threading.get_ident()}"
        data = json.dumps(config, indent="\t", ensure_ascii=False).encode() + b"\n"
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                with os.fdopen(fd, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            raise CredentialError(f"{path} can't be written ({error.strerror})") from error

    def _from_auths(
        self, config: Mapping[str, Any], host: str, repository: str
    ) -> Credential | None:  # Any: the JSON edge
        auths = config.get("auths")
        if not isinstance(auths, dict):
            return None
        entries = {normal_host(name): entry for name, entry in auths.items() if isinstance(entry, dict) and entry}
        # Podman's and skopeo's files may have entries for a namespace: the longest that covers the repository wins.
        path = f"{host}/{repository}" if repository else host
        while path:
            if path in entries:
                return self._credential(entries[path], host)
            path = path.rpartition("/")[0]
        return None

    def _credential(self, entry: Mapping[str, object], host: str) -> Credential | None:
        texts = {k: v for k, v in entry.items() if isinstance(v, str)}
        username, secret = texts.get("username", ""), texts.get("password", "")
        if auth := texts.get("auth"):
            try:
                username, colon, secret = base64.b64decode(auth, validate=False).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError) as error:
                raise CredentialError(f"{self._path}: the entry of {host} is not readable") from error
            if not colon:
                raise CredentialError(f"{self._path}: the entry of {host} is not readable")
            secret = secret.rstrip("\0")
        found = Credential(username, secret, texts.get("identitytoken", ""), texts.get("registrytoken", ""))
        return found if found != Credential() else None

    # --- helpers ---

    def _helper_for(self, config: Mapping[str, Any], host: str) -> str | None:  # Any: the JSON edge
        helpers = config.get("credHelpers")
        if isinstance(helpers, dict):
            for name, helper in helpers.items():
                if normal_host(name) == host and isinstance(helper, str) and helper:
                    return self._checked(helper)
        store = config.get("credsStore")
        return self._checked(store) if isinstance(store, str) and store else None

    def _checked(self, helper: str) -> str:
        if not _HELPER_NAME.match(helper):
            raise CredentialError(f"{self._path}: {helper[:80]!r} is not the name of a credential helper")
        return helper

    def _ask(self, helper: str, host: str) -> Credential | None:
        output = self._run(helper, "get", server_key(host).encode())
        if output is None:
            return None
        try:
            value = json.loads(output)
            username, secret = value["Username"], value["Secret"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise CredentialError(f"docker-credential-{helper} gave an answer that can't be read") from error
        if not isinstance(username, str) or not isinstance(secret, str):
            raise CredentialError(f"docker-credential-{helper} gave an answer that can't be read")
        if username == _TOKEN_USER:
            return Credential(identity_token=secret)
        return Credential(username, secret) if username or secret else None

    def _run(self, helper: str, action: str, data: bytes) -> bytes | None:
        import shutil
        import subprocess

        program = f"docker-credential-{helper}"
        path = shutil.which(program, path=self._environment.get("PATH", os.defpath))
        if path is None:
            raise CredentialError(f"{program} is not installed", hint=f"install it, or remove it from {self._path}")
        try:
            done = subprocess.run(
                [path, action],
                input=data,
                capture_output=True,
                env=self._environment,
                timeout=_HELPER_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = "did not finish" if isinstance(error, subprocess.TimeoutExpired) else "can't be run"
            raise CredentialError(f"{program} {reason}") from error
        if done.returncode == 0:
            return done.stdout
        said = done.stdout if action != "store" else b""
        if b"credentials not found" in said:
            return None
        text = printable((said or (done.stderr if action != "store" else b"")).decode("utf-8", "replace"), limit=200)
        raise CredentialError(f"{program} failed{f': {text}' if text else f' with status {done.returncode}'}")
