"""The build cache outside of a store: finished steps and the layers that they made, as one JSON document.

Owns the document's form and reading it strictly. Never reads or writes layers, and knows nothing of where documents are kept.

    {"version": 1,
     "epoch": 1,                                        of the keys: another epoch's steps mean nothing here
     "layers": [{"diffID", "size", "empty", "created", "level", "blob": {"mediaType", "digest", "size"}}],
     "stacks": [[parent, diff ID]],                     a stack is the one at position ``parent`` (-1: none) and a layer on it
     "steps": [{"key", "aliases", "stack", "own", "created", "recipe", "stage", "instruction", "title"}]}

A parent always stands before its children, so there can be no cycle. A diff ID of a stack that ``layers`` lacks belongs to a base image,
which whoever builds on it can fetch from where the base comes. It is the configuration of a manifest whose layers are the blobs
(docs/cache.md), or stands in an image's configuration: then ``blob`` is left out and the image's manifest has it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pybuild.errors import PybuildError
from pybuild.layers.descriptor import Descriptor, InvalidDescriptor
from pybuild.layers.digest import Digest, InvalidDigest
from pybuild.layers.entries import CacheRecord
from pybuild.values import dataclass

from .keys import EPOCH

CONFIG_TYPE: Final = "application/vnd.pybuild.cache.config.v1+json"
MOUNTS_TYPE: Final = "application/vnd.pybuild.cache-mounts.config.v1+json"
STEP_TYPE: Final = "application/vnd.pybuild.cache.step.v1"
STEP_ANNOTATION: Final = "dev.pybuild.cache.step"
INLINE_KEY: Final = "pybuild.cache.v1"
_VERSION: Final = 1


class InvalidCache(PybuildError):
    """A cache's document is not what this module writes."""


@dataclass(frozen=True, slots=True)
class CachedLayer:
    """A layer that lies elsewhere. ``size`` of its tar in bytes; ``created``: when it was made, in seconds since the epoch; ``blob``: where
    its bytes are, None if that stands elsewhere; ``level``: of its compression, None if unknown."""

    diff_id: Digest
    size: int
    empty: bool
    created: float
    blob: Descriptor | None
    level: int | None = None


@dataclass(frozen=True, slots=True)
class CachedStep:
    """A finished step: its record, further keys that lead to it, and what it was, for people."""

    record: CacheRecord
    aliases: tuple[str, ...] = ()
    stage: str = ""
    instruction: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class CacheBundle:
    """The steps of a cache, and the layers that their stacks have besides those of base images."""

    steps: tuple[CachedStep, ...]
    layers: tuple[CachedLayer, ...]


# --- writing ----------------------------------------------------------------------------------------------------------


def bundle_json(
    bundle: CacheBundle, *, blobs: bool = True, recipes: bool = True
) -> dict[str, Any]:  # Any: the JSON edge
    """The document. ``blobs``: with the layers' descriptors; ``recipes``: with the steps' recipes."""
    positions: dict[tuple[int, Digest], int] = {}
    stacks: list[list[int | str]] = []

    def position_of(stack: tuple[Digest, ...]) -> int:
        at = -1
        for diff_id in stack:
            below = at
            at = positions.setdefault((below, diff_id), len(stacks))
            if at == len(stacks):
                stacks.append([below, str(diff_id)])
        return at

    steps = []
    for step in bundle.steps:
        record = step.record
        value: dict[str, Any] = {  # Any: the JSON edge
            "key": record.key,
            "stack": position_of(record.layers),
            "own": record.own,
            "created": record.created,
        }
        if step.aliases:
            value["aliases"] = sorted(step.aliases)
        if recipes:
            value["recipe"] = record.recipe
        for name, text in (("stage", step.stage), ("instruction", step.instruction), ("title", step.title)):
            if text:
                value[name] = text
        steps.append(value)
    return {
        "version": _VERSION,
        "epoch": EPOCH,
        "layers": [_layer_json(layer, blob=blobs) for layer in bundle.layers],
        "stacks": stacks,
        "steps": steps,
    }


def bundle_bytes(bundle: CacheBundle, *, recipes: bool = True) -> bytes:
    """The document's bytes: equal bundles give equal bytes."""
    text = json.dumps(bundle_json(bundle, recipes=recipes), separators=(",", ":"), ensure_ascii=True)
    return text.encode("ascii")


