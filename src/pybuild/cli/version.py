"""``pybuild version``."""

from __future__ import annotations

from pybuild import __version__

from .environment import Environment


def version(arguments: list[str], environment: Environment) -> int:
    if arguments and arguments[0] in ("-h", "--help"):
        print("Usage: pybuild version\n\nPrint the version of pybuild.")
        return 0
    print(f"pybuild {__version__}")
    return 0
