"""Parts of the product inside one process: what a warm build is made of."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pybuild.layers.digest import Digest
from pybuild.layers.store import Store
from pybuild.parser import parse
from pybuild.parser.dockerignore import IgnoreMatcher

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


def test_parse_1000_lines(benchmark: Any) -> None:
    benchmark.group = "parse 1,000 lines (limit 50 ms)"
    text = "FROM base AS build\n" + BLOCK * 100
    assert len(benchmark(parse, text).instructions) == 501


def test_parse_10000_lines(benchmark: Any) -> None:
    benchmark.group = "parse 10,000 lines"
    text = "FROM base AS build\n" + BLOCK * 1000
    assert len(benchmark.pedantic(parse, (text,), rounds=3).instructions) == 5001


def test_import_the_parser(benchmark: Any) -> None:
    benchmark.group = "a Python process that imports the parser (limit 60 ms beyond an empty one)"
    benchmark.pedantic(lambda: subprocess.run([sys.executable, "-c", "import pybuild.parser"], check=True), rounds=10)


def test_empty_python(benchmark: Any) -> None:
    benchmark.group = "an empty Python process"
    benchmark.pedantic(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True), rounds=10)


def test_version(benchmark: Any) -> None:
    benchmark.group = "pybuild --version"
    command = [sys.executable, "-m", "pybuild", "--version"]
    benchmark.pedantic(lambda: subprocess.run(command, check=True, capture_output=True), rounds=10)


def test_100_000_paths_against_50_patterns(benchmark: Any) -> None:
    benchmark.group = "100,000 paths against 50 ignore patterns (limit 1 s)"
    rules = (
        [f"dir{n}/build" for n in range(15)] + [f"**/*.e{n}" for n in range(10)] + [f"**/cache{n}" for n in range(25)]
    )
    paths = [
        f"dir{a}/sub{b}/deep{c}/file{d}.e{d}"
        for a in range(20)
        for b in range(10)
        for c in range(10)
        for d in range(50)
    ]
    matcher = IgnoreMatcher(rules)
    assert benchmark.pedantic(lambda: sum(map(matcher.excluded, paths)), rounds=3) == 20_000


def test_20_000_stat_lookups(benchmark: Any, tmp_path: Path) -> None:
    benchmark.group = "20,000 look-ups in the stat index (limit 60 ms)"
    with Store(tmp_path / "root", clock=lambda: time.time() + 100) as store:
        paths = [f"/context/directory{number % 100}/file{number}" for number in range(20_000)]
        index = store.open_cache()
        index.remember_file_digests([(path, (1, 2), 3, 4, 5, Digest.of(b"")) for path in paths])
        index.flush()

        def look_up() -> int:
            later = store.open_cache()
            later.stat_index.preload("/context")
            return sum(
                later.file_digest(path, inode=(1, 2), size=3, mtime_ns=4, ctime_ns=5) is not None for path in paths
            )

        assert benchmark.pedantic(look_up, rounds=3) == 20_000


def test_open_the_store(benchmark: Any, tmp_path: Path) -> None:
    benchmark.group = "open the store and ask one thing (limit 5 ms)"
    Store(tmp_path / "root", clock=time.time).close()

    def opened() -> int:
        with Store(tmp_path / "root", clock=time.time) as store:
            return len(store.images.list())

    assert benchmark(opened) == 0
