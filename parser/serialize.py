"""The tree as plain JSON values, for ``pybuild parse --json`` and for tools in other languages.

Owns the names in that form, which are the fields of the tree's types (docs/parser.md). There is no way back: the text is
the source of truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from pybuild.values import fields

from .ast import (
    Directive,
    ExecForm,
    Flag,
    Heredoc,
    Instruction,
    KeyValue,
    Mount,
    Position,
    ShellForm,
    Span,
    Stage,
    Word,
)
from .dockerfile import Dockerfile, Node
from .lines import Blank, Comment, ParseWarning

Json: TypeAlias = Mapping[str, "Json"] | list["Json"] | str | int | bool | None

SCHEMA = 1
"""Raised whenever a name changes its meaning; new names don't count."""


def to_json(dockerfile: Dockerfile) -> dict[str, Json]:
    """A Dockerfile as values that ``json.dumps`` takes.

    Every node has a ``kind``: ``instruction``, ``comment``, ``blank`` or ``directive``; an instruction is further told by its
    ``name``. ``stages`` and ``global_args`` refer to nodes by their position in ``nodes``.
    """
    positions = {id(node): index for index, node in enumerate(dockerfile.nodes)}
    syntax = dockerfile.syntax
    return {
        "schema": SCHEMA,
        "filename": dockerfile.filename,
        "escape": dockerfile.escape,
        "syntax": None
        if syntax is None
        else {"reference": syntax.reference, "command_line": syntax.command_line, "line": syntax.line},
        "check": dockerfile.check,
        "nodes": [_node(node) for node in dockerfile.nodes],
        "global_args": [positions[id(argument)] for argument in dockerfile.global_args],
        "stages": [_stage(stage, positions) for stage in dockerfile.stages],
        "warnings": [_warning(warning) for warning in dockerfile.warnings],
    }


def _stage(stage: Stage, positions: Mapping[int, int]) -> Json:
    return {
        "index": stage.index,
        "name": stage.name,
        "from": positions[id(stage.from_)],
        "instructions": [positions[id(instruction)] for instruction in stage.instructions],
    }


def _warning(warning: ParseWarning) -> Json:
    return {"rule": warning.rule, "message": warning.message, "hint": warning.hint, "span": _span(warning.span)}


def _node(node: Node) -> Json:
    match node:
        case Comment():
            return {"kind": "comment", "text": node.text, "source": node.source, "span": _span(node.span)}
        case Blank():
            return {"kind": "blank", "source": node.source, "span": _span(node.span)}
        case Directive():
            return {"kind": "directive", "name": node.name, "value": node.value, "span": _span(node.span)}
        case _:
            return _instruction(node)


def _instruction(instruction: Instruction) -> Json:
    values: dict[str, Json] = {"kind": "instruction", "name": instruction.name}
    for field in fields(instruction):
        values[field.name.rstrip("_")] = _value(getattr(instruction, field.name))
    return values


def _value(value: object) -> Json:
    match value:
        case None | bool() | int() | str():
            return value
        case tuple():
            return [_value(item) for item in value]
        case Span():
            return _span(value)
        case Instruction():
            return _instruction(value)
        case ExecForm():
            return {"form": "exec", "args": list(value.args)}
        case ShellForm():
            return {"form": "shell", "text": value.text, "heredocs": [_value(heredoc) for heredoc in value.heredocs]}
        case Mount():
            options: list[Json] = [{"key": key, "value": _value(option)} for key, option in value.options]
            return {"type": _value(value.type), "options": options, "span": _span(value.span)}
        case Heredoc():
            # Tells a here-document from a word among the sources of a COPY.
            return {"form": "heredoc", **_fields(value)}
        case Word():
            return {"text": value.text, "span": _span(value.span)}
        case Flag() | KeyValue():
            return _fields(value)
        case _:
            raise TypeError(f"the tree holds no {type(value).__name__}")


def _fields(value: Flag | Heredoc | KeyValue) -> dict[str, Json]:
    return {field.name: _value(getattr(value, field.name)) for field in fields(value)}


def _span(span: Span) -> Json:
    return {"start": _position(span.start), "end": _position(span.end)}


def _position(position: Position) -> Json:
    return {"line": position.line, "column": position.column, "offset": position.offset}
