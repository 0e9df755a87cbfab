"""The replay of a project's history: its commits as build contexts, and what the images that were made of them hold.

Owns choosing commits, writing contexts, and reading images back from a registry. Never builds.
"""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import urllib.request
from pathlib import Path

from pybuild.values import dataclass

COMMITS = 20
_FIRST = 200  # counted from the first one: the same commits in every full clone; one of them changes pyproject.toml
_RECIPE = Path(__file__).parent / "replay_context"
_IGNORED = ("benchmarks", "docs", "examples", "tests")  # as in replay_context/dockerignore, which hides no other *.py
_MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"


class NoHistory(Exception):
    """The repository doesn't have the commits."""


def commits(repository: Path) -> list[str]:
    """Twenty consecutive commits of the main line. Raises NoHistory."""
    shallow = _git(repository, "rev-parse", "--is-shallow-repository").decode().strip()
    if shallow != "false":
        raise NoHistory(f"{repository} is a shallow clone: git fetch --unshallow brings its history")
    line = _git(repository, "rev-list", "--first-parent", "--reverse", "HEAD").decode().split()
    if len(line) < COMMITS:
        raise NoHistory(f"{repository} has only {len(line)} commits")
    first = min(_FIRST, len(line) - COMMITS)
    return line[first : first + COMMITS]


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit's context. ``sources``: digests of the files to be compiled, by path; ``installed``: of the list that the
    dependencies leave; ``visible``: of all that the Dockerfile copies."""

    context: Path
    sources: dict[str, str]
    installed: str
    visible: str


def check_out(repository: Path, commit: str, *, directory: Path) -> Commit:
    """Write a commit's files, the benchmark's Dockerfile and its ignore file to ``directory``, which is emptied before."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    archive = _git(repository, "-c", "tar.umask=0022", "archive", "--format=tar", commit)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(directory)
    for name, target in (("Dockerfile", "Dockerfile"), ("dockerignore", ".dockerignore")):
        shutil.copy(_RECIPE / name, directory / target)
    shown = {
        str(path.relative_to(directory)): _digest(path.read_bytes())
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.is_symlink() and _visible(path.relative_to(directory))
    }
    return Commit(
        directory,
        sources={name: digest for name, digest in shown.items() if name.endswith(".py")},
        installed=_digest(f"{shown['pyproject.toml']}  pyproject.toml\n".encode()),
        visible=_digest(json.dumps(shown).encode()),
    )


def _visible(path: Path) -> bool:
    return (
        path.parts[0] not in _IGNORED
        and not path.parts[0].startswith(".git")
        and not fnmatch.fnmatch(path.name, "*.md")
    )


@dataclass(frozen=True, slots=True)
class Contents:
    """What an image has below /app. ``sources``: digests of what was compiled, by path; ``installed``: of the list of the dependencies."""

    sources: dict[str, str]
    installed: str


class Images:
    """Images in a registry at ``host``, read layer by layer, each layer once."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._layers: dict[str, dict[str, str]] = {}

    def contents(self, repository: str, tag: str) -> Contents:
        """What the image has below /app."""
        manifest = json.loads(self._get(repository, f"manifests/{tag}"))
        files: dict[str, str] = {}
        for layer in manifest["layers"]:
            files |= self._layer(repository, layer["digest"])
        sources = {
            name.removeprefix("app/code/").removesuffix(".gz"): digest
            for name, digest in files.items()
            if name.startswith("app/code/")
        }
        return Contents(sources, files["app/site/installed"])

    def _layer(self, repository: str, digest: str) -> dict[str, str]:
        if digest not in self._layers:
            found: dict[str, str] = {}
            with tarfile.open(fileobj=io.BytesIO(self._get(repository, f"blobs/{digest}"))) as tar:
                for member in tar:
                    name = member.name.removeprefix("./").removeprefix("/")
                    if member.isfile() and name.startswith("app/"):
                        file = tar.extractfile(member)
                        assert file is not None
                        data = file.read()
                        found[name] = _digest(gzip.decompress(data) if name.endswith(".gz") else data)
            self._layers[digest] = found
        return self._layers[digest]

    def _get(self, repository: str, path: str) -> bytes:
        request = urllib.request.Request(f"http://{self._host}/v2/{repository}/{path}", headers={"Accept": _MANIFESTS})
        with urllib.request.urlopen(request) as answer:
            data: bytes = answer.read()
        return data


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git(repository: Path, *arguments: str) -> bytes:
    done = subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, check=False)
    if done.returncode != 0:
        raise NoHistory(f"git {arguments[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
