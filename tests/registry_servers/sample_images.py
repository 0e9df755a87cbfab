"""Small images made in a blob store, for tests that move them around."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from pathlib import Path

from pybuild.layers.blobs import BlobStore
from pybuild.layers.descriptor import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    Platform,
)
from pybuild.layers.digest import Digest
from pybuild.layers.image import ImageConfig, Index, Manifest

AMD64 = Platform("linux", "amd64")
ARM64 = Platform("linux", "arm64")


def blob_store(path: Path) -> BlobStore:
    return BlobStore(path)


def layer_bytes(seed: int, size: int = 50_000) -> tuple[bytes, bytes]:
    """A tar with one file of ``size`` bytes that don't compress, and the same with gzip."""
    data = random.Random(seed).randbytes(size)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(f"file-{seed}")
        member.size = size
        tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue(), gzip.compress(buffer.getvalue(), 1, mtime=0)


def make_image(
    store: BlobStore, *, layers: int = 3, seed: int = 0, size: int = 50_000, platform: Platform = AMD64
) -> Descriptor:
    """Store an image with ``layers`` layers; the descriptor of its manifest, with its platform."""
    descriptors, diff_ids = [], []
    for number in range(layers):
        tar, packed = layer_bytes(seed * 1000 + number, size)
        descriptors.append(Descriptor(OCI_LAYER_GZIP, store.write(packed), len(packed)))
        diff_ids.append(Digest.of(tar))
    config = ImageConfig.empty(platform).with_(diff_ids=tuple(diff_ids)).to_bytes()
    manifest = Manifest(Descriptor(OCI_CONFIG, store.write(config), len(config)), tuple(descriptors)).to_bytes()
    return Descriptor(OCI_MANIFEST, store.write(manifest), len(manifest), platform=platform)


def make_index(store: BlobStore, *manifests: Descriptor) -> Descriptor:
    """Store an index of ``manifests``."""
    data = Index(manifests).to_bytes()
    return Descriptor(OCI_INDEX, store.write(data), len(data))


def read(store: BlobStore, digest: Digest) -> bytes:
    with store.open(digest) as file:
        return file.read()
