"""``--annotation`` values: which level and platform each belongs to. Reads text only."""

from __future__ import annotations

from collections.abc import Sequence

from pybuild.errors import UsageError
from pybuild.layers.descriptor import Platform
from pybuild.values import pattern

from .assemble import Annotations
from .platforms import parse_platform

_LEVELS = ("index", "manifest", "index-descriptor", "manifest-descriptor")
_TYPE = pattern(r"(?P<level>[a-z-]+)(?:\[(?P<platform>[A-Za-z0-9_/.-]+)\])?\Z")


def annotations_from(given: Sequence[str], *, default: Platform) -> Annotations:
    """Read ``[LEVEL[[PLATFORM]][,LEVEL…]:]KEY=VALUE`` values; without a level it is the manifest's.

    ``default`` completes a platform's missing parts. Raises UsageError.
    """
    levels: dict[str, dict[str, dict[str, str]]] = {level: {} for level in _LEVELS}
    for text in given:
        targets, key, value = _split(text, default)
        for level, platform in targets:
            levels[level].setdefault(platform, {})[key] = value
    return Annotations(
        manifest=levels["manifest"],
        manifest_descriptor=levels["manifest-descriptor"],
        index=levels["index"].get("", {}),
        index_descriptor=levels["index-descriptor"].get("", {}),
    )


def _split(text: str, default: Platform) -> tuple[list[tuple[str, str]], str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise UsageError(f"invalid --annotation value {text!r}", hint="write --annotation [LEVEL:]KEY=VALUE")
    prefix, colon, rest = name.partition(":")
    if not colon:
        return [("manifest", "")], name, value
    targets: list[tuple[str, str]] = []
    for part in prefix.split(","):
        match = _TYPE.match(part.strip())
        if match is None or match["level"] not in _LEVELS:
            raise UsageError(
                f"unknown annotation level {part!r} in {text!r}",
                hint="the levels are manifest, index, manifest-descriptor and index-descriptor",
            )
        platform = match["platform"]
        if platform and match["level"].startswith("index"):
            raise UsageError(f"an index annotation has no platform: {text!r}")
        targets.append((match["level"], str(parse_platform(platform, default=default)) if platform else ""))
    if not rest:
        raise UsageError(f"invalid --annotation value {text!r}", hint="write --annotation [LEVEL:]KEY=VALUE")
    return targets, rest, value
