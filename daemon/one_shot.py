"""One process in a throw-away copy of an image (``pybuild run``): works out what to run and hands it to the executor.

Keeps no container: the writable layer goes when the process ends.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from pybuild.builder.owners import read_accounts
from pybuild.builder.protocols import Executor, ExitStatus, HostMount, ProcessSpec, Snapshots, Terminal
from pybuild.errors import UsageError
from pybuild.layers.image import DEFAULT_PATH, ImageConfig
from pybuild.values import dataclass


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What differs from the image's own configuration. ``volumes``: ``HOST:PATH[:ro]``; None: as the image says."""

    command: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    user: str | None = None
    workdir: str | None = None
    volumes: tuple[str, ...] = ()
    entrypoint: str | None = None
    network: str = "default"
    hostname: str = ""


def command_line(config: ImageConfig, options: RunOptions) -> tuple[str, ...]:
    """ENTRYPOINT and CMD put together by docker's rules. Raises UsageError if there is nothing to run."""
    entrypoint = config.entrypoint or ()
    command = options.command or config.cmd or ()
    if options.entrypoint is not None:
        entrypoint = (options.entrypoint,) if options.entrypoint else ()
        command = options.command
    args = (*entrypoint, *command)
    if not args:
        raise UsageError(
            "no command specified: the image has neither ENTRYPOINT nor CMD", hint="give a command after the image"
        )
    return args


def parse_volume(text: str) -> HostMount:
    """``HOST:PATH[:ro|rw]``. Raises UsageError."""
    source, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if not source or not target.startswith("/") or mode not in ("", "ro", "rw"):
        raise UsageError(f"invalid --volume value {text!r}", hint="write --volume /host/path:/path[:ro]")
    source = os.path.abspath(source)
    if not os.path.exists(source):
        raise UsageError(f"the directory of --volume, {source}, does not exist")
    return HostMount(os.path.realpath(source), target, mode == "ro")


def run_once(
    config: ImageConfig,
    options: RunOptions,
    *,
    executor: Executor,
    snapshots: Snapshots,
    on_output: Callable[[int, bytes], None],
    cancel: threading.Event,
    stdin: int | None = None,
    terminal: Terminal | None = None,
) -> ExitStatus:
    """Run and wait; ``stdin``: the descriptor that is the process's standard input, which has none otherwise; ``terminal``: the process gets
    one, shown there. Raises PybuildError when the process can't be started, Cancelled."""
    args = command_line(config, options)
    if options.workdir and not options.workdir.startswith("/"):
        raise UsageError(f"the working directory {options.workdir!r} is invalid, it needs to be an absolute path")
    env = dict(entry.partition("=")[::2] for entry in config.env)
    env.setdefault("PATH", DEFAULT_PATH)
    env.update(options.env)
    with snapshots.view(config.diff_ids) as view:
        user = read_accounts(view).process_user(config.user if options.user is None else options.user)
    env.setdefault("HOME", user.home)
    if terminal is not None:
        env.setdefault("TERM", "xterm")
    mounts = tuple(parse_volume(text) for text in options.volumes)
    with snapshots.prepare(config.diff_ids) as active:
        spec = ProcessSpec(
            root=active.root,
            args=args,
            env=tuple(env.items()),
            cwd=options.workdir or config.working_dir or "/",
            uid=user.uid,
            gid=user.gid,
            groups=user.groups,
            mounts=mounts,
            network=options.network,
            hostname=options.hostname or "pybuild",
            terminal=terminal,
            stdin=stdin,
        )
        return executor.run(spec, on_output=on_output, cancel=cancel)
