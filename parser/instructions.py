"""Makes typed instructions from parsed tokens, and checks all that can be checked before variables are expanded.

Owns the meaning of each grammar rule. Never reads lines and never decides what is an instruction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from pybuild.values import dataclass, pattern, replace

from . import ast
from .expand import ExpansionError, expand_text
from .flags import Flags, check_device, flag_name, flag_value, read_flags
from .go_text import SPACE, parse_duration, parse_signed, quote
from .heredocs import opens_heredoc
from .lalr import Node, UnexpectedToken, parse
from .mounts import MountError, check_from, csv_spans, split_option
from .source import LogicalLine
from .tokens import Token, TokenError
from .values import ValueProblem, check_stage_name
from .wording import blank_name, heredoc_destination, wrong_arguments

_ONBUILD = pattern(r"^\s*ONBUILD\s*", re.IGNORECASE)


class InstructionBuilder:
    """Builds the instruction of one logical line. ``heredocs``: their parsed form, in the order of the HEREDOC tokens, with
    the bodies as written; ``end``: where the instruction ends in the source, bodies included."""

    def __init__(
        self, line: LogicalLine, *, escape: str, heredocs: Sequence[ast.Heredoc], end: ast.Position,
        comments: tuple[str, ...],
    ) -> None:  # fmt: skip
        self.line = line
        self.escape = escape
        self._heredocs = heredocs
        self._end = end
        self._comments = comments
        self._next_heredoc = 0
        self._top: Node | None = None

    def build(self, tokens: Sequence[Token]) -> ast.Instruction:
        """Raises ``TokenError``."""
        try:
            tree = parse(tokens)
        except UnexpectedToken as error:
            raise wrong_arguments(tokens, error) from None
        self._top = tree
        return self.instruction(tree)

    def instruction(self, node: Node) -> ast.Instruction:
        """The instruction of a tree; ONBUILD asks for that of its trigger."""
        keyword = node.children[0]
        assert isinstance(keyword, Token)
        flag_tokens: list[Token] = []
        rest: list[Node | Token] = []
        for child in node.children[1:]:
            if type(child) is Token and child.type == "FLAG":
                flag_tokens.append(child)
            else:
                rest.append(child)
        line = self.line
        # A trigger begins at its keyword; what is not a trigger at its first line, which may be an empty continuation.
        start = line.source.position(line.start) if node is self._top else line.position(keyword.start)
        common = {
            "span": ast.Span(start, self._end),
            "keyword": keyword.text,
            "text": line.text[keyword.start :].strip(SPACE),
            "source": line.source.text[start.offset : self._end.offset],
            "comments": self._comments,
            "flags": tuple(
                ast.Flag(flag_name(token), flag_value(token), line.span(token.start, token.end))
                for token in flag_tokens
            ),
        }
        return _BUILDERS[node.rule](self, _Parts(rest, flag_tokens, common))

    # Pieces

    def word(self, token: Token) -> ast.Word:
        return ast.Word(token.text, self.line.span(token.start, token.end), self.escape)

    def flag_word(self, token: Token | None) -> ast.Word | None:
        """The value of a flag as a word; its span is the value's where the flag is written without quotes and escapes."""
        if token is None:
            return None
        value = flag_value(token) or ""
        return ast.Word(value, self._value_span(token, len(token.text) - len(value), len(token.text)), self.escape)

    def _value_span(self, token: Token, start: int, end: int) -> ast.Span:
        if token.end - token.start == len(token.text):
            return self.line.span(token.start + start, token.start + end)
        return self.line.span(token.start, token.end)

    def _heredoc(self) -> ast.Heredoc:
        self._next_heredoc += 1
        return self._heredocs[self._next_heredoc - 1]

    def command(self, nodes: Sequence[Node | Token]) -> ast.Command:
        """Of ``array``, ``text``, or nothing (an empty command line)."""
        if not nodes:
            return ast.ShellForm("")
        node = nodes[0]
        assert isinstance(node, Node)
        if node.rule == "array":
            return ast.ExecForm(_strings(node.children))
        text, *heredocs = node.children
        assert isinstance(text, Token)
        return ast.ShellForm(text.text, tuple(self._heredoc() for _ in heredocs))

    def pairs(self, keyword: str, nodes: Sequence[Node | Token]) -> tuple[tuple[ast.KeyValue, ...], bool]:
        """Of ``pair`` and ``legacy`` nodes: the pairs, and whether they are in the legacy form."""
        pairs = []
        legacy = False
        for node in nodes:
            assert isinstance(node, Node)
            key, value = node.children[0], node.children[-1]
            assert isinstance(key, Token)
            assert isinstance(value, Token)
            if not key.text:
                raise blank_name(keyword, key)
            legacy = legacy or node.rule == "legacy"
            pairs.append(ast.KeyValue(self.word(key), self.word(value), self.line.span(key.start, value.end)))
        return tuple(pairs), legacy

    def transfer(
        self, keyword: str, nodes: Sequence[Node | Token]
    ) -> tuple[tuple[ast.Word | ast.Heredoc, ...], ast.Word]:
        """Of COPY's and ADD's ``source`` and ``destination`` nodes."""
        sources: list[ast.Word | ast.Heredoc] = []
        *operands, last = (node for node in nodes if isinstance(node, Node))
        for node in operands:
            token = node.children[0]
            assert isinstance(token, Token)
            sources.append(self._heredoc() if token.type == "HEREDOC" else self.word(token))
        destination = last.children[0]
        assert isinstance(destination, Token)
        if opens_heredoc(destination.text):
            raise heredoc_destination(keyword, destination)
        return tuple(sources), self.word(destination)

    def mount(self, token: Token) -> ast.Mount:
        """Of ``--mount``, its options as written: like BuildKit, only a ``from`` is judged before the stage is built."""
        value = flag_value(token) or ""
        offset = len(token.text) - len(value)
        span = self.line.span(token.start, token.end)
        try:
            fields = csv_spans(value)
        except ValueError as error:
            raise TokenError.at(str(error), token) from None
        type_word: ast.Word | None = None
        options: list[tuple[str, ast.Word | None]] = []
        for field, start, end in fields:
            key, text = split_option(field)
            if text is not None and key == "from":
                try:
                    check_from(text)
                except MountError as error:
                    raise self._mount_fault(error, token, offset, (start, end)) from None
            word = None
            if text is not None:
                word = ast.Word(text, self._value_span(token, offset + end - len(text), offset + end), self.escape)
            if key == "type" and word is not None:
                type_word = word
                continue
            options.append((key, word))
        type_word = type_word or ast.Word("bind", span, self.escape)
        return ast.Mount(type_word, tuple(options), span)

    def _mount_fault(self, error: MountError, token: Token, offset: int, place: tuple[int, int]) -> TokenError:
        start, end = token.start, token.end
        if end - start == len(token.text):
            start, end = start + offset + place[0], start + offset + place[1]
        return TokenError(error.message, start=start, end=end, instruction=True, hint=error.hint)

    def expression(self) -> str:
        """What ONBUILD leaves in the image: the trigger's logical line and its here-documents as written."""
        text = _ONBUILD.sub("", self.line.text)
        return text + "".join(f"\n{heredoc.body}{heredoc.name}" for heredoc in self._heredocs)


