"""What a user meets who mistypes, pipes, runs out of space or works in an odd place: one clear line, the right status, no traceback."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pybuild.cli.main import COMMANDS

if TYPE_CHECKING:
    from conftest import Pybuild

pytestmark = pytest.mark.integration

DOCKERFILE = "FROM scratch\nCOPY Dockerfile /\n"


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """A context whose build needs no step to run."""
    directory = tmp_path / "context"
    directory.mkdir()
    (directory / "Dockerfile").write_text(DOCKERFILE)
    return directory


def shell(
    pybuild: Pybuild, line: str, *, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a line of sh in which ``$pybuild`` is the command."""
    command = f"{sys.executable} -m pybuild --root {pybuild.root}"
    return subprocess.run(
        ["sh", "-c", line.replace("$pybuild", command)],
        cwd=cwd,
        env={**os.environ, **pybuild.variables, **(env or {})},
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=60,
        check=False,
    )


def refused(pybuild: Pybuild, arguments: Sequence[str], *, status: int = 2, cwd: Path | None = None) -> str:
    """What stderr says when the command refuses."""
    done = pybuild.run(*arguments, check=False, cwd=cwd)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert "ERROR: " in done.stderr
    return done.stderr


def test_every_command_has_help_without_gaps(pybuild: Pybuild) -> None:
    for command in COMMANDS:
        done = pybuild.run(command, "--help")
        assert f"pybuild {command}" in done.stdout
        assert "SUPPRESS" not in done.stdout
        assert not done.stderr


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["build", "--taget", "x", "."], "unknown option --taget", "did you mean --target?"),
        (["build", "--frob"], "unknown option --frob", "see 'pybuild build --help'"),
        (["build", ".", "--root", "x"], "unknown option --root", "global options come before the command"),
        (["run", "--enf", "A=1", "busybox", "ls", "--all"], "unknown option --enf", "--env"),
        (["version", "--frob"], "unknown option --frob", ""),
        (["buidl", "."], "unknown command 'buidl'", "did you mean 'build'?"),
        (["build", "-t", "Foo", "."], "invalid tag 'Foo'", "foo"),
        (["build", "-t", "a:b:c", "."], "invalid tag 'a:b:c'", ""),
        (["build", "--push", "."], "tag is needed when pushing", "--tag HOST/NAME:TAG"),
        (["build", "--platform", "frob", "."], '--platform: "frob"', "linux/amd64"),
        (["build", "--shm-size", "1x", "."], "--shm-size: invalid size", ""),
        (["build", "--iidfile", "/", "."], "--iidfile '/' is a directory", ""),
        (["build", "--metadata-file", "/no/where", "."], "the directory of --metadata-file", ""),
        (["build", "-o", "type=tar,dest=/", "."], "--output '/' is a directory", ""),
        (["build", "-o", "type=local,dest=/etc/passwd", "."], "--output '/etc/passwd' is not a directory", ""),
        (["prune", "--keep-duration", "1y"], "--keep-duration: invalid duration", ""),
        (["tag", "busybox", "Box"], "must be lowercase", "write 'box'"),
    ],
)
def test_a_mistake_is_named_before_anything_is_done(
    pybuild: Pybuild, context: Path, arguments: list[str], error: str, hint: str
) -> None:
    said = refused(pybuild, arguments, cwd=context)
    assert error in said
    assert hint in said
    assert "#1 " not in said


def test_options_of_docker_that_mean_nothing_here_are_taken(pybuild: Pybuild, context: Path) -> None:
    pybuild.run(
        "build", "--builder", "ci", "--compress", "--rm=false", "--force-rm", "--isolation=default", "-q", str(context)
    )


def test_short_options_can_be_bundled(pybuild: Pybuild, context: Path) -> None:
    (context / "Other").write_text("FROM busybox\nLABEL a=b\n")
    built = pybuild.run("build", "-qf", str(context / "Other"), str(context)).stdout.strip()
    assert built in pybuild.run("images", "-aq", "--no-trunc").stdout.split()
    assert "Total:" in pybuild.run("prune", "-af").stdout
    assert pybuild.run("build", "-q=false", str(context)).stdout == ""


@pytest.mark.parametrize("command", ["images", "build -q .", "build -q -o - .", "save busybox", "history busybox"])
def test_a_full_disk_behind_stdout_is_told(pybuild: Pybuild, context: Path, command: str) -> None:
    done = shell(pybuild, f"$pybuild {command} > /dev/full", cwd=context)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_closed_streams_stop_nothing(pybuild: Pybuild, context: Path) -> None:
    for closed in (">&-", "2>&-", "<&- >&- 2>&-"):
        done = shell(pybuild, f"$pybuild build -t closed . {closed}", cwd=context)
        assert (done.returncode, done.stdout) == (0, "")
        assert "Traceback" not in done.stderr
    assert "closed" in pybuild.run("images").stdout


