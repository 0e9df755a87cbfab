"""The ``pybuild`` command. Answers ``--version`` itself and hands everything else to ``pybuild.cli``."""

from __future__ import annotations

import os
import sys


def main(argv: list[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's) and return its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments == ["--version"] or arguments == ["-v"]:
        from pybuild import __version__

        print(f"pybuild {__version__}")
        return 0
    from pybuild.cli.main import run

    return run(arguments)


def program() -> None:
    """Run as a program: the process ends here, without taking the interpreter apart, which would cost more than a cached build's steps."""
    status = main()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = status or 1
    os._exit(status)


if __name__ == "__main__":
    program()
