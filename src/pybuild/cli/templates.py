"""``--format``: the part of Go's text/template that docker's users write. Renders values, computes nothing else.

Supported: ``{{.Field.Sub}}``, ``{{json .}}``, ``{{index .X "key" 0}}``, ``{{len .X}}``, ``{{join .X ","}}``, ``{{split .X ","}}``,
``{{upper}}``, ``{{lower}}``, ``{{title}}``, ``{{truncate .X 12}}``, ``{{print}}``, ``{{println}}``, ``{{printf "%s" .X}}``, pipes,
``{{if}} {{else}} {{end}}``, ``{{range}} {{end}}``, ``{{with}} {{end}}``, variables of range (``{{range $k, $v := .X}}``), trim markers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pybuild.errors import UsageError
from pybuild.values import dataclass

_TAG: Final = re.compile(r"\{\{(-?)\s*(.*?)\s*(-?)\}\}", re.DOTALL)
_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|`[^`]*`|\(|\)|\||:=|,|[^\s()|,"]+')

Value = Any  # Any: whatever JSON holds


@dataclass(frozen=True, slots=True)
class _Text:
    text: str


@dataclass(frozen=True, slots=True)
class _Action:
    tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Block:
    keyword: str
    tokens: tuple[str, ...]
    body: tuple[_Text | _Action | _Block, ...]
    otherwise: tuple[_Text | _Action | _Block, ...]


def render(template: str, value: Value) -> str:
    """Render ``template`` on ``value``. Raises UsageError for what it doesn't understand or a field that isn't there."""
    nodes, rest = _parse(_pieces(template), until=())
    if rest:
        raise UsageError(f"template: unexpected {{{{{rest[0]}}}}}")
    return _render(nodes, value, {"$": value})


def _pieces(template: str) -> list[str | _Text]:
    """Texts, and the insides of tags as plain strings; the trim markers are applied here."""
    out: list[str | _Text] = []
    position = 0
    trim = False
    for match in _TAG.finditer(template):
        text = template[position : match.start()]
        text = text.lstrip() if trim else text
        out.append(_Text(text.rstrip() if match[1] else text))
        if not match[2].startswith("/*"):
            out.append(match[2])
        trim = bool(match[3])
        position = match.end()
    text = template[position:]
    if "{{" in text:
        raise UsageError(f"template: unclosed action in {template!r}")
    out.append(_Text(text.lstrip() if trim else text))
    return out


_Nodes = tuple[_Text | _Action | _Block, ...]


def _parse(pieces: list[str | _Text], *, until: Sequence[str]) -> tuple[_Nodes, list[str | _Text]]:
    nodes: list[_Text | _Action | _Block] = []
    while pieces:
        piece, pieces = pieces[0], pieces[1:]
        if isinstance(piece, _Text):
            nodes.append(piece)
            continue
        tokens = tuple(_TOKEN.findall(piece))
        keyword = tokens[0] if tokens else ""
        if keyword in until:
            return tuple(nodes), [piece, *pieces]
        if keyword in ("if", "range", "with"):
            body, pieces = _parse(pieces, until=("else", "end"))
            otherwise: _Nodes = ()
            if pieces and isinstance(pieces[0], str) and pieces[0].startswith("else"):
                head = pieces[0][4:].strip()
                if head:
                    # {{else if x}} is an if inside the else branch that shares its end.
                    inner, pieces = _parse([head, *pieces[1:]], until=("end",))
                    otherwise = inner
                else:
                    otherwise, pieces = _parse(pieces[1:], until=("end",))
                    pieces = pieces[1:]
            elif pieces:
                pieces = pieces[1:]
            else:
                raise UsageError(f"template: {{{{{keyword}}}}} has no {{{{end}}}}")
            nodes.append(_Block(keyword, tokens[1:], body, otherwise))
            continue
        nodes.append(_Action(tokens))
    return tuple(nodes), []


def _render(nodes: _Nodes, dot: Value, variables: dict[str, Value]) -> str:
    out: list[str] = []
    for node in nodes:
        match node:
            case _Text(text):
                out.append(text)
            case _Action(tokens):
                names, expression = _assigned(tokens)
                result = _evaluate(expression, dot, variables)
                if names:
                    variables[names[0]] = result
                else:
                    out.append(_show(result))
            case _Block("range", tokens, body, otherwise):
                names, expression = _assigned(tokens)
                items = _items(_evaluate(expression, dot, variables))
                for key, item in items:
                    scope = dict(variables)
                    if len(names) == 2:
                        scope[names[0]], scope[names[1]] = key, item
                    elif names:
                        scope[names[0]] = item
                    out.append(_render(body, item, scope))
                if not items:
                    out.append(_render(otherwise, dot, variables))
            case _Block(keyword, tokens, body, otherwise):
                result = _evaluate(tokens, dot, variables)
                if _truth(result):
                    out.append(_render(body, result if keyword == "with" else dot, variables))
                else:
                    out.append(_render(otherwise, dot, variables))
    return "".join(out)


def _assigned(tokens: Sequence[str]) -> tuple[list[str], Sequence[str]]:
    if ":=" not in tokens:
        return [], tokens
    position = list(tokens).index(":=")
    return [name for name in tokens[:position] if name != ","], tokens[position + 1 :]


def _items(value: Value) -> list[tuple[Value, Value]]:
    if isinstance(value, Mapping):
        return sorted(value.items())
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if not value:
        return []
    raise UsageError(f"template: range can't iterate over {_show(value)}")


def _evaluate(tokens: Sequence[str], dot: Value, variables: Mapping[str, Value]) -> Value:
    """A pipeline: each stage's result is the last argument of the next."""
    stages: list[list[str]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token == "(") - (token == ")")
        if token == "|" and depth == 0:
            stages.append([])
        else:
            stages[-1].append(token)
    result: list[Value] = []
    for stage in stages:
        result = [_call(stage, dot, variables, result)]
    return result[0]


