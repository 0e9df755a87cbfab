"""``pybuild -H`` beside pybuild alone, command by command: the same status, the same output, the same messages, the same files."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import Pybuild
from daemons.running_daemon import running_daemon

pytestmark = pytest.mark.integration

DOCKERFILE = (
    "FROM busybox AS one\nARG A=default\nCOPY . /c\nRUN --mount=type=secret,id=s cat /run/secrets/s 2>/dev/null; find /c | sort; echo $A > /a\n"
    "FROM scratch AS two\nLABEL from=file\nCOPY --from=one /a /c /\n"
)


def _archive(name: str = "Dockerfile") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for path, data in ((name, b"FROM busybox\nCOPY h /h\nRUN cat /h\n"), ("h", b"in the archive\n")):
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


# Each with what it reads on standard input; the words are split at blanks.
COMMANDS: list[tuple[str, bytes]] = [
    ("build -t app:1 -t app:2 --progress=plain --iidfile iid --metadata-file meta.json context", b""),
    ("build -t app:1 --progress=plain context", b""),
    ("build -q context", b""),
    ("build --progress=rawjson context", b""),
    ("build --progress=nonsense context", b""),
    *((f"build --progress=plain -o {output} context", b"") for output in (
        "out", "type=tar,dest=o.tar", "type=oci,dest=o.tar", "type=oci,tar=false,dest=layout", "type=docker,dest=o.tar", "-",
        "type=oci,dest=-", "type=docker,dest=-", "type=local", "type=nonsense", "type=local,dest=context/f", "type=tar,dest=no/such/o.tar",
        "type=image,name=x:1,push=false", "type=oci,dest=o.tar,compression=lzw",
    )),
    ("build --progress=plain -", b"FROM busybox\nRUN echo from stdin\n"),
    ("build --progress=plain -", b"FROM busybox\nCOPY f /\n"),
    ("build --progress=plain -f - context", b"FROM busybox\nCOPY f /\n"),
    ("build --progress=plain -f - -", b"FROM busybox\n"),
    ("build --progress=plain -", _archive()),
    ("build --progress=plain -f Other -", _archive("Other")),
    ("build --progress=plain -f Other -", _archive()),
    ("build --progress=plain -", _archive()[:100]),
    ("build --progress=plain --no-cache -t by:file --secret id=s,src=secret context", b""),
    ("build --progress=plain --no-cache -t by:variable --secret id=s,env=SECRET context", b""),
    ("build --progress=plain --secret id=s,src=nowhere context", b""),
    ("build --progress=plain --build-context more=more -f - context", b"FROM busybox\nCOPY --from=more . /m\nRUN cat /m/m\n"),
    ("build -q --build-context more=etc -f - context", b"FROM busybox\nCOPY --from=more . /m\n"),
    ("build -q --build-context more=oci-layout://nowhere -", b"FROM more\n"),
    ("build --progress=plain --build-arg A=given --build-arg UNUSED=x context", b""),
    ("build --progress=plain --label from=cli -t labelled context", b""),
    ("build --progress=plain --target one context", b""),
    ("build --progress=plain --target nowhere context", b""),
    ("build --progress=plain nowhere", b""),
    ("build --progress=plain -f nowhere context", b""),
    ("build --progress=plain -", b"FROM busybox\nRUN echo before; exit 3\n"),
    ("build -q -", b"FROM busybox\nRUN [\"nowhere\"]\n"),
    *((f"build --call {call} context", b"") for call in ("check", "outline", "targets", "targets,format=json", "nonsense")),
    # A relative WORKDIR is a finding unless the base image, which only the store of the builds has, names a directory.
    ("build --check -", b"FROM based\nWORKDIR relative\n"),
    ("build --check -", b"FROM busybox\nWORKDIR relative\n"),
    ("run busybox sh -c echo${IFS}e>&2;exit${IFS}9", b""),
    ("run busybox nowhere", b""),
    ("run busybox /etc", b""),
    ("run nowhere:1 true", b""),
    ("run -w /new/one -u 77 -e A busybox sh -c pwd;id;echo${IFS}$A", b""),
    ("run -w relative busybox pwd", b""),
    ("run -v nonsense busybox true", b""),
    ("run -v ./nowhere:/x busybox true", b""),
    ("run -i busybox cat", b"standard input"),
    ("run -i -t busybox cat", b"standard input"),
    ("pull 127.0.0.1:9/nobody/listens", b""),
    ("push 127.0.0.1:9/nobody/listens", b""),
    ("copy 127.0.0.1:9/nobody/listens oci:layout", b""),
    ("tag nowhere x", b""),
    ("tag app:1 BAD", b""),
    ("tag app:1 other:3", b""),
    *((f"images {options}", b"") for options in (
        "", "-a", "-q", "--no-trunc --digests", "-f dangling=true", "-f label=from=cli", "-f reference=app:*", "-f before=labelled",
        "-f since=nowhere", "-f nonsense=1", "--format json", "--format {{.Repository}}/{{.Size}}", "--format {{", "app", "nowhere",
    )),
    ("inspect app:1 nowhere busybox", b""),
    ("inspect -f {{.Config.Labels}} app:1", b""),
    ("inspect --raw app:1", b""),
    ("inspect --platform linux/s390x app:1", b""),
    ("history --no-trunc app:1", b""),
    ("history --format json nowhere", b""),
    ("save app:1", b""),
    ("save -o saved.tar app:1 app:2", b""),
    ("save -o no/such/saved.tar app:1", b""),
    ("save -o saved.tar nowhere", b""),
    ("load -i archive.tar", b""),
    ("load", b"garbage" * 100),
    ("import - imported:1 -c NONSENSE", b"garbage" * 100),
    ("import nowhere.tar", b""),
    *((f"du {options}", b"") for options in ("-f type=regular", "--images", "--builds", "-f nonsense", "-f type=regular --format json")),
    ("prune --dry-run --filter nonsense=1", b""),
    ("why", b""),
    ("why nowhere", b""),
    ("rmi app:2 other:3 nowhere", b""),
    ("rmi -f nowhere", b""),
]  # fmt: skip


@dataclass
class Sides:
    """The two that are compared; ``directories``: where each works, of the same length."""

    commands: tuple[Pybuild, Pybuild]
    directories: tuple[Path, Path]


@pytest.fixture(scope="module")
def sides(_seed_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    directory = tmp_path_factory.mktemp("same")
    for name in ("alone", "daemon"):
        subprocess.run(["cp", "-a", str(_seed_root), str(directory / name)], check=True)
    variables = {
        "DOCKER_CONFIG": str(directory),
        "SOURCE_DATE_EPOCH": "1700000000",
        "SECRET": "of-the-environment",
        "A": "a",
    }
    alone = Pybuild(directory / "alone", variables)
    alone.run("save", "busybox", "-o", str(directory / "archive.tar"))
    with running_daemon(directory / "d", directory / "daemon") as daemon:
        # A root that can't be used: a daemon's client must not touch a store of its own.
        over = Pybuild(Path("/proc/no-store"), {**variables, "PYBUILD_HOST": daemon.address})
        for pybuild in (alone, over):  # in whatever order the commands come, and to whichever worker, there are images
            pybuild.run("build", "-q", "-t", "app:1", "-t", "app:2", "-", stdin=b"FROM busybox\nENV A=b\n")
            pybuild.run("build", "-q", "-t", "labelled", "-", stdin=b"FROM scratch\nLABEL from=cli\n")
            pybuild.run("build", "-q", "-t", "based", "-", stdin=b"FROM busybox\nWORKDIR /w\n")
        yield Sides((alone, over), (directory / "one", directory / "two"))


def _fill(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "context/sub").mkdir(parents=True)
    (directory / "more").mkdir()
    shutil.copy(directory.parent / "archive.tar", directory / "archive.tar")
    for name, text in {
        "context/Dockerfile": DOCKERFILE, "context/f": "f", "context/sub/left": "left", "context/.dockerignore": "**/left\n",
        "more/m": "more\n", "secret": "of-the-file\n",
    }.items():  # fmt: skip
        (directory / name).write_text(text)
    for path in directory.rglob("*"):
        os.utime(path, (1700000000, 1700000000))


def _steady(data: bytes, directory: Path) -> list[str]:
    """The different lines, sorted, without durations, ages, identifiers, references of builds; of an archive, the names in it."""
    if b"ustar" in data[:512]:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            return sorted(re.sub("[0-9a-f]{64}", "HEX", member.name) for member in archive.getmembers())
    text = data.decode("utf-8", "replace").replace(str(directory), "HERE")
    text = re.sub(r"\b\d+\.\d+s?\b", "0s", text)
    text = re.sub(r"\bbuild [0-9a-z]{12}\b|buildx.build.ref\": \"[^\"]*", "REF", text)
    text = re.sub(r"(Less than a|\d+|About an?) (second|minute)s?( ago)?", "AGE", text)
    text = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[^\s\",]*", "TIME", text)
    text = re.sub(r"^#\d+ ", "#N ", text, flags=re.MULTILINE)
    text = re.sub(r"transferring context: \S+", "transferring context: SIZE", text)
    text = re.sub(r"\b[0-9a-z]{12}(?= +AGE)|\b[0-9a-f]{12,64}\b", "HEX", text)
    if "UNIQUE SIZE" in text:
        text = re.sub(r"\b\d+(\.\d+)?[kM]?B\b", "SIZE", text)  # shared with how many others: as below
    # How many images without a name there are depends on steps that ran within the same second: files' times are whole seconds.
    return sorted({" ".join(line.split()) for line in text.splitlines()})


def _files(directory: Path) -> list[tuple[str, int, list[str]]]:
    """Mode and content of every file; of blobs only that they are there."""
    return sorted(
        (
            re.sub("[0-9a-f]{64}", "HEX", str(path.relative_to(directory))),
            path.lstat().st_mode,
            _steady(path.read_bytes(), directory) if path.is_file() and len(path.name) < 64 else [],
        )
        for path in directory.rglob("*")
    )


@pytest.mark.parametrize(("command", "stdin"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_a_command_over_a_daemon_is_the_same_command(sides: Sides, command: str, stdin: bytes) -> None:
    seen = []
    for pybuild, directory in zip(sides.commands, sides.directories, strict=True):
        _fill(directory)
        finished = subprocess.run(
            [sys.executable, "-m", "pybuild", "--root", str(pybuild.root), *command.split()],
            input=stdin,
            capture_output=True,
            cwd=directory,
            env={**os.environ, **pybuild.variables},
            timeout=60,
        )
        seen.append(
            (
                finished.returncode,
                _steady(finished.stdout, directory),
                _steady(finished.stderr, directory),
                _files(directory),
            )
        )
    assert seen[0] == seen[1]


def test_a_docker_configuration_that_cannot_be_read_is_warned_of_by_both(sides: Sides, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    for pybuild in sides.commands:
        finished = pybuild.run("pull", "127.0.0.1:9/nobody", env={"DOCKER_CONFIG": str(tmp_path)}, check=False)
        assert (
            finished.stderr.count(f"WARNING: Error loading config file: {tmp_path}/config.json is not valid JSON") == 1
        )


def test_an_image_is_listed_once_though_its_manifest_changed(sides: Sides) -> None:
    for pybuild in sides.commands:
        for number in range(3):
            pybuild.run(
                "build", "-q", "-t", "again", f"--annotation=n={number}", "-", stdin=b"FROM scratch\nLABEL again=1\n"
            )
            pybuild.run("build", "-q", f"--annotation=n={number}", "-", stdin=b"FROM scratch\nLABEL unnamed=1\n")
        for label in ("again", "unnamed"):
            assert len(pybuild.run("images", "--no-trunc", "-f", f"label={label}").stdout.splitlines()) == 2
        assert pybuild.run("images", "-f", "label=again", "-f", "dangling=true").stdout.count("\n") == 1
        # The other manifests of an image that has a name are no image that is gone.
        identifier = pybuild.run("images", "-q", "again").stdout.strip()
        assert identifier not in pybuild.run("prune", "-f", "--images").stdout
        assert pybuild.run("images", "-q", "again").stdout.strip() == identifier
