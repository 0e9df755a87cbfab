"""Reasons: each kind of change, made to twenty Dockerfiles, is named as the first cause of every step that it makes run."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pybuild.builder.progress import Silent
from pybuild.builder.request import BuildRequest
from pybuild.daemon.engine import Engine
from pybuild.daemon.settings import Settings
from pybuild.layers.gc import Collector, PrunePolicy
from pybuild.values import replace

pytestmark = pytest.mark.integration

# Every one has the lines that the changes below look for: BASE, ENV COLOR, ARG VERSION, WORKDIR /work, COPY of src/, `RUN echo one`,
# `RUN echo spare` and something after each.
TAIL = "RUN echo one > /one\nRUN echo spare > /spare\nRUN echo two > /two\n"
HEAD = "FROM busybox:base{stage}\nENV COLOR=red\nARG VERSION=1\nWORKDIR /work\nCOPY src /work/src\n"
ONE = HEAD.format(stage="")
NAMED = HEAD.format(stage=" AS build")
DOCKERFILES = [
    ONE + TAIL,
    ONE + TAIL + "COPY other.txt /other.txt\nRUN echo end > /end\n",
    ONE + "COPY other.txt /first.txt\n" + TAIL + "USER 1000\nRUN id\n",
    ONE + TAIL + 'SHELL ["/bin/sh", "-xc"]\nRUN echo shell\n',
    ONE + TAIL + "COPY <<EOF /written\ntext $COLOR\nEOF\nRUN cat /written\n",
    ONE + TAIL + "RUN <<EOF\necho a\necho b\nEOF\n",
    ONE + TAIL + "ADD other.txt /added/\nRUN ls /added\n",
    ONE + TAIL + "COPY --link other.txt /linked.txt\nRUN cat /linked.txt\n",
    ONE + TAIL + "COPY *.txt /texts/\nRUN ls /texts\n",
    ONE + TAIL + "COPY --chmod=0600 other.txt /secret.txt\nRUN ls -l /secret.txt\n",
    ONE + TAIL + "LABEL a=b\nEXPOSE 80\nVOLUME /data\nRUN echo end > /end\nCMD [\"sh\"]\n",
    ONE + TAIL + "ENV LATER=1\nRUN echo $LATER\nENV LATER=2\nRUN echo $LATER\n",
    ONE + TAIL + "RUN --mount=type=cache,target=/cache echo cached > /cached\nRUN echo end > /end\n",
    ONE + TAIL + "RUN --mount=type=bind,target=/context cp /context/other.txt /copied\n",
    NAMED + TAIL + "FROM busybox:base\nCOPY --from=build /work /work\nRUN ls /work\n",
    NAMED + TAIL + "FROM build AS test\nRUN echo test > /test\nFROM test\nRUN echo final > /final\n",
    "FROM busybox:base AS tools\nRUN echo tool > /tool\n" + HEAD.format(stage=" AS app") + "COPY --from=tools /tool /tool\n" + TAIL,
    "FROM busybox:base AS unused\nRUN false\n" + HEAD.format(stage=" AS app") + TAIL,
    NAMED + TAIL + "FROM busybox:base\nRUN --mount=type=bind,from=build,source=/work,target=/in cp -r /in /out\n",
    "ARG TAG=base\n" + ONE + TAIL + "ONBUILD RUN echo child\nRUN echo end > /end\n",
]  # fmt: skip


class Project:
    """A context with one Dockerfile, built once, and what a build after a change would say."""

    def __init__(self, engine: Engine, directory: Path, dockerfile: str) -> None:
        self.engine = engine
        self.directory = directory
        self.dockerfile = dockerfile
        self.fill()
        self.request = BuildRequest(context=".", directory=str(directory))
        engine.build(self.request, progress=Silent(), cancel=threading.Event())

    def fill(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        (self.directory / "src/sub").mkdir(parents=True)
        for name, text in (("src/app.py", "one"), ("src/sub/lib.py", "lib"), ("src/old.py", "old"), ("other.txt", "o")):
            (self.directory / name).write_text(text)
            (self.directory / name).chmod(0o644)
        (self.directory / "src/link").symlink_to("app.py")
        (self.directory / "Dockerfile").write_text(self.dockerfile)

    def edit(self, old: str, new: str) -> None:
        text = (self.directory / "Dockerfile").read_text()
        assert old in text
        (self.directory / "Dockerfile").write_text(text.replace(old, new))

    def reasons(self, build_args: dict[str, str] | None = None) -> list[str]:
        request = replace(self.request, build_args=build_args or {})
        found = self.engine.predict(request, progress=Silent(), cancel=threading.Event())
        return [step.reason for step in found if step.runs]


Change = Callable[[Project], object]


def _rename(project: Project) -> None:
    (project.directory / "src/old.py").rename(project.directory / "src/new.py")


def _relink(project: Project) -> None:
    (project.directory / "src/link").unlink()
    (project.directory / "src/link").symlink_to("old.py")


CHANGES: dict[str, tuple[Change, str]] = {
    "content": (lambda p: (p.directory / "src/app.py").write_text("two"), "src/app.py changed (content)"),
    "mode": (lambda p: (p.directory / "src/app.py").chmod(0o755), "src/app.py changed (mode 644, is 755)"),
    "added": (lambda p: (p.directory / "src/new.py").write_text("n"), "src/new.py was added"),
    "removed": (lambda p: (p.directory / "src/old.py").unlink(), "src/old.py was removed"),
    "renamed": (_rename, "src/old.py was renamed to src/new.py"),
    "link": (_relink, "src/link changed (link target)"),
    "ENV": (lambda p: p.edit("COLOR=red", "COLOR=blue"), "ENV COLOR was red, is blue"),
    "ARG": (lambda p: None, "ARG VERSION was 1, is 2"),
    "WORKDIR": (lambda p: p.edit("WORKDIR /work", "WORKDIR /else"), "WORKDIR was /work, is /else"),
    "command": (lambda p: p.edit("RUN echo one", "RUN echo uno"), "the command was echo one > /one, is echo uno > /one"),
    "inserted step": (lambda p: p.edit("RUN echo one", "RUN echo zero\nRUN echo one"), "a new step"),
    "removed step": (lambda p: p.edit("RUN echo spare > /spare\n", ""), "RUN echo spare > /spare was removed before it"),
    "other base": (lambda p: p.edit("FROM busybox:base", "FROM busybox:other"), "the base was busybox:base, is busybox:other"),
}  # fmt: skip


@pytest.fixture(scope="module")
def engine(busybox_tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    directory = tmp_path_factory.mktemp("why")
    with Engine.open(
        directory / "root", settings=Settings(), docker_config=directory, variables=dict(os.environ)
    ) as engine:
        engine.import_image(str(busybox_tar), stdin=io.BytesIO(), name="busybox:base")
        engine.import_image(str(_with_file(busybox_tar, directory)), stdin=io.BytesIO(), name="busybox:other")
        yield engine


def _with_file(busybox_tar: Path, directory: Path) -> Path:
    """The same root file system with one more file."""
    out = directory / "other.tar"
    shutil.copy(busybox_tar, out)
    with tarfile.open(out, "a") as tar:
        entry = tarfile.TarInfo("more")
        entry.size = 4
        tar.addfile(entry, io.BytesIO(b"more"))
    return out


@pytest.fixture(scope="module")
def projects(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> list[Project]:
    directory = tmp_path_factory.mktemp("projects")
    return [Project(engine, directory / f"{number:02}", text) for number, text in enumerate(DOCKERFILES)]


def judged(
    projects: list[Project], expected: str, reasons_of: Callable[[Project], list[str]]
) -> tuple[int, int, list[str]]:
    """How many steps would run, how many of them for the expected reason, and the others' reasons."""
    total, wrong = 0, []
    for number, project in enumerate(projects):
        reasons = reasons_of(project)
        total += len(reasons)
        if not reasons:
            total += 1
            wrong.append(f"{number}: nothing would run")
        wrong += [f"{number}: {reason}" for reason in reasons if expected not in reason]
    return total, total - len(wrong), wrong


