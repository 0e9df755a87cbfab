"""What a command gets from its surroundings: global options, environment variables, terminals, the configuration file.

The only module that reads ``os.environ``. Everything below receives values.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pybuild.errors import UsageError
from pybuild.values import dataclass

if TYPE_CHECKING:
    from pybuild.daemon.client import RemoteEngine
    from pybuild.daemon.engine import Engine
    from pybuild.daemon.registries import Registries
    from pybuild.daemon.settings import Settings


@dataclass(frozen=True, slots=True)
class Environment:
    """The surroundings of one command. ``root``: the state directory; ``host``: a daemon's address or None."""

    root: Path
    config_file: Path | None
    host: str | None
    debug: bool
    log_level: str
    variables: Mapping[str, str]

    @classmethod
    def from_process(cls, options: Mapping[str, str]) -> Environment:
        """From the process's environment and the global options. Raises UsageError."""
        variables = dict(os.environ)
        root = options.get("root") or variables.get("PYBUILD_ROOT") or ""
        log_level = options.get("log_level", "info")
        if log_level not in ("debug", "info", "warn", "error"):
            raise UsageError(f"unknown log level {log_level!r}", hint="use debug, info, warn or error")
        return cls(
            root=Path(root).absolute() if root else default_root(variables),
            config_file=_config_file(options.get("config") or variables.get("PYBUILD_CONFIG"), variables),
            host=options.get("host") or variables.get("PYBUILD_HOST") or None,
            debug="debug" in options,
            log_level=log_level,
            variables=variables,
        )

    def settings(self) -> Settings:
        """The configuration file's content; unknown keys are reported once on stderr. Raises PybuildError when it can't be read."""
        from pybuild.daemon.settings import load_settings

        settings, unknown = load_settings(self.config_file)
        if settings.registry:
            from pybuild.registry_client.settings import RegistrySettings

            unknown += RegistrySettings.from_tables(settings.registry).unknown_keys
        for key in unknown:
            print(f"warning: {self.config_file}: unknown key {key!r} is ignored", file=sys.stderr)
        return settings

    def engine(self, *, offline: bool = False) -> Engine:
        """The engine on this root, in this process. As an ordinary user, this process has entered its user namespace before.

        ``offline`` refuses every request to a registry.
        """
        from pybuild.daemon.engine import Engine

        return Engine.open(
            self.root,
            settings=self.settings(),
            docker_config=docker_config_directory(self.variables),
            variables=self.variables,
            offline=offline,
            ends_process=True,
            warn=_warn,
            debug=(lambda line: print(line, file=sys.stderr)) if self.debug else None,
        )

    def workbench(self, *, offline: bool = False) -> Engine | RemoteEngine:
        """The engine in this process, or the daemon's if there is a ``--host``: for commands that work the same with both. Raises UsageError."""
        if self.host is None:
            return self.engine(offline=offline)
        if offline:
            raise UsageError("--offline can't be used with a daemon")
        from pybuild.daemon.client import RemoteEngine, default_address
        from pybuild.daemon.connection import DaemonAddress

        return RemoteEngine(
            DaemonAddress.parse(
                default_address(self.variables) if self.host == "default" else self.host, self.variables
            ),
            docker_config=docker_config_directory(self.variables),
            variables=self.variables,
            warn=_warn,
        )

    def registries(self) -> Registries:
        """Access to registries without a store."""
        from pybuild import __version__
        from pybuild.daemon.registries import Registries

        return Registries(
            self.settings(),
            docker_config=docker_config_directory(self.variables),
            variables=self.variables,
            user_agent=f"pybuild/{__version__}",
            warn=_warn,
            log=(lambda line: print(line, file=sys.stderr)) if self.debug else None,
        )


def _warn(message: str) -> None:
    print(f"WARNING: {message}", file=sys.stderr)


def default_root(variables: Mapping[str, str]) -> Path:
    """``/var/lib/pybuild`` for root, the user's data directory otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/pybuild")
    data = variables.get("XDG_DATA_HOME") or os.path.join(_home(variables), ".local/share")
    return Path(data) / "pybuild"


def _home(variables: Mapping[str, str]) -> str:
    return variables.get("HOME") or "/"


def docker_config_directory(variables: Mapping[str, str]) -> Path:
    """Where Docker's ``config.json`` is: ``$DOCKER_CONFIG`` or ``~/.docker``."""
    return Path(variables.get("DOCKER_CONFIG") or os.path.join(_home(variables), ".docker"))


def _config_file(given: str | None, variables: Mapping[str, str]) -> Path | None:
    if given:
        path = Path(given)
        if not os.path.isfile(path):
            raise UsageError(f"the configuration file {given} does not exist")
        return path
    home = variables.get("XDG_CONFIG_HOME") or os.path.join(_home(variables), ".config")
    for candidate in (Path("/etc/pybuild/pybuild.toml"), Path(home) / "pybuild/pybuild.toml"):
        if os.path.isfile(
            candidate
        ):  # False also where it may not be looked at, as in the home directory of who called sudo
            return candidate
    return None