def _call(tokens: list[str], dot: Value, variables: Mapping[str, Value], piped: list[Value]) -> Value:
    operands: list[Value] = []
    name = ""
    position = 0
    while position < len(tokens):
        token = tokens[position]
        if token == "(":
            depth, end = 1, position + 1
            while end < len(tokens) and depth:
                depth += (tokens[end] == "(") - (tokens[end] == ")")
                end += 1
            inner = _evaluate(tokens[position + 1 : end - 1], dot, variables)
            if end < len(tokens) and tokens[end].startswith("."):
                inner = _field(inner, tokens[end])
                end += 1
            operands.append(inner)
            position = end
            continue
        if position == 0 and token in _FUNCTIONS:
            name = token
        else:
            operands.append(_operand(token, dot, variables))
        position += 1
    operands += piped
    if name:
        try:
            return _FUNCTIONS[name](*operands)
        except (TypeError, ValueError, LookupError) as error:
            raise UsageError(f"template: {name}: {error}") from error
    if len(operands) != 1:
        raise UsageError(f"template: can't evaluate {' '.join(tokens)!r}")
    return operands[0]


def _operand(token: str, dot: Value, variables: Mapping[str, Value]) -> Value:
    if token[0] in '"`':
        return json.loads(token) if token[0] == '"' else token[1:-1]
    if token == ".":
        return dot
    if token.startswith("."):
        return _field(dot, token)
    if token.startswith("$"):
        name, dotted, rest = token.partition(".")
        if name not in variables:
            raise UsageError(f"template: undefined variable {name!r}")
        return _field(variables[name], f".{rest}") if dotted else variables[name]
    if re.fullmatch(r"-?\d+", token):
        return int(token)
    if token in ("true", "false", "nil"):
        return {"true": True, "false": False, "nil": None}[token]
    raise UsageError(f"template: function {token!r} not defined")


def _field(value: Value, path: str) -> Value:
    for name in path.split(".")[1:]:
        if not name:
            continue
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise UsageError(f"template: can't evaluate field {name}")
        if name not in value:
            if name[:1].isupper() and not any(key[:1].isupper() for key in value):
                # A map (labels, for example) gives nothing for a missing key; a structure has a fixed set of fields.
                return None
            raise UsageError(f"template: no field {name!r}", hint=f"the fields are {', '.join(map(str, value))}")
        value = value[name]
    return value


def _truth(value: Value) -> bool:
    return bool(value)


def _show(value: Value) -> str:
    """As Go prints it with ``%v``."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{key}:{_show(item)}" for key, item in sorted(value.items())) + "]"
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(_show(item) for item in value) + "]"
    return str(value)


def _json(value: Value) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _index(value: Value, *keys: Value) -> Value:
    for key in keys:
        value = value.get(key, "") if isinstance(value, Mapping) else value[key]
    return value


def _printf(template: str, *values: Value) -> str:
    shown = iter(values)

    def one(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        value = next(shown)
        text = json.dumps(value) if match[2] == "q" else _show(value)
        width = match[1]
        if not width:
            return text
        return text.ljust(int(width[1:])) if width.startswith("-") else text.rjust(int(width))

    return re.sub(r"%(-?\d*)([vsdqt%])", one, template)


def _compare(test: Callable[[Value, Value], bool]) -> Callable[..., bool]:
    return lambda first, *others: any(test(first, other) for other in others)


_FUNCTIONS: Final[dict[str, Callable[..., Value]]] = {
    "json": _json,
    "index": _index,
    "len": len,
    "join": lambda items, separator: separator.join(map(_show, items or ())),
    "split": lambda text, separator: text.split(separator),
    "upper": lambda text: text.upper(),
    "lower": lambda text: text.lower(),
    "title": lambda text: text.title(),
    "truncate": lambda text, length: text[:length],
    "print": lambda *items: "".join(map(_show, items)),
    "println": lambda *items: " ".join(map(_show, items)) + "\n",
    "printf": _printf,
    "eq": _compare(lambda a, b: a == b),
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "gt": lambda a, b: a > b,
    "not": lambda value: not value,
    "and": lambda *items: next((item for item in items if not item), items[-1]),
    "or": lambda *items: next((item for item in items if item), items[-1]),
}
