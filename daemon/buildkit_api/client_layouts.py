"""OCI layouts that travel: a client's content store as a layout of this machine, and back. Owns no names: a layout's index is its owner's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pybuild.layers.digest import Digest

if TYPE_CHECKING:
    from .session_content import Content

_PIECE: Final = 1 << 20
_LARGEST_DOCUMENT: Final = 4 << 20
_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"


async def fetch_layout(content: Content, digest: Digest, *, root: Path) -> None:
    """Make ``root`` a layout with all that belongs to ``digest``. Raises RpcError, OSError."""
    root.mkdir(exist_ok=True)
    (root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}', encoding="ascii")
    top = await _blob(content, digest, root)
    waiting, done = [*_below(top)], {digest}
    while waiting:
        each = waiting.pop()
        if each not in done:
            done.add(each)
            waiting += _below(await _blob(content, each, root))
    media_type = top.get("mediaType")
    descriptor = {
        "mediaType": media_type if isinstance(media_type, str) else _MANIFEST,
        "digest": str(digest),
        "size": _place(root, digest).stat().st_size,
    }
    index = json.dumps({"schemaVersion": 2, "manifests": [descriptor]})
    (root / "index.json").write_text(index, encoding="ascii")


async def send_layout(root: Path, content: Content) -> None:
    """Put the blobs of a layout into the client's store. Raises RpcError, OSError."""
    for path in sorted(root.glob("blobs/*/*")):
        digest = Digest.parse(f"{path.parent.name}:{path.name}")
        await content.write(digest, path.stat().st_size, data=pieces(path))


async def pieces(path: Path) -> AsyncIterator[bytes]:
    """A file's bytes."""
    with path.open("rb") as source:
        while piece := await asyncio.to_thread(source.read, _PIECE):
            yield piece


async def _blob(content: Content, digest: Digest, root: Path) -> dict[str, Any]:  # Any: the JSON edge
    """Fetch a blob; what it says if it is a document."""
    path = _place(root, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        async for data in content.read(digest):
            out.write(data)
    if path.stat().st_size > _LARGEST_DOCUMENT:
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}  # a layer
    return value if isinstance(value, dict) else {}


def _below(document: dict[str, Any]) -> list[Digest]:  # Any: the JSON edge
    """The digests that a manifest or an index names."""
    values = [document.get(key) for key in ("manifests", "layers", "config")]
    items = [item for value in values for item in (value if isinstance(value, list) else [value])]
    # Configurations of caches have lists of these names, too, with other things in them.
    named = [
        item for item in items if isinstance(item, dict) and isinstance(item.get("digest"), str) and "size" in item
    ]
    return [Digest.parse(item["digest"]) for item in named]


def _place(root: Path, digest: Digest) -> Path:
    return root / "blobs" / digest.algorithm / digest.hex
