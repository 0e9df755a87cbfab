"""What lowering notices that doesn't stop a build: the build checks that need expanded values or resolved images.

Owns these rules' public names and texts and the collecting, each finding once. The checks that need the text alone are elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from pybuild.layers.descriptor import Platform
from pybuild.parser.ast import From, Instruction
from pybuild.parser.suggest import closest

from .arguments import NOT_IN_ENVIRONMENT
from .platforms import format_platform, normalize_platform, same_machine
from .progress import BuildWarning

_RULES: Final = "https://docs.docker.com/go/dockerfile/rule/"


class Findings:
    """Collects warnings in the order found. ``wanted`` says which rules are on for an instruction; ``global_lines``: where the global
    ARGs are declared, by name."""

    def __init__(
        self, wanted: Callable[[str, Instruction], bool], *, global_lines: Mapping[str, int] | None = None
    ) -> None:
        self._wanted = wanted
        self._global_lines = global_lines or {}
        self._warnings: dict[BuildWarning, None] = {}

    @property
    def warnings(self) -> tuple[BuildWarning, ...]:
        """All of them, each once."""
        return tuple(self._warnings)

    def undefined(
        self,
        names: Iterable[str],
        env: Mapping[str, str],
        arguments: Iterable[tuple[str, str | None]],
        instruction: Instruction,
    ) -> None:
        """UndefinedVar: variables that neither ENV nor ARG declares."""
        declared = {name for name, _ in arguments} | NOT_IN_ENVIRONMENT
        for name in sorted(names):
            if name not in declared:
                match = closest(name, env)
                guess = "" if match is None else f" (did you mean ${match}?)"
                self._add(
                    "UndefinedVar",
                    f"Usage of undefined variable '${name}'{guess}",
                    instruction,
                    page="undefined-var",
                    detail=self._remedy(name, instruction),
                )

    def _remedy(self, name: str, instruction: Instruction) -> str:
        line = self._global_lines.get(name)
        if line is None:
            return "Variables should be defined before their use"
        return f"ARG {name} on line {line} is global; add `ARG {name}` to this stage before line {instruction.span.lines[0]}"

    def undeclared_in_from(self, names: Iterable[str], declared: Iterable[str], from_: From) -> None:
        """UndefinedArgInFrom: FROM uses what no ARG before it declares."""
        known = list(declared)
        for name in sorted(names):
            if name not in known:
                match = closest(name, known)
                guess = "" if match is None else f" (did you mean {match}?)"
                self._add(
                    "UndefinedArgInFrom",
                    f"FROM argument '{name}' is not declared{guess}",
                    from_,
                    page="undefined-arg-in-from",
                    detail="FROM command must use declared ARGs",
                )

    def base_platform(self, image: str, *, expected: Platform, actual: Platform, from_: From) -> None:
        """InvalidBaseImagePlatform: the base image is for another machine."""
        if not same_machine(expected, actual):
            self._add(
                "InvalidBaseImagePlatform",
                f'Base image {image} was pulled with platform "{format_platform(normalize_platform(actual))}", '
                f'expected "{format_platform(normalize_platform(expected))}" for current build',
                from_,
                page="",
                detail="Base image platform does not match expected target platform",
            )

    def _add(self, rule: str, message: str, instruction: Instruction, *, page: str, detail: str) -> None:
        if self._wanted(rule, instruction):
            url = f"{_RULES}{page}/" if page else ""
            warning = BuildWarning(rule=rule, message=message, lines=instruction.span.lines, url=url, detail=detail)
            self._warnings[warning] = None
