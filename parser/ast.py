"""The syntax tree of a Dockerfile: immutable, typed, with exact positions.

Owns the shapes only: nothing here parses, expands or renders. ``Word`` holds text as written, unexpanded; the expansion
lives in ``expand.py``. Names follow the Dockerfile reference.
"""

from __future__ import annotations

from pybuild.values import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in the text: ``line`` and ``column`` count from 1, ``offset`` is in characters from 0."""

    line: int
    column: int
    offset: int


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of text: ``start`` inclusive, ``end`` exclusive."""

    start: Position
    end: Position

    @property
    def lines(self) -> tuple[int, int]:
        """First and last line, both inclusive."""
        last = self.end.line
        if self.end.column == 1 and last > self.start.line:
            last -= 1
        return self.start.line, last


@dataclass(frozen=True, slots=True)
class Word:
    """A piece of an instruction in which variables may stand; ``text`` has continuations joined, quotes kept."""

    text: str
    span: Span
    escape: str = "\\"


@dataclass(frozen=True, slots=True)
class Flag:
    """``--name=value`` as written; ``value`` is None for a bare ``--name``. The typed form is in the instruction."""

    name: str
    value: str | None
    span: Span


@dataclass(frozen=True, slots=True)
class Heredoc:
    """A here-document. ``name`` is the delimiter without quotes, ``expand`` False if it was quoted, ``strip_tabs`` for ``<<-``.

    ``content`` is the body with tabs already stripped where asked, ending in a newline unless empty; ``body`` is it as written.
    """

    name: str
    file_descriptor: int
    content: str
    expand: bool
    strip_tabs: bool
    span: Span
    body: str


@dataclass(frozen=True, slots=True)
class ExecForm:
    """A JSON array of strings."""

    args: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ShellForm:
    """A command line for the stage's shell. ``text`` has continuations joined; heredocs are those it opens, in order.

    ``text`` contains the first line(s) only, not the heredoc bodies.
    """

    text: str
    heredocs: tuple[Heredoc, ...] = ()


Command = ExecForm | ShellForm


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """What every instruction has.

    ``keyword``: as written (its case matters to lint); ``text``: the logical line with continuations joined and comments
    dropped, keyword included, heredoc bodies not; ``source``: the exact characters covered by ``span``, bodies included;
    ``comments``: the comment block directly above, without ``#`` and one blank.
    """

    span: Span
    keyword: str
    text: str
    source: str
    flags: tuple[Flag, ...] = ()
    comments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The keyword in upper case."""
        return self.keyword.upper()


@dataclass(frozen=True, slots=True, kw_only=True)
class From(Instruction):
    """``FROM [--platform=P] image [AS name]``; ``stage_name`` as written (lower-case it to compare); ``as_keyword`` as written."""

    image: Word
    platform: Word | None = None
    stage_name: str | None = None
    as_keyword: str | None = None


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One ``key=value``; of ARG, ``value`` is None where no default is given."""

    key: Word
    value: Word | None
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Arg(Instruction):
    """``ARG name[=default] …``"""

    args: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Env(Instruction):
    """``ENV k=v …``; ``legacy`` for ``ENV k v``."""

    pairs: tuple[KeyValue, ...]
    legacy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Label(Instruction):
    """``LABEL k=v …``; ``legacy`` for ``LABEL k v``."""

    pairs: tuple[KeyValue, ...]
    legacy: bool = False


@dataclass(frozen=True, slots=True)
class Mount:
    """One ``RUN --mount``. Values are unexpanded; only keys that were written are not None. ``type`` defaults to ``bind``.

    ``options`` holds the (lower-cased key, value) pairs in order, a bare key having the value None; aliases (``src``,
    ``dst``, …) are already replaced by ``source`` and ``target``. Constraints that need no expansion are already checked.
    """

    type: Word
    options: tuple[tuple[str, Word | None], ...]
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Instruction):
    command: Command
    mounts: tuple[Mount, ...] = ()
    network: str = "default"
    security: str = "sandbox"
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy(Instruction):
    """COPY. ``sources`` are words or heredocs, in order; ``from_`` is unexpanded text by rule."""

    sources: tuple[Word | Heredoc, ...]
    destination: Word
    from_: str | None = None
    chown: Word | None = None
    chmod: Word | None = None
    link: bool = False
    parents: bool = False
    exclude: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Add(Instruction):
    """ADD. ``unpack`` and ``keep_git_dir`` are None when not written."""

    sources: tuple[Word | Heredoc, ...]
    destination: Word
    chown: Word | None = None
    chmod: Word | None = None
    link: bool = False
    exclude: tuple[Word, ...] = ()
    checksum: Word | None = None
    keep_git_dir: bool | None = None
    unpack: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cmd(Instruction):
    command: Command


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrypoint(Instruction):
    command: Command


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell(Instruction):
    args: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expose(Instruction):
    ports: tuple[Word, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume(Instruction):
    paths: tuple[Word, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class User(Instruction):
    user: Word


@dataclass(frozen=True, slots=True, kw_only=True)
class Workdir(Instruction):
    path: Word


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopsignal(Instruction):
    signal: Word


@dataclass(frozen=True, slots=True, kw_only=True)
class Healthcheck(Instruction):
    """``command`` is None for ``HEALTHCHECK NONE``. Durations in nanoseconds, 0 when not written; ``retries`` likewise."""

    command: Command | None
    interval_ns: int = 0
    timeout_ns: int = 0
    start_period_ns: int = 0
    start_interval_ns: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Onbuild(Instruction):
    """``expression`` is the trigger as it goes into the image config (heredoc bodies included); ``trigger`` its parsed form."""

    expression: str
    trigger: Instruction


@dataclass(frozen=True, slots=True, kw_only=True)
class Maintainer(Instruction):
    author: str


@dataclass(frozen=True, slots=True)
class Directive:
    """A parser directive ``# name=value``; ``name`` in lower case."""

    name: str
    value: str
    span: Span


@dataclass(frozen=True, slots=True)
class Stage:
    """A FROM and what follows it up to the next; ``index`` counts from 0."""

    index: int
    from_: From
    instructions: tuple[Instruction, ...]

    @property
    def name(self) -> str | None:
        """The lower-cased name, None if unnamed."""
        return None if self.from_.stage_name is None else self.from_.stage_name.lower()
