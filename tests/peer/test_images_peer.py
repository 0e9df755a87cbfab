"""The same Dockerfiles built by buildah and by pybuild give equal file systems and configurations.

Known differences, which no case here shows, or a list below names: buildah
- leaves stubs of its own mounts in the image (BUILDAH_STUBS) and labels it ``io.buildah.version``;
- replaces a file by a folder of the same name that is copied, which BuildKit refuses;
- makes the folder of WORKDIR only when a later step needs it;
- knows no ``--link``, ``--parents``, ``--exclude`` and symbolic ``--chmod`` in version 1.28, doesn't give the mode of ``--chmod`` to
  the folders that a copy makes, and refuses a wildcard without a match.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, write_files

pytestmark = pytest.mark.peer

CONFIG_KEYS = (
    "User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal", "OnBuild", "Shell",
    "Healthcheck",
)  # fmt: skip

# Names that buildah leaves behind in the image for its own mounts.
BUILDAH_STUBS = {"run", "run/.containerenv", "etc/hosts", "etc/resolv.conf", "etc/hostname", "run/secrets"}


@dataclass(frozen=True)
class FileState:
    """What is compared of a path. Times of directories are left out: each builder touches those that it writes into."""

    kind: str
    mode: int
    owner: tuple[int, int]
    content: str


class Buildah:
    """buildah with a store of its own, which holds ``localhost/busybox``."""

    def __init__(self, folder: Path, base: Path) -> None:
        program = shutil.which("buildah")
        if program is None:
            pytest.skip("the program buildah is not installed")
        self.command = [
            program, "--root", str(folder / "root"), "--runroot", str(folder / "run"), "--storage-driver", "overlay",
        ]  # fmt: skip
        container = self.run("from", "scratch")
        self.run("add", container, str(base), "/")
        self.run("config", "--workingdir", "/", container)
        self.run("config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
        self.run("commit", "--rm", container, "localhost/busybox:latest")

    def run(self, *arguments: str) -> str:
        done = subprocess.run([*self.command, *arguments], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def build(self, context: Path, *flags: str) -> None:
        self.run(
            "bud",
            "--isolation=chroot",
            "--format=docker",
            "--layers",
            "--pull-never",
            "-q",
            "-t",
            "out",
            *flags,
            str(context),
        )

    def files(self) -> dict[str, FileState]:
        container = self.run("from", "--pull-never", "localhost/out")
        try:
            return dict(walk(Path(self.run("mount", container))))
        finally:
            self.run("rm", container)

    def config(self) -> dict[str, Any]:
        document = json.loads(self.run("inspect", "--type", "image", "localhost/out"))
        config = document["Docker"]["config"]
        assert isinstance(config, dict)
        return config


def walk(root: Path) -> Iterator[tuple[str, FileState]]:
    """Every path below a directory of this machine."""
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            status = path.lstat()
            owner = (status.st_uid, status.st_gid)
            mode = stat.S_IMODE(status.st_mode)
            key = str(path.relative_to(root))
            if stat.S_ISLNK(status.st_mode):
                yield key, FileState("symlink", 0o777, owner, os.readlink(path))
            elif stat.S_ISDIR(status.st_mode):
                yield key, FileState("dir", mode, owner, "")
            elif stat.S_ISREG(status.st_mode):
                content = path.read_bytes().decode("latin-1") if status.st_size < 100_000 else str(status.st_size)
                yield key, FileState("file", mode, owner, content)
            else:
                yield key, FileState("other", mode, owner, "")


def files_of_tar(data: bytes) -> dict[str, FileState]:
    """The same from a tar of pybuild's."""
    out: dict[str, FileState] = {}
    with tarfile.open(fileobj=BytesIO(data)) as archive:
        for member in archive:
            owner = (member.uid, member.gid)
            if member.issym():
                out[member.name] = FileState("symlink", 0o777, owner, member.linkname)
            elif member.isdir():
                out[member.name] = FileState("dir", member.mode, owner, "")
            elif member.islnk():
                out[member.name] = out[member.linkname]
            elif member.isreg():
                source = archive.extractfile(member)
                assert source is not None
                content = source.read().decode("latin-1") if member.size < 100_000 else str(member.size)
                out[member.name] = FileState("file", member.mode, owner, content)
            else:
                out[member.name] = FileState("other", member.mode, owner, "")
    return out


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory, busybox_tar: Path) -> Buildah:
    return Buildah(tmp_path_factory.mktemp("buildah"), busybox_tar)


