"""The build checks' rules, and which of them are on: a directive, a build argument, comments above instructions.

Owns the names, descriptions and pages of the rules (public, as BuildKit has them) and the reading of ``skip=…;error=…;experimental=…``.
Decides nothing about a Dockerfile: that is ``checks.py``'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from pybuild.errors import PybuildError
from pybuild.parser.ast import Instruction
from pybuild.parser.dockerfile import Dockerfile
from pybuild.parser.go_text import parse_bool, quote
from pybuild.values import dataclass, pattern

from .progress import BuildWarning

CHECK_ARGUMENT: Final = "BUILDKIT_DOCKERFILE_CHECK"
_PAGES: Final = "https://docs.docker.com/go/dockerfile/rule/"
_COMMENT: Final = pattern(r"check\s*=\s*(\S+)", re.IGNORECASE)
_OPTION_LIMIT: Final = 3


@dataclass(frozen=True, slots=True)
class Rule:
    """``url``: its public page, "" for none; ``experimental``: off unless asked for; ``lowered``: decided by lowering as well, which knows
    the resolved images."""

    name: str
    description: str
    url: str
    experimental: bool = False
    lowered: bool = False


def _rule(name: str, page: str, description: str, *, experimental: bool = False, lowered: bool = False) -> Rule:
    return Rule(name, description, f"{_PAGES}{page}/" if page else "", experimental, lowered)


RULES: Final[Mapping[str, Rule]] = {
    rule.name: rule
    for rule in (
        _rule("StageNameCasing", "stage-name-casing", "Stage names should be lowercase"),
        _rule("FromAsCasing", "from-as-casing", "The 'as' keyword should match the case of the 'from' keyword"),
        _rule(
            "NoEmptyContinuation",
            "no-empty-continuation",
            "Empty continuation lines will become errors in a future release",
        ),
        _rule(
            "ConsistentInstructionCasing",
            "consistent-instruction-casing",
            "All commands within the Dockerfile should use the same casing (either upper or lower)",
        ),
        _rule("DuplicateStageName", "duplicate-stage-name", "Stage names should be unique"),
        _rule("ReservedStageName", "reserved-stage-name", "Reserved words should not be used as stage names"),
        _rule(
            "JSONArgsRecommended",
            "json-args-recommended",
            "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals",
        ),
        _rule(
            "MaintainerDeprecated",
            "maintainer-deprecated",
            "The MAINTAINER instruction is deprecated, use a label instead to define an image author",
        ),
        _rule("UndefinedArgInFrom", "undefined-arg-in-from", "FROM command must use declared ARGs", lowered=True),
        _rule(
            "WorkdirRelativePath",
            "workdir-relative-path",
            "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base "
            "image changes",
        ),
        _rule("UndefinedVar", "undefined-var", "Variables should be defined before their use", lowered=True),
        _rule(
            "MultipleInstructionsDisallowed",
            "multiple-instructions-disallowed",
            "Multiple instructions of the same type should not be used in the same stage",
        ),
        _rule(
            "LegacyKeyValueFormat",
            "legacy-key-value-format",
            "Legacy key/value format with whitespace separator should not be used",
        ),
        _rule(
            "InvalidBaseImagePlatform", "", "Base image platform does not match expected target platform", lowered=True
        ),
        _rule(
            "RedundantTargetPlatform",
            "redundant-target-platform",
            "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
        ),
        _rule(
            "SecretsUsedInArgOrEnv",
            "secrets-used-in-arg-or-env",
            "Sensitive data should not be used in the ARG or ENV commands",
        ),
        _rule(
            "InvalidDefaultArgInFrom",
            "invalid-default-arg-in-from",
            "Default value for global ARG results in an empty or invalid base image name",
        ),
        _rule(
            "FromPlatformFlagConstDisallowed",
            "from-platform-flag-const-disallowed",
            "FROM --platform flag should not use a constant value",
        ),
        _rule("CopyIgnoredFile", "copy-ignored-file", "Attempting to Copy file that is excluded by .dockerignore"),
        _rule(
            "InvalidDefinitionDescription",
            "invalid-definition-description",
            "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not "
            "intended to be a description comment, add an empty line or comment between the instruction and the comment.",
            experimental=True,
        ),
        _rule("ExposeProtoCasing", "expose-proto-casing", "Protocol in EXPOSE instruction should be lowercase"),
        _rule(
            "ExposeInvalidFormat",
            "expose-invalid-format",
            "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future "
            "release",
        ),
    )
}


class InvalidCheckOptions(PybuildError):
    """The value of a ``check`` directive or of BUILDKIT_DOCKERFILE_CHECK can't be read."""


