"""From text to tree: ``parse`` for a Dockerfile, ``parse_instruction`` for the text of one instruction.

Puts the parts together: lines, tokens, grammar, instructions, stages. Never reads files or expands variables.
"""

from __future__ import annotations

import re

from pybuild.values import pattern, replace

from .ast import Arg, From, Heredoc, Instruction, Stage
from .dockerfile import Dockerfile, Node
from .errors import DockerfileSyntaxError
from .frontends import detect_directive, frontend_warning
from .heredocs import HeredocWord, find_heredocs
from .instructions import InstructionBuilder
from .lines import LineReader
from .source import LogicalLine, Source
from .tokens import Token, TokenError, tokenize

_LEADING_TABS = pattern(r"^\t+", re.MULTILINE)
_UTF16_MARKS = ("\udcff\udcfe", "\udcfe\udcff", "\ufffe")


def parse(text: str | bytes, *, filename: str = "Dockerfile") -> Dockerfile:
    """Parse a Dockerfile.

    ``text``: bytes are taken as UTF-8; what isn't is kept as it is (surrogateescape). ``filename``: how errors call it.
    Raises ``DockerfileSyntaxError``, and nothing else whatever the text.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    source = Source(text)
    syntax = detect_directive(text, "syntax", any_form=True)
    frontend = frontend_warning(syntax, source) if syntax is not None else None
    reader = LineReader(source, filename=filename)
    file = _File(reader, whole=True)
    file.read()
    check = detect_directive(text, "check", any_form=False)
    stages, global_args = _stages(file.instructions)
    dockerfile = Dockerfile(
        filename=filename,
        text=text,
        escape=reader.escape,
        directives=tuple(reader.directives),
        nodes=tuple(file.nodes),
        instructions=tuple(file.instructions),
        global_args=global_args,
        stages=stages,
        warnings=(() if frontend is None else (frontend,)) + tuple(reader.warnings),
        syntax=syntax,
        check=None if check is None else check.reference,
    )
    if file.errors:
        error = file.errors[0]
        error.partial = dockerfile
        error.others = tuple(file.errors[1:])
        if syntax is not None and frontend is not None and frontend.rule == "UnknownFrontend":
            error.hint = f"The file asks for the frontend {syntax.reference}, whose language may be another one"
        raise error
    return dockerfile


def parse_instruction(text: str, *, escape: str = "\\", filename: str = "Dockerfile") -> Instruction:
    """Parse the text of one instruction, as ONBUILD leaves it in an image's config. Raises ``DockerfileSyntaxError``."""
    source = Source(text)
    reader = LineReader(source, filename=filename)
    reader.escape = escape
    file = _File(reader, whole=False)
    file.read()
    if not file.errors and len(file.instructions) != 1:
        file.errors.append(reader.error("onbuild trigger should be a single expression", source.span(0, len(text))))
    if file.errors:
        raise file.errors[0]
    return file.instructions[0]


def _stages(instructions: list[Instruction]) -> tuple[tuple[Stage, ...], tuple[Arg, ...]]:
    stages: list[Stage] = []
    global_args: list[Arg] = []
    current: From | None = None
    body: list[Instruction] = []
    for instruction in instructions:
        if isinstance(instruction, From):
            if current is not None:
                stages.append(Stage(len(stages), current, tuple(body)))
            current, body = instruction, []
        elif current is not None:
            body.append(instruction)
        elif isinstance(instruction, Arg):
            global_args.append(instruction)
    if current is not None:
        stages.append(Stage(len(stages), current, tuple(body)))
    return tuple(stages), tuple(global_args)


