"""The daemon's configuration: flags and the ``[daemon]`` table as one typed value. Listens to nothing.

Every flag has its key. Both may be given if they say the same; otherwise it is an error, as with dockerd: a file that is silently
overruled misleads whoever reads it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pybuild.errors import PybuildError, UsageError
from pybuild.values import dataclass

LOG_LEVELS: Final = ("debug", "info", "warn", "error")
LOG_FORMATS: Final = ("text", "json")
_MODE: Final = re.compile(r"0?[0-7]{3}\Z")

# flag → (type, whether it may be repeated)
KEYS: Final[Mapping[str, type]] = {
    "host": list,
    "group": str,
    "mode": str,
    "tls": bool,
    "tlsverify": bool,
    "tlscacert": str,
    "tlscert": str,
    "tlskey": str,
    "allow-unauthenticated-tcp": bool,
    "log-level": str,
    "log-format": str,
    "pidfile": str,
    "shutdown-timeout": int,
    "data-root": str,
}
"""The keys of ``[daemon]``, named like the flags (``host`` may also be written ``hosts``, as dockerd has it)."""


class ConflictingSettings(PybuildError):
    """A flag and the configuration file say different things."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(
            f"the following directives are specified both as a flag and in the configuration file: {', '.join(names)}",
            hint="remove one of the two",
        )
        self.names = tuple(names)


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """How the daemon runs. ``hosts``: addresses to listen on; ``mode``: of unix sockets; ``group``: their group, None for the first of
    ``pybuild`` and ``docker`` that exists; ``data_root``: the store's directory, None for the global one; ``shutdown_seconds``: how long running work may
    take to end."""

    hosts: tuple[str, ...]
    group: str | None = None
    mode: int = 0o660
    tls: bool | None = None
    tls_verify: bool | None = None
    tls_ca: str = ""
    tls_certificate: str = ""
    tls_key: str = ""
    allow_unauthenticated_tcp: bool = False
    log_level: str = "info"
    log_format: str = "text"
    pid_file: str = ""
    shutdown_seconds: int = 15
    data_root: str | None = None


def merge(
    flags: Mapping[str, Any], table: Mapping[str, Any], *, default_host: str
) -> DaemonOptions:  # Any: TOML and flags
    """Options from given ``flags`` (by name, None where not given) and the ``[daemon]`` table. Raises ConflictingSettings, UsageError."""
    file = {("host" if key == "hosts" else key): value for key, value in table.items()}
    if unknown := sorted(set(file) - set(KEYS)):
        raise UsageError(
            f"the configuration file has unknown keys in [daemon]: {', '.join(unknown)}",
            hint=f"the keys are {', '.join(KEYS)}",
        )
    values: dict[str, Any] = {}
    conflicts: list[str] = []
    for key, kind in KEYS.items():
        flag = flags.get(key)
        configured = _checked(key, file[key], kind) if key in file else None
        if flag is not None and configured is not None and flag != configured:
            conflicts.append(f"{key}: (from flag: {_shown(flag)}, from file: {_shown(configured)})")
        values[key] = configured if flag is None else flag
    if conflicts:
        raise ConflictingSettings(conflicts)
    return _options(values, default_host)


def _checked(key: str, value: object, kind: type) -> object:
    if kind is list and isinstance(value, str):
        value = [value]
    if kind is int and isinstance(value, bool):
        value = None
    if kind is list and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    if kind is not list and isinstance(value, kind):
        return value
    raise UsageError(f"the configuration file's daemon.{key} has a value of the wrong type")


