"""docs/cli.md shows the options that there are."""

from __future__ import annotations

import importlib.util
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_reference_of_the_commands_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("cli_reference", REPOSITORY / "tools/cli_reference.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    written = tool.PAGE.read_text()
    assert tool.page(written) == written, "run python tools/cli_reference.py"
    assert written.count("\n## pybuild ") == len(tool.COMMANDS)
