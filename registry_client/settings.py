"""What the configuration says about registries and the network, as values.

Owns reading the ``[registry."HOST"]`` tables and proxy variables that are handed in as mappings, and the rules that follow
from them: scheme, mirrors, certificates, proxy of a URL. Never reads a configuration file or the environment itself.

    [registry."docker.io"]
    mirrors = ["mirror.example:5000", "https://cache.example/proxy.docker.io"]
    [registry."mirror.example:5000"]
    http = true                      # plain HTTP
    insecure = false                 # accept any certificate
    ca = ["/etc/ssl/corp.pem"]
    tlsconfigdir = ["/etc/certs"]    # *.crt, and *.cert with *.key
    [[registry."mirror.example:5000".keypair]]
    key = "/etc/ssl/client.key"
    cert = "/etc/ssl/client.pem"
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from pybuild.errors import PybuildError
from pybuild.layers.references import DEFAULT_HOST
from pybuild.values import dataclass, field

_API_HOSTS: Final = {DEFAULT_HOST: "registry-1.docker.io"}


class InvalidSettings(PybuildError):
    """A registry's table in the configuration has a value of the wrong type."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A client certificate and its key, as paths of PEM files."""

    cert: str
    key: str


@dataclass(frozen=True, slots=True)
class HostSettings:
    """The table of one host. ``http`` and ``insecure`` are None when the table doesn't say."""

    mirrors: tuple[str, ...] = ()
    http: bool | None = None
    insecure: bool | None = None
    ca: tuple[str, ...] = ()
    keypairs: tuple[KeyPair, ...] = ()
    certificate_directories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """All tables by host, Docker's ``certs.d`` directories, and the keys that nobody knows (reported once by the command line)."""

    hosts: Mapping[str, HostSettings] = field(default_factory=dict)
    certs_d: tuple[str, ...] = ()
    unknown_keys: tuple[str, ...] = ()

    @classmethod
    def from_tables(cls, tables: Mapping[str, object], *, certs_d: tuple[str, ...] = ()) -> RegistrySettings:
        """Read the value of the configuration's ``registry`` key. Raises InvalidSettings; unknown keys are collected, not refused."""
        hosts: dict[str, HostSettings] = {}
        unknown: list[str] = []
        for host, table in tables.items():
            where = f'registry."{host}"'
            if not isinstance(table, Mapping):
                raise InvalidSettings(f"{where} in the configuration is not a table")
            hosts[_host_key(host)] = _host_settings(table, where=where, unknown=unknown)
        return cls(hosts, certs_d, tuple(unknown))

    def host(self, host: str) -> HostSettings:
        """What is configured for ``host`` (with its port), defaults if nothing is."""
        return self.hosts.get(_host_key(host)) or self.hosts.get(api_host(host)) or HostSettings()

    def schemes(self, host: str) -> tuple[str, ...]:
        """The schemes to try in order. Loopback registries speak plain HTTP unless something asks for TLS."""
        settings = self.host(host)
        if settings.http is not None:
            return ("http",) if settings.http else ("https",)
        if is_loopback(host):
            wants_tls = bool(settings.ca or settings.keypairs or settings.certificate_directories)
            return ("https", "http") if wants_tls else ("http", "https")
        return ("https", "http") if settings.insecure else ("https",)


def api_host(host: str) -> str:
    """The host that answers the API for a reference's host: docker.io's is another one."""
    return _API_HOSTS.get(host, host)


def is_loopback(host: str) -> bool:
    """True if ``host`` (a port allowed) is this machine by name or address."""
    name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _host_key(host: str) -> str:
    host = host.lower()
    return DEFAULT_HOST if host in ("index.docker.io", "registry-1.docker.io") else host


