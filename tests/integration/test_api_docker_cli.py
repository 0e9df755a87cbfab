"""The docker CLI as a client of the daemon: what a user types, and what a user sees."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from daemons.running_daemon import RunningDaemon, require_docker, running_daemon

pytestmark = pytest.mark.integration

DOCKERFILE = """\
ARG BASE=busybox
FROM $BASE AS one
ENV A=b
RUN echo from-one && echo to-stderr >&2
FROM busybox
COPY --from=one /bin/busybox /bb
WORKDIR /w
COPY . .
ARG X
RUN echo "x is $X" > /x && ls
LABEL made=here
CMD ["cat", "/x"]
"""


@pytest.fixture(scope="module")
def daemon(_seed_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    require_docker()
    directory = tmp_path_factory.mktemp("daemon")
    subprocess.run(["cp", "-a", str(_seed_root), str(directory / "root")], check=True)
    with running_daemon(directory, directory / "root") as running:
        yield running


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    (tmp_path / "kept").write_text("kept\n")
    (tmp_path / "left").write_text("left out\n")
    (tmp_path / ".dockerignore").write_text("left\nDockerfile\n")
    return tmp_path


def test_a_build_shows_its_steps_one_after_another_and_names_its_image(daemon: RunningDaemon, context: Path) -> None:
    out = daemon.docker("build", "-t", "cli:1", "-t", "cli/other:2", "--build-arg", "X=7", str(context)).stdout
    lines = out.splitlines()
    steps = [line for line in lines if line.startswith("Step ")]
    assert steps[0] == "Step 1/12 : ARG BASE=busybox"
    assert steps[3] == "Step 4/12 : RUN echo from-one && echo to-stderr >&2"
    assert [line.split()[1] for line in steps] == [f"{number}/12" for number in range(1, 13)]
    four = lines.index(steps[3])
    assert lines[four + 1].startswith(" ---> Running in ")
    assert {"from-one", "to-stderr"} <= set(lines[four : lines.index(steps[4])])
    assert "kept" in lines
    assert "left" not in lines
    assert "Dockerfile" not in lines, "the ignore file excludes it, though the client sends it"
    built = next(line for line in lines if line.startswith("Successfully built ")).split()[-1]
    assert {"Successfully tagged cli:1", "Successfully tagged cli/other:2"} <= set(lines)
    assert daemon.docker("images", "-q", "cli:1").stdout.split() == [built]
    assert (
        daemon.docker("inspect", "--format", "{{.Config.Labels.made}} {{.Config.Cmd}}", built).stdout
        == "here [cat /x]\n"
    )


def test_a_second_build_uses_the_cache_and_a_quiet_one_prints_only_the_id(daemon: RunningDaemon, context: Path) -> None:
    first = daemon.docker("build", "-q", str(context)).stdout.strip()
    again = daemon.docker("build", str(context)).stdout
    assert again.count(" ---> Using cache") == 5
    assert "Running in" not in again
    assert daemon.docker("build", "-q", str(context)).stdout.strip() == first
    assert first.startswith("sha256:")


def test_an_image_id_file_is_written(
    daemon: RunningDaemon, context: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("iid") / "iid"
    daemon.docker("build", "--iidfile", str(file), str(context))
    assert file.read_text() == daemon.docker("build", "-q", str(context)).stdout.strip()


def test_a_failed_command_gives_the_client_its_exit_status(daemon: RunningDaemon) -> None:
    result = daemon.docker("build", "-", stdin=b"FROM busybox\nRUN echo before; exit 3\nRUN echo never\n", check=False)
    assert result.returncode == 3
    assert "before" in result.stdout
    assert "Step 3/3" not in result.stdout
    assert "The command '/bin/sh -c echo before; exit 3' returned a non-zero code: 3" in result.stderr


def test_a_wrong_dockerfile_is_refused_with_its_line(daemon: RunningDaemon) -> None:
    result = daemon.docker("build", "-", stdin=b"FROM busybox\nRUNN echo\n", check=False)
    assert result.returncode == 1
    assert "dockerfile parse error on line 2: unknown instruction: RUNN" in result.stderr


def test_options_of_a_build_reach_it(daemon: RunningDaemon, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/My.Dockerfile").write_text(
        "FROM busybox AS first\nRUN grep 10.9.8.7 /etc/hosts && df /dev/shm | tail -1 && ulimit -n\n"
        "FROM first AS second\nRUN echo not-built\n"
    )
    out = daemon.docker(
        "build", "--no-cache", "--target", "first", "--add-host", "myhost:10.9.8.7", "--shm-size", "32m", "--ulimit", "nofile=100:200",
        "--label", "k=v", "--network", "none", "-f", str(tmp_path / "sub/My.Dockerfile"), "-t", "options", str(tmp_path),
    ).stdout  # fmt: skip
    assert "10.9.8.7" in out
    assert "32768" in out
    assert "\n100\n" in out
    assert "not-built" not in out
    assert json.loads(daemon.docker("inspect", "options").stdout)[0]["Config"]["Labels"]["k"] == "v"


def test_names_come_and_go_by_dockers_rules(daemon: RunningDaemon) -> None:
    daemon.docker("build", "-t", "names:1", "-", stdin=b"FROM busybox\nENV names=1\n")
    daemon.docker("tag", "names:1", "names:2")
    identifier = daemon.docker("images", "-q", "--no-trunc", "names:1").stdout.strip()
    refused = daemon.docker("rmi", identifier, check=False)
    assert refused.returncode == 1
    assert "image is referenced in multiple repositories" in refused.stderr
    assert daemon.docker("rmi", "names:1").stdout == "Untagged: names:1\n"
    assert daemon.docker("rmi", "names:2").stdout == f"Untagged: names:2\nDeleted: {identifier}\n"
    missing = daemon.docker("rmi", "names:2", check=False)
    assert "No such image: names:2" in missing.stderr
    assert daemon.docker("inspect", "names:2", check=False).returncode == 1


def test_images_travel_through_a_registry(daemon: RunningDaemon, registry: str) -> None:
    name = f"{registry}/travel/app:1"
    daemon.docker("build", "-t", name, "-", stdin=b"FROM busybox\nRUN echo travelled > /t\n")
    identifier = daemon.docker("images", "-q", "--no-trunc", name).stdout
    pushed = daemon.docker("push", name).stdout
    assert f"The push refers to repository [{registry}/travel/app]" in pushed
    assert ": Pushed" in pushed
    digest = pushed.rpartition("digest: ")[2].split()[0]
    assert ": Layer already exists" in daemon.docker("push", name).stdout
    daemon.docker("rmi", name)
    pulled = daemon.docker("pull", name).stdout
    assert "1: Pulling from travel/app" in pulled
    assert f"Digest: {digest}" in pulled
    assert f"Status: Downloaded newer image for {name}" in pulled
    assert f"Status: Image is up to date for {name}" in daemon.docker("pull", name).stdout
    assert daemon.docker("images", "-q", "--no-trunc", name).stdout == identifier
    by_digest = daemon.docker("pull", f"{registry}/travel/app@{digest}")
    assert by_digest.returncode == 0


def test_what_a_registry_lacks_is_said_in_dockers_words(daemon: RunningDaemon, registry: str) -> None:
    pull = daemon.docker("pull", f"{registry}/nothing/here:1", check=False)
    assert pull.returncode == 1
    assert f"manifest for {registry}/nothing/here:1 not found" in pull.stderr
    push = daemon.docker("push", f"{registry}/nothing/here:1", check=False)
    assert push.returncode == 1
    assert "An image does not exist locally with the tag" in push.stderr


def test_save_load_and_import_carry_images(daemon: RunningDaemon, tmp_path: Path, busybox_tar: Path) -> None:
    daemon.docker("build", "-t", "saved:1", "-", stdin=b"FROM busybox\nRUN echo saved > /s\n")
    identifier = daemon.docker("images", "-q", "saved:1").stdout
    daemon.docker("save", "-o", str(tmp_path / "images.tar"), "saved:1", "busybox")
    daemon.docker("rmi", "saved:1")
    loaded = daemon.docker("load", "-i", str(tmp_path / "images.tar")).stdout
    assert {"Loaded image: saved:1", "Loaded image: busybox:latest"} <= set(loaded.splitlines())
    assert daemon.docker("images", "-q", "saved:1").stdout == identifier
    imported = daemon.docker(
        "import", "--change", 'CMD ["true"]', "--message", "by hand", str(busybox_tar), "imported:1"
    ).stdout
    assert imported.startswith("sha256:")
    shown = json.loads(daemon.docker("inspect", "imported:1").stdout)[0]
    assert (shown["Config"]["Cmd"], shown["Comment"]) == (["true"], "by hand")


def test_lists_filter_as_dockers_do(daemon: RunningDaemon) -> None:
    daemon.docker("build", "-t", "listed/a:1", "-", stdin=b"FROM busybox\nLABEL listed=yes\n")
    daemon.docker("build", "-t", "listed/b:1", "-", stdin=b"FROM busybox\nLABEL listed=no\n")
    form = "{{.Repository}}:{{.Tag}}"
    listed = lambda *arguments: daemon.docker("images", "--format", form, *arguments).stdout.split()  # noqa: E731
    assert listed("--filter", "label=listed=yes") == ["listed/a:1"]
    assert set(listed("--filter", "reference=listed/*")) == {"listed/a:1", "listed/b:1"}
    assert listed("listed/b") == ["listed/b:1"]
    assert listed("--filter", "since=listed/a:1") == ["listed/b:1"]
    assert "busybox:latest" in listed("--filter", "before=listed/a:1")
    assert set(listed("--filter", "dangling=true")) <= {"<none>:<none>"}
    assert "<none>:<none>" not in listed("--filter", "dangling=false")
    refused = daemon.docker("images", "--filter", "colour=red", check=False)
    assert "invalid filter 'colour'" in refused.stderr


def test_history_shows_the_instructions(daemon: RunningDaemon) -> None:
    daemon.docker("build", "-t", "told:1", "-", stdin=b'FROM busybox\nRUN echo told\nCMD ["sh"]\n')
    lines = daemon.docker("history", "--no-trunc", "--format", "{{.CreatedBy}}|{{.ID}}", "told:1").stdout.splitlines()
    assert lines[0].startswith('CMD ["sh"]|sha256:')
    assert lines[1] == "RUN /bin/sh -c echo told # buildkit|<missing>"


def test_events_tell_what_happened_in_order(daemon: RunningDaemon) -> None:
    since = f"{time.time():.6f}"
    daemon.docker("build", "-t", "event:1", "-", stdin=b"FROM busybox\nLABEL event=yes\n")
    daemon.docker("tag", "event:1", "event:2")
    daemon.docker("rmi", "event:2")
    until = f"{time.time() + 0.2:.6f}"
    out = daemon.docker(
        "events", "--since", since, "--until", until, "--format", "{{.Action}} {{.Actor.Attributes.name}}"
    )
    actions = [line.split(" ") for line in out.stdout.splitlines()]
    assert [row[0] for row in actions] == ["create", "tag", "tag", "untag"]
    assert actions[1:] == [["tag", "event:1"], ["tag", "event:2"], ["untag", "event:2"]]
    only = daemon.docker(
        "events", "--since", since, "--until", until, "--filter", "event=untag", "--filter", "type=image", "--format", "{{.Action}}"
    )  # fmt: skip
    assert only.stdout == "untag\n"


def test_space_is_told_and_freed(daemon: RunningDaemon) -> None:
    assert "Build Cache" in daemon.docker("system", "df").stdout
    assert "Images space usage:" in daemon.docker("system", "df", "-v").stdout
    daemon.docker("build", "-", stdin=b"FROM busybox\nRUN echo nameless > /n\n")
    assert "deleted: sha256:" in daemon.docker("image", "prune", "-f").stdout
    assert "Total reclaimed space" in daemon.docker("builder", "prune", "-f").stdout


def test_a_login_is_checked_with_the_registry(daemon: RunningDaemon, registry: str) -> None:
    out = daemon.docker("login", "--username", "u", "--password-stdin", registry, stdin=b"p")
    assert "Login Succeeded" in out.stdout


def test_the_daemon_says_what_it_is_and_what_it_has_not(daemon: RunningDaemon) -> None:
    assert "Server: pybuild" in daemon.docker("version").stdout
    assert "Storage Driver: overlayfs" in daemon.docker("info").stdout
    for command in (["ps"], ["volume", "ls"], ["network", "ls"], ["run", "busybox", "true"]):
        refused = daemon.docker(*command, check=False)
        assert refused.returncode != 0
        assert "not supported by this daemon yet" in refused.stderr
    assert "has no search" in daemon.docker("search", "busybox", check=False).stderr
