"""What parsing imports. How long it takes is measured in benchmarks/."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


def run_python(code: str, cache: Path) -> str:
    """A fresh interpreter that keeps compiled modules, as an installed package has them."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(cache)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_parsing_imports_neither_lark_nor_anything_else_that_is_slow(tmp_path: Path) -> None:
    code = (
        "import sys; before = set(sys.modules); from pybuild.parser import parse\n"
        f"parse({THOUSAND_LINES!r})\n"
        "print(*sorted(name.split('.')[0] for name in set(sys.modules) - before))"
    )
    loaded = set(run_python(code, tmp_path).split())
    assert "pybuild" in loaded
    assert not loaded & {"lark", "json", "requests", "asyncio", "ipaddress", "logging", "subprocess", "tempfile"}
