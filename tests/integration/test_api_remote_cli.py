"""``pybuild -H``: the command line over a daemon does and prints what it does and prints alone."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import Pybuild
from daemons.running_daemon import RunningDaemon, running_daemon

pytestmark = pytest.mark.integration


@dataclass
class Both:
    """The command on a store, and the same over a daemon on a copy of it."""

    alone: Pybuild
    over: Pybuild
    daemon: RunningDaemon

    def run(self, *arguments: str, check: bool = True, stdin: bytes | None = None, cwd: Path | None = None) -> str:
        """Run both; they must agree in status, output and messages. Returns the standard output."""
        one = self.alone.run(*arguments, check=check, stdin=stdin, cwd=cwd)
        two = self.over.run(*arguments, check=check, stdin=stdin, cwd=cwd)
        assert two.returncode == one.returncode, two.stderr
        assert steady(two.stdout) == steady(one.stdout)
        assert steady(two.stderr) == steady(one.stderr)
        return two.stdout


def steady(text: str) -> list[str]:
    """Without what differs from run to run: durations, ages, references of builds, the order of steps that run side by side."""
    text = re.sub(r"\b\d+\.\d+s?\b", "0s", text)
    text = re.sub(r"\bbuild [0-9a-z]{12}\b", "build REF", text)
    text = re.sub(r"(Less than a|\d+|About a) (second|minute)s?( ago)?", "AGE", text)
    text = re.sub(r"^#\d+ ", "#N ", text, flags=re.MULTILINE)
    # What is read of a context depends on how long ago its files were written; identifiers contain times.
    text = re.sub(r"transferring context: \S+", "transferring context: SIZE", text)
    text = re.sub(r"\b[0-9a-f]{12,64}\b", "HEX", text)
    return sorted(line.rstrip() for line in text.splitlines())


@pytest.fixture(scope="module")
def both(_seed_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    directory = tmp_path_factory.mktemp("both")
    for name in ("alone", "daemon"):
        subprocess.run(["cp", "-a", str(_seed_root), str(directory / name)], check=True)
    variables = {"DOCKER_CONFIG": str(directory), "SOURCE_DATE_EPOCH": "1700000000"}
    with running_daemon(directory / "d", directory / "daemon") as daemon:
        # A root that can't be used: a daemon's client must not touch a store of its own.
        over = Pybuild(Path("/proc/no-store"), {**variables, "PYBUILD_HOST": daemon.address})
        yield Both(Pybuild(directory / "alone", variables), over, daemon)


@pytest.fixture
def context(tmp_path: Path) -> Path:
    root = tmp_path / "context"
    (root / "sub").mkdir(parents=True)
    (root / "Dockerfile").write_text(
        "FROM busybox\nCOPY . /c\nRUN --mount=type=secret,id=s cat /run/secrets/s; find /c | sort\nLABEL a=b\n"
    )
    (root / "sub/kept").write_text("kept")
    (root / "sub/left").write_text("left out")
    (root / ".dockerignore").write_text("**/left\nDockerfile\n")
    old = time.time() - 100
    for path in root.rglob("*"):
        os.utime(path, (old, old))
    return root


def test_a_build_prints_the_same(both: Both, context: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret-value\n")
    arguments = ("build", "--progress=plain", "-t", "same:1", "--secret", f"id=s,src={tmp_path}/secret", str(context))
    both.run(*arguments)
    both.run(*arguments)
    assert both.run("images", "--no-trunc", "-q", "same:1").startswith("sha256:")
    both.run("build", "-q", "-t", "same:2", str(context))


def test_commands_about_images_print_the_same(both: Both, tmp_path: Path) -> None:
    both.run("build", "-q", "-t", "cmd:1", "-", stdin=b"FROM busybox\nRUN echo cmd > /c\nLABEL cmd=yes\n")
    both.run("images")
    both.run("images", "--filter", "label=cmd=yes", "--format", "json")
    both.run("history", "cmd:1", "--no-trunc")
    assert json.loads(both.run("inspect", "cmd:1"))[0]["Config"]["Labels"] == {"cmd": "yes"}
    both.run("inspect", "--raw", "cmd:1")
    both.run("tag", "cmd:1", "cmd:2")
    both.run("why")
    both.run("du", "--filter", "type==regular", "--format", "{{.Type}} {{.Size}}")
    assert both.run("run", "cmd:1", "cat", "/c") == "cmd\n"
    assert both.run("run", "cmd:1", "sh", "-c", "echo err >&2; exit 7", check=False) == ""
    both.run("rmi", "cmd:2")
    both.run("rmi", "cmd:1")
    both.run("rmi", "cmd:1", check=False)
    both.run("rmi", "-f", "cmd:1")
    both.run("inspect", "cmd:1", check=False)
    both.run("prune", "--dry-run", "--filter", "type==regular")


def test_failures_print_the_same(both: Both, context: Path) -> None:
    (context / "bad.Dockerfile").write_text("FROM busybox\nRUN echo out; exit 5\n")
    out = both.over.run("build", "--progress=plain", "-f", str(context / "bad.Dockerfile"), str(context), check=False)
    assert out.returncode == 1
    assert ">>> RUN echo out; exit 5" in out.stderr
    both.run("build", "--progress=plain", "-f", str(context / "bad.Dockerfile"), str(context), check=False)
    both.run("build", "-f", "nowhere.Dockerfile", str(context), check=False)
    both.run("build", str(context / "nothing-here"), check=False)
    both.run("build", "-", stdin=b"FROMM busybox\n", check=False)
    (context / "Dockerfile").unlink()
    both.run("build", str(context), check=False)
    both.run("tag", "no-such:1", "x", check=False)


def test_archives_are_files_of_the_clients_machine(both: Both, tmp_path: Path, busybox_tar: Path) -> None:
    both.run("import", "-c", "CMD sh", str(busybox_tar), "arch:1")
    both.run("save", "arch:1", "-o", "archive.tar", cwd=tmp_path)
    assert tarfile.is_tarfile(tmp_path / "archive.tar")
    both.run("rmi", "arch:1")
    assert both.run("load", "-i", "archive.tar", cwd=tmp_path) == "Loaded image: arch:1\n"
    both.run("load", stdin=b"garbage" * 500, check=False)
    both.run("save", "no-such:1", "-o", "none.tar", cwd=tmp_path, check=False)
    assert not (tmp_path / "none.tar").exists()


def test_images_travel_through_a_registry(both: Both, registry: str) -> None:
    name = f"{registry}/remote/app:1"
    both.over.run("build", "-q", "-t", name, "-", stdin=b"FROM busybox\nRUN echo r > /r\n")
    assert "digest: sha256:" in both.over.run("push", name).stdout
    both.over.run("rmi", name)
    assert both.over.run("pull", name).stdout == f"{name}\n"
    assert both.over.run("push", f"{registry}/remote/none:1", check=False).returncode == 1


def test_outputs_arrive_on_the_clients_machine(both: Both, tmp_path: Path) -> None:
    dockerfile = b"FROM scratch\nCOPY --from=busybox --chmod=4711 /bin/busybox /sub/b\nCOPY <<E /f\ntext\nE\n"
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/before").touch()
    both.over.run(
        "build", "-q", "-o", "tree", "-o", "type=tar,dest=out.tar", "-o", "type=oci,dest=oci.tar", "-o", "type=oci,tar=false,dest=layout",
        "--metadata-file", "meta.json", "--iidfile", "iid", "-", stdin=dockerfile, cwd=tmp_path,
    )  # fmt: skip
    assert (tmp_path / "tree/f").read_text() == "text\n"
    assert (tmp_path / "tree/sub/b").stat().st_mode & 0o7777 == 0o4711
    assert (tmp_path / "tree/before").exists()
    assert "f" in tarfile.open(tmp_path / "out.tar").getnames()  # noqa: SIM115  # a test's
    assert "oci-layout" in tarfile.open(tmp_path / "oci.tar").getnames()  # noqa: SIM115  # a test's
    assert json.loads((tmp_path / "layout/index.json").read_text())["manifests"]
    assert json.loads((tmp_path / "meta.json").read_text())["buildx.build.ref"]
    piped = both.over.run("build", "-q", "-o", "-", "-", stdin=dockerfile, cwd=tmp_path)
    assert "text" in piped.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "iid",
        "layout",
        "meta.json",
        "oci.tar",
        "out.tar",
        "tree",
    ]


@pytest.mark.parametrize("over", [True, False])
def test_a_repeated_export_replaces_links_and_writes_through_none(both: Both, tmp_path: Path, over: bool) -> None:
    builder = both.over if over else both.alone
    (tmp_path / "outside").write_text("untouched")
    (tmp_path / "elsewhere").mkdir()
    made = f"ln -s {tmp_path}/outside /d/made && ln /d/file /d/second && ln -s {tmp_path}/elsewhere /d/sub"
    links = f"FROM busybox\nRUN mkdir /d && echo x > /d/file && {made}\nFROM scratch\nCOPY --from=0 /d /\n"
    files = "FROM scratch\nCOPY <<E /made\nnew\nE\nCOPY <<E /sub/file\nnew\nE\n"
    for text in (links, links, files):
        builder.run("build", "-q", "-o", "tree", "-", stdin=text.encode(), cwd=tmp_path)
    tree = tmp_path / "tree"
    assert (tree / "made").read_text() == (tree / "sub/file").read_text() == "new\n"
    assert not (tree / "made").is_symlink()
    assert not (tree / "sub").is_symlink()
    assert (tree / "second").read_text() == "x\n"
    assert (tmp_path / "outside").read_text() == "untouched"
    assert not list((tmp_path / "elsewhere").iterdir())


DOCKERFILE_OF_TWO = b"FROM busybox\nCOPY . /c\nRUN cat /c/small\n"


def test_only_what_changed_of_a_context_is_sent(both: Both, tmp_path: Path) -> None:
    root = tmp_path / "context"
    root.mkdir()
    (root / "Dockerfile").write_bytes(DOCKERFILE_OF_TWO)
    big = os.urandom(8 << 20)
    (root / "big").write_bytes(big)
    (root / "small").write_text("one")
    time.sleep(2.1)  # a file that changed just now is sent in any case
    build = lambda: both.over.run("build", "--progress=plain", "-t", "sent:1", str(root)).stderr  # noqa: E731

    def received() -> int:
        page = both.daemon.request("GET", "/metrics").body.decode()
        return int(page.split("\npybuild_context_bytes_total ")[1].split()[0])

    both.over.run("build", "-q", "-", stdin=b"FROM busybox\n")
    before = received()
    build()
    first = received() - before
    (root / "small").write_text("two")
    before = received()
    assert "two" in build()
    second = received() - before
    assert (first, second) == (sum(len(data) for data in (b"one", DOCKERFILE_OF_TWO, big)), len("two"))


def test_dockerfiles_and_contexts_may_be_anywhere(both: Both, context: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "My.Dockerfile").write_text(
        "FROM busybox\nCOPY --from=more /m /m\nCOPY . /c\nRUN ls /c /c/sub; cat /m\n"
    )
    (outside / "My.Dockerfile.dockerignore").write_text("sub/kept\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/m").write_text("more-content\n")
    out = both.over.run(
        "build", "--progress=plain", "-f", str(outside / "My.Dockerfile"), "--build-context", f"more={tmp_path}/more", str(context)
    ).stderr  # fmt: skip
    assert "more-content" in out
    assert re.search(r" left$", out, re.MULTILINE)
    assert not re.search(r" kept$", out, re.MULTILINE)
    piped = both.over.run(
        "build", "--progress=plain", "-f", "-", str(context), stdin=b"FROM busybox\nCOPY sub /s\nRUN ls /s\n"
    ).stderr
    assert re.search(r" kept$", piped, re.MULTILINE)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as out_tar:
        out_tar.add(context, arcname=".")
    both.over.run("build", "-q", "-", stdin=archive.getvalue())


def test_an_address_where_nobody_answers_is_named(both: Both) -> None:
    refused = both.over.run("-H", "unix:///no/such.sock", "images", check=False)
    assert refused.returncode == 1
    assert "can't talk to the daemon at unix:///no/such.sock" in refused.stderr


def test_an_interrupt_ends_the_build_in_the_daemon(both: Both, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "pybuild", "build", "--progress=plain", "-"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **both.over.variables},
    )
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(b"FROM busybox\nRUN echo begun && sleep 773001\n")
    process.stdin.close()
    for line in process.stderr:
        if line.rstrip().endswith(b" begun"):
            break
    process.send_signal(2)
    assert process.wait(10) == 130
    deadline = time.monotonic() + 10
    while both.daemon.request("GET", "/health").json()["running"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert both.daemon.request("GET", "/health").json()["running"] == 0
