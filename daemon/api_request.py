"""What a client says: query parameters, filters, times and credentials, as typed values. Answers nothing."""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from pybuild.layers.descriptor import Platform
from pybuild.registry_client.credentials import Credential, FixedCredentials
from pybuild.values import dataclass

from .api_errors import BadParameter
from .api_versions import OLDEST, ApiVersion

if TYPE_CHECKING:
    from aiohttp import web

_FALSE: Final = frozenset({"", "0", "no", "false", "none"})
_HEADER_LIMIT: Final = 256 << 10


class Parameters:
    """The query of a request, and the API version it was made in."""

    def __init__(self, query: Iterable[tuple[str, str]], *, version: ApiVersion) -> None:
        self.version = version
        self._values: dict[str, list[str]] = {}
        for name, value in query:
            self._values.setdefault(name, []).append(value)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str) -> str:
        """The first value, empty if there is none."""
        return self._values.get(name, [""])[0]

    def texts(self, name: str) -> tuple[str, ...]:
        """All values."""
        return tuple(self._values.get(name, ()))

    def flag(self, name: str, *, default: bool = False) -> bool:
        """True unless missing, empty, 0, no, false or none, as Docker reads booleans."""
        return self.text(name).strip().lower() not in _FALSE if name in self._values else default

    def number(self, name: str, default: int = 0) -> int:
        """A whole number. Raises BadParameter."""
        text = self.text(name).strip()
        if not text:
            return default
        try:
            return int(text)
        except ValueError:
            raise BadParameter(f"invalid value {text!r} for {name}: it is not a number") from None

    def json(self, name: str) -> Any:  # Any: the JSON edge
        """The decoded value, None if it is missing. Raises BadParameter."""
        text = self.text(name).strip()
        if not text:
            return None
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadParameter(f"error reading {name}: {error}") from None

    def string_map(self, name: str) -> dict[str, str | None]:
        """A JSON object of strings; null stands for a name without value. Raises BadParameter."""
        value = self.json(name)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(item is None or isinstance(item, str) for item in value.values()):
            raise BadParameter(f"error reading {name}: an object of strings is needed")
        return dict(value)

    def string_list(self, name: str) -> tuple[str, ...]:
        """A JSON array of strings. Raises BadParameter."""
        value = self.json(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise BadParameter(f"error reading {name}: an array of strings is needed")
        return tuple(value)

    def filters(self, allowed: Iterable[str], *, name: str = "filters") -> Filters:
        """The filters, in today's form (``{"k": ["v"]}``) or that of old clients (``{"k": {"v": true}}``). Raises BadParameter."""
        value = self.json(name)
        found: dict[str, tuple[str, ...]] = {}
        if value is not None and not isinstance(value, dict):
            raise BadParameter("invalid filter")
        known = frozenset(allowed)
        for key, given in (value or {}).items():
            if key not in known:
                raise BadParameter(f"invalid filter '{key}'")
            if isinstance(given, dict):
                given = [item for item, chosen in given.items() if chosen]
            if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
                raise BadParameter(f"invalid filter '{key}={given}'")
            found[key] = tuple(given)
        return Filters(found)

    def platform(self, name: str = "platform", *, since: ApiVersion = OLDEST) -> Platform | None:
        """A platform in JSON, None if it is missing or the client's version does not know the parameter. Raises BadParameter."""
        if self.version < since or not self.text(name):
            return None
        return platform_from(self.json(name))


@dataclass(frozen=True, slots=True)
class Filters:
    """Filters by name."""

    values: Mapping[str, tuple[str, ...]]

    def get(self, name: str) -> tuple[str, ...]:
        return self.values.get(name, ())

    def flag(self, name: str) -> bool | None:
        """A filter that is true or false; None if it is missing. Raises BadParameter."""
        given = {text.lower() for text in self.get(name)}
        if not given:
            return None
        if given <= {"1", "true"}:
            return True
        if given <= {"0", "false"}:
            return False
        raise BadParameter(f"invalid filter '{name}={sorted(given)}'")

    def one(self, name: str) -> str | None:
        """A filter that may be given once. Raises BadParameter."""
        given = self.get(name)
        if len(given) > 1:
            raise BadParameter(f"invalid filter '{name}': only one value is possible")
        return given[0] if given else None


def platform_from(value: object) -> Platform:
    """The platform that a JSON object of the OCI form says. Raises BadParameter."""
    if isinstance(value, dict) and isinstance(value.get("os"), str) and isinstance(value.get("architecture"), str):
        variant = value.get("variant", "")
        if isinstance(variant, str) and value["os"] and value["architecture"]:
            return Platform(value["os"], value["architecture"], variant)
    raise BadParameter("failed to parse platform: an object with os and architecture is needed")


def parse_time(text: str, *, now: float | None = None) -> float:
    """Seconds since the epoch: a number, RFC 3339 or shorter text, or a duration (``10m``) before now. Raises BadParameter."""
    from datetime import datetime

    from .settings import InvalidSettings, parse_duration

    try:
        return float(text)
    except ValueError:
        pass
    try:
        stamp = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        pass
    else:
        # Without a zone it means local time, as with docker.
        return stamp.timestamp()
    try:
        return (time.time() if now is None else now) - parse_duration(text)
    except InvalidSettings:
        raise BadParameter(f"failed to parse {text!r} as a time or a duration") from None


def registry_credentials(request: web.Request) -> FixedCredentials:
    """What the client sent for registries: ``X-Registry-Auth`` (one, for any host that is asked) or ``X-Registry-Config`` (by host).
    Like Docker's, a header that can't be read counts as none."""
    found: dict[str, Credential] = {}
    for host, value in _configured(request.headers.get("X-Registry-Config", "")).items():
        credential = _credential(value)
        if credential is not None:
            found[host] = credential
    return FixedCredentials(found)


class OneCredential:
    """The same credential for one registry. ``host``: the reference's."""

    def __init__(self, host: str, credential: Credential | None) -> None:
        self._host = host
        self._credential = credential

    def get(self, host: str, repository: str = "") -> Credential | None:
        """See Credentials: what a client sends for one registry goes to no other, such as a mirror."""
        return self._credential if host == self._host else None


def credential_for(request: web.Request) -> Credential | None:
    """The credential of ``X-Registry-Auth``, None without a usable one."""
    return _credential(_decoded(request.headers.get("X-Registry-Auth", "")))


def _configured(text: str) -> Mapping[str, object]:
    value = _decoded(text)
    return value if isinstance(value, dict) else {}


def _decoded(text: str) -> object:
    if not text or len(text) > _HEADER_LIMIT:
        return None
    try:
        padded = text + "=" * (-len(text) % 4)
        return json.loads(base64.b64decode(padded, altchars=b"-_" if "+" not in text and "/" not in text else None))
    except (binascii.Error, ValueError, RecursionError):
        return None


def _credential(value: object) -> Credential | None:
    if not isinstance(value, dict):
        return None
    texts = {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, str)}
    username, secret = texts.get("username", ""), texts.get("password", "")
    if not username and texts.get("auth"):
        try:
            username, _, secret = base64.b64decode(texts["auth"]).decode().partition(":")
        except (binascii.Error, ValueError):
            return None
    identity, registry = texts.get("identitytoken", ""), texts.get("registrytoken", "")
    if not (username or identity or registry):
        return None
    return Credential(username, secret, identity, registry)
