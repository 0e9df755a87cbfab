"""Repairs for what the build checks find: ``pybuild check --fix``.

Owns the edits that change how a Dockerfile is written and not what it means; whatever can't be shown to be so is left alone. All text
that isn't edited stays as it was, character for character. Writes no file.

    ConsistentInstructionCasing   the keyword in the majority's case
    FromAsCasing                  AS in the case of FROM
    StageNameCasing               the name in lower case, where it is given and where it is used
    LegacyKeyValueFormat          ENV key value → ENV key=value, quoted where need be
    JSONArgsRecommended           CMD prog arg → CMD ["prog", "arg"], if the shell does nothing for it and there is no ENTRYPOINT
    RedundantTargetPlatform       --platform=$TARGETPLATFORM is dropped
    ExposeProtoCasing             the protocol in lower case
    NoEmptyContinuation           the empty lines are dropped
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from pybuild.errors import PybuildError
from pybuild.layers.descriptor import Platform
from pybuild.parser.ast import (
    Cmd,
    Copy,
    Entrypoint,
    Env,
    Expose,
    From,
    Heredoc,
    Instruction,
    KeyValue,
    Label,
    Position,
    Run,
    ShellForm,
    Span,
    Stage,
)
from pybuild.parser.dockerfile import Dockerfile
from pybuild.parser.errors import DockerfileError
from pybuild.parser.expand import expand
from pybuild.parser.parse import parse_instruction

from .check_file import majority_case
from .check_rules import CheckSettings
from .stage_facts import BaseConfig

Edit = tuple[Span, str]

_AS: Final = re.compile(r"(?<=[\s])as(?=[\s])", re.IGNORECASE)
_PLAIN_WORD: Final = re.compile(r"[A-Za-z0-9_./:@%+,-][A-Za-z0-9_./:@%+,=-]*\Z")
# Words that a shell acts upon itself: its keywords, its special built-ins, and built-ins without a program of that name.
_SHELL_WORDS: Final = frozenset({
    ".", ":", "alias", "bg", "break", "case", "cd", "command", "continue", "do", "done", "elif", "else", "esac",
    "eval", "exec", "exit", "export", "fc", "fg", "fi", "for", "getopts", "hash", "if", "in", "jobs", "local", "read",
    "readonly", "return", "set", "shift", "source", "then", "times", "trap", "type", "ulimit", "umask", "unalias",
    "unset", "until", "wait", "while",
})  # fmt: skip
_PROBES: Final[tuple[Mapping[str, str], ...]] = (
    {},
    {"a": "x  y", "HOME": "/h", "PATH": "p:q"},
    {"a": "qu\"o'te\\", "HOME": "", "PATH": "$x"},
)


def fix(
    dockerfile: Dockerfile,
    *,
    build_args: Mapping[str, str] | None = None,
    platform: Platform | None = None,
    base_config: BaseConfig | None = None,
) -> str:
    """The text with everything repaired that can be. Rules that are switched off are left alone.

    ``base_config`` (asked with ``platform``) tells whether a base image has an ENTRYPOINT; without it, CMD stays as it is except on
    ``scratch``. Raises InvalidCheckOptions.
    """
    settings = CheckSettings.of(dockerfile, build_args or {})

    def has_entrypoint(name: str) -> bool:
        config = None if base_config is None or platform is None else base_config(name, platform)
        return config is None or bool(config.entrypoint)

    passes: tuple[Callable[[Dockerfile, CheckSettings], list[Edit]], ...] = (
        _empty_continuations,
        _keywords,
        _as_keywords,
        _stage_names,
        _legacy_pairs,
        lambda file, wanted: _commands(file, wanted, has_entrypoint),
        _platforms,
        _protocols,
    )
    for edits_of in passes:
        edits = edits_of(dockerfile, settings)
        if edits:
            try:
                dockerfile = dockerfile.edit(edits)
            except (DockerfileError, ValueError):
                # An edit went wrong on text that nobody thought of: better none of this kind than a broken file.
                continue
    return dockerfile.text


def _keywords(dockerfile: Dockerfile, settings: CheckSettings) -> list[Edit]:
    lower = majority_case(dockerfile) == "lowercase"
    edits = []
    for instruction in _all(dockerfile):
        wanted = instruction.keyword.lower() if lower else instruction.keyword.upper()
        if instruction.keyword != wanted and settings.wanted("ConsistentInstructionCasing", instruction):
            start = instruction.span.start.offset
            edits.append((_span(instruction, start, start + len(instruction.keyword)), wanted))
    return edits


def _as_keywords(dockerfile: Dockerfile, settings: CheckSettings) -> list[Edit]:
    edits = []
    for stage in dockerfile.stages:
        from_ = stage.from_
        if from_.as_keyword is None or not settings.wanted("FromAsCasing", from_):
            continue
        keyword = from_.keyword
        if keyword not in (keyword.lower(), keyword.upper()):
            continue
        wanted = from_.as_keyword.lower() if keyword == keyword.lower() else from_.as_keyword.upper()
        place = _as_place(dockerfile, from_)
        if wanted != from_.as_keyword and place is not None:
            edits.append((_span(from_, *place), wanted))
    return edits


def _as_place(dockerfile: Dockerfile, from_: From) -> tuple[int, int] | None:
    start = from_.image.span.end.offset
    found = _AS.search(dockerfile.text, start, from_.span.end.offset + 1)
    return None if found is None else found.span()


def _stage_names(dockerfile: Dockerfile, settings: CheckSettings) -> list[Edit]:
    names = {
        stage.from_.stage_name.lower()
        for stage in dockerfile.stages
        if stage.from_.stage_name is not None
        and stage.from_.stage_name != stage.name
        and settings.wanted("StageNameCasing", stage.from_)
    }
    edits: list[Edit] = []
    for stage in dockerfile.stages:
        from_ = stage.from_
        if from_.image.text != from_.image.text.lower() and from_.image.text.lower() in names:
            edits.append((from_.image.span, from_.image.text.lower()))
        place = _as_place(dockerfile, from_)
        if (
            stage.name in names
            and from_.stage_name is not None
            and from_.stage_name != stage.name
            and place is not None
        ):
            start = dockerfile.text.find(from_.stage_name, place[1], from_.span.end.offset)
            if start >= 0:
                edits.append((_span(from_, start, start + len(from_.stage_name)), from_.stage_name.lower()))
        for instruction in stage.instructions:
            edits += _stage_uses(dockerfile, instruction, names)
    return edits


def _stage_uses(dockerfile: Dockerfile, instruction: Instruction, names: set[str]) -> Iterable[Edit]:
    if isinstance(instruction, Copy) and instruction.from_ is not None:
        written = instruction.from_
        if written != written.lower() and written.lower() in names:
            for flag in instruction.flags:
                if flag.name == "from" and flag.value == written:
                    yield flag.span, f"--from={written.lower()}"
    if isinstance(instruction, Run):
        for mount in instruction.mounts:
            for key, word in mount.options:
                if key == "from" and word is not None and word.text != word.text.lower() and word.text.lower() in names:
                    start, end = word.span.start.offset, word.span.end.offset
                    text = dockerfile.text[start:end]
                    if text.endswith(word.text):  # the span may hold the key as well
                        yield word.span, text.removesuffix(word.text) + word.text.lower()


def _legacy_pairs(dockerfile: Dockerfile, settings: CheckSettings) -> list[Edit]:
    edits = []
    for instruction in _all(dockerfile):
        if not isinstance(instruction, Env | Label) or not instruction.legacy:
            continue
        if not settings.wanted("LegacyKeyValueFormat", instruction) or len(instruction.pairs) != 1:
            continue
        (pair,) = instruction.pairs
        source = dockerfile.text[pair.span.start.offset : pair.span.end.offset]
        if any(line.lstrip().startswith("#") for line in source.split("\n")[1:]):
            continue  # a comment between continuation lines would be lost
        new = _modern(instruction, pair, escape=dockerfile.escape)
        if new is not None:
            edits.append((pair.span, new))
    return edits


def _modern(instruction: Env | Label, pair: KeyValue, *, escape: str) -> str | None:
    """``key=value`` that gives the same as ``key value``, proved by expanding both; None if there is no such form."""
    value = "" if pair.value is None else pair.value.text
    for written in (value, f'"{value}"', _escaped_blanks(value, escape)):
        text = f"{pair.key.text}={written}"
        try:
            again = parse_instruction(f"{instruction.keyword} {text}", escape=escape)
        except PybuildError:
            continue
        if isinstance(again, Env | Label) and not again.legacy and _same(pair, again.pairs):
            return text
    return None


def _escaped_blanks(value: str, escape: str) -> str:
    """``value`` with each blank escaped that stands outside quotes."""
    out: list[str] = []
    quote = ""
    index = 0
    while index < len(value):
        char = value[index]
        if char == escape and quote != "'":
            out.append(value[index : index + 2])
            index += 2
            continue
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in " \t":
            out.append(escape)
        out.append(char)
        index += 1
    return "".join(out)


def _same(pair: KeyValue, others: tuple[KeyValue, ...]) -> bool:
    if len(others) != 1:
        return False
    (other,) = others
    names = dict.fromkeys(re.findall(r"\w+", "" if pair.value is None else pair.value.text), "v  \"w\" 'x' \\y $z")
    for probe in (*_PROBES, names):
        try:
            for word, changed in ((pair.key, other.key), (pair.value, other.value)):
                before = "" if word is None else expand(word, probe).text
                after = "" if changed is None else expand(changed, probe).text
                if before != after:
                    return False
        except PybuildError:
            return False
    return True


def _commands(dockerfile: Dockerfile, settings: CheckSettings, has_entrypoint: Callable[[str], bool]) -> list[Edit]:
    """CMD only: an ENTRYPOINT in exec form would be given the arguments that it ignored before."""
    edits: list[Edit] = []
    for stage in dockerfile.stages:
        if _entrypoint_around(dockerfile, stage, has_entrypoint):
            continue
        for instruction in stage.instructions:
            if not isinstance(instruction, Cmd) or not isinstance(instruction.command, ShellForm):
                continue
            words = instruction.command.text.split()
            plain = words and all(_PLAIN_WORD.match(word) for word in words)
            if (
                not plain
                or instruction.command.heredocs
                or "\n" in instruction.source
                or "=" in words[0]
                or words[0] in _SHELL_WORDS
                or not settings.wanted("JSONArgsRecommended", instruction)
            ):
                continue
            start = instruction.span.start.offset + len(instruction.keyword)
            edits.append((_span(instruction, start, instruction.span.end.offset), f" {json.dumps(words)}"))
    return edits


def _entrypoint_around(dockerfile: Dockerfile, stage: Stage, has_entrypoint: Callable[[str], bool]) -> bool:
    """True unless neither this stage, nor those it is built on or that are built on it, have an ENTRYPOINT or a SHELL."""
    family = [stage]
    for _ in dockerfile.stages:
        names = {member.name for member in family if member.name is not None}
        family += [
            other for other in dockerfile.stages if other not in family and other.from_.image.text.lower() in names
        ]
    root = stage
    while True:
        earlier = [
            other
            for other in dockerfile.stages[: root.index]
            if other.name is not None and other.name == root.from_.image.text.lower()
        ]
        if not earlier:
            break
        root = earlier[-1]
        family.append(root)
    if any(instruction.name in ("ENTRYPOINT", "SHELL") for member in family for instruction in member.instructions):
        return True
    base = root.from_.image.text
    return "$" in base or (base != "scratch" and has_entrypoint(base))


def _platforms(dockerfile: Dockerfile, settings: CheckSettings) -> list[Edit]:
    edits = []
    for stage in dockerfile.stages:
        from_ = stage.from_
        if from_.platform is None or from_.platform.text not in ("$TARGETPLATFORM", "${TARGETPLATFORM}"):
            continue
        declared = any(argument.key.text == "TARGETPLATFORM" for arg in dockerfile.global_args for argument in arg.args)
        if declared or not settings.wanted("RedundantTargetPlatform", from_):
            continue
        for flag in from_.flags:
            if flag.name == "platform":
                end = flag.span.end.offset
                while dockerfile.text[end : end + 1] in (" ", "\t"):
                    end += 1
                edits.append((_span(from_, flag.span.start.offset, end), ""))
    return edits


def _protocols(dockerfile: Dockerfile, settings: CheckSettings) -> list[Edit]:
    edits = []
    for instruction in _all(dockerfile):
        if isinstance(instruction, Expose) and settings.wanted("ExposeProtoCasing", instruction):
            for word in instruction.ports:
                port, slash, protocol = word.text.rpartition("/")
                if slash and protocol.isalpha() and protocol != protocol.lower():
                    written = dockerfile.text[word.span.start.offset : word.span.end.offset]
                    if written == word.text:
                        edits.append((word.span, f"{port}/{protocol.lower()}"))
    return edits


def _empty_continuations(dockerfile: Dockerfile, settings: CheckSettings) -> list[Edit]:
    if not settings.includes("NoEmptyContinuation"):
        return []
    found = {
        line
        for warning in dockerfile.warnings
        if warning.rule == "NoEmptyContinuation"
        for line in range(warning.span.lines[0], warning.span.lines[1] + 1)
    }
    edits = []
    for instruction in dockerfile.instructions:
        first, last = instruction.span.lines
        if not any(first <= line <= last for line in found) or _heredocs(instruction):
            continue
        at = dockerfile.text.find("\n", instruction.span.start.offset) + 1
        while 0 < at < instruction.span.end.offset:
            end = dockerfile.text.find("\n", at) + 1
            if end > 0 and not dockerfile.text[at:end].strip():
                edits.append((_span(instruction, at, end), ""))
            at = end
    return edits


def _heredocs(instruction: Instruction) -> bool:
    if isinstance(instruction, Copy):
        return any(isinstance(source, Heredoc) for source in instruction.sources)
    return isinstance(instruction, Run | Cmd | Entrypoint) and bool(
        isinstance(instruction.command, ShellForm) and instruction.command.heredocs
    )


def _all(dockerfile: Dockerfile) -> list[Instruction]:
    return [instruction for stage in dockerfile.stages for instruction in (stage.from_, *stage.instructions)]


def _span(instruction: Instruction, start: int, end: int) -> Span:
    """A span by offsets alone, which is what edits go by."""
    place = instruction.span.start
    return Span(Position(place.line, place.column, start), Position(place.line, place.column, end))