def _strings(children: Sequence[Node | Token]) -> tuple[str, ...]:
    return tuple(child.text for child in children if isinstance(child, Token) and child.type == "STRING")


_Rest: TypeAlias = Sequence[Node | Token]


@dataclass(frozen=True, slots=True)
class _Parts:
    """``rest``: what follows keyword and flags; ``flags``: their tokens; ``common``: keyword arguments that all instructions take."""

    rest: _Rest
    flags: list[Token]
    common: dict[str, Any]  # the arguments' types differ


def _from(builder: InstructionBuilder, parts: _Parts) -> ast.Instruction:
    image = parts.rest[0]
    assert isinstance(image, Token)
    name = keyword = None
    if len(parts.rest) > 1:
        stage = parts.rest[1]
        assert isinstance(stage, Node)
        as_token, name_token = stage.children
        assert isinstance(as_token, Token)
        assert isinstance(name_token, Token)
        try:
            check_stage_name(name_token.text)
        except ValueProblem as error:
            raise TokenError.at(error.message, name_token, hint=error.hint) from None
        name, keyword = name_token.text, as_token.text
    flags = read_flags("FROM", parts.flags)
    platform = builder.flag_word(flags.token("platform"))
    if platform is not None and not platform.text:
        platform = None
    return ast.From(**parts.common, image=builder.word(image), platform=platform, stage_name=name, as_keyword=keyword)


