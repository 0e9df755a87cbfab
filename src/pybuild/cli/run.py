"""``pybuild run``: one process in a throw-away copy of an image, for a look or a test. No container is kept."""

from __future__ import annotations

import sys

from pybuild.errors import UsageError

from .cancelling import cancelling
from .environment import Environment
from .options import Parser, key_value


def run(arguments: list[str], environment: Environment) -> int:
    """``pybuild run``. The exit status is the process's, 127 if there is no such program, 126 if it can't be executed."""
    parser = Parser(
        "run",
        usage="[OPTIONS] IMAGE [COMMAND] [ARG…]",
        description="Run a command in a throw-away copy of an image of the local store, isolated as a RUN step is.",
    )
    parser.add_argument("-e", "--env", action="append", default=[], metavar="K=V", help="set an environment variable")
    parser.add_argument("-u", "--user", metavar="USER", help="the user (default: the image's)")
    parser.add_argument(
        "-w", "--workdir", metavar="DIR", help="the working directory (default: the image's); made if it isn't there"
    )
    parser.add_argument(
        "-v", "--volume", action="append", default=[], metavar="HOST:PATH[:ro]", help="show a directory of this machine"
    )
    parser.add_argument("--entrypoint", metavar="PROGRAM", help="instead of the image's entry point")
    parser.add_argument(
        "--network",
        default="default",
        choices=["default", "none", "host"],
        metavar="MODE",
        help="default, none or host",
    )
    parser.add_argument("--hostname", default="", metavar="NAME", help="the host name inside")
    parser.flag("-t", "--tty", help="with a terminal")
    parser.flag("-i", "--interactive", help="with standard input (implied by --tty)")
    parser.flag("--rm", help="accepted for habit's sake: nothing is ever kept")
    parser.add_argument("image", metavar="IMAGE", help="a name, an ID or a digest")
    parser.add_argument("command", nargs="...", metavar="COMMAND", help="instead of the image's command")
    options = parser.parse(arguments)
    from pybuild.daemon.one_shot import RunOptions
    from pybuild.daemon.terminal import own_terminal

    if options.tty and options.interactive and not sys.stdin.isatty():
        raise UsageError("cannot attach stdin to a TTY-enabled container because stdin is not a terminal")
    with cancelling() as cancel, environment.workbench() as engine:
        status = engine.run_image(
            options.image,
            RunOptions(
                command=tuple(options.command),
                env=tuple(key_value(text, option="--env") for text in options.env),
                user=options.user,
                workdir=options.workdir,
                volumes=tuple(options.volume),
                entrypoint=options.entrypoint,
                network=options.network,
                hostname=options.hostname,
            ),
            on_output=_write,
            cancel=cancel,
            stdin=sys.stdin.fileno() if options.interactive and not options.tty else None,
            terminal=own_terminal(environment.variables) if options.tty else None,
        )
    return status.code


def _write(stream: int, data: bytes) -> None:
    target = sys.stdout.buffer if stream == 1 else sys.stderr.buffer
    target.write(data)
    target.flush()
