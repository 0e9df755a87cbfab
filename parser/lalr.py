"""Runs the LALR(1) tables of ``_tables.py`` over the tokens of one instruction.

Owns the driver and the tree it makes, which has the shape that Lark gives for the same grammar: one node per rule, rules
whose name starts with ``_`` (and those that stand for ``*`` and ``+``) spliced into their parent. Never words an error:
it says which token didn't fit and what would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from . import _tables
from .tokens import Token

_END = "$END"
_STATES = _tables.STATES
_RULES: tuple[tuple[str, int, bool], ...] = tuple((name, size, name.startswith("_")) for name, size in _tables.RULES)


class Node:
    """``rule``: the rule's name; ``children``: nodes and tokens in order."""

    __slots__ = ("children", "rule")

    def __init__(self, rule: str, children: list[Child]) -> None:
        self.rule = rule
        self.children = children


Child: TypeAlias = Node | Token


class UnexpectedToken(Exception):
    """``index``: which token didn't fit (their number: the end came too early); ``expected``: the types that would have."""

    def __init__(self, index: int, expected: frozenset[str]) -> None:
        super().__init__(index)
        self.index = index
        self.expected = expected


def parse(tokens: Sequence[Token]) -> Node:
    """The tree of an instruction. Raises ``UnexpectedToken``."""
    states = [_tables.START]
    values: list[Child | list[Child]] = []
    for token in tokens:
        kind = token.type
        while True:
            action = _STATES[states[-1]].get(kind)
            if action is None:
                raise _unexpected(tokens.index(token), states)
            if action >= 0:
                states.append(action)
                values.append(token)
                break
            _reduce(~action, states, values)
    while states[-1] != _tables.END:
        action = _STATES[states[-1]].get(_END)
        if action is None or action >= 0:
            raise _unexpected(len(tokens), states)
        _reduce(~action, states, values)
    start = values[-1]
    assert isinstance(start, Node)
    instruction = start.children[0]
    assert isinstance(instruction, Node)
    return instruction


def _reduce(number: int, states: list[int], values: list[Child | list[Child]]) -> None:
    name, size, spliced = _RULES[number]
    children: list[Child] = []
    for value in values[-size:]:
        if type(value) is list:
            # The list belongs to a spliced rule and to nobody else: growing the first one keeps repetitions linear.
            if children:
                children.extend(value)
            else:
                children = value
        else:
            children.append(value)  # type: ignore[arg-type]  # a list was handled above; mypy doesn't narrow by type()
    del states[-size:], values[-size:]
    states.append(_STATES[states[-1]][name])
    values.append(children if spliced else Node(name, children))


def _unexpected(index: int, states: list[int]) -> UnexpectedToken:
    return UnexpectedToken(index, frozenset(name for name in _STATES[states[-1]] if name == _END or name.isupper()))
