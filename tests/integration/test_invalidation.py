"""What makes steps run again and what doesn't, through the command line: one build, then ``--dry-run`` after each change."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

DOCKERFILE = """\
# syntax=docker/dockerfile:1
ARG GLOBAL=1
FROM busybox AS made
ARG FLAVOUR=plain
RUN echo $FLAVOUR > /dev/null && echo same > /same
FROM busybox AS unused
ARG ELSEWHERE=1
RUN echo $ELSEWHERE
FROM busybox
ENV COLOR=red
ARG VERSION=1
WORKDIR /work
COPY src /work/src
COPY --chmod=0644 loose.txt /loose.txt
COPY --from=made /same /same
RUN --mount=type=bind,source=mounted,target=/mounted cat /mounted/file > /file
RUN echo $VERSION > /version
USER 1000
RUN id > /dev/null
ARG LATE=1
CMD ["sh"]
"""
STEPS = 8


class Project:
    """A context, and a store in which it was built once."""

    def __init__(self, machine, path: Path) -> None:  # type: ignore[no-untyped-def]  # conftest's class
        self.machine = machine
        self.path = path
        self.fill()
        machine.run("build", "-q", str(path))

    def fill(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        (self.path / "src/sub").mkdir(parents=True)
        (self.path / "mounted").mkdir()
        for name in ("src/app.py", "src/sub/lib.py", "loose.txt", "mounted/file", "beside.txt"):
            (self.path / name).write_text(f"content of {name}")
            (self.path / name).chmod(0o644)
        (self.path / "src/link").symlink_to("app.py")
        (self.path / "Dockerfile").write_text(DOCKERFILE)

    def edit(self, old: str, new: str) -> None:
        text = (self.path / "Dockerfile").read_text()
        assert old in text
        (self.path / "Dockerfile").write_text(text.replace(old, new))

    def would_run(self, *options: str, path: Path | None = None, umask: int | None = None) -> list[str]:
        command = [sys.executable, "-m", "pybuild", "--root", str(self.machine.root)]
        done = subprocess.run(
            [*command, "build", "--progress=quiet", "--dry-run", *options, str(path or self.path)],
            capture_output=True, text=True, check=False, env={**os.environ, **self.machine.variables},
            preexec_fn=None if umask is None else lambda: os.umask(umask),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        *lines, last = done.stdout.splitlines()
        assert last == f"{len(lines)} of {STEPS} steps would run"
        return [line.partition("] ")[2].split(" ")[0] for line in lines]


@pytest.fixture(scope="module")
def project(busybox_tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    directory = tmp_path_factory.mktemp("invalidation")
    config = directory / "docker-config"
    config.mkdir()
    machine = _Machine(directory / "root", {"DOCKER_CONFIG": str(config)})
    machine.run("import", str(busybox_tar), "busybox:latest")
    return Project(machine, directory / "context")


class _Machine:
    def __init__(self, root: Path, variables: dict[str, str]) -> None:
        self.root = root
        self.variables = variables

    def run(self, *arguments: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "pybuild", "--root", str(self.root), *arguments],
            check=True, capture_output=True, env={**os.environ, **self.variables},
        )  # fmt: skip


Change = Callable[[Project], object]


def _touch(project: Project) -> None:
    for directory, names, files in os.walk(project.path):
        for name in (*names, *files):
            if not os.path.islink(os.path.join(directory, name)):
                os.utime(os.path.join(directory, name), (1, 1))


def _other_order(project: Project) -> None:
    texts = {path: path.read_text() for path in (project.path / "src").rglob("*.py")}
    shutil.rmtree(project.path / "src")
    (project.path / "src/sub").mkdir(parents=True)
    (project.path / "src/link").symlink_to("app.py")
    for path in sorted(texts, reverse=True):
        path.write_text(texts[path])


IRRELEVANT: dict[str, Change] = {
    "nothing": lambda p: None,
    "times": _touch,
    "the order in which files were made": _other_order,
    "a file that nothing takes": lambda p: (p.path / "beside.txt").write_text("other"),
    "a new file that nothing takes": lambda p: (p.path / "more.txt").write_text("other"),
    "a comment": lambda p: p.edit("ARG GLOBAL=1", "# a comment\nARG GLOBAL=1"),
    "blanks and continuation lines": lambda p: p.edit("RUN echo $VERSION > /version", "RUN   echo $VERSION > /version  "),
    "the name of a stage": lambda p: (p.edit("AS made", "AS built"), p.edit("--from=made", "--from=built")),
    "an argument of a stage that isn't built": lambda p: p.edit("ELSEWHERE=1", "ELSEWHERE=2"),
    "the command of a stage that isn't built": lambda p: p.edit("RUN echo $ELSEWHERE", "RUN false"),
    "a global argument that nothing uses": lambda p: p.edit("GLOBAL=1", "GLOBAL=2"),
    "an argument after the last step": lambda p: p.edit("LATE=1", "LATE=2"),
    "the command of the image": lambda p: p.edit('CMD ["sh"]', 'CMD ["true"]'),
    "labels": lambda p: p.edit("USER 1000", "LABEL a=b\nUSER 1000"),
    "a mode that --chmod overrides": lambda p: (p.path / "loose.txt").chmod(0o600),
    "an ignore file that hides nothing needed": lambda p: (p.path / ".dockerignore").write_text("beside.txt\n"),
}  # fmt: skip


@pytest.mark.parametrize("case", IRRELEVANT)
def test_nothing_irrelevant_makes_a_step_run(case: str, project: Project) -> None:
    IRRELEVANT[case](project)
    try:
        assert project.would_run() == []
    finally:
        project.fill()


@pytest.mark.parametrize(
    "options",
    [("--build-arg", "LATE=2"), ("--build-arg", "GLOBAL=3"), ("--build-arg", "HTTP_PROXY=http://x"), ("--label", "a=b"),
     ("-t", "name"), ("--build-arg", "VERSION=1")],
)  # fmt: skip
def test_options_that_no_step_sees_change_nothing(options: tuple[str, ...], project: Project) -> None:
    assert project.would_run(*options) == []


def test_neither_the_path_nor_the_umask_matters(project: Project, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(project.path, elsewhere, symlinks=True)
    assert project.would_run(path=elsewhere) == []
    assert project.would_run(umask=0o077) == []


def test_another_name_for_the_same_base_changes_nothing(project: Project) -> None:
    project.machine.run("tag", "busybox:latest", "busybox:renamed")
    project.edit("FROM busybox\nENV", "FROM busybox:renamed\nENV")
    try:
        assert project.would_run() == []
    finally:
        project.fill()


def test_a_stage_that_runs_again_with_the_same_result_changes_nothing_after_it(project: Project) -> None:
    project.machine.run("build", "-q", "--target=made", "--build-arg", "FLAVOUR=mint", str(project.path))
    assert project.would_run("--build-arg", "FLAVOUR=mint") == []


def _same_size_and_time(project: Project) -> None:
    path = project.path / "src/app.py"
    status = path.stat()
    path.write_text(path.read_text().upper())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _relink(project: Project) -> None:
    (project.path / "src/link").unlink()
    (project.path / "src/link").symlink_to("sub")


RELEVANT: dict[str, tuple[Change, str]] = {
    "content": (lambda p: (p.path / "src/app.py").write_text("other"), "COPY"),
    "an edit that keeps size and time": (_same_size_and_time, "COPY"),
    "a mode": (lambda p: (p.path / "src/app.py").chmod(0o755), "COPY"),
    "a directory's mode": (lambda p: (p.path / "src/sub").chmod(0o700), "COPY"),
    "a link's target": (_relink, "COPY"),
    "a new file": (lambda p: (p.path / "src/new").write_text(""), "COPY"),
    "a new directory": (lambda p: (p.path / "src/new").mkdir(), "COPY"),
    "a removed file": (lambda p: (p.path / "src/app.py").unlink(), "COPY"),
    "a renamed file": (lambda p: (p.path / "src/app.py").rename(p.path / "src/main.py"), "COPY"),
    "an ignore file": (lambda p: (p.path / ".dockerignore").write_text("src/sub\n"), "COPY"),
    "what a mount shows": (lambda p: (p.path / "mounted/file").write_text("other"), "RUN"),
    "ENV": (lambda p: p.edit("COLOR=red", "COLOR=blue"), "RUN"),
    "an argument's default": (lambda p: p.edit("VERSION=1", "VERSION=2"), "RUN"),
    "WORKDIR": (lambda p: p.edit("WORKDIR /work", "WORKDIR /other"), "WORKDIR"),
    "USER": (lambda p: p.edit("USER 1000", "USER 1001"), "RUN"),
    "SHELL": (lambda p: p.edit("USER 1000", 'SHELL ["/bin/sh", "-ec"]\nUSER 1000'), "RUN"),
    "a command": (lambda p: p.edit("RUN id", "RUN id -u"), "RUN"),
    "a destination": (lambda p: p.edit("/loose.txt\n", "/loose2.txt\n"), "COPY"),
    "--chmod": (lambda p: p.edit("--chmod=0644", "--chmod=0600"), "COPY"),
    "a new step": (lambda p: p.edit("USER 1000", "RUN true\nUSER 1000"), "RUN"),
    "where a mount is": (lambda p: p.edit("target=/mounted cat /mounted", "target=/m cat /m"), "RUN"),
}


@pytest.mark.parametrize("case", RELEVANT)
def test_everything_relevant_makes_its_step_run(case: str, project: Project) -> None:
    change, keyword = RELEVANT[case]
    global STEPS
    change(project)
    STEPS += case == "a new step"
    try:
        steps = project.would_run()
    finally:
        STEPS -= case == "a new step"
        project.fill()
    assert steps
    assert steps[0] == keyword


@pytest.mark.parametrize(
    ("options", "count"),
    [(("--build-arg", "VERSION=2"), 3), (("--no-cache",), 8), (("--no-cache-filter", "made"), 1), (("--add-host", "a:1.2.3.4"), 4)],
)  # fmt: skip
def test_options_that_steps_see_make_them_run(options: tuple[str, ...], count: int, project: Project) -> None:
    assert len(project.would_run(*options)) >= count