def _options(values: Mapping[str, Any], default_host: str) -> DaemonOptions:  # Any: checked values
    level, form = values["log-level"] or "info", values["log-format"] or "text"
    if level not in LOG_LEVELS:
        raise UsageError(f"unknown log level {level!r}", hint=f"use one of {', '.join(LOG_LEVELS)}")
    if form not in LOG_FORMATS:
        raise UsageError(f"unknown log format {form!r}", hint=f"use one of {', '.join(LOG_FORMATS)}")
    mode = values["mode"] or "660"
    if not _MODE.match(mode):
        raise UsageError(f"invalid socket mode {mode!r}", hint="write three octal digits, such as 660")
    timeout = values["shutdown-timeout"]
    if timeout is not None and timeout < 0:
        raise UsageError("the shutdown timeout can't be negative")
    options = DaemonOptions(
        hosts=tuple(dict.fromkeys(normal_address(text) for text in values["host"] or [default_host])),
        group=values["group"],
        mode=int(mode, 8),
        tls=values["tls"],
        tls_verify=values["tlsverify"],
        tls_ca=values["tlscacert"] or "",
        tls_certificate=values["tlscert"] or "",
        tls_key=values["tlskey"] or "",
        allow_unauthenticated_tcp=bool(values["allow-unauthenticated-tcp"]),
        log_level=level,
        log_format=form,
        pid_file=values["pidfile"] or "",
        shutdown_seconds=15 if timeout is None else timeout,
        data_root=values["data-root"] or None,
    )
    _check_tls(options)
    return options


def normal_address(text: str) -> str:
    """An address in full: ``unix://PATH``, ``tcp://HOST:PORT`` or ``fd://[NAME]``. Raises UsageError."""
    scheme, separator, rest = text.partition("://")
    if not separator and text.startswith("/"):
        return f"unix://{text}"
    if scheme == "unix" and rest.startswith("/"):
        return text
    if scheme == "tcp":
        host, _, port = rest.rstrip("/").rpartition(":")
        if port.isascii() and port.isdigit() and 0 <= int(port) < 65536:
            return f"tcp://{host or '127.0.0.1'}:{port}"
    if scheme == "fd":
        return f"fd://{rest.rstrip('*')}"
    raise UsageError(f"invalid address {text!r}", hint="use unix:///PATH, tcp://HOST:PORT or fd://")


def _check_tls(options: DaemonOptions) -> None:
    """Whoever can talk to the daemon is as good as root on its machine: over TCP only clients with a certificate may, unless that is asked
    for twice."""
    for name, path in (
        ("tlscacert", options.tls_ca),
        ("tlscert", options.tls_certificate),
        ("tlskey", options.tls_key),
    ):
        if path and not Path(path).is_file():
            raise UsageError(f"--{name}: {path} is not a file")
    if bool(options.tls_certificate) != bool(options.tls_key):
        raise UsageError("--tlscert and --tlskey need each other")
    if mutual_tls(options) and not (options.tls_ca and options.tls_certificate):
        raise UsageError("--tlsverify needs --tlscacert, --tlscert and --tlskey")
    if server_tls(options) and not options.tls_certificate:
        raise UsageError("--tls needs --tlscert and --tlskey")
    if not any(host.startswith("tcp://") for host in options.hosts):
        return
    if not mutual_tls(options) and not (
        options.allow_unauthenticated_tcp and (options.tls is not None or options.tls_verify is False)
    ):
        raise UsageError(
            "refusing to listen on TCP without verifying clients: everybody who can connect would be root on this machine",
            hint="give --tlscacert, --tlscert and --tlskey; to do it nevertheless, give both --tls=false and --allow-unauthenticated-tcp",
        )


def server_tls(options: DaemonOptions) -> bool:
    """Whether TCP sockets speak TLS."""
    return mutual_tls(options) or bool(options.tls) or (options.tls is None and bool(options.tls_certificate))


def mutual_tls(options: DaemonOptions) -> bool:
    """Whether clients need a certificate: with a CA, unless it was switched off."""
    if options.tls_verify is not None:
        return options.tls_verify
    return bool(options.tls_ca) and options.tls is not False


def _shown(value: object) -> str:
    return (
        ", ".join(map(str, value))
        if isinstance(value, list)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )
