"""Whole builds by an ordinary user: in a user namespace with sub-ids, and with the user's single id."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pybuild as product

if TYPE_CHECKING:
    from conftest import Pybuild

PYTHON = "/usr/bin/python3"
SOURCE = Path(product.__file__).resolve().parent.parent
LIBRARIES = sysconfig.get_path("purelib")


def _usable() -> str:
    if os.geteuid() != 0:
        return "needs root, to become an ordinary user"
    if not (SOURCE / "pybuild/daemon").is_dir():
        return "needs src/pybuild/daemon (the links that type checking uses)"
    probe = "import sys; sys.path[:0] = sys.argv[1:]; import pybuild.daemon.engine, sqlite3"
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", PYTHON, "-B", "-c", probe]
    result = subprocess.run([*command, str(SOURCE), LIBRARIES], capture_output=True, check=False)
    return "" if result.returncode == 0 else f"needs a {PYTHON} 3.11 and sources that an ordinary user can read"


REASON = _usable()
pytestmark = [pytest.mark.integration, pytest.mark.rootless, pytest.mark.skipif(bool(REASON), reason=REASON)]

# As root in a mount namespace of its own, so that /etc/subuid is another one for this process only.
BECOME = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pybuild.daemon import sandbox
source, libraries, python, ranges, *command = sys.argv[1:]
sandbox.unshare(sandbox.CLONE_NEWNS)
sandbox.mount(b"none", b"/", flags=sandbox.MS_REC | sandbox.MS_PRIVATE)
for name in (b"/etc/subuid", b"/etc/subgid"):
    sandbox.mount(ranges.encode(), name, flags=sandbox.MS_BIND)
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
environment = {"PATH": "/usr/bin:/bin", "HOME": os.getcwd(), "PYTHONPATH": f"{source}:{libraries}"}
os.execve(python, [python, "-B", "-m", "pybuild", *command], environment)
"""


class Ordinary:
    """An ordinary user with a home directory and, perhaps, sub-ids."""

    def __init__(self, home: Path, ranges: str) -> None:
        self.home = home
        self._ranges = home.parent / "ranges"
        self._ranges.write_text(ranges)

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``pybuild ARGUMENTS`` in the home directory."""
        command = [PYTHON, "-B", "-c", BECOME, str(SOURCE), LIBRARIES, PYTHON, str(self._ranges), *arguments]
        done = subprocess.run(command, cwd=self.home, capture_output=True, text=True, check=False, timeout=120)
        if check and done.returncode:
            pytest.fail(f"pybuild {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done


@pytest.fixture(params=["sub-ids", "single-id"])
def user(request: pytest.FixtureRequest, busybox_tar: Path) -> Iterator[Ordinary]:
    if request.param == "sub-ids" and shutil.which("newuidmap") is None:
        pytest.skip("the program newuidmap is not installed")
    folder = Path(tempfile.mkdtemp(prefix="rootless-"))
    folder.chmod(0o755)
    home = folder / "home"
    home.mkdir()
    shutil.copy(busybox_tar, home / "busybox.tar")
    (home / "context").mkdir()
    (home / "context/file").write_text("content\n")
    for path in [home, *home.rglob("*")]:
        os.chown(path, 65534, 65534)
    made = Ordinary(home, "65534:200000:65536\nnobody:200000:65536\n" if request.param == "sub-ids" else "")
    made.run("import", "busybox.tar", "busybox")
    yield made
    shutil.rmtree(folder, ignore_errors=True)


def write(user: Ordinary, dockerfile: str) -> None:
    path = user.home / "context/Dockerfile"
    path.write_text(dockerfile)
    os.chown(path, 65534, 65534)


def test_a_build_runs_caches_and_exports(user: Ordinary) -> None:
    write(
        user,
        "FROM busybox AS base\nWORKDIR /app\nCOPY file ./\nRUN cat file > copy && ln copy hard && rm /etc/group && id -u > id\n"
        'FROM busybox\nCOPY --from=base /app /app\nRUN ls -l /app && mkdir /made\nCMD ["cat", "/app/id"]\n',
    )
    first = user.run("build", "--progress=plain", "-t", "app", "context")
    assert "DONE" in first.stderr
    second = user.run("build", "--progress=plain", "-t", "app", "context")
    assert second.stderr.count("CACHED") >= 5
    assert user.run("run", "app").stdout == "0\n"
    user.run("build", "-o", "out", "context")
    assert (user.home / "out/app/copy").read_text() == "content\n"
    assert (user.home / "out/app/copy").stat().st_uid == 65534
    assert (user.home / ".local/share/pybuild/version").exists()
    layers = json.loads(user.run("inspect", "app").stdout)[0]["RootFS"]["Layers"]
    assert len(layers) == 3


def test_layers_are_those_that_root_makes(user: Ordinary, pybuild: Pybuild, busybox_tar: Path) -> None:
    write(user, "FROM busybox\nCOPY --chown=33:33 file /data/\nWORKDIR /x\n")
    user.run("build", "-t", "app", "context")
    ours = json.loads(user.run("inspect", "app").stdout)[0]["RootFS"]["Layers"]
    pybuild.run("import", str(busybox_tar), "busybox")
    pybuild.run("build", "-t", "app", str(user.home / "context"))
    assert json.loads(pybuild.run("inspect", "app").stdout)[0]["RootFS"]["Layers"] == ours


def test_another_user_inside_needs_sub_ids_and_says_so(user: Ordinary) -> None:
    write(user, "FROM busybox\nUSER www-data\nRUN id -u\n")
    done = user.run("build", "--progress=plain", "context", check=False)
    if "65534:" in user._ranges.read_text():
        assert done.returncode == 0, done.stderr
        assert " 33\n" in done.stderr
    else:
        assert done.returncode == 1
        assert "/etc/subuid" in done.stderr
        assert "Traceback" not in done.stderr


def test_everything_can_be_removed_again(user: Ordinary) -> None:
    write(user, "FROM busybox\nRUN mkdir -p /d/e && chmod 000 /d/e /d && chown 0:0 /d\nCOPY file /\n")
    user.run("build", "-t", "app", "context")
    user.run("rmi", "app", "busybox")
    user.run("prune", "--all", "--force", "--images")
    root = user.home / ".local/share/pybuild"
    assert list((root / "layers").iterdir()) == []
    assert [path for path in (root / "blobs").rglob("*") if path.is_file()] == []
