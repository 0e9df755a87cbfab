"""What parsing costs: in time per line, in modules imported."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pybuild.parser import parse

BLOCK = """\
# a comment
RUN --mount=type=cache,target=/root/.cache,sharing=locked apt-get update \\
    && apt-get install -y --no-install-recommends \\
       one two three
ENV A=1 B="two words" C=$A
COPY --from=build --chown=app:app src/ ./src/ /srv/app/
LABEL org.opencontainers.image.title="a title" version="${VERSION:-1}"
RUN <<EOF
set -e
EOF
"""
THOUSAND_LINES = "FROM base AS build\n" + BLOCK * 100


def test_a_thousand_lines_take_less_than_50_ms() -> None:
    assert THOUSAND_LINES.count("\n") >= 1000
    best = min(timed(THOUSAND_LINES) for _ in range(5))
    assert best < 0.05


def timed(text: str) -> float:
    started = time.process_time()
    parse(text)
    return time.process_time() - started


@pytest.mark.parametrize(
    "unit",
    [
        BLOCK,
        "RUN a \\\n",
        "ENV a='b c' \\\n d=e\n",
        "\n",
        "# comment\n",
        "RUN <<A <<B\nA\nB\n",
        "RUN '<<A\n",
        "COPY a <<E b /x\nE\n",
        "EXPOSE " + "80 " * 20 + "\n",
        'RUN ["a", "b", "c"]\n',
    ],
    ids=["mixed", "one-command", "one-env", "blank", "comments", "heredocs", "quotes", "copies", "words", "arrays"],
)
def test_time_grows_no_faster_than_the_file(unit: str) -> None:
    small, large = ("FROM base\n" + unit * count for count in (60, 600))
    # Linear is 10; garbage collection and small files blur it. Quadratic would be 100.
    ratio = min(timed(large) for _ in range(2)) / max(min(timed(small) for _ in range(3)), 0.0002)
    assert ratio < 30


def run_python(code: str, cache: Path) -> str:
    """A fresh interpreter that keeps compiled modules, as an installed package has them."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(cache)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_importing_the_parser_takes_less_than_60_ms(tmp_path: Path) -> None:
    code = "import time; t = time.process_time(); import pybuild.parser; print(time.process_time() - t)"
    assert min(float(run_python(code, tmp_path)) for _ in range(6)) < 0.06


def test_parsing_imports_neither_lark_nor_anything_else_that_is_slow(tmp_path: Path) -> None:
    code = (
        "import sys; before = set(sys.modules); from pybuild.parser import parse\n"
        f"parse({THOUSAND_LINES!r})\n"
        "print(*sorted(name.split('.')[0] for name in set(sys.modules) - before))"
    )
    loaded = set(run_python(code, tmp_path).split())
    assert "pybuild" in loaded
    assert not loaded & {"lark", "json", "requests", "asyncio", "ipaddress", "logging", "subprocess", "tempfile"}