def _arg(builder: InstructionBuilder, parts: _Parts) -> ast.Instruction:
    args = []
    for node in parts.rest:
        assert isinstance(node, Node)
        key, value = node.children[0], node.children[-1]
        assert isinstance(key, Token)
        assert isinstance(value, Token)
        if not key.text:
            raise blank_name("ARG", key)
        default = builder.word(value) if len(node.children) > 1 else None
        args.append(ast.KeyValue(builder.word(key), default, builder.line.span(key.start, value.end)))
    return ast.Arg(**parts.common, args=tuple(args))


def _env(builder: InstructionBuilder, parts: _Parts) -> ast.Instruction:
    read_flags("ENV", parts.flags)
    pairs, legacy = builder.pairs("ENV", parts.rest)
    return ast.Env(**parts.common, pairs=pairs, legacy=legacy)


def _label(builder: InstructionBuilder, parts: _Parts) -> ast.Instruction:
    read_flags("LABEL", parts.flags)
    pairs, legacy = builder.pairs("LABEL", parts.rest)
    return ast.Label(**parts.common, pairs=pairs, legacy=legacy)


def _run(builder: InstructionBuilder, parts: _Parts) -> ast.Instruction:
    flags = read_flags("RUN", parts.flags)
    command = builder.command(parts.rest)
    for token in flags.tokens("device"):
        try:
            check_device(flag_value(token) or "")
        except ValueError as error:
            raise TokenError.at(str(error), token) from None
    mounts = tuple(builder.mount(token) for token in flags.tokens("mount"))
    network, security = flags.text("network", "default"), flags.text("security", "sandbox")
    wanted = flags.token("network")
    if wanted is not None and network not in ("default", "none", "host"):
        raise TokenError.at(
            f"invalid network mode {quote(network)}", wanted, hint="The modes are default, none and host"
        )
    wanted = flags.token("security")
    if wanted is not None and security not in ("insecure", "sandbox"):
        raise TokenError.at(f"security {quote(security)} is not valid", wanted, hint="It is sandbox or insecure")
    devices = tuple(flag_value(token) or "" for token in flags.tokens("device"))
    return ast.Run(**parts.common, command=command, mounts=mounts, network=network, security=security, devices=devices)


def _copy(builder: InstructionBuilder, parts: _Parts) -> ast.Instruction:
    flags = read_flags("COPY", parts.flags)
    sources, destination = builder.transfer("COPY", parts.rest)
    token = flags.token("from")
    source = None
    if token is not None:
        source = flag_value(token) or None
        _check_from_flag(source or "", token, builder.escape)
    return ast.Copy(
        **parts.common,
        sources=sources,
        destination=destination,
        from_=source,
        chown=builder.flag_word(flags.token("chown")),
        chmod=builder.flag_word(flags.token("chmod")),
        link=flags.boolean("link") or False,
        parents=flags.boolean("parents") or False,
        exclude=tuple(word for t in flags.tokens("exclude") if (word := builder.flag_word(t)) is not None),
    )


def _check_from_flag(value: str, token: Token, escape: str) -> None:
    try:
        expanded = expand_text(value, {}, escape=escape).text
    except ExpansionError as error:
        raise TokenError.at(error.message, token) from None
    if expanded != value:
        raise TokenError.at(
            "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope "
            "as a workaround",
            token,
            instruction=False,
            hint="Declare the ARG before the first FROM, add `FROM ${VAR} AS source`, and write --from=source",
        )


def _add(builder: InstructionBuilder, parts: _Parts) -> ast.Instruction:
    flags = read_flags("ADD", parts.flags)
    sources, destination = builder.transfer("ADD", parts.rest)
    return ast.Add(
        **parts.common,
        sources=sources,
        destination=destination,
        chown=builder.flag_word(flags.token("chown")),
        chmod=builder.flag_word(flags.token("chmod")),
        link=flags.boolean("link") or False,
        exclude=tuple(word for t in flags.tokens("exclude") if (word := builder.flag_word(t)) is not None),
        checksum=builder.flag_word(flags.token("checksum")),
        keep_git_dir=flags.boolean("keep-git-dir"),
        unpack=flags.boolean("unpack"),
    )


def _cmd(builder: InstructionBuilder, parts: _Parts) -> ast.Instruction:
    read_flags("CMD", parts.flags)
    return ast.Cmd(**parts.common, command=builder.command(parts.rest))


def _entrypoint(builder: InstructionBuilder, parts: _Parts) -> ast.Instruction:
    read_flags("ENTRYPOINT", parts.flags)
    return ast.Entrypoint(**parts.common, command=builder.command(parts.rest))


def _shell(builder: InstructionBuilder, parts: _Parts) -> ast.Instruction:
    read_flags("SHELL", parts.flags)
    return ast.Shell(**parts.common, args=_strings(parts.rest))