class CheckViolations(PybuildError):
    """Findings, where the Dockerfile or the client wants them to fail the build. ``rules``: their names, sorted; ``lines``: the first
    one's place."""

    def __init__(self, rules: Iterable[str], *, lines: tuple[int, int] | None = None) -> None:
        self.rules = tuple(sorted(set(rules)))
        self.lines = lines
        super().__init__(f"lint violation found for rules: {', '.join(self.rules)}")


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """Which rules are on. ``experimental``: experimental rules asked for; ``error``: findings fail the build."""

    skip: frozenset[str] = frozenset()
    skip_all: bool = False
    experimental: frozenset[str] = frozenset()
    experimental_all: bool = False
    error: bool = False

    @classmethod
    def parse(cls, text: str) -> CheckSettings:
        """Read ``skip=A,B;error=true;experimental=all``. Raises InvalidCheckOptions."""
        skip: frozenset[str] = frozenset()
        experimental: frozenset[str] = frozenset()
        skip_all = experimental_all = error = False
        text = text.strip()
        for part in text.split(";", _OPTION_LIMIT - 1) if text else ():
            key, separator, value = part.partition("=")
            if not separator:
                raise InvalidCheckOptions(
                    f"invalid check option {quote(part)}",
                    hint="for example skip=StageNameCasing,UndefinedVar;error=true",
                )
            value = value.strip()
            names = frozenset(name.strip() for name in value.split(","))
            match key.strip():
                case "skip":
                    skip_all, skip = (True, skip) if value == "all" else (skip_all, names)
                case "experimental":
                    experimental_all, experimental = (
                        (True, experimental) if value == "all" else (experimental_all, names)
                    )
                case "error":
                    try:
                        error = parse_bool(value)
                    except ValueError as problem:
                        raise InvalidCheckOptions(f"failed to parse check option {quote(part)}: {problem}") from None
                case other:
                    raise InvalidCheckOptions(
                        f"invalid check option {quote(other)}", hint="options are skip, error and experimental"
                    )
        return cls(skip, skip_all, experimental, experimental_all, error)

    @classmethod
    def of(cls, dockerfile: Dockerfile, build_args: Mapping[str, str]) -> CheckSettings:
        """What holds for ``dockerfile``: the build argument if it is given, else the directive. Raises InvalidCheckOptions."""
        given = build_args.get(CHECK_ARGUMENT)
        what = "check options" if given is None else CHECK_ARGUMENT
        try:
            return cls.parse((dockerfile.check or "") if given is None else given)
        except InvalidCheckOptions as error:
            raise InvalidCheckOptions(f"failed to parse {what}: {error.message}", hint=error.hint) from None

    def with_comments(self, comments: Iterable[str]) -> CheckSettings:
        """These settings and what the comments above an instruction add: the first ``check=…`` counts, a malformed one doesn't."""
        for comment in comments:
            found = _COMMENT.match(comment)
            if found is None:
                continue
            try:
                added = CheckSettings.parse(found[1])
            except InvalidCheckOptions:
                return self
            return CheckSettings(
                self.skip | added.skip,
                self.skip_all or added.skip_all,
                self.experimental | added.experimental,
                self.experimental_all or added.experimental_all,
                self.error,
            )
        return self

    def includes(self, rule: str) -> bool:
        """Whether the rule of this name is on."""
        known = RULES.get(rule)
        if known is not None and known.experimental:
            return self.experimental_all or rule in self.experimental
        return not self.skip_all and rule not in self.skip

    def wanted(self, rule: str, instruction: Instruction) -> bool:
        """Whether a finding of ``rule`` at ``instruction`` is wanted, its comments considered."""
        return (self.with_comments(instruction.comments) if instruction.comments else self).includes(rule)

    def enforce(self, warnings: Iterable[BuildWarning]) -> None:
        """Raises CheckViolations if findings are errors and there are any."""
        found = [warning for warning in warnings if warning.rule in RULES]
        if self.error and found:
            lines = next((warning.lines for warning in found if warning.lines), None)
            raise CheckViolations([warning.rule for warning in found], lines=lines)
