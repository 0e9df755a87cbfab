"""``pybuild daemon``: reads flags and the ``[daemon]`` table and runs the server until it is told to stop. Serves nothing itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pybuild.errors import PybuildError, UsageError

from .environment import Environment
from .options import Parser

if TYPE_CHECKING:
    from pybuild.daemon.daemon_options import DaemonOptions


def parser() -> Parser:
    """The options of ``pybuild daemon``."""
    out = Parser(
        "daemon",
        usage="[OPTIONS]",
        description="Serve the Docker Engine API, so that docker, docker-py and others build and distribute images with pybuild.",
        epilog="Every option has a key of the same name in the configuration file's [daemon] table. What is given in both must agree. "
        "SIGHUP reads the configuration again, SIGTERM ends gracefully.",
    )
    out.add_argument(
        "--host",
        "-H",
        action="append",
        metavar="ADDRESS",
        help="listen on unix:///PATH, tcp://HOST:PORT or fd:// (systemd's sockets); repeatable (default: unix:///run/pybuild.sock, "
        "as an ordinary user $XDG_RUNTIME_DIR/pybuild.sock)",
    )
    out.add_argument(
        "--group",
        metavar="NAME",
        help="the group that may use unix sockets (default: pybuild or docker, if there is one)",
    )
    out.add_argument("--mode", metavar="MODE", help="the mode of unix sockets (default: 660)")
    out.flag("--tls", help="use TLS on TCP (implied by --tlscert)")
    out.flag("--tlsverify", help="admit only clients with a certificate of --tlscacert (implied by it)")
    out.add_argument("--tlscacert", metavar="FILE", help="the authority of the clients' certificates")
    out.add_argument("--tlscert", metavar="FILE", help="the server's certificate")
    out.add_argument("--tlskey", metavar="FILE", help="the server's key")
    out.flag(
        "--allow-unauthenticated-tcp",
        help="listen on TCP without verified clients; needs --tls or --tls=false besides. Everybody who can connect is root",
    )
    out.add_argument("--log-level", metavar="LEVEL", help="debug, info (default), warn or error")
    out.add_argument("--log-format", metavar="FORMAT", help="text (default) or json")
    out.add_argument("--pidfile", metavar="FILE", help="write the process's number to FILE")
    out.add_argument(
        "--shutdown-timeout", type=int, metavar="SECONDS", help="how long running work may take to end (default 15)"
    )
    out.add_argument("--data-root", metavar="DIR", help="the state directory (default: --root)")
    for name in ("tls", "tlsverify", "allow_unauthenticated_tcp"):
        out.set_defaults(**{name: None})
    return out


def daemon(arguments: list[str], environment: Environment) -> int:
    """Run ``pybuild daemon``."""
    options = parser().parse(arguments)
    flags = {key.replace("_", "-"): value for key, value in vars(options).items()}
    settings = environment.settings()
    merged = _merged(flags, settings.daemon, environment)
    root = Path(merged.data_root).absolute() if merged.data_root else environment.root
    _require_aiohttp()
    import asyncio

    from pybuild.daemon.api_log import set_up_log
    from pybuild.daemon.api_run import serve
    from pybuild.daemon.engine import Engine

    from .environment import docker_config_directory

    set_up_log(level=merged.log_level, form=merged.log_format)
    with (
        _PidFile(merged.pid_file),
        Engine.open(
            root,
            settings=settings,
            docker_config=docker_config_directory(environment.variables),
            variables=environment.variables,
        ) as engine,
    ):
        asyncio.run(
            serve(
                engine,
                merged,
                variables=environment.variables,
                reload=lambda: _reloaded(flags, environment),
            )
        )
    return 0


def _merged(
    flags: Mapping[str, Any], table: Mapping[str, Any], environment: Environment
) -> DaemonOptions:  # Any: argparse, TOML
    from pybuild.daemon.client import default_address
    from pybuild.daemon.daemon_options import merge

    general = "debug" if environment.debug else environment.log_level
    if flags.get("log-level") is None and general != "info":
        flags = {**flags, "log-level": general}
    given = flags.get("host") or table.get("host") or table.get("hosts")
    return merge(flags, table, default_host="" if given else default_address(environment.variables))


def _reloaded(flags: Mapping[str, Any], environment: Environment) -> Any:  # Any: see api_run.serve
    settings = environment.settings()
    return settings, _merged(flags, settings.daemon, environment)


def _require_aiohttp() -> None:
    from importlib.util import find_spec

    if find_spec("aiohttp") is None:
        raise UsageError("the daemon needs aiohttp, which is not installed", hint="pip install 'pybuild[daemon]'")


class _PidFile:
    """Holds the process's number in a file while the context lasts; refuses if a live process's is there."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        if not self._path:
            return
        try:
            other = int(Path(self._path).read_text())
        except (OSError, ValueError):
            other = 0
        if other and other != os.getpid() and os.path.exists(f"/proc/{other}"):
            raise PybuildError(f"the process {other} of {self._path} is running", hint="stop it, or remove the file")
        try:
            Path(self._path).write_text(f"{os.getpid()}\n")
        except OSError as error:
            raise PybuildError(f"can't write {self._path}: {error.strerror}") from error

    def __exit__(self, *_: object) -> None:
        if self._path:
            Path(self._path).unlink(missing_ok=True)