def _texts(value: object, where: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise InvalidSettings(f"{where} in the configuration is not a list of strings")
    return tuple(value)


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidSettings(f"{where} in the configuration is neither true nor false")
    return value


def _host_settings(table: Mapping[str, object], *, where: str, unknown: list[str]) -> HostSettings:
    mirrors: tuple[str, ...] = ()
    http: bool | None = None
    insecure: bool | None = None
    ca: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    keypairs: list[KeyPair] = []
    for key, value in table.items():
        match key:
            case "mirrors":
                mirrors = _texts(value, f"{where}.mirrors")
            case "http":
                http = _flag(value, f"{where}.http")
            case "insecure":
                insecure = _flag(value, f"{where}.insecure")
            case "ca":
                ca = _texts(value, f"{where}.ca")
            case "tlsconfigdir":
                directories = _texts(value, f"{where}.tlsconfigdir")
            case "keypair":
                pairs = value if isinstance(value, list) else [value]
                for pair in pairs:
                    cert, secret = (pair.get("cert"), pair.get("key")) if isinstance(pair, Mapping) else (None, None)
                    if not isinstance(cert, str) or not isinstance(secret, str):
                        raise InvalidSettings(f"{where}.keypair in the configuration needs a cert and a key")
                    keypairs.append(KeyPair(cert, secret))
            case _:
                unknown.append(f"{where}.{key}")
    return HostSettings(mirrors, http, insecure, ca, tuple(keypairs), directories)


@dataclass(frozen=True, slots=True)
class Proxies:
    """Proxy URLs per scheme and the hosts that are reached without one (curl's and Go's conventions)."""

    http: str = ""
    https: str = ""
    bypass: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Proxies:
        """Read ``HTTP_PROXY``, ``HTTPS_PROXY`` and ``NO_PROXY``, the lower-case names winning as in curl.

        In a CGI ``HTTP_PROXY`` would be a request header that anybody can send, so it is ignored where ``REQUEST_METHOD`` is set.
        """
        http = environment.get("http_proxy") or ""
        if not http and "REQUEST_METHOD" not in environment:
            http = environment.get("HTTP_PROXY") or ""
        https = environment.get("https_proxy") or environment.get("HTTPS_PROXY") or ""
        bypass = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
        return cls(http, https, tuple(item for item in (part.strip() for part in bypass.split(",")) if item))

    def for_url(self, url: str) -> str | None:
        """The proxy's URL for ``url``, or None. Loopback hosts never use one."""
        parts = urlsplit(url)
        proxy = self.https if parts.scheme == "https" else self.http
        host = (parts.hostname or "").rstrip(".")
        if not proxy or not host or is_loopback(parts.netloc.rpartition("@")[2]):
            return None
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if any(_bypasses(rule, host, port) for rule in self.bypass):
            return None
        return proxy if "://" in proxy else f"http://{proxy}"


def _bypasses(rule: str, host: str, port: int) -> bool:
    if rule == "*":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if "/" in rule:
        try:
            return address is not None and address in ipaddress.ip_network(rule, strict=False)
        except ValueError:
            return False
    if address is not None:
        try:
            return address == ipaddress.ip_address(rule.strip("[]"))
        except ValueError:
            pass  # perhaps an address with a port
    name, colon, rule_port = rule.rpartition(":")
    if colon and rule_port.isdecimal():
        if int(rule_port) != port:
            return False
        rule = name.strip("[]")
    rule = rule.lower().removeprefix("*")
    if rule.startswith("."):
        return host.endswith(rule)
    return host == rule or host.endswith(f".{rule}")


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """How the network is used. Times in seconds.

    ``stall_timeout_seconds``: how long a connection may be without any progress; there is no limit for a whole transfer.
    ``answer_timeout_seconds``: the same while a registry stores what was uploaded. ``attempts`` per request, within
    ``retry_budget_seconds`` of waiting; ``parallel`` transfers at a time. ``offline`` refuses every request.
    """

    user_agent: str = "pybuild"
    connect_timeout_seconds: float = 15.0
    stall_timeout_seconds: float = 30.0
    answer_timeout_seconds: float = 300.0
    attempts: int = 5
    retry_budget_seconds: float = 120.0
    parallel: int = 6
    proxies: Proxies = field(default_factory=Proxies)
    offline: bool = False
