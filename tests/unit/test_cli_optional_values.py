"""Options whose value may be missing: read without argparse where they aren't given, and the same with it where they are."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pybuild.cli.options import Parser

CODE = """
import sys
from pybuild.cli.options import Parser
parser = Parser("history", usage="IMAGE", description="Steps.")
parser.add_argument("name", metavar="IMAGE")
parser.flag("-q", "--quiet", help="only IDs")
parser.add_argument("-H", "--human", nargs="?", const="yes", default="unset", metavar="BOOL", help="for people")
found = parser.parse(sys.argv[1:])
print(found.name, found.quiet, found.human, "argparse" in sys.modules)
"""


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["a"], "a False unset False"),
        (["-q", "a"], "a True unset False"),
        (["a", "--human"], "a False yes True"),
        (["a", "-H", "no"], "a False no True"),
        (["--human=no", "-q", "a"], "a True no True"),
    ],
)
def test_an_option_with_an_optional_value_costs_only_those_who_use_it(arguments: list[str], found: str) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == found


def test_an_option_with_an_optional_value_may_be_declared_before_the_arguments() -> None:
    parser = Parser("history", usage="IMAGE", description="Steps.")
    parser.add_argument("--human", nargs="?", const="yes", default="unset", metavar="BOOL", help="for people")
    parser.add_argument("name", metavar="IMAGE")
    assert parser.parse(["a"]).human == "unset"
    assert parser.parse(["--human", "--", "a"]).human == "yes"