def test_twenty_dockerfiles_are_cached_when_nothing_changes(projects: list[Project]) -> None:
    assert len(projects) == 20
    assert [project.reasons() for project in projects] == [[]] * 20


def test_the_first_cause_is_right(projects: list[Project]) -> None:
    assert len(CHANGES) >= 12
    total = right = 0
    wrong: list[str] = []
    for name, (change, expected) in CHANGES.items():

        def reasons_of(project: Project, change: Change = change, name: str = name) -> list[str]:
            change(project)
            try:
                return project.reasons({"VERSION": "2"} if name == "ARG" else None)
            finally:
                project.fill()

        count, fitting, others = judged(projects, expected, reasons_of)
        total, right = total + count, right + fitting
        wrong += [f"{name} {text}" for text in others]
    print(f"{right} of {total} first causes are right")
    assert right / total >= 0.95, "\n".join(wrong)


def test_the_first_step_names_the_change_itself(projects: list[Project]) -> None:
    """Only what comes after begins with "after": the cause stands where it happened."""
    project = projects[0]
    (project.directory / "src/app.py").write_text("two")
    try:
        first, *others = project.reasons()
    finally:
        project.fill()
    assert first == "src/app.py changed (content)"
    assert set(others) == {"after COPY src /work/src: src/app.py changed (content)"}


def test_a_base_that_moved_is_named_with_both_digests(projects: list[Project], engine: Engine) -> None:
    engine.tag("busybox:base", "busybox:kept")
    engine.tag("busybox:other", "busybox:base")
    try:
        total, right, wrong = judged(projects, "base busybox:base moved from sha256:", Project.reasons)
    finally:
        engine.tag("busybox:kept", "busybox:base")
    assert right / total >= 0.95, "\n".join(wrong)


def test_what_gc_took_is_told(projects: list[Project], engine: Engine) -> None:
    """Last: it empties the store's cache."""
    Collector(engine.store).prune(PrunePolicy(all=True))
    total, right, wrong = judged(projects, "evicted by gc on ", Project.reasons)
    assert right / total >= 0.95, "\n".join(wrong)
