"""What the conformance tests need to look at a result: builds into a folder or an OCI layout, and reads of it.

Never decides what is right; the tests do.
"""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Command(Protocol):
    """The ``pybuild`` fixture, as far as it is needed here."""

    root: Path

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]: ...

    def build(
        self, dockerfile: str, context: Path, *arguments: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a layer, as its tar has it (the trailing slash of a directory's name included)."""

    name: str
    kind: str
    mode: int
    owner: tuple[int, int]
    mtime: float
    link: str
    content: bytes
    pax: dict[str, str]


KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.DIRTYPE: "dir",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "fifo",
}


def read_tar(data: bytes) -> list[Entry]:
    """The entries of a tar, in its order."""
    out = []
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as archive:
        for member in archive:
            source = archive.extractfile(member) if member.isreg() else None
            out.append(
                Entry(
                    name=member.name + ("/" if member.isdir() else ""),
                    kind=KINDS[member.type],
                    mode=member.mode,
                    owner=(member.uid, member.gid),
                    mtime=member.mtime,
                    link=member.linkname,
                    content=source.read() if source is not None else b"",
                    pax=dict(member.pax_headers),
                )
            )
    return out


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """An image of one platform: its parsed manifest and configuration, and the entries of each layer."""

    manifest: dict[str, Any]  # JSON as parsed: the tests name the keys
    document: dict[str, Any]
    layers: tuple[tuple[Entry, ...], ...]

    @property
    def config(self) -> dict[str, Any]:
        """The ``config`` member of the configuration: what a container starts with."""
        config = self.document["config"]
        assert isinstance(config, dict)
        return config

    @property
    def history(self) -> list[str]:
        """The ``created_by`` texts."""
        return [item.get("created_by", "") for item in self.document["history"]]

    @property
    def empty_layers(self) -> list[bool]:
        """Per history entry, whether it made no layer."""
        return [item.get("empty_layer", False) for item in self.document["history"]]

    def names(self, layer: int) -> list[str]:
        """The names of a layer's entries."""
        return [entry.name for entry in self.layers[layer]]

    def entry(self, layer: int, name: str) -> Entry:
        """The only entry of that name."""
        (found,) = [entry for entry in self.layers[layer] if entry.name == name]
        return found


def read_blobs(path: Path) -> dict[str, bytes]:
    """All files of an OCI layout (a folder or a tar) by name."""
    if path.is_dir():
        return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return {entry.name: entry.content for entry in read_tar(path.read_bytes()) if entry.kind == "file"}


def read_images(path: Path) -> list[BuiltImage]:
    """The images of an OCI layout, those of one platform each, in the order of the indexes."""
    files = read_blobs(path)

    def blob(digest: str) -> bytes:
        return files["blobs/" + digest.replace(":", "/")]

    def walk(descriptor: dict[str, Any]) -> list[BuiltImage]:
        document = json.loads(blob(descriptor["digest"]))
        if "manifests" in document:
            return [image for child in document["manifests"] for image in walk(child)]
        layers = []
        for layer in document["layers"]:
            data = blob(layer["digest"])
            layers.append(tuple(read_tar(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)))
        return [BuiltImage(document, json.loads(blob(document["config"]["digest"])), tuple(layers))]

    return [image for top in json.loads(files["index.json"])["manifests"] for image in walk(top)]


def build_image(pybuild: Command, dockerfile: str, context: Path, *arguments: str) -> BuiltImage:
    """Build into an OCI layout beside the context and read its only image."""
    layout = context.with_name(context.name + "-layout.tar")
    pybuild.build(dockerfile, context, f"--output=type=oci,dest={layout}", *arguments)
    (image,) = read_images(layout)
    return image


def build_files(pybuild: Command, dockerfile: str, context: Path, *arguments: str) -> Path:
    """Build with the local exporter, into a new folder; returns the folder."""
    number = 0
    while (out := context.with_name(f"{context.name}-out{number}")).exists():
        number += 1
    pybuild.build(dockerfile, context, f"--output=type=local,dest={out}", *arguments)
    return out


def refused(pybuild: Command, dockerfile: str, context: Path, *arguments: str) -> str:
    """Build what must fail with status 1 and an ``ERROR:`` line at the end; returns stderr."""
    result = pybuild.build(dockerfile, context, *arguments, check=False)
    assert result.returncode == 1, result.stderr
    assert result.stderr.rstrip().splitlines()[-1].startswith("ERROR: "), result.stderr
    return result.stderr


def write_files(context: Path, files: dict[str, str | bytes], *, mode: int = 0o600) -> Path:
    """Create a context with these files; a name that ends in ``/`` is a folder of mode 0700."""
    context.mkdir(exist_ok=True)
    for name, content in files.items():
        path = context / name
        if name.endswith("/"):
            path.mkdir(mode=0o700)
            continue
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)
    return context
