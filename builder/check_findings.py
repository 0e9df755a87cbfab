"""Findings of the build checks: making them, collecting them, showing one on a line.

Owns which findings are kept: those whose rule is on, each once. Decides nothing about a Dockerfile.
"""

from __future__ import annotations

from pybuild.parser.ast import Instruction, Span

from .check_rules import RULES, CheckSettings
from .progress import BuildWarning


class Findings:
    """Collects findings in order, as far as ``settings`` want them. ``lowered``: also those of rules that lowering decides."""

    def __init__(self, settings: CheckSettings, *, lowered: bool) -> None:
        self.settings = settings
        self._lowered = lowered
        self._found: dict[BuildWarning, None] = {}

    @property
    def warnings(self) -> tuple[BuildWarning, ...]:
        """What was found so far."""
        return tuple(self._found)

    def add(self, rule: str, message: str, instruction: Instruction) -> None:
        """A finding at an instruction."""
        if (self._lowered or not RULES[rule].lowered) and self.settings.wanted(rule, instruction):
            self._found[finding(rule, message, instruction.span)] = None

    def add_plain(self, rule: str, message: str, span: Span) -> None:
        """A finding that belongs to no instruction; ``rule`` may be one of the parser's own."""
        if self.settings.includes(rule):
            self._found[finding(rule, message, span)] = None


def finding(rule: str, message: str, span: Span) -> BuildWarning:
    """A finding of a rule at a place."""
    known = RULES.get(rule)
    if known is None:
        return BuildWarning(rule=rule, message=message, lines=span.lines)
    return BuildWarning(rule=rule, message=message, lines=span.lines, url=known.url, detail=known.description)
