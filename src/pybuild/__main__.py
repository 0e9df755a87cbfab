"""The ``pybuild`` command. Answers ``--version`` itself and hands everything else to ``pybuild.cli``."""

from __future__ import annotations

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


if __name__ == "__main__":
    sys.exit(main())
