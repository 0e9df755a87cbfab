"""Commands that do next to nothing: what starting costs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any


def test_empty_python(benchmark: Any) -> None:
    """The floor below which no Python program gets."""
    benchmark.group = "an empty Python program"
    benchmark.pedantic(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True), rounds=20, warmup_rounds=2)


def test_version(benchmark: Any, measure: Any, tool: Any) -> None:
    benchmark.group = "--version"
    measure(tool, lambda: tool.run("--version") and None, rounds=20, warmup_rounds=2)


def test_images(benchmark: Any, measure: Any, tool: Any) -> None:
    benchmark.group = "listing the images"
    measure(tool, lambda: tool.run("images") and None, rounds=20, warmup_rounds=2)
    assert b"base" in tool.run("images")