class _File:
    """Collects a file's instructions, and the errors of those that are none.

    ``instructions`` and ``nodes`` end at the first error. ``whole``: it is a Dockerfile, not a single instruction.
    """

    def __init__(self, reader: LineReader, *, whole: bool) -> None:
        self.reader = reader
        self.whole = whole
        self.instructions: list[Instruction] = []
        self.nodes: list[Node] = []
        self.errors: list[DockerfileSyntaxError] = []
        self._in_stage = not whole

    def read(self) -> None:
        """Read to the end, or to an error after which the rest can't be understood."""
        reader = self.reader
        taken = 0
        try:
            while (line := reader.next_line()) is not None:
                if not self.errors:
                    self.nodes += reader.nodes[taken:]
                taken = len(reader.nodes)
                instruction = self._instruction(line)
                reader.comments.clear()
                if instruction is not None:
                    self._add(instruction)
        except DockerfileSyntaxError as error:
            # BuildKit reads all lines before it looks at any instruction, so this error comes first.
            self.errors.insert(0, error)
        if self.errors:
            return
        self.nodes += reader.nodes[taken:]
        span = reader.source.span(0, 0)
        if not self.instructions:
            message = "file with no instructions" if reader.source.text else "the Dockerfile cannot be empty"
            self.errors.append(reader.error(message, span, hint="A Dockerfile begins with FROM IMAGE"))
        elif not self._in_stage:
            self.errors.append(
                reader.error(
                    "dockerfile contains no stages to build",
                    self.instructions[-1].span,
                    hint="Add FROM IMAGE behind the ARG lines",
                )
            )

    def _add(self, instruction: Instruction) -> None:
        if isinstance(instruction, From):
            self._in_stage = True
        elif not self._in_stage and not isinstance(instruction, Arg):
            self._in_stage = True  # said once
            self.errors.append(
                self.reader.error(
                    "no build stage in current context",
                    instruction.span,
                    hint=f"Put a FROM before {instruction.name}; only ARG may stand before the first FROM",
                )
            )
        if not self.errors:
            self.nodes.append(instruction)
            self.instructions.append(instruction)

    def _instruction(self, line: LogicalLine) -> Instruction | None:
        reader = self.reader
        read_bodies = False
        try:
            tokens = tokenize(line.text, escape=reader.escape)
            read_bodies = True
            end = line.source.position(line.end)
            heredocs: list[Heredoc] = []
            if "<<" in line.text:
                tokens = self._bodies(line, tokens, heredocs)
                if heredocs:
                    end = heredocs[-1].span.end
            builder = InstructionBuilder(
                line, escape=reader.escape, heredocs=heredocs, end=end, comments=tuple(reader.comments)
            )
            return builder.build(tokens)
        except TokenError as error:
            self.errors.append(self._located(line, error))
            if not read_bodies and "<<" in line.text:
                # So that what follows isn't taken for instructions.
                for opening in find_heredocs(line.text):
                    reader.heredoc_body(opening.name, strip_tabs=opening.strip_tabs)
            return None

    def _bodies(self, line: LogicalLine, tokens: list[Token], heredocs: list[Heredoc]) -> list[Token]:
        """Read the bodies of the HEREDOC tokens; gives the tokens back without those that open nothing after all."""
        kept: list[Token] = []
        for token in tokens:
            opening = token.heredoc
            if opening is None:
                kept.append(token)
                continue
            found = self.reader.heredoc_body(opening.name, strip_tabs=opening.strip_tabs)
            if found is None:
                if opening.certain:
                    raise self._unterminated(line, opening)
                if tokens[0].type in ("COPY", "ADD"):
                    kept.append(replace(token, type="WORD", heredoc=None))
                continue
            body, span = found
            content = _LEADING_TABS.sub("", body) if opening.strip_tabs else body
            heredocs.append(
                Heredoc(opening.name, opening.file_descriptor, content, opening.expand, opening.strip_tabs, span, body)
            )
            kept.append(token)
        return kept

    def _unterminated(self, line: LogicalLine, opening: HeredocWord) -> DockerfileSyntaxError:
        hint = f"End it with a line that holds {opening.name} alone"
        source = line.source
        for number in range(line.last + 1, len(source.starts) + 1):
            row = source.text[source.starts[number - 1] : source.line_end(number)]
            if row.strip() == opening.name:
                hint = f"Line {number} has blanks around {opening.name}; only <<- allows them, as leading tabs"
                break
        else:
            if not (opening.name[0].isalpha() or opening.name[0] == "_"):
                hint += "; to shift or compare instead, write << without a blank behind it or put it in quotes"
        return self.reader.error(
            "unterminated heredoc",
            source.span(line.start, line.end),
            culprit=line.span(opening.start, opening.end),
            hint=hint,
        )

    def _located(self, line: LogicalLine, error: TokenError) -> DockerfileSyntaxError:
        prefix = f"dockerfile parse error on line {line.first}: " if error.instruction and self.whole else ""
        hint = error.hint
        if self.reader.source.text.startswith(_UTF16_MARKS) or "\0" in self.reader.source.text[:4]:
            hint = "The file looks like UTF-16; save it as UTF-8"
        elif "unknown instruction" in error.message and self.instructions and "<<" in self.instructions[-1].text:
            hint = "If this is a here-document's text: << must begin a word of its own, and the name stand alone on its last line"
        return self.reader.error(
            prefix + error.message,
            line.source.span(line.start, line.end),
            culprit=line.span(error.start, error.end),
            hint=hint,
        )
