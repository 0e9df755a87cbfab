"""Reads images with attestations: OCI layouts and registries, by index. Never decides what is right; the tests do."""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.built_images import read_blobs

Json = dict[str, Any]  # as parsed: the tests name the keys
ACCEPT = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True, slots=True)
class Member:
    """What an index lists: the descriptor and the manifest, and for attestations the statements."""

    descriptor: Json
    manifest: Json
    statements: tuple[Json, ...] = ()

    @property
    def platform(self) -> str:
        platform = self.descriptor["platform"]
        return f"{platform['os']}/{platform['architecture']}"


@dataclass(frozen=True, slots=True)
class Attested:
    """An index: images and, by the digest of the image, attestations."""

    index: Json
    images: tuple[Member, ...]
    attestations: dict[str, Member]

    def of(self, platform: str = "linux/amd64") -> Member:
        """The attestations of a platform's image."""
        (image,) = [image for image in self.images if image.platform == platform]
        return self.attestations[image.descriptor["digest"]]

    def predicate(self, platform: str = "linux/amd64") -> Json:
        """The only statement's predicate."""
        (statement,) = self.of(platform).statements
        predicate: Json = statement["predicate"]
        return predicate


def read_index(index: Json, blob: Callable[[str], bytes]) -> Attested:
    """Read everything below an index."""
    images, attestations = [], {}
    for descriptor in index["manifests"]:
        manifest = json.loads(blob(descriptor["digest"]))
        annotations = descriptor.get("annotations", {})
        if annotations.get("vnd.docker.reference.type") == "attestation-manifest":
            statements = tuple(json.loads(blob(layer["digest"])) for layer in manifest["layers"])
            attestations[annotations["vnd.docker.reference.digest"]] = Member(descriptor, manifest, statements)
        else:
            images.append(Member(descriptor, manifest))
    return Attested(index, tuple(images), attestations)


def read_layout(path: Path) -> Attested:
    """The only index of an OCI layout, a folder or a tar."""
    files = read_blobs(path)

    def blob(digest: str) -> bytes:
        return files["blobs/" + digest.replace(":", "/")]

    (top,) = json.loads(files["index.json"])["manifests"]
    return read_index(json.loads(blob(top["digest"])), blob)


def read_registry(registry: str, repository: str, tag: str) -> Attested:
    """An index in a registry, over HTTP."""

    def get(path: str) -> bytes:
        request = urllib.request.Request(f"http://{registry}/v2/{repository}/{path}", headers={"Accept": ACCEPT})
        with urllib.request.urlopen(request, timeout=10) as answer:
            data = answer.read()
            assert isinstance(data, bytes)
            return data

    def blob(digest: str) -> bytes:
        try:
            return get(f"manifests/{digest}")
        except OSError:
            return get(f"blobs/{digest}")

    return read_index(json.loads(get(f"manifests/{tag}")), blob)


def dockerfile_in(metadata: Json) -> str:
    """The Dockerfile that provenance holds in mode=max."""
    (info,) = metadata["source"]["infos"]
    return base64.b64decode(info["data"]).decode()
