"""Images as the Engine API shows them, in the form of each version: list entries, ``inspect``, history, the manifests below an index.

Shapes only: what is listed or found is decided elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

from pybuild.errors import PybuildError
from pybuild.layers.descriptor import INDEX_TYPES, Platform
from pybuild.layers.digest import Digest
from pybuild.layers.image import Index, Manifest
from pybuild.layers.images import MANIFEST_LIMIT_BYTES, Images, StoredImage, StoredPlatform
from pybuild.layers.store import Store
from pybuild.layers.usage import Usage

from .image_list import ListedImage, familiar, inspect_image, made_at
from .machine import host_platform

_STATEMENT_BYTES: Final = 64 << 20
_NEVER: Final = "0001-01-01T00:00:00Z"
_REFERENCE_TYPE: Final = "vnd.docker.reference.type"
_REFERENCE_DIGEST: Final = "vnd.docker.reference.digest"
# Config fields that are left out from 1.52 on where they say nothing, and what older versions show then.
_EMPTY_CONFIG: Final[dict[str, Any]] = {
    "User": "",
    "Env": None,
    "Cmd": None,
    "Volumes": None,
    "WorkingDir": "",
    "Entrypoint": None,
    "OnBuild": None,
    "Labels": None,
}
# Fields of a container's configuration that versions before 1.50 show for an image, too.
_CONTAINER_CONFIG: Final[dict[str, Any]] = {
    "Hostname": "",
    "Domainname": "",
    "AttachStdin": False,
    "AttachStdout": False,
    "AttachStderr": False,
    "Tty": False,
    "OpenStdin": False,
    "StdinOnce": False,
    "Image": "",
}


def list_entry(
    listed: ListedImage,
    *,
    version: tuple[int, int],
    shared: int = -1,
    manifests: Sequence[dict[str, Any]] | None = None,
) -> dict[str, Any]:  # Any: the JSON edge
    """An element of ``GET /images/json``."""
    image, part = listed.image, listed.part
    tags = [f"{repository}:{tag}" for repository, tag in listed.shown if tag != "<none>"]
    digest = image.descriptor.digest
    digests = [f"{repository}@{digest}" for repository in dict.fromkeys(repository for repository, _ in listed.shown)]
    if version < (1, 43) and not tags and not digests:
        tags, digests = ["<none>:<none>"], ["<none>@<none>"]
    out: dict[str, Any] = {
        "Id": str(image.id(host_platform())),
        "ParentId": "",
        "RepoTags": tags,
        "RepoDigests": digests,
        "Created": int(made_at(part) or image.stored),
        "Size": listed.size,
        "SharedSize": shared,
        "Labels": dict(part.labels) if part is not None else {},
        "Containers": -1 if version < (1, 51) else 0,
    }
    if version < (1, 44):
        out["VirtualSize"] = listed.size
    if version >= (1, 48):
        out["Descriptor"] = image.descriptor.to_json()
    if manifests is not None:
        out["Manifests"] = list(manifests)
    return out


def merged_by_id(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:  # Any: the JSON edge
    """Images with the same ID as one: the store may hold an ID under several manifests (its layers compressed or not), docker does not."""
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        first = found.setdefault(entry["Id"], entry)
        if first is not entry:
            for name in ("RepoTags", "RepoDigests"):
                first[name] = list(dict.fromkeys((*first[name], *entry[name])))
    return list(found.values())


def image_summaries(usage: Usage, *, version: tuple[int, int]) -> list[dict[str, Any]]:  # Any: the JSON edge
    """The images of ``GET /system/df``."""
    out: list[dict[str, Any]] = []
    for row in usage.images:
        part = row.image.choose(host_platform()) or row.image.choose()
        shown = tuple(familiar(name) for name in row.image.names)
        entry = list_entry(ListedImage(row.image, part, shown), version=version, shared=row.shared)
        entry["Size"], entry["Containers"] = row.size, 0
        if version < (1, 44):
            entry["VirtualSize"] = row.size
        out.append(entry)
    return merged_by_id(out)


def inspect_answer(
    store: Store, image: StoredImage, *, version: tuple[int, int], platform: str | None, manifests: bool
) -> dict[str, Any]:  # Any: the JSON edge
    """``GET /images/{name}/json``. Raises UsageError if the image has nothing for ``platform``."""
    out = inspect_image(store.images, image, platform=platform)
    for other in store.images.with_config(Digest.parse(out["Id"])):
        if other.descriptor.digest != image.descriptor.digest:
            names = [name for name in other.names if "@" not in name]
            out["RepoTags"] += [":".join(familiar(name)) for name in names]
            out["RepoDigests"] += [f"{familiar(name)[0]}@{other.descriptor.digest}" for name in names]
    out["RepoDigests"] = list(dict.fromkeys(out["RepoDigests"]))
    config = {key: value for key, value in out["Config"].items() if key not in ("Hostname", "Image")}
    if version >= (1, 52):
        config = {
            key: value for key, value in config.items() if key not in _EMPTY_CONFIG or value not in ("", None, [], {})
        }
        for key in ("Comment", "Author", "Created"):
            if not out[key]:
                del out[key]
    else:
        config = {**_EMPTY_CONFIG, **config}
        out |= {"Parent": "", "DockerVersion": "", "GraphDriver": {"Name": "overlayfs", "Data": {}}}
        if not out["Created"]:
            if version < (1, 44):
                out["Created"] = _NEVER
            else:
                del out["Created"]
        if version < (1, 50):
            config = {**_CONTAINER_CONFIG, **config}
    out["Config"] = config
    if out["Metadata"]["LastTagTime"] is None:
        out["Metadata"]["LastTagTime"] = _NEVER
    if version < (1, 45):
        out |= {"Container": "", "ContainerConfig": {**_CONTAINER_CONFIG, **_EMPTY_CONFIG}}
    if version < (1, 44):
        out["VirtualSize"] = out["Size"]
    if version < (1, 48):
        del out["Descriptor"]
    elif manifests:
        out["Manifests"] = manifest_summaries(store, image)
    return out


def history_answer(
    images: Images, image: StoredImage, *, platform: Platform | None
) -> list[dict[str, Any]]:  # Any: the JSON edge
    """``GET /images/{name}/history``: the last step first. Raises PybuildError if the image has nothing for ``platform``."""
    part = image.choose(platform) if platform is not None else image.choose(host_platform()) or image.choose()
    if part is None:
        raise PybuildError(f"the image has nothing for {platform or host_platform()}")
    from pybuild.builder.assemble import parse_rfc3339

    tags = [":".join(familiar(name)) for name in image.names if "@" not in name]
    return [
        {
            "Id": "<missing>" if position else str(part.config),
            "Created": int((parse_rfc3339(line.entry.created) if line.entry.created else None) or 0),
            "CreatedBy": line.entry.created_by,
            "Tags": None if position else tags,
            "Size": line.size,
            "Comment": line.entry.comment,
        }
        for position, line in enumerate(images.history(part))
    ]


def manifest_summaries(store: Store, image: StoredImage) -> list[dict[str, Any]]:  # Any: the JSON edge
    """The manifests of an image: one a platform, and what is attached to them."""
    out: list[dict[str, Any]] = []
    for part in image.platforms:
        content = part.manifest.size + sum(layer.descriptor.size for layer in part.layers)
        descriptor = part.manifest.to_json() | {"platform": part.platform.to_json()}
        out.append(
            {
                "ID": str(part.manifest.digest),
                "Descriptor": descriptor,
                "Available": True,
                "Kind": "image",
                "Size": {"Content": content, "Total": content + part.size},
                "ImageData": _image_data(part.platform, part.size),
            }
        )
    return out + _attached(store, image, known={row["ID"] for row in out})


def _attached(store: Store, image: StoredImage, *, known: set[str]) -> list[dict[str, Any]]:  # Any: the JSON edge
    if image.descriptor.media_type not in INDEX_TYPES:
        return []
    index = Index.from_bytes(store.blobs.read(image.descriptor.digest, limit_bytes=MANIFEST_LIMIT_BYTES))
    out: list[dict[str, Any]] = []
    for child in index.manifests:
        if str(child.digest) in known:
            continue
        attestation = child.annotations.get(_REFERENCE_TYPE) == "attestation-manifest"
        row: dict[str, Any] = {
            "ID": str(child.digest),
            "Descriptor": child.to_json(),
            "Available": store.blobs.has(child.digest),
            "Kind": "attestation" if attestation else "image" if child.platform is not None else "unknown",
            "Size": {"Content": child.size, "Total": child.size},
        }
        if attestation:
            row["AttestationData"] = {"For": child.annotations.get(_REFERENCE_DIGEST, "")}
        elif child.platform is not None:
            row["ImageData"] = _image_data(child.platform, 0)
        out.append(row)
    return out


def _image_data(platform: Platform, unpacked: int) -> dict[str, Any]:  # Any: the JSON edge
    # The description requires UnpackedSize, docker's own answers have Size.Unpacked.
    return {"Platform": platform.to_json(), "Size": {"Unpacked": unpacked}, "UnpackedSize": unpacked, "Containers": []}


def attestation_answer(
    store: Store, image: StoredImage, part: StoredPlatform, *, types: frozenset[str], statements: bool
) -> list[dict[str, Any]]:  # Any: the JSON edge
    """``GET /images/{name}/attestations``: the in-toto statements that the image's index attaches to ``part``. Raises BlobNotFound,
    InvalidImage."""
    if image.descriptor.media_type not in INDEX_TYPES:
        return []
    out: list[dict[str, Any]] = []
    for child in Index.from_bytes(
        store.blobs.read(image.descriptor.digest, limit_bytes=MANIFEST_LIMIT_BYTES)
    ).manifests:
        if (
            child.annotations.get(_REFERENCE_TYPE) != "attestation-manifest"
            or child.annotations.get(_REFERENCE_DIGEST) != str(part.manifest.digest)
            or not store.blobs.has(child.digest)
        ):
            continue
        manifest = Manifest.from_bytes(store.blobs.read(child.digest, limit_bytes=MANIFEST_LIMIT_BYTES))
        for layer in manifest.layers:
            kind = layer.annotations.get("in-toto.io/predicate-type", "")
            if not kind or (types and kind not in types):
                continue
            row: dict[str, Any] = {"Descriptor": layer.to_json(), "PredicateType": kind}
            if statements:
                row["Statement"] = json.loads(store.blobs.read(layer.digest, limit_bytes=_STATEMENT_BYTES))
            out.append(row)
    return out
