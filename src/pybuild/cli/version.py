"""``pybuild version``."""

from __future__ import annotations

from pybuild import __version__

from .environment import Environment
from .options import Parser


def version(arguments: list[str], environment: Environment) -> int:
    Parser("version", usage="", description="Print the version of pybuild.").parse(arguments)
    print(f"pybuild {__version__}")
    return 0
