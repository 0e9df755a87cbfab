"""What an instruction changes in the image's configuration: pure functions from one configuration to the next.

Owns ENV, LABEL, CMD, ENTRYPOINT, SHELL, USER, VOLUME, EXPOSE, STOPSIGNAL, HEALTHCHECK, MAINTAINER and the final platform.
Expects expanded text; makes no history and no vertex.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from typing import Final

from pybuild.layers.descriptor import Platform
from pybuild.layers.image import DEFAULT_PATH, HealthCheck, ImageConfig
from pybuild.parser.ast import Command, ExecForm, Healthcheck, ShellForm
from pybuild.parser.values import parse_port
from pybuild.values import pattern, replace

from .platforms import normalize_platform, same_machine

_SHELL: Final = ("/bin/sh", "-c")
_WINDOWS_SHELL: Final = ("cmd", "/S", "/C")
_SYSTEM_DRIVE: Final = pattern(r"[cC]:")


def scratch_config(platform: Platform) -> ImageConfig:
    """What ``FROM scratch`` starts with."""
    config = ImageConfig.empty(platform)
    return config.with_(env=()) if platform.os == "windows" else config


def with_default_path(config: ImageConfig) -> ImageConfig:
    """``config`` with a PATH, if its ``Env`` has none; Windows has its own."""
    if config.platform.os == "windows" or any(item.partition("=")[0] == "PATH" for item in config.env):
        return config
    return config.with_(env=(*config.env, f"PATH={DEFAULT_PATH}"))


def set_env(config: ImageConfig, pairs: Iterable[tuple[str, str]]) -> ImageConfig:
    """ENV: each name replaced where it stands, or added at the end."""
    env = list(config.env)
    for name, value in pairs:
        prefix = f"{name}="
        place = next((index for index, item in enumerate(env) if item.startswith(prefix) or item == name), len(env))
        env[place : place + 1] = [f"{name}={value}"]
    return config.with_(env=tuple(env))


def set_labels(config: ImageConfig, labels: Mapping[str, str]) -> ImageConfig:
    """LABEL and ``--label``."""
    return config.with_(labels={**config.labels, **labels}) if labels else config


def set_command(config: ImageConfig, args: tuple[str, ...]) -> ImageConfig:
    """CMD. An empty list unsets it, as it does in the JSON that Docker writes."""
    return config.with_(cmd=args or None, args_escaped=True)


def set_entrypoint(config: ImageConfig, args: tuple[str, ...], *, keep_command: bool) -> ImageConfig:
    """ENTRYPOINT; a CMD that this stage didn't set itself is dropped."""
    return config.with_(entrypoint=args or None, cmd=config.cmd if keep_command else None)


def set_healthcheck(config: ImageConfig, check: HealthCheck) -> ImageConfig:
    """HEALTHCHECK. Zero values stay zero: the runtime reads them as its defaults."""
    return config.with_(healthcheck=check)


def healthcheck_of(instruction: Healthcheck) -> HealthCheck:
    """The configuration's form of the instruction."""
    match instruction.command:
        case None:
            test: tuple[str, ...] = ("NONE",)
        case ExecForm(args):
            test = ("CMD", *args)
        case ShellForm(text):
            test = ("CMD-SHELL", text)
    return HealthCheck(
        test=test,
        interval_ns=instruction.interval_ns,
        timeout_ns=instruction.timeout_ns,
        start_period_ns=instruction.start_period_ns,
        start_interval_ns=instruction.start_interval_ns,
        retries=instruction.retries,
    )


def add_volumes(config: ImageConfig, paths: Iterable[str]) -> ImageConfig:
    """VOLUME."""
    return config.with_(volumes=tuple(sorted({*config.volumes, *paths})))


def exposed_ports(specifications: Iterable[str]) -> tuple[str, ...]:
    """EXPOSE's words as the configuration's keys: ``80/tcp`` for each port, in order. Raises ValueProblem."""
    return tuple(port for text in specifications for port in parse_port(text).ports)


def add_ports(config: ImageConfig, ports: Iterable[str]) -> ImageConfig:
    """EXPOSE."""
    return config.with_(exposed_ports=tuple(sorted({*config.exposed_ports, *ports})))


def shell_of(config: ImageConfig) -> tuple[str, ...]:
    """The stage's shell."""
    return config.shell or (_WINDOWS_SHELL if config.platform.os == "windows" else _SHELL)


def command_args(command: Command, config: ImageConfig) -> tuple[str, ...]:
    """CMD's and ENTRYPOINT's arguments: as written, or the text given to the shell."""
    match command:
        case ExecForm(args):
            return args
        case ShellForm(text):
            return (*shell_of(config), text)


def resolve_directory(current: str, path: str, *, windows: bool = False) -> str:
    """WORKDIR's value: an absolute ``path`` as written, a relative one joined to ``current`` (and then cleaned). On Windows always
    cleaned, without the drive, with backslashes."""
    if windows:
        return resolve_directory(to_slashes(current), to_slashes(path)).replace("/", "\\")
    if path.startswith("/"):
        return path
    parent = current if current.startswith("/") else f"/{current}"
    return clean_path(f"{parent}/{path}") if path else parent


def to_slashes(path: str) -> str:
    """A Windows path with slashes, cleaned, without the system drive's letter; a trailing slash is kept."""
    path = (
        _SYSTEM_DRIVE.sub("", path.replace("\\", "/"), count=1)
        if _SYSTEM_DRIVE.match(path)
        else path.replace("\\", "/")
    )
    if not path:
        return path
    cleaned = posixpath.normpath(path)
    return cleaned + "/" if path.endswith("/") and cleaned != "/" else cleaned


def clean_path(path: str) -> str:
    """``path`` made absolute, without ``.``, ``..``, double or trailing slashes."""
    return "/" + posixpath.normpath(f"/{path}").lstrip("/")


def resolve_destination(working_dir: str, path: str) -> str:
    """A COPY's destination: absolute and clean; its trailing slash (or ``/.``) is kept as ``/``, "" is the working directory."""
    directory = path in {"", "."} or path.endswith(("/", "/."))
    cleaned = clean_path(path if path.startswith("/") else f"{working_dir or '/'}/{path}")
    return cleaned + "/" if directory and cleaned != "/" else cleaned


def base_config(config: ImageConfig) -> ImageConfig:
    """What a child starts from: without the layers, the times and whatever only the base's builder knew."""
    return config.with_(diff_ids=(), history=(), created=None, extra={}, extra_config={})


def with_platform(config: ImageConfig, target: Platform, *, explicit: bool) -> ImageConfig:
    """The final platform: the base's own, or the requested one where the client named it (``explicit``)."""
    own = config.platform
    if explicit:
        same = same_machine(target, own)
        own = replace(
            own,
            os=target.os,
            architecture=target.architecture,
            variant=target.variant if target.variant or not same else own.variant,
            os_version=target.os_version if target.os_version or not same else own.os_version,
            os_features=target.os_features or own.os_features,
        )
    return config.with_(platform=normalize_platform(own))
