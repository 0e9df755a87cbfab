"""A fuzz target to run by hand: ``python tests/fuzz_parser.py [SECONDS] [SEED]``.

Mutates the corpus (and what it made before, where that reached new lines of the parser) and checks of every text that it
parses and renders back, or is refused with a ``DockerfileError`` that can be shown. A text that breaks the rule is
printed as a Python literal and ends the run with status 1.
"""

from __future__ import annotations

import random
import sys
import time
import traceback
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from pybuild.parser import DockerfileError, expand, expand_words, parse
from pybuild.parser.ast import Word
from pybuild.parser.serialize import to_json

PIECES = [
    "\\\n", "\\", "`", "\n", "\r\n", "#", "# escape=`\n", "'", '"', "$", "${", "}", ":-", "##", "//", "<<", "<<-", "EOF", "\nEOF\n", "--",
    "--from=", "--mount=", "--chmod=", "=", ",", "[", "]", '"a"', "FROM ", "RUN ", "COPY ", "ONBUILD ", "ENV ", "HEALTHCHECK ", "\t", " ",
    "\0", "\ufeff", "\udcff", "é", "\u00a0",
]  # fmt: skip


class Coverage:
    """Which lines of the parser have run, by the interpreter's own tracing."""

    def __init__(self) -> None:
        self.lines: set[tuple[CodeType, int]] = set()
        self.grew = False

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:  # the interpreter's signature
        if "/parser/" not in frame.f_code.co_filename:
            return None
        key = (frame.f_code, frame.f_lineno)
        if key not in self.lines:
            self.lines.add(key)
            self.grew = True
        return self._trace

    def __enter__(self) -> Coverage:
        self.grew = False
        sys.settrace(self._trace)
        return self

    def __exit__(self, *exception: object) -> None:
        sys.settrace(None)


def mutate(text: str, others: list[str], chance: random.Random) -> str:
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(text))
        match chance.randint(0, 4):
            case 0:
                text = text[:at] + chance.choice(PIECES) + text[at:]
            case 1:
                text = text[:at] + text[at + chance.randint(1, 8) :]
            case 2:
                other = chance.choice(others)
                start = chance.randint(0, len(other))
                text = text[:at] + other[start : start + chance.randint(1, 40)] + text[at:]
            case 3:
                text = text[:at] + chr(chance.choice([chance.randint(0, 127), chance.randint(0, 0xFFFF)])) + text[at:]
            case _:
                text = text[:at] + text[max(0, at - chance.randint(1, 20)) :]
    return text[:4000]


def words(value: object) -> list[Word]:
    if isinstance(value, Word):
        return [value]
    if isinstance(value, tuple):
        return [word for item in value for word in words(item)]
    fields = getattr(value, "__dataclass_fields__", ())
    return [word for name in fields for word in words(getattr(value, name))]


def check(text: str) -> None:
    try:
        dockerfile = parse(text)
    except DockerfileError as error:
        error.excerpt()
        return
    if dockerfile.render() != text:
        raise AssertionError("it renders differently")
    to_json(dockerfile)
    for word in words(dockerfile.instructions):
        for function in (expand, expand_words):
            try:
                function(word, {"a": "1 2", "x": "*"})
            except DockerfileError:
                pass


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns()
    chance = random.Random(seed)
    folder = Path(__file__).parent / "corpus"
    texts = [
        path.read_bytes().decode("utf-8", "surrogateescape")
        for path in sorted(folder.glob("*/Dockerfile"))
        if path.stat().st_size < 4000
    ]
    coverage = Coverage()
    started, count = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        text = mutate(chance.choice(texts), texts, chance)
        count += 1
        try:
            if count % 4 == 0:  # tracing is slow: most texts run without it
                with coverage:
                    check(text)
                if coverage.grew:
                    texts.append(text)
            else:
                check(text)
        except Exception:
            traceback.print_exc()
            print(f"seed {seed}, text {count}:\n{text!r}")
            return 1
    print(f"seed {seed}: {count} texts, {len(coverage.lines)} lines of the parser, {len(texts)} texts kept")
    return 0


if __name__ == "__main__":
    sys.exit(main())