CASES = {
    "instructions": """
FROM localhost/busybox
ARG version=1.2
ENV APP=/srv/app VERSION=$version
ENV legacy two words
LABEL maintainer="some one" version=$version "with space"="a \\"quote\\""
WORKDIR $APP
WORKDIR deeper
RUN true
USER daemon:staff
EXPOSE 80 53/udp
VOLUME /data /more
STOPSIGNAL SIGINT
SHELL ["/bin/sh", "-ec"]
ENTRYPOINT ["/bin/echo", "hello"]
CMD ["world", "x y"]
HEALTHCHECK --interval=5s --timeout=2s --retries=4 CMD test -e /
""",
    "shell forms": """
FROM localhost/busybox
ENTRYPOINT exec top -b
CMD echo $HOME "quoted"
HEALTHCHECK CMD ["true"]
""",
    "copies": """
FROM localhost/busybox
COPY file /
COPY file renamed
COPY folder /folder/
COPY folder/*.txt globs/
COPY file folder /both/
COPY --chown=daemon:staff file /owned/file
COPY --chown=7:8 folder /owned-folder
COPY --chmod=0640 file /moded
WORKDIR /work
COPY file relative/
COPY file .
COPY ["with space", "./"]
COPY folder/link /followed
""",
    "runs": """
FROM localhost/busybox
RUN mkdir -p /a/b /c && echo one > /a/one && echo two > /a/b/two && ln -s ../a /c/link && ln /a/one /hard && touch /exec2
RUN rm -r /a/b && chmod 1777 /c && chown -R 5:6 /c && chmod 4755 /exec2 && chmod 2755 /c
RUN ["/bin/sh", "-c", "echo exec > /exec"]
RUN echo continued \\
    # a comment in between
    lines > /continued
ENV greeting=hi
RUN echo $greeting "$(pwd)" "$PATH" > /environment && rm -rf /c && mkfifo /fifo
USER www-data
RUN id > /tmp/id
""",
    "stages": """
ARG base=localhost/busybox
FROM $base AS one
RUN mkdir /out && echo one > /out/one && chown 3:4 /out/one && chmod 600 /out/one && ln -s one /out/link
FROM one AS two
RUN echo two > /out/two
ENV inherited=yes
FROM localhost/busybox
COPY --from=two /out /copied/
COPY --from=0 /out/one /single
COPY --from=localhost/busybox /etc/passwd /accounts
ENV last=1
""",
    "folders that copies make": """
FROM localhost/busybox AS from
RUN mkdir -p /o/sub && touch /o/f && chown -R 3:4 /o && chmod 711 /o && chmod 2750 /o/sub
FROM localhost/busybox
COPY private /new
COPY --from=from /o /other
COPY --chown=5:6 file /made/for/file
COPY private/ /tmp/
COPY --chown=5:6 private /home
""",
    "archives": """
FROM localhost/busybox
ADD packed.tar.gz /unpacked/
ADD packed.tar.gz /into
COPY packed.tar.gz /kept/
ADD folder /added/
""",
    "ignored": """
FROM localhost/busybox
COPY . /all/
""",
    "scratch": """
FROM scratch
COPY folder /
ENV a=1
""",
    "build arguments": """
FROM localhost/busybox
ARG given=default
ARG other=default
ENV given=$given
RUN echo "$given $other" > /values
""",
    "replaced": """
FROM localhost/busybox
COPY folder /d
RUN rm -rf /d && echo file > /d && rm -rf /home && mkdir /home && touch /home/new
COPY file /tmp/file
COPY with* /tmp/file
RUN echo appended >> /etc/passwd
""",
}


def test_both_keep_triggers_for_the_child(pybuild: Command, buildah: Buildah, tmp_path: Path) -> None:
    text = "FROM localhost/busybox\nONBUILD RUN echo trigger > /t\nONBUILD COPY file /\n"
    child = "FROM localhost/out\nRUN cat /t /file > /both\n"
    pybuild.run("tag", "busybox", "localhost/busybox")
    found = []
    for dockerfile in (text, child):
        context = write_files(tmp_path / "c", {"file": "content", "Dockerfile": dockerfile}, mode=0o644)
        buildah.build(context)
        pybuild.run("build", "-t", "localhost/out", str(context))
        mine = json.loads(pybuild.run("inspect", "localhost/out").stdout)[0]["Config"]
        assert normal_config(mine) == normal_config(buildah.config())
        found.append(mine.get("OnBuild") or [])
    assert found == [["RUN echo trigger > /t", "COPY file /"], []]


@pytest.mark.parametrize("name", CASES)
def test_both_give_the_same_files_and_configuration(
    pybuild: Command, buildah: Buildah, tmp_path: Path, name: str
) -> None:
    context = write_files(
        tmp_path / "c",
        {
            "file": "content of file\n",
            "folder/a.txt": "a",
            "folder/b.txt": "b",
            "folder/deep/c": "c",
            "private/inner/x": "p",
            "with space": "s",
            "secret.key": "ignored",
            "logs/keep": "k",
            "logs/drop": "d",
            ".dockerignore": "*.key\nlogs\n!logs/keep\n",
            "Dockerfile": CASES[name],
        },
        mode=0o644,
    )
    for folder, _, _ in os.walk(context):
        os.chmod(folder, 0o755)
    (context / "private").chmod(0o700)
    (context / "private/inner").chmod(0o711)
    (context / "folder/link").symlink_to("a.txt")
    with tarfile.open(context / "packed.tar.gz", "w:gz") as archive:
        archive.add(context / "folder", "inside", filter=_plain)
    flags = ["--build-arg=given=from outside"] if name == "build arguments" else []

    buildah.build(context, *flags)
    pybuild.run("tag", "busybox", "localhost/busybox")
    out = tmp_path / "files.tar"
    pybuild.run("build", "-t", "localhost/out", *flags, str(context))
    pybuild.run("build", "-o", f"type=tar,dest={out}", *flags, str(context))

    theirs, ours = buildah.files(), files_of_tar(out.read_bytes())
    stubs = {path for path in theirs if path in BUILDAH_STUBS and path not in ours}
    assert {path: state for path, state in theirs.items() if path not in stubs} == ours
    mine = json.loads(pybuild.run("inspect", "localhost/out").stdout)[0]["Config"]
    assert normal_config(mine) == normal_config(buildah.config())


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid, member.gid, member.uname, member.gname = 11, 12, "", ""
    return member


def normal_config(config: dict[str, Any]) -> dict[str, Any]:
    """The members that a container depends on, absent and empty alike."""
    out = {key: config.get(key) or None for key in CONFIG_KEYS}
    labels = {name: value for name, value in (out["Labels"] or {}).items() if not name.startswith("io.buildah")}
    out["Labels"] = labels or None
    out["WorkingDir"] = (out["WorkingDir"] or "/").rstrip("/") or "/"
    return out
