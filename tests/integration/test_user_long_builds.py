"""Builds that are large, loud or killed: floods of output, hundreds of stages, a signal at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Pybuild

pytestmark = pytest.mark.integration


def test_megabytes_without_a_newline_take_no_longer_than_with(pybuild: Pybuild, tmp_path: Path) -> None:
    started = time.monotonic()
    done = pybuild.build("FROM busybox\nRUN head -c 20000000 /dev/zero | tr '\\0' y\n", tmp_path / "c")
    assert "y" * 20_000_000 in done.stderr
    assert time.monotonic() - started < 10  # it was quadratic: a minute


def test_no_line_of_two_interleaved_floods_is_lost(pybuild: Pybuild, tmp_path: Path) -> None:
    count = 5000
    loop = f"i=0; while [ $i -lt {count} ]; do echo out-$i; echo err-$i >&2; i=$((i+1)); done"
    done = pybuild.build(f"FROM busybox\nRUN {loop}\n", tmp_path / "c")
    words = [line.split()[-1] for line in done.stderr.splitlines() if line.startswith(("#5 0", "#5 1"))]
    for stream in ("out", "err"):
        assert [word for word in words if word.startswith(stream)] == [f"{stream}-{n}" for n in range(count)]


def test_five_hundred_stages_and_a_name_of_three_hundred_characters(pybuild: Pybuild, tmp_path: Path) -> None:
    name = "s" * 300
    lines = ["FROM busybox AS s0"]
    lines += [f"FROM s{n} AS s{n + 1}\nENV A{n}={n}" for n in range(500)]
    lines += [f"FROM s500 AS {name}", "RUN env | grep -c ^A > /count", "FROM scratch", f"COPY --from={name} /count /"]
    pybuild.build("\n".join(lines) + "\n", tmp_path / "c", "-o", str(tmp_path / "out"))
    assert (tmp_path / "out/count").read_text() == "500\n"


def test_a_step_with_a_thousand_arguments_that_reads_stdin_and_leaves_processes(
    pybuild: Pybuild, tmp_path: Path
) -> None:
    arguments = " ".join(f"a{n}" for n in range(1000))
    dockerfile = f"FROM busybox\nRUN cat; (sleep 987 &) ; echo {arguments} | wc -w\nRUN ! ps | grep '[s]leep 987'\n"
    assert " 1000\n" in pybuild.build(dockerfile, tmp_path / "c").stderr


KILLED = """\
FROM busybox AS a
RUN head -c 20000000 /dev/urandom > /a; sleep 0.2
FROM busybox
RUN trap '' TERM INT; for i in $(seq 50); do echo $i > /b$i; done; sleep 0.3
COPY --from=a /a /a
RUN mkfifo /pipe; rm /a; sleep 300
"""


def test_a_build_killed_at_any_moment_leaves_nothing(pybuild: Pybuild, tmp_path: Path) -> None:
    context = tmp_path / "c"
    context.mkdir()
    (context / "Dockerfile").write_text(KILLED)
    command = [sys.executable, "-m", "pybuild", "--root", str(pybuild.root), "build", "--no-cache", str(context)]
    marker = {**os.environ, "KILLED_BUILD": str(tmp_path)}
    for number, seconds in enumerate((0.1, 0.3, 0.5, 0.8, 1.2, 1.6)):
        process = subprocess.Popen(command, env=marker, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        sent = signal.SIGKILL if number % 2 else signal.SIGINT
        process.send_signal(sent)
        assert process.wait(10) in ((-sent,) if number % 2 else (130, -sent))
        assert _without_processes(str(tmp_path))
    (context / "Dockerfile").write_text(KILLED.replace("sleep 300", "true"))
    pybuild.run("build", "-t", "whole", str(context))
    assert not list((pybuild.root / "active").iterdir())
    assert not list((pybuild.root / "ingest").iterdir())
    assert str(pybuild.root) not in Path("/proc/self/mounts").read_text()
    assert pybuild.run("run", "whole", "sh", "-c", "ls / | grep -c ^b[0-9]").stdout == "50\n"


def _without_processes(marker: str) -> bool:
    """True as soon as no process has ``marker`` in its environment."""
    wanted = f"KILLED_BUILD={marker}".encode()
    for _ in range(50):
        found = False
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                found |= wanted in path.read_bytes()
            except OSError:
                continue
        if not found:
            return True
        time.sleep(0.1)
    return False


def test_ctrl_c_ends_an_export(pybuild: Pybuild, tmp_path: Path) -> None:
    context = tmp_path / "c"
    # Random, and compressed as well as can be: it takes longer than until the signal.
    pybuild.build("FROM busybox\nRUN head -c 100000000 /dev/urandom > /big\n", context)
    for output in ("type=oci,dest=out", "type=docker,dest=out", "type=oci,dest=out,tar=false"):
        arguments = ["-o", f"{output},compression=zstd,compression-level=19", "--progress=plain", str(context)]
        process = subprocess.Popen(
            [sys.executable, "-m", "pybuild", "--root", str(pybuild.root), "build", *arguments],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        for line in process.stderr:
            if "exporting to" in line:
                break
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        rest = process.stderr.read()
        assert (process.wait(), time.monotonic() - started < 5) == (130, True), rest
        assert "Traceback" not in rest
        process.stderr.close()
    assert not [path.name for path in tmp_path.iterdir() if "out" in path.name]
