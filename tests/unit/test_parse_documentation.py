"""The examples of docs/parser.md run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pybuild.parser

PAGE = (Path(__file__).resolve().parents[2] / "docs/parser.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(number: int) -> None:
    assert "assert" in EXAMPLES[number]
    exec(compile(EXAMPLES[number], f"docs/parser.md, example {number + 1}", "exec"), {"__name__": "example"})


def test_the_page_has_examples() -> None:
    assert len(EXAMPLES) >= 6


def test_all_exported_names_exist_and_are_described() -> None:
    for name in pybuild.parser.__all__:
        assert getattr(pybuild.parser, name) is not None
    described = set(re.findall(r"\w+", PAGE))
    types_of_the_tree = {"Command", "Node", "Spanned", "Stage", "Syntax", "Variable", "Literal", "KeyValue", "ast"}
    assert set(pybuild.parser.__all__) - described - types_of_the_tree == set()
