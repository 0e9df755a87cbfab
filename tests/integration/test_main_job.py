"""The main job end to end: build, build again, change something, push, pull into an empty store, run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Pybuild

pytestmark = pytest.mark.integration

DOCKERFILE = """\
FROM busybox AS tools
RUN mkdir /out && echo '#!/bin/sh' > /out/tool && chmod 755 /out/tool

FROM busybox AS unused
RUN exit 7

FROM busybox
ARG VERSION=1
ENV NAME=app
WORKDIR /srv
COPY config ./
RUN echo "$NAME $VERSION" > built
COPY --from=tools /out/tool /usr/bin/tool
COPY src/ src/
USER www-data
EXPOSE 80
CMD ["cat", "/srv/built"]
"""


@pytest.fixture
def context(tmp_path: Path) -> Path:
    directory = tmp_path / "context"
    (directory / "src").mkdir(parents=True)
    (directory / "config").write_text("a\n")
    (directory / "src/main").write_text("main 1\n")
    (directory / "Dockerfile").write_text(DOCKERFILE)
    return directory


def steps_that_ran(stderr: str) -> set[str]:
    """Titles of the RUN and COPY steps that were not cached, without their position."""
    titles: dict[str, str] = {}
    ran: set[str] = set()
    for line in stderr.splitlines():
        number, _, rest = line.partition(" ")
        if rest.startswith("[") and "] " in rest:
            titles[number] = rest.partition("] ")[2]
        elif rest.startswith("DONE") and titles.get(number, "").startswith(("RUN", "COPY", "WORKDIR")):
            ran.add(titles[number])
    return ran


def test_a_second_build_runs_nothing_and_gives_the_same_image(pybuild: Pybuild, context: Path) -> None:
    first = pybuild.run("build", "--progress=plain", "-t", "app", str(context))
    second = pybuild.run("build", "--progress=plain", "-t", "app", str(context))
    assert len(steps_that_ran(first.stderr)) == 6
    assert "exit 7" not in first.stderr
    assert steps_that_ran(second.stderr) == set()
    assert second.stderr.count("CACHED") >= 6
    image = json.loads(pybuild.run("inspect", "app").stdout)[0]
    assert pybuild.run("build", "-q", "-t", "app", str(context)).stdout.strip() == image["Id"]
    assert image["Config"]["User"] == "www-data"
    assert image["Config"]["ExposedPorts"] == {"80/tcp": {}}
    assert pybuild.run("run", "app").stdout == "app 1\n"


def test_a_change_runs_just_what_depends_on_it(pybuild: Pybuild, context: Path) -> None:
    build = ("build", "--progress=plain", "-t", "app", str(context))
    pybuild.run(*build)
    os.utime(context / "src/main", (1, 1))
    assert steps_that_ran(pybuild.run(*build).stderr) == set(), "a touched file runs nothing"
    (context / "src/main").write_text("main 2\n")
    os.utime(context / "src/main", (1, 1))
    assert steps_that_ran(pybuild.run(*build).stderr) == {"COPY src/ src/"}, "same size, same time, other content"
    assert steps_that_ran(pybuild.run(*build, "--build-arg", "VERSION=2").stderr) >= {'RUN echo "app 2" > built'}
    (context / "config").chmod(0o600)
    assert "COPY config ./" in steps_that_ran(pybuild.run(*build).stderr)
    assert "COPY config ./" in pybuild.run("why").stdout


def test_equal_inputs_give_equal_layers_in_another_store(pybuild: Pybuild, context: Path, tmp_path: Path) -> None:
    def diff_ids(name: str) -> list[str]:
        return list(json.loads(pybuild.run("inspect", name).stdout)[0]["RootFS"]["Layers"])

    dockerfile = "FROM busybox\nCOPY config src/ /data/\nADD src /more/\nWORKDIR /x/y\n"
    pybuild.build(dockerfile, context, "-t", "one")
    pybuild.run("build", "--no-cache", "-t", "two", str(context))
    assert diff_ids("one") == diff_ids("two")


def test_push_pull_and_run(pybuild: Pybuild, empty_pybuild: Pybuild, context: Path, registry: str) -> None:
    name = f"{registry}/team/app:1"
    metadata = context.parent / "metadata.json"
    pybuild.run("build", "-t", name, "--push", "--metadata-file", str(metadata), str(context))
    digest = json.loads(metadata.read_text())["containerimage.digest"]
    pulled = empty_pybuild.run("pull", name)
    assert digest in pulled.stderr
    assert empty_pybuild.run("run", name).stdout == "app 1\n"
    again = empty_pybuild.run("push", name)
    assert digest in again.stdout
    assert "unchanged" in again.stdout
    derived = context.parent / "derived"
    empty_pybuild.build(f"FROM {name}\nUSER root\nRUN cat /srv/built > /copy\n", derived, "-t", "derived")
    assert empty_pybuild.run("run", "derived", "cat", "/copy").stdout == "app 1\n"


def test_a_base_comes_from_the_registry_and_is_not_asked_for_again(
    pybuild: Pybuild, empty_pybuild: Pybuild, context: Path, registry: str
) -> None:
    name = f"{registry}/bases/busybox:1"
    pybuild.run("tag", "busybox", name)
    pybuild.run("push", name)
    context.joinpath("Dockerfile").write_text(f"FROM {name}\nCOPY config /\nRUN cat /config\n")
    first = empty_pybuild.run("-D", "build", "--progress=plain", "-t", "x", str(context))
    assert "/v2/bases/busybox/manifests/1" in first.stderr
    second = empty_pybuild.run("-D", "build", "--progress=plain", "-t", "x", str(context))
    assert "/v2/" not in second.stderr
    assert steps_that_ran(second.stderr) == set()
    assert "/v2/" in empty_pybuild.run("-D", "build", "--pull", "-t", "x", str(context)).stderr


def test_a_failed_step_keeps_what_was_finished_and_shows_the_place(pybuild: Pybuild, context: Path) -> None:
    context.joinpath("Dockerfile").write_text(
        "FROM busybox\nRUN echo fine > /fine\nRUN echo before; echo to-stderr >&2; exit 3\n"
    )
    failed = pybuild.run("build", "--progress=plain", str(context), check=False)
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert "exit code: 3" in failed.stderr
    assert "Dockerfile:3" in failed.stderr
    assert "   3 | >>> RUN echo before" in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("ERROR: ")
    assert "before" in failed.stderr
    assert "to-stderr" in failed.stderr
    again = pybuild.run("build", "--progress=plain", str(context), check=False)
    assert "RUN echo fine > /fine" not in steps_that_ran(again.stderr)


def processes_below(root: Path) -> list[str]:
    """Command lines of processes that have the store open or stand in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            mounts = (entry / "mounts").read_text()
            if str(root) in (entry / "cmdline").read_text() or f"{root}/" in mounts:
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.fixture
def started(pybuild: Pybuild, context: Path) -> Iterator[subprocess.Popen[str]]:
    """A build that sleeps in a step."""
    context.joinpath("Dockerfile").write_text("FROM busybox\nRUN echo one > /one\nRUN echo begun; sleep 300\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "pybuild", "--root", str(pybuild.root), "build", "--progress=plain", str(context)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "begun" in line and "RUN" not in line:
            break
    yield process
    if process.poll() is None:
        process.kill()
    process.wait(10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["INT", "TERM", "KILL"])
def test_a_stopped_build_leaves_no_process_no_mount_and_keeps_its_steps(
    pybuild: Pybuild, context: Path, started: subprocess.Popen[str], number: signal.Signals
) -> None:
    started.send_signal(number)
    assert started.wait(10) != 0
    for _ in range(100):
        if not processes_below(pybuild.root):
            break
        time.sleep(0.05)
    assert processes_below(pybuild.root) == []
    assert str(pybuild.root) not in Path("/proc/self/mounts").read_text()
    context.joinpath("Dockerfile").write_text("FROM busybox\nRUN echo one > /one\n")
    assert steps_that_ran(pybuild.run("build", "--progress=plain", str(context)).stderr) == set()
    assert [path for path in (pybuild.root / "active").iterdir() if path.name != "lock"] == []


def test_two_builds_at_once_run_each_step_once(pybuild: Pybuild, context: Path) -> None:
    marker = context.parent / "marker"
    marker.mkdir()
    context.joinpath("Dockerfile").write_text("FROM busybox\nRUN sleep 0.5; date +%s%N > /when\nRUN cat /when\n")
    command = [sys.executable, "-m", "pybuild", "--root", str(pybuild.root), "build", "-q", str(context)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    identifiers = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert all(process.returncode == 0 for process in processes)
    assert len(identifiers) == 1


def test_quiet_prints_the_image_id_only(pybuild: Pybuild, context: Path) -> None:
    done = pybuild.run("build", "-q", str(context))
    assert done.stdout.startswith("sha256:")
    assert len(done.stdout.strip()) == 71
    assert done.stderr == ""


def test_isolation_is_what_containers_have(pybuild: Pybuild, context: Path) -> None:
    script = (
        "FROM busybox\n"
        'RUN --network=none test $$ = 1 && test "$(cat /etc/hosts | grep -c localhost)" -ge 1 '
        "&& test \"$(ls /sys/class/net | tr -d '\\n')\" = lo && ! (echo x > /proc/sys/kernel/hostname) 2>/dev/null "
        "&& test ! -e /dev/vda && ! mount -t tmpfs none /tmp 2>/dev/null && grep -q 'Seccomp:.2' /proc/self/status "
        '&& grep CapEff /proc/self/status && test "$(hostname)" = buildkitsandbox\n'
    )
    done = pybuild.build(script, context)
    assert "CapEff:\t00000000a80425fb" in done.stderr


def test_wrong_usage_exits_2_with_a_hint(pybuild: Pybuild, context: Path) -> None:
    for arguments in (
        ["build"],
        ["build", "--nope", str(context)],
        ["build", "--output", "type=nope", str(context)],
        ["build", "--push", "--load", str(context)],
        ["biuld", "."],
    ):
        done = pybuild.run(*arguments, check=False)
        assert done.returncode == 2, arguments
        assert done.stderr.splitlines()[-1].startswith("ERROR: ")
        assert "Traceback" not in done.stderr