def _layer_json(layer: CachedLayer, *, blob: bool) -> dict[str, Any]:  # Any: the JSON edge
    out: dict[str, Any] = {"diffID": str(layer.diff_id), "size": layer.size, "created": layer.created}
    if layer.empty:
        out["empty"] = True
    if layer.level is not None:
        out["level"] = layer.level
    if blob and layer.blob is not None:
        out["blob"] = {
            "mediaType": layer.blob.media_type,
            "digest": str(layer.blob.digest),
            "size": layer.blob.size,
        }
    return out


# --- reading ----------------------------------------------------------------------------------------------------------


def read_bundle(data: bytes | Mapping[str, Any], *, blobs: Mapping[Digest, Descriptor] | None = None) -> CacheBundle:
    """Read a document that somebody wrote. ``blobs``: where the layers' bytes are, by diff ID, if the document doesn't say.

    A document of another epoch reads as an empty bundle. Raises InvalidCache.
    """
    try:
        value = json.loads(data) if isinstance(data, bytes) else data
        if not isinstance(value, dict):
            raise InvalidCache("the cache's document is not a JSON object")
        if value.get("version") != _VERSION:
            raise InvalidCache(f"the cache's document has version {value.get('version')!r}, not {_VERSION}")
        if value.get("epoch") != EPOCH:
            return CacheBundle((), ())
        layers = tuple(_layer(item, blobs or {}) for item in _list(value, "layers"))
        stacks = _Stacks(_list(value, "stacks"))
        steps = tuple(_step(item, stacks) for item in _list(value, "steps"))
    except (ValueError, RecursionError, TypeError, KeyError, OverflowError) as error:
        raise InvalidCache(f"the cache's document can't be read ({type(error).__name__}: {error})") from error
    except (InvalidDigest, InvalidDescriptor) as error:
        raise InvalidCache(f"the cache's document can't be read ({error.message})") from error
    return CacheBundle(steps, layers)


def _list(value: Mapping[str, Any], name: str) -> Sequence[Any]:  # Any: the JSON edge
    found = value.get(name, [])
    if not isinstance(found, list):
        raise TypeError(f"{name} is no list")
    return found


def _layer(value: Mapping[str, Any], blobs: Mapping[Digest, Descriptor]) -> CachedLayer:  # Any: the JSON edge
    diff_id = Digest.parse(_text(value["diffID"]))
    blob = value.get("blob")
    level = value.get("level")
    return CachedLayer(
        diff_id=diff_id,
        size=_number(value["size"]),
        empty=bool(value.get("empty", False)),
        created=_time(value["created"]),
        blob=blobs.get(diff_id) if blob is None else Descriptor.from_json(blob),
        level=None if level is None else _number(level),
    )


class _Stacks:
    """The rows of ``stacks``. Stacks are put together when a step has them: most positions are only stood on."""

    def __init__(self, rows: Sequence[Any]) -> None:  # Any: the JSON edge
        digests: dict[str, Digest] = {}
        self._rows: list[tuple[int, Digest]] = []
        for position, row in enumerate(rows):
            parent, text = row
            parent = _number(parent, least=-1)
            if parent >= position:
                raise InvalidCache("the cache's document has a stack that stands on a later one")
            digest = digests.get(_text(text))
            if digest is None:
                digest = digests[text] = Digest.parse(text)
            self._rows.append((parent, digest))

    def at(self, position: int) -> tuple[Digest, ...]:
        if position >= len(self._rows):
            raise InvalidCache("the cache's document names a stack that it doesn't have")
        out: list[Digest] = []
        while position >= 0:
            position, digest = self._rows[position]
            out.append(digest)
        return tuple(reversed(out))


def _step(value: Mapping[str, Any], stacks: _Stacks) -> CachedStep:  # Any: the JSON edge
    stack = stacks.at(_number(value["stack"], least=-1))
    own = _number(value["own"])
    if own > len(stack):
        raise InvalidCache("the cache's document has a step with more layers than its stack")
    record = CacheRecord(
        key=_text(value["key"]),
        layers=stack,
        own=own,
        recipe=_text(value.get("recipe", "")),
        created=_time(value["created"]),
    )
    return CachedStep(
        record,
        aliases=tuple(_text(alias) for alias in _list(value, "aliases")),
        stage=_text(value.get("stage", "")),
        instruction=_text(value.get("instruction", "")),
        title=_text(value.get("title", "")),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is of another type")
    return value


def _time(value: object) -> float:
    """Seconds since the epoch, up to the year 9999."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 253402300800:
        raise TypeError("a time is out of range or of another type")
    return float(value)


def _number(value: object, *, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 1 << 62:
        raise TypeError("a number is out of range or of another type")
    return value