def test_the_locale_changes_no_name(pybuild: Pybuild, context: Path) -> None:
    (context / "é").write_text("1")
    (Path(os.fsdecode(os.fsencode(context) + b"/\xff"))).write_text("2")
    (context / "Dockerfile").write_text("FROM scratch\nCOPY é /ü\nCOPY . /all/\n")
    line = "$pybuild build -q --label é=ü -t l . && $pybuild context ls --all && $pybuild build -o out ."
    odd = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = shell(pybuild, line, cwd=context, env=odd)
    assert done.returncode == 0, done.stderr
    assert "é" in done.stdout
    assert (context / "out/ü").read_text() == "1"
    assert Path(os.fsdecode(os.fsencode(context) + b"/out/all/\xff")).read_text() == "2"
    assert '"é": "ü"' in pybuild.run("inspect", "l").stdout


def test_an_archive_on_stdout_is_all_that_stdout_carries(pybuild: Pybuild, context: Path) -> None:
    line = "$pybuild build -q -o type=oci . | tee archive | tar -t | grep -c index.json; tail -c 1024 archive | tr -d '\\000' | wc -c"
    done = shell(pybuild, line, cwd=context)
    assert done.stdout.split() == ["1", "0"], done.stderr


def test_an_archive_is_not_written_to_a_terminal(pybuild: Pybuild, context: Path) -> None:
    leader, follower = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pybuild", "--root", str(pybuild.root), "build", "-o", "-", str(context)],
            stdout=follower,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(follower)
        os.close(leader)
    assert done.returncode == 2
    assert b"refusing to write an archive to the terminal" in done.stderr


def test_the_end_of_a_build_names_what_was_made(pybuild: Pybuild, context: Path) -> None:
    iid = context / "iid"
    done = pybuild.run("build", "--progress=plain", "-t", "a:1", "-t", "b", "--iidfile", str(iid), str(context))
    for line in ("exporting layers", f"exporting config {iid.read_text()}", "naming to docker.io/library/a:1"):
        assert f"{line} done\n" in done.stderr
    assert "naming to docker.io/library/b:latest done\n" in done.stderr
    assert done.stdout == ""


def test_what_is_no_dockerfile_cannot_steer_the_terminal(pybuild: Pybuild, context: Path) -> None:
    (context / "Dockerfile").write_bytes(b"FROM busybox\n\x1b]0;title\x07\xff\x00 " + b"x" * 5000 + b"\n")
    said = refused(pybuild, ["build", str(context)], status=1)
    assert "\x1b" not in said
    assert "\\x1b]0;title\\x07\\xff\\x00" in said
    assert max(map(len, said.split("ERROR: failed")[0].split("\n"))) < 1100


def test_a_file_that_is_no_archive_is_said_to_be_none(pybuild: Pybuild) -> None:
    assert "it doesn't begin with a tar header" in refused(pybuild, ["load", "-i", "/etc/passwd"], status=1)
    assert "it doesn't begin with a tar header" in refused(pybuild, ["import", "/etc/passwd", "x"], status=1)


def test_every_listing_of_du_has_json(pybuild: Pybuild, context: Path) -> None:
    pybuild.run("build", "-t", "x", str(context))
    for option in ("--images", "--builds"):
        lines = pybuild.run("du", option, "--format", "json").stdout.splitlines()
        assert lines
        assert all(line.startswith("{") for line in lines)


def test_names_that_are_not_utf8_can_be_missing_too(pybuild: Pybuild, context: Path) -> None:
    (context / "Dockerfile").write_bytes(b"FROM busybox\nCOPY no\xd7 /\n")
    for progress in ("plain", "rawjson"):
        said = refused(pybuild, ["build", f"--progress={progress}", str(context)], status=1)
        assert '"/no\\xd7": not found' in said


def test_run_passes_its_input_on_when_asked_and_ends_as_a_shell_would(pybuild: Pybuild) -> None:
    assert pybuild.run("run", "-i", "busybox", "cat", stdin=b"hello\n").stdout == "hello\n"
    assert pybuild.run("run", "busybox", "cat", stdin=b"hello\n").stdout == ""
    for program, status in (("nosuch", 127), ("/etc/passwd", 126)):
        assert pybuild.run("run", "busybox", program, check=False).returncode == status
    assert pybuild.run("run", "busybox", "sh", "-c", "exit 42", check=False).returncode == 42
