"""Picks the command, reads the global options and turns errors into messages and exit statuses. Does no work itself.

Each command's module is imported only when that command runs, so that a short command starts fast.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Final

from pybuild.errors import PybuildError, UsageError

# Commands that don't touch the store's files, and so need no user namespace when an ordinary user runs them.
_WITHOUT_STORE: Final = frozenset({"check", "parse", "context", "doctor", "version", "login", "logout"})

# Commands that unpack layers or run steps, and so meet the owners of files: for the others it doesn't matter which ids there are.
_WITH_FILES: Final = frozenset({"build", "run", "pull", "load", "import", "daemon"})

# Commands that a daemon carries out where there is a --host: this process touches no store then.
_OVER_DAEMON: Final = frozenset(
    {
        "build",
        "why",
        "images",
        "inspect",
        "history",
        "tag",
        "rmi",
        "save",
        "load",
        "import",
        "run",
        "pull",
        "push",
        "du",
        "prune",
    }
)

# name → (module below pybuild.cli, function, one line of help)
COMMANDS: Final[dict[str, tuple[str, str, str]]] = {
    "build": ("build", "build", "build an image from a Dockerfile"),
    "check": ("check", "check", "check a Dockerfile for problems without building"),
    "parse": ("check", "parse", "print a Dockerfile's syntax tree"),
    "context": ("context", "context", "show what a build context holds after .dockerignore"),
    "why": ("why", "why", "tell why the steps of a build ran instead of coming from the cache"),
    "images": ("images", "images", "list the images in the local store"),
    "inspect": ("images", "inspect", "print an image's details as JSON"),
    "history": ("images", "history", "show the steps that made an image"),
    "tag": ("images", "tag", "give an image another name"),
    "rmi": ("images", "rmi", "remove images from the local store"),
    "save": ("archives", "save", "write images to a tar archive"),
    "load": ("archives", "load", "read images from a tar archive"),
    "import": ("archives", "import_", "make an image from a tar of a file system"),
    "run": ("run", "run", "run a command in an image, for a look or a test"),
    "pull": ("registry", "pull", "fetch an image from a registry"),
    "push": ("registry", "push", "send an image to a registry"),
    "copy": ("registry", "copy", "copy an image between registries, layouts and archives"),
    "ls": ("registry", "ls", "list a registry's repositories or a repository's tags"),
    "manifest": ("registry", "manifest", "print a manifest as the registry has it"),
    "delete": ("registry", "delete", "delete a tag or a manifest from a registry"),
    "referrers": ("registry", "referrers", "list what refers to an image (signatures, attestations)"),
    "index": ("edit", "index", "make or extend a multi-platform index"),
    "rebase": ("edit", "rebase", "put an image's own layers on another base, without a rebuild"),
    "flatten": ("edit", "flatten", "merge an image's layers into one"),
    "login": ("registry", "login", "log in to a registry"),
    "logout": ("registry", "logout", "forget the credentials of a registry"),
    "du": ("space", "du", "show what the store and the build cache hold"),
    "prune": ("space", "prune", "free what is no longer needed"),
    "daemon": ("daemon", "daemon", "serve the Docker Engine API"),
    "doctor": ("doctor", "doctor", "show what this machine offers and what pybuild falls back to"),
    "version": ("version", "version", "print the version"),
}

USAGE: Final = "Usage: pybuild [GLOBAL OPTIONS] COMMAND [OPTIONS] …"

_GLOBALS: Final = """\
Global options (before the command):
  --root DIR          where images, layers and the cache are kept (env PYBUILD_ROOT; default /var/lib/pybuild
                      as root, $XDG_DATA_HOME/pybuild otherwise)
  --config FILE       configuration file (env PYBUILD_CONFIG; default /etc/pybuild/pybuild.toml, then
                      $XDG_CONFIG_HOME/pybuild/pybuild.toml)
  -H, --host ADDRESS  use a running daemon (env PYBUILD_HOST; default: work in this process)
  -D, --debug         show tracebacks and every registry request
  --log-level LEVEL   debug, info, warn or error (default: info)
  --version           print the version
  --help              this text"""


def help_text() -> str:
    """What ``pybuild --help`` prints."""
    rows = "\n".join(f"  {name:<11} {line}" for name, (_, _, line) in available().items())
    return (
        f"{USAGE}\n\nBuild container images from Dockerfiles, and move them between registries.\n\nCommands:\n{rows}\n\n"
        f"{_GLOBALS}\n\nRun 'pybuild COMMAND --help' for a command's options."
    )


def available() -> dict[str, tuple[str, str, str]]:
    """The commands of this installation."""
    from importlib.util import find_spec

    return {name: row for name, row in COMMANDS.items() if find_spec(f"pybuild.cli.{row[0]}") is not None}


def split_globals(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """Separate the global options from the command and its arguments. Raises UsageError."""
    options: dict[str, str] = {}
    rest = list(argv)
    valued = {"--root": "root", "--config": "config", "--host": "host", "-H": "host", "--log-level": "log_level"}
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        name, separator, value = word.partition("=")
        if word in ("-D", "--debug"):
            options["debug"] = "1"
        elif word in ("-h", "--help"):
            options["help"] = "1"
        elif word in ("-v", "--version"):
            options["version"] = "1"
        elif name in valued:
            if not separator:
                if not rest:
                    raise UsageError(f"the option {name} needs a value")
                value = rest.pop(0)
            options[valued[name]] = value
        else:
            raise UsageError(f"unknown global option {word}", hint="see 'pybuild --help'")
    return options, rest


def run(argv: list[str]) -> int:
    """Run ``pybuild ARGV`` and return its exit status."""
    debug = False
    try:
        options, rest = split_globals(argv)
        debug = "debug" in options
        if "version" in options:
            rest = ["version"]
        if "help" in options or not rest:
            print(help_text())
            return 0 if "help" in options else 2
        status = _dispatch(rest[0], rest[1:], options)
        sys.stdout.flush()  # a full disk or a reader that has gone is told here
        return status
    except PybuildError as error:
        if debug:
            import traceback

            traceback.print_exc()
        from .report import report_error

        report_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("ERROR: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`pybuild images | head`): say nothing more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        from .report import report_unexpected

        return report_unexpected(error)


def _dispatch(command: str, arguments: list[str], options: dict[str, str]) -> int:
    if command == "help":
        command, arguments = (arguments[0], ["--help"]) if arguments else ("", [])
        if not command:
            print(help_text())
            return 0
    row = COMMANDS.get(command)
    if row is None:
        from difflib import get_close_matches

        close = get_close_matches(command, COMMANDS, n=1)
        raise UsageError(
            f"unknown command {command!r}", hint=f"did you mean {close[0]!r}?" if close else "see 'pybuild --help'"
        )
    from .environment import Environment

    environment = Environment.from_process(options)
    over_daemon = environment.host is not None and command in _OVER_DAEMON
    if command not in _WITHOUT_STORE and not over_daemon and not {"-h", "--help"} & set(arguments):
        _become_root_of_a_namespace(tell=command in _WITH_FILES)
    module = import_module(f"pybuild.cli.{row[0]}")
    function = getattr(module, row[1])
    status = function(arguments, environment)
    assert isinstance(status, int)
    return status


def _may_mount() -> bool:
    """True with CAP_SYS_ADMIN (capabilities(7): number 21)."""
    with open("/proc/self/status", "rb") as status:
        return any(line.startswith(b"CapEff:") and int(line.split()[1], 16) >> 21 & 1 for line in status)


def _become_root_of_a_namespace(*, tell: bool) -> None:
    """Whoever may not mount (an ordinary user, root of a confined container) works as root of a user namespace; with ``tell`` what can't be
    had there is said in one line each. Before any thread starts."""
    if os.geteuid() == 0 and _may_mount():
        return
    from pybuild.daemon import userns

    for notice in userns.enter().notices:
        if tell:
            print(f"note: {notice}", file=sys.stderr)
