"""Each folder of tests/corpus holds a Dockerfile and what becomes of it: ``tree.txt``, or ``error.txt``.

``python tests/unit/test_parse_corpus.py`` writes the expected files anew; read the difference before committing it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pybuild.parser import ast, parse
from pybuild.parser.dockerfile import Dockerfile
from pybuild.parser.errors import DockerfileSyntaxError
from pybuild.parser.lines import Blank, Comment

FOLDERS = sorted(path.parent for path in (Path(__file__).resolve().parents[1] / "corpus").glob("*/Dockerfile"))
COMMON = {"span", "keyword", "source", "text", "flags", "comments"}


def place(span: ast.Span) -> str:
    return f"{span.start.line}:{span.start.column}-{span.end.line}:{span.end.column}"


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=not text.isprintable())


def show(value: object) -> str:
    """A value of the tree in one line."""
    match value:
        case ast.Word():
            return f"{quoted(value.text)}@{place(value.span)}"
        case ast.KeyValue():
            return f"{show(value.key)} = {show(value.value)}"
        case ast.Heredoc():
            marks = "".join(mark for mark, on in (("-", value.strip_tabs), ("'", not value.expand)) if on)
            return f"{value.file_descriptor or ''}<<{marks}{quoted(value.name)}@{place(value.span)} {quoted(value.content)}"
        case ast.ExecForm():
            return f"exec {show(value.args)}"
        case ast.ShellForm():
            return "shell " + " ".join([quoted(value.text), *map(show, value.heredocs)])
        case ast.Mount():
            options = ", ".join(key if word is None else f"{key}={show(word)}" for key, word in value.options)
            return f"{show(value.type)} {options}"
        case ast.Instruction():
            return show_instruction(value, indent="      ").lstrip()
        case tuple():
            return "[" + ", ".join(show(item) for item in value) + "]"
        case str():
            return quoted(value)
        case _:
            return repr(value)


def show_instruction(instruction: ast.Instruction, *, indent: str) -> str:
    rows = [f"{indent}{place(instruction.span)} {instruction.keyword} {quoted(instruction.text)}"]
    rows += [f"{indent}  # {comment}" for comment in instruction.comments]
    rows += [
        f"{indent}  --{flag.name}{'' if flag.value is None else '=' + flag.value} @{place(flag.span)}"
        for flag in instruction.flags
    ]
    for name, field in type(instruction).__dataclass_fields__.items():
        value = getattr(instruction, name)
        if name not in COMMON and value != field.default:
            rows.append(f"{indent}  {name}: {show(value)}")
    return "\n".join(rows)


def show_tree(dockerfile: Dockerfile) -> str:
    rows = []
    if dockerfile.escape != "\\":
        rows.append(f"escape {dockerfile.escape}")
    if dockerfile.syntax is not None:
        rows.append(f"syntax {dockerfile.syntax.reference} (line {dockerfile.syntax.line})")
    if dockerfile.check is not None:
        rows.append(f"check {dockerfile.check}")
    for warning in dockerfile.warnings:
        rows.append(f"warning {warning.rule} {place(warning.span)}: {warning.message}")
        rows.append(f"  {warning.hint}")
    starts = {id(stage.from_): stage for stage in dockerfile.stages}
    for node in dockerfile.nodes:
        match node:
            case Comment():
                rows.append(f"{place(node.span)} # {node.text}")
            case Blank():
                rows.append(f"{place(node.span)} blank")
            case ast.Directive():
                rows.append(f"{place(node.span)} directive {node.name} = {node.value}")
            case _:
                if id(node) in starts:
                    rows.append(f"stage {starts[id(node)].index} {starts[id(node)].name or ''}".rstrip())
                rows.append(show_instruction(node, indent="  "))
    return "\n".join(rows) + "\n"


def show_error(error: DockerfileSyntaxError) -> str:
    listing = "\n".join(row if len(row) < 200 else row[:60] + "…" for row in error.excerpt().splitlines())
    others = "".join(f"also: {other.message}\n" for other in error.others)
    return f"{error.message}\nhint: {error.hint}\n{others}{listing}\n"


def outcome(folder: Path) -> tuple[str, str]:
    """(name of the file with the expectation, its content)."""
    try:
        return "tree.txt", show_tree(parse((folder / "Dockerfile").read_bytes()))
    except DockerfileSyntaxError as error:
        return "error.txt", show_error(error)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_it_parses_as_expected(folder: Path) -> None:
    name, text = outcome(folder)
    assert {path.name for path in folder.iterdir()} == {"Dockerfile", name}
    assert text == (folder / name).read_text(encoding="utf-8", errors="surrogateescape")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_it_renders_as_it_was_written(folder: Path) -> None:
    data = (folder / "Dockerfile").read_bytes()
    try:
        dockerfile = parse(data)
    except DockerfileSyntaxError:
        return
    assert dockerfile.render().encode("utf-8", "surrogateescape") == data


def test_the_corpus_is_there() -> None:
    assert len(FOLDERS) > 40


if __name__ == "__main__":
    for one in FOLDERS:
        name, text = outcome(one)
        for old in ("tree.txt", "error.txt"):
            (one / old).unlink(missing_ok=True)
        (one / name).write_text(text, encoding="utf-8", errors="surrogateescape")
