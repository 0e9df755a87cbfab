"""The build checks that follow a stage from its base through its instructions.

Owns the rules that need variables, inheritance between stages, the base image or the ignore file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from pybuild.parser.ast import (
    Add,
    Arg,
    Cmd,
    Copy,
    Entrypoint,
    Env,
    Expose,
    Healthcheck,
    Heredoc,
    Instruction,
    KeyValue,
    Label,
    Run,
    ShellForm,
    Stopsignal,
    User,
    Volume,
    Word,
    Workdir,
)
from pybuild.parser.dockerignore import IgnoreMatcher
from pybuild.parser.expand import Expansion, expand_heredoc, expand_words
from pybuild.parser.go_text import quote
from pybuild.parser.patterns import clean_path
from pybuild.parser.suggest import closest
from pybuild.parser.values import check_signal, parse_port
from pybuild.values import pattern

from .check_findings import Findings
from .git_reference import InvalidGitReference, parse_git_reference
from .lower_copy import check_checksum
from .platforms import format_platform, normalize_platform, same_machine
from .run_mounts import mount_options
from .stage_facts import StageFacts, StageWalk
from .stages import StageNode
from .value_checks import check_mode, checked

_SECRET: Final = pattern(
    r"(?:_|^)(?:apikey|auth|credential|credentials|key|password|pword|passwd|secret|token)(?:_|$)", re.IGNORECASE
)
_NO_SECRET: Final = pattern(r"(?:_|^)(?:public|file|version)(?:_|$)", re.IGNORECASE)
_ALL_PATTERNS: Final = frozenset({"*", "**", "**/*"})


class StageChecks:
    """Checks stages one by one. ``ignore``: the rules of the build context, None if there are none."""

    def __init__(self, walk: StageWalk, findings: Findings, *, ignore: IgnoreMatcher | None) -> None:
        self._walk = walk
        self._findings = findings
        # With exceptions it can't be told without the files whether something of a directory is left.
        self._ignore = None if ignore is None or ignore.has_negations else ignore

    def stage(self, node: StageNode) -> None:
        """All rules on one stage. Raises DockerfileError from expansion."""
        assert node.stage is not None  # callers pass stages only
        facts = self._walk.begin(node)
        self._base_platform(node, facts)
        last: dict[type[Instruction], Instruction] = {}
        for instruction in node.stage.instructions:
            self._once(instruction, last)
            self._one(facts, instruction)
            self._walk.apply(facts, instruction)

    def _base_platform(self, node: StageNode, facts: StageFacts) -> None:
        expected = node.platform or self._walk.platform
        if node.base is not None or facts.base is None or not facts.base.diff_ids or node.stage is None:
            return
        actual = facts.base.platform
        if not same_machine(expected, actual):
            message = (
                f"Base image {node.base_name} was pulled with platform {quote(format_platform(normalize_platform(actual)))}, "
                f"expected {quote(format_platform(normalize_platform(expected)))} for current build"
            )
            self._findings.add("InvalidBaseImagePlatform", message, node.stage.from_)

    def _once(self, instruction: Instruction, last: dict[type[Instruction], Instruction]) -> None:
        """MultipleInstructionsDisallowed, at the earlier one: it is the one without effect."""
        if not isinstance(instruction, Cmd | Entrypoint | Healthcheck):
            return
        earlier = last.get(type(instruction))
        if earlier is not None and self._findings.settings.wanted("MultipleInstructionsDisallowed", instruction):
            message = (
                f"Multiple {instruction.keyword} instructions should not be used in the same stage because only the last one "
                "will be used"
            )
            self._findings.add_plain("MultipleInstructionsDisallowed", message, earlier.span)
        last[type(instruction)] = instruction

    def _one(self, facts: StageFacts, instruction: Instruction) -> None:
        match instruction:
            case Env():
                self._pairs(facts, instruction, instruction.pairs, legacy=instruction.legacy)
            case Label():
                self._pairs(facts, instruction, instruction.pairs, legacy=instruction.legacy)
            case Arg():
                self._arg(facts, instruction)
            case Copy() | Add():
                self._copy(facts, instruction)
            case Workdir():
                path = self._text(facts, instruction, instruction.path)
                if not facts.workdir_set and not path.startswith("/"):
                    message = f"Relative workdir {quote(path)} can have unexpected results if the base image changes"
                    self._findings.add("WorkdirRelativePath", message, instruction)
            case Cmd() | Entrypoint():
                if isinstance(instruction.command, ShellForm) and not facts.shell:
                    message = (
                        f"JSON arguments recommended for {instruction.keyword} to prevent unintended behavior related to OS "
                        "signals"
                    )
                    self._findings.add("JSONArgsRecommended", message, instruction)
            case Expose():
                self._expose(facts, instruction)
            case Run():
                for mount in instruction.mounts:
                    mount_options(mount, lambda word: self._text(facts, instruction, word))
            case User():
                self._text(facts, instruction, instruction.user)
            case Volume():
                self._texts(facts, instruction, instruction.paths)
            case Stopsignal():
                checked(instruction.signal, check_signal, self._text(facts, instruction, instruction.signal))

    def _pairs(self, facts: StageFacts, instruction: Instruction, pairs: tuple[KeyValue, ...], *, legacy: bool) -> None:
        for pair in pairs:
            key = self._text(facts, instruction, pair.key)
            if pair.value is not None:
                self._text(facts, instruction, pair.value)
            if legacy:
                word = instruction.keyword
                message = f'"{word} key=value" should be used instead of legacy "{word} key value" format'
                self._findings.add("LegacyKeyValueFormat", message, instruction)
            if isinstance(instruction, Env):
                self._secret("ENV", key, instruction)

    def _arg(self, facts: StageFacts, instruction: Arg) -> None:
        seen = facts.inherited()
        for argument in instruction.args:
            name = argument.key.text
            self._secret("ARG", name, instruction)
            if name not in self._walk.given and argument.value is not None:
                self._text(seen, instruction, argument.value)
            # Later arguments of the same line see the earlier ones.
            value = self._walk.argument_value(seen, name, argument.value)
            seen.arguments[name] = value
            if value is not None:
                seen.env[name] = value

    def _secret(self, what: str, name: str, instruction: Instruction) -> None:
        if _SECRET.search(name) and not _NO_SECRET.search(name):
            message = f"Do not use ARG or ENV instructions for sensitive data ({what} {quote(name)})"
            self._findings.add("SecretsUsedInArgOrEnv", message, instruction)

    def _copy(self, facts: StageFacts, instruction: Copy | Add) -> None:
        checksum = instruction.checksum if isinstance(instruction, Add) else None
        flags = (instruction.chown, *instruction.exclude, checksum)
        self._texts(facts, instruction, [word for word in flags if word is not None])
        if instruction.chmod is not None:
            check_mode(instruction.chmod, self._text(facts, instruction, instruction.chmod))
        paths = []
        for source in instruction.sources:
            if isinstance(source, Heredoc):
                if source.expand:
                    self._undefined(facts, instruction, expand_heredoc(source.content, facts.env))
                continue
            path = self._text(facts, instruction, source)
            paths.append(path)
            if not isinstance(instruction, Copy) or instruction.from_ is None:
                self._ignored(path, instruction)
        self._text(facts, instruction, instruction.destination)
        if checksum is not None and facts.expand(checksum).text:
            check_checksum(instruction, paths)

    def _ignored(self, source: str, instruction: Copy | Add) -> None:
        ignore = self._ignore
        if ignore is None or source.startswith(("http://", "https://")) or _is_git(source):
            return
        path = clean_path(source)
        if path in (".", "/"):
            # The context's root can't be excluded; only what takes all there is in it counts.
            excluded = any(pattern in _ALL_PATTERNS for pattern in ignore.patterns)
        else:
            excluded = ignore.excluded(path)
        if excluded:
            verb = "Add" if isinstance(instruction, Add) else "Copy"
            message = f"Attempting to {verb} file {quote(path)} that is excluded by .dockerignore"
            self._findings.add("CopyIgnoredFile", message, instruction)

    def _expose(self, facts: StageFacts, instruction: Expose) -> None:
        for word in sorted(instruction.ports, key=lambda word: word.text):  # as the reference goes through them
            for port in expand_words(word, facts.env):
                checked(word, parse_port, port)
                *hosts, container = port.split(":")
                protocol = container.partition("/")[2]
                if protocol != protocol.lower():
                    message = f"Defined protocol '{port}' in EXPOSE instruction should be lowercase"
                    self._findings.add("ExposeProtoCasing", message, instruction)
                if any(hosts):
                    message = f"EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'"
                    self._findings.add("ExposeInvalidFormat", message, instruction)

    def _text(self, facts: StageFacts, instruction: Instruction, word: Word) -> str:
        expansion = facts.expand(word)
        self._undefined(facts, instruction, expansion)
        return expansion.text

    def _texts(self, facts: StageFacts, instruction: Instruction, words: Iterable[Word]) -> None:
        for word in words:
            self._text(facts, instruction, word)

    def _undefined(self, facts: StageFacts, instruction: Instruction, expansion: Expansion) -> None:
        for name in facts.undefined(expansion):
            near = closest(name, facts.env)
            guess = "" if near is None else f" (did you mean ${near}?)"
            self._findings.add("UndefinedVar", f"Usage of undefined variable '${name}'{guess}", instruction)


def _is_git(source: str) -> bool:
    try:
        return parse_git_reference(source) is not None
    except InvalidGitReference:
        return True
