"""ONBUILD triggers of a base image: from the texts in its configuration to instructions.

Owns that only. When they run is decided by ``lower.py``, what they do by the instructions themselves.
"""

from __future__ import annotations

from collections.abc import Iterable

from pybuild.errors import PybuildError
from pybuild.parser.ast import Instruction, Span
from pybuild.parser.errors import DockerfileError
from pybuild.parser.parse import parse_instruction
from pybuild.values import replace


def parse_triggers(texts: Iterable[str], *, span: Span | None) -> tuple[Instruction, ...]:
    """The instructions, in order. ``span``: the FROM that brings them; it becomes their place. Raises DockerfileError."""
    out = []
    for text in texts:
        try:
            instruction = parse_instruction(text)
        except PybuildError as error:
            raise DockerfileError(
                f"ONBUILD trigger of the base image can't be parsed: {error}", span=span, hint=f"the trigger is: {text}"
            ) from error
        out.append(instruction if span is None else replace(instruction, span=span))
    return tuple(out)
