"""Writes the commands of docs/cli.md: what ``pybuild --help`` and each command's ``--help`` print. Run it after every change of an option:
``python tools/cli_reference.py``; ``--check`` only compares. The text above the mark is written by hand.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

from pybuild.cli.main import COMMANDS, run

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
MARK = "<!-- From here on: tools/cli_reference.py -->\n"


def reference() -> str:
    """The generated part."""
    parts = [f"## pybuild\n\n```text\n{help_of()}```\n"]
    parts += [f"## pybuild {command}\n\n```text\n{help_of(command)}```\n" for command in COMMANDS]
    return "\n".join(parts)


def help_of(*command: str) -> str:
    """What ``--help`` prints in a terminal of a hundred columns."""
    out = io.StringIO()
    with patch.dict(os.environ, {"COLUMNS": "100"}), redirect_stdout(out):
        try:
            run([*command, "--help"])
        except SystemExit as end:  # argparse's way
            if end.code:
                raise
    return out.getvalue()


def page(written: str) -> str:
    """The page ``written`` with its generated part made anew."""
    return written.partition(MARK)[0] + MARK + "\n" + reference()


def main(arguments: list[str]) -> int:
    """Write the page, or with ``--check`` tell whether it is up to date."""
    before = PAGE.read_text()
    after = page(before)
    if "--check" in arguments:
        print(
            "docs/cli.md is up to date" if before == after else "docs/cli.md is old: run python tools/cli_reference.py"
        )
        return int(before != after)
    PAGE.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