def _expose(builder: InstructionBuilder, parts: _Parts) -> ast.Instruction:
    read_flags("EXPOSE", parts.flags)
    return ast.Expose(
        **parts.common, ports=tuple(builder.word(token) for token in parts.rest if isinstance(token, Token))
    )


def _volume(builder: InstructionBuilder, parts: _Parts) -> ast.Instruction:
    read_flags("VOLUME", parts.flags)
    paths = []
    for token in parts.rest:
        if isinstance(token, Token) and token.type in ("WORD", "STRING"):
            path = token.text.strip(SPACE)
            if not path:
                raise TokenError.at("VOLUME specified can not be an empty string", token)
            paths.append(builder.word(replace(token, text=path)))
    return ast.Volume(**parts.common, paths=tuple(paths))


def _text(rest: _Rest) -> Token:
    token = rest[0]
    assert isinstance(token, Token)
    return token


def _user(builder: InstructionBuilder, parts: _Parts) -> ast.Instruction:
    read_flags("USER", parts.flags)
    return ast.User(**parts.common, user=builder.word(_text(parts.rest)))


def _workdir(builder: InstructionBuilder, parts: _Parts) -> ast.Instruction:
    read_flags("WORKDIR", parts.flags)
    return ast.Workdir(**parts.common, path=builder.word(_text(parts.rest)))


def _stopsignal(builder: InstructionBuilder, parts: _Parts) -> ast.Instruction:
    return ast.Stopsignal(**parts.common, signal=builder.word(_text(parts.rest)))


def _maintainer(builder: InstructionBuilder, parts: _Parts) -> ast.Instruction:
    read_flags("MAINTAINER", parts.flags)
    return ast.Maintainer(**parts.common, author=_text(parts.rest).text)


def _healthcheck(builder: InstructionBuilder, parts: _Parts) -> ast.Instruction:
    probe = parts.rest[0]
    if isinstance(probe, Token):
        # BuildKit doesn't read the flags of HEALTHCHECK NONE.
        return ast.Healthcheck(**parts.common, command=None)
    flags = read_flags("HEALTHCHECK", parts.flags)
    _, *command = probe.children
    first = command[0]
    assert isinstance(first, Token)
    return ast.Healthcheck(
        **parts.common,
        command=ast.ShellForm(first.text) if first.type == "TEXT" else ast.ExecForm(_strings(command)),
        interval_ns=_interval(flags, "interval"),
        timeout_ns=_interval(flags, "timeout"),
        start_period_ns=_interval(flags, "start-period"),
        start_interval_ns=_interval(flags, "start-interval"),
        retries=_retries(flags),
    )


def _interval(flags: Flags, name: str) -> int:
    token = flags.token(name)
    text = flags.text(name)
    if token is None or not text:
        return 0
    try:
        nanoseconds = parse_duration(text)
    except ValueError as error:
        raise TokenError.at(
            str(error), token, hint="A duration is a number with a unit, as 500ms, 30s or 1m30s"
        ) from None
    if nanoseconds != 0 and nanoseconds < 1_000_000:
        raise TokenError.at(f"Interval {quote(name)} cannot be less than 1ms", token)
    return nanoseconds


def _retries(flags: Flags) -> int:
    token = flags.token("retries")
    text = flags.text("retries")
    if token is None or not text:
        return 0
    try:
        number = parse_signed(text, bits=32)
    except ValueError as error:
        raise TokenError.at(str(error), token) from None
    if number < 0:
        raise TokenError.at(f"--retries cannot be negative ({number})", token)
    return number


def _onbuild(builder: InstructionBuilder, parts: _Parts) -> ast.Instruction:
    read_flags("ONBUILD", parts.flags)
    trigger = parts.rest[0]
    assert isinstance(trigger, Node)
    return ast.Onbuild(**parts.common, expression=builder.expression(), trigger=builder.instruction(trigger))


_BUILDERS: dict[str, Callable[[InstructionBuilder, _Parts], ast.Instruction]] = {
    "add": _add, "arg": _arg, "cmd": _cmd, "copy": _copy, "entrypoint": _entrypoint, "env": _env, "expose": _expose,
    "from": _from, "healthcheck": _healthcheck, "label": _label, "maintainer": _maintainer, "onbuild": _onbuild, "run": _run,
    "shell": _shell, "stopsignal": _stopsignal, "user": _user, "volume": _volume, "workdir": _workdir,
}  # fmt: skip
