"""Caches that a client of BuildKit's API names: those in its own directories travel as layouts, the others are the engine's to reach.

Owns which kinds there are. Nothing that a client sends names a directory of this machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pybuild.errors import PybuildError
from pybuild.layers.digest import Digest
from pybuild.values import dataclass, field

from .attributes import cache_text
from .client_layouts import fetch_layout, send_layout
from .session_content import Content

if TYPE_CHECKING:
    from .sessions import Session

_KINDS = ("registry", "inline", "s3", "local")

Cache = tuple[str, Mapping[str, str]]
"""A kind and its attributes."""


@dataclass(slots=True)
class ClientCaches:
    """The caches of one build. ``places``: layouts that go to the client when the build is over, with the names of its stores."""

    session: Session
    scratch: Path
    places: list[tuple[Path, str]] = field(default_factory=list)

    async def sources(self, caches: Sequence[Cache]) -> tuple[str, ...]:
        """What to read, as the command line has it. Raises RpcError, PybuildError, OSError."""
        require_kinds(caches, word="importer")
        found = []
        for number, (kind, attributes) in enumerate(caches):
            if kind != "local":
                found.append(cache_text(kind, attributes))
                continue
            root = self.scratch / f"cache-from-{number}"
            digest = Digest.parse(attributes.get("digest", ""))
            await fetch_layout(Content(self.session, f"local:{attributes.get('src', '')}"), digest, root=root)
            found.append(cache_text(kind, {"src": str(root), "digest": str(digest)}))
        return tuple(found)

    def targets(self, caches: Sequence[Cache]) -> tuple[str, ...]:
        """What to write, as the command line has it. Raises PybuildError."""
        require_kinds(caches, word="exporter")
        found = []
        for number, (kind, attributes) in enumerate(caches):
            given = dict(attributes)
            if kind == "local":
                root = self.scratch / f"cache-to-{number}"
                self.places.append((root, f"local:{given.get('dest', '')}"))
                # The index is the client's: it names the cache there.
                given = {name: value for name, value in given.items() if name not in ("dest", "tag", "reset")}
                given["dest"] = str(root)
            found.append(cache_text(kind, given))
        return tuple(found)

    async def send(self) -> None:
        """Give the client what was written. Raises RpcError, OSError."""
        for root, store in self.places:
            if root.is_dir():
                await send_layout(root, Content(self.session, store))


def require_kinds(caches: Sequence[Cache], *, word: str) -> None:
    """Raises PybuildError for a kind that there isn't."""
    for kind, _ in caches:
        if kind not in _KINDS:
            raise PybuildError(f"unknown cache {word}: {json.dumps(kind)}")
