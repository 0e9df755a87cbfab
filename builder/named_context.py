"""What ``--build-context NAME=VALUE`` stands for, and which one a Dockerfile name means.

Owns the values and the look-up. ``contexts.py`` makes them from text; nothing here reads a file or asks a server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

from pybuild.layers.descriptor import Platform
from pybuild.layers.digest import Digest
from pybuild.layers.image import History, ImageConfig
from pybuild.layers.references import InvalidReference, Reference
from pybuild.values import dataclass

from .git_reference import GitReference
from .graph import Vertex
from .platforms import format_platform, normalize_platform


@dataclass(frozen=True, slots=True)
class LocalContextRef:
    """A local tree, known to the engine as ``name`` (a ``ContextSource`` of that name is made of it)."""

    name: str


MAIN_CONTEXT: Final = LocalContextRef("context")
"""The build context, when it is a local tree."""


@dataclass(frozen=True, slots=True)
class ImageContextRef:
    """``docker-image://reference``, or with ``layout`` an image in the OCI layout directory of that host path: then
    ``reference`` is ``tag``, ``@digest`` or both, as after the directory's name."""

    reference: str
    layout: str | None = None

    @property
    def location(self) -> str:
        """What ``ImageSource.resolve`` is asked for: the canonical reference, or ``oci-layout://DIRECTORY[:TAG][@DIGEST]``."""
        if self.layout is None:
            return Reference.parse(self.reference).canonical
        separator = "" if not self.reference or self.reference.startswith("@") else ":"
        return f"oci-layout://{self.layout}{separator}{self.reference}"


@dataclass(frozen=True, slots=True)
class ScratchContextRef:
    """``docker-image://scratch``: nothing at all."""


@dataclass(frozen=True, slots=True)
class GitContextRef:
    """A git tree."""

    reference: GitReference


@dataclass(frozen=True, slots=True)
class HttpContextRef:
    """One file from HTTP(S), which the context holds under the name ``context``."""

    url: str
    checksum: Digest | None = None


@dataclass(frozen=True, slots=True)
class TargetContextRef:
    """The result of another build: its last vertex, its configuration and history (``LoweredImage`` has all of them)."""

    name: str
    vertex: Vertex
    config: ImageConfig
    history: tuple[History, ...] = ()


NamedContext: TypeAlias = (
    LocalContextRef | ImageContextRef | ScratchContextRef | GitContextRef | HttpContextRef | TargetContextRef
)


def context_key(name: str) -> str:
    """The key under which a context of this name is kept: an image's shortest name without ``:latest``, ``::platform`` kept. Raises
    InvalidReference."""
    plain, separator, platform = name.partition("::")
    return Reference.parse(plain.lower()).familiar.removesuffix(":latest") + separator + platform


def find_named_context(
    contexts: Mapping[str, NamedContext], name: str, *, platform: Platform
) -> tuple[str, NamedContext] | None:
    """The context that replaces the stage or image ``name``, with the key it was found by: ``name::platform`` first, then
    ``name``. ``scratch`` and ``context`` can't be replaced."""
    if not contexts or name.lower() in {"scratch", "context"}:
        return None
    try:
        key = context_key(name)
    except InvalidReference:
        return None
    for candidate in (f"{key}::{format_platform(normalize_platform(platform))}", key):
        if candidate in contexts:
            return candidate, contexts[candidate]
    return None
