"""The build checks that look at the file as a whole, at its FROM lines and at single instructions, without following variables.

Owns those rules' conditions; see ``check_stages.py`` for what holds inside a stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pybuild.errors import PybuildError
from pybuild.layers.descriptor import Platform
from pybuild.layers.references import Reference
from pybuild.parser.ast import Arg, From, Instruction, Maintainer, Word
from pybuild.parser.dockerfile import Dockerfile
from pybuild.parser.expand import Expansion, expand
from pybuild.parser.go_text import quote
from pybuild.parser.suggest import did_you_mean

from .arguments import global_arguments
from .check_findings import Findings
from .platforms import parse_platform

_RESERVED: Final = frozenset({"context", "scratch"})


class FileChecks:
    """Checks of one Dockerfile, in the order in which BuildKit makes them."""

    def __init__(self, dockerfile: Dockerfile, findings: Findings) -> None:
        self._dockerfile = dockerfile
        self._findings = findings

    def while_parsing(self) -> None:
        """What shows in single lines; these are also told when a later line is wrong."""
        for warning in self._dockerfile.warnings:
            message = "Empty continuation line" if warning.rule == "NoEmptyContinuation" else warning.message
            self._findings.add_plain(warning.rule, message, warning.span)
        for instruction in self._dockerfile.instructions:
            match instruction:
                case Maintainer():
                    message = "Maintainer instruction is deprecated in favor of using label"
                    self._findings.add("MaintainerDeprecated", message, instruction)
                case From():
                    self._from(instruction)
                case Arg():
                    keys = [argument.key.text for argument in instruction.args]
                    self._description("ARG", keys, instruction)

    def _from(self, instruction: From) -> None:
        name, keyword, as_ = instruction.stage_name, instruction.keyword, instruction.as_keyword
        if name is None or as_ is None:
            return
        if name != name.lower():
            self._findings.add("StageNameCasing", f"Stage name '{name}' should be lowercase", instruction)
        # A FROM in mixed case is told by ConsistentInstructionCasing already.
        lower = keyword == keyword.lower()
        if (lower or keyword == keyword.upper()) and as_ != (as_.lower() if lower else as_.upper()):
            self._findings.add("FromAsCasing", f"'{as_}' and '{keyword}' keywords' casing do not match", instruction)
        self._description("FROM", [name.lower()], instruction)

    def _description(self, keyword: str, names: Sequence[str], instruction: Instruction) -> None:
        if not instruction.comments or instruction.comments[-1].split(" ", 1)[0] in names:
            return
        example = names[0] if len(names) == 1 else "<arg_key>"
        message = f"Comment for {keyword} should follow the format: `# {example} <description>`"
        self._findings.add("InvalidDefinitionDescription", message, instruction)

    def stage_names(self) -> None:
        """ReservedStageName and DuplicateStageName."""
        seen: set[str] = set()
        for stage in self._dockerfile.stages:
            name = stage.name
            if name is None:
                continue
            if name in _RESERVED:
                message = f"Stage name should not use the same name as reserved stage {quote(name)}"
                self._findings.add("ReservedStageName", message, stage.from_)
            if name in seen:
                message = f"Duplicate stage name {quote(name)}, stage names should be unique"
                self._findings.add("DuplicateStageName", message, stage.from_)
            seen.add(name)

    def casing(self) -> None:
        """ConsistentInstructionCasing: the majority of those written in one case decides; ARGs before the first FROM don't count."""
        majority = majority_case(self._dockerfile)
        for instruction in _in_stages(self._dockerfile):
            keyword = instruction.keyword
            if keyword != (keyword.lower() if majority == "lowercase" else keyword.upper()):
                message = f"Command '{keyword}' should match the case of the command majority ({majority})"
                self._findings.add("ConsistentInstructionCasing", message, instruction)

    def base_names(self, predefined: Mapping[str, str]) -> None:
        """InvalidDefaultArgInFrom: would the file build without any build argument?"""
        try:
            defaults = global_arguments(self._dockerfile.global_args, predefined=predefined, given={})
            names = [expand(stage.from_.image, defaults).text for stage in self._dockerfile.stages]
        except PybuildError:
            return  # the same error comes, or doesn't, with the arguments given
        for stage, name in zip(self._dockerfile.stages, names, strict=True):
            try:
                Reference.parse(name)
            except PybuildError:
                written = stage.from_.image.text
                message = f"Default value for ARG {written} results in empty or invalid base image name"
                self._findings.add("InvalidDefaultArgInFrom", message, stage.from_)

    def from_arguments(self, scope: Mapping[str, str], *, platform: Platform) -> None:
        """What FROM uses of the global arguments ``scope``; ``platform``: what is missing in a platform's name."""
        declared = [argument.key.text for arg in self._dockerfile.global_args for argument in arg.args]
        known = list(dict.fromkeys([*declared, *scope]))
        for stage in self._dockerfile.stages:
            from_ = stage.from_
            self._undeclared(expand(from_.image, scope), known, from_)
            if from_.platform is not None:
                expansion = expand(from_.platform, scope)
                self._undeclared(expansion, known, from_)
                self._platform(from_.platform, expansion, from_, scope=scope, default=platform)

    def _undeclared(self, expansion: Expansion, known: Sequence[str], from_: From) -> None:
        for name in sorted(expansion.unset):
            if name not in known:
                message = did_you_mean(f"FROM argument '{name}' is not declared", name, known)
                self._findings.add("UndefinedArgInFrom", message, from_)

    def _platform(
        self, word: Word, expansion: Expansion, from_: From, *, scope: Mapping[str, str], default: Platform
    ) -> None:
        if expansion.used == {"TARGETPLATFORM"} and not expansion.unset:
            if expansion.text == scope.get("TARGETPLATFORM"):
                message = (
                    f"Setting platform to predefined {word.text} in FROM is redundant as this is the default behavior"
                )
                self._findings.add("RedundantTargetPlatform", message, from_)
            return
        if expansion.used or expansion.unset:
            return
        try:
            platform = parse_platform(expansion.text, default=default)
        except PybuildError:
            return  # the build will say so
        name = (from_.stage_name or "").lower()
        if platform.os not in name and platform.architecture not in name:
            message = f"FROM --platform flag should not use constant value {quote(expansion.text)}"
            self._findings.add("FromPlatformFlagConstDisallowed", message, from_)


def majority_case(dockerfile: Dockerfile) -> str:
    """``lowercase`` or ``uppercase``: what most instructions in stages are written in; a draw is upper case."""
    lower = upper = 0
    for instruction in _in_stages(dockerfile):
        keyword = instruction.keyword
        lower += keyword == keyword.lower()
        upper += keyword == keyword.upper()
    return "lowercase" if lower > upper else "uppercase"


def _in_stages(dockerfile: Dockerfile) -> list[Instruction]:
    return [instruction for stage in dockerfile.stages for instruction in (stage.from_, *stage.instructions)]
