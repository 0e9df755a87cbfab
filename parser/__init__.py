"""Dockerfile text to a typed syntax tree, and what its words mean: the first stage of a build, and a library of its own.

``parse`` gives a ``Dockerfile``; ``expand`` and its kin substitute variables; the tree's types are in ``ast``. Knows nothing of
files, images or registries. What a formatter or updater needs is described in docs/parser.md.
"""

from . import ast
from .ast import (
    Add,
    Arg,
    Cmd,
    Command,
    Copy,
    Directive,
    Entrypoint,
    Env,
    ExecForm,
    Expose,
    Flag,
    From,
    Healthcheck,
    Heredoc,
    Instruction,
    KeyValue,
    Label,
    Maintainer,
    Mount,
    Onbuild,
    Position,
    Run,
    Shell,
    ShellForm,
    Span,
    Stage,
    Stopsignal,
    User,
    Volume,
    Word,
    Workdir,
)  # fmt: skip
from .dockerfile import Dockerfile, Node, Spanned, Syntax, instructions_of
from .errors import DockerfileError, DockerfileSyntaxError, excerpt
from .expand import (
    Expansion,
    ExpansionError,
    Literal,
    Variable,
    expand,
    expand_heredoc,
    expand_text,
    expand_words,
    parse_word,
)  # fmt: skip
from .lines import Blank, Comment, ParseWarning
from .parse import parse, parse_instruction

__all__ = [
    "Add", "Arg", "Blank", "Cmd", "Command", "Comment", "Copy", "Directive", "Dockerfile", "DockerfileError",
    "DockerfileSyntaxError", "Entrypoint", "Env", "ExecForm", "Expansion", "ExpansionError", "Expose", "Flag", "From",
    "Healthcheck", "Heredoc", "Instruction", "KeyValue", "Label", "Literal", "Maintainer", "Mount", "Node", "Onbuild",
    "ParseWarning", "Position", "Run", "Shell", "ShellForm", "Span", "Spanned", "Stage", "Stopsignal", "Syntax", "User",
    "Variable", "Volume", "Word", "Workdir", "ast", "excerpt", "expand", "expand_heredoc", "expand_text", "expand_words",
    "instructions_of", "parse", "parse_instruction", "parse_word",
]  # fmt: skip
