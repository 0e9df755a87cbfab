"""Why a step was not taken from the cache, in words.

Owns comparing what went into a step with what went into it last time, and finding the first cause. Decides nothing: it only reads
recipes. Where recipes of earlier builds come from is told by whoever constructs an ``Explainer``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pybuild.values import dataclass, pattern

from .content import ContentDigest
from .graph import ImageSource, Vertex
from .keys import Json, Recipe, canonical_json

_POSITION: Final = pattern(r"\[(?:[^\]]* )?(\d+)/\d+\]")
_SHORT: Final = 60
_FIRST_BUILD: Final = "first build here"
_NAMES: Final = {"cwd": "WORKDIR", "user": "USER", "args": "the command", "mode": "--chmod", "owner": "--chown"}


@dataclass(frozen=True, slots=True)
class PreviousStep:
    """A step of the build to compare with. ``recipe`` may be empty: then it is looked up by ``key``."""

    stage: str
    instruction: str
    title: str
    key: str
    recipe: str = ""


def recorded_recipe(recipe: Recipe, contents: Mapping[int, ContentDigest], *, image: ImageSource | None = None) -> str:
    """The recipe as it is kept: with the selected paths and, for a base image, its name, which don't enter the key."""
    notes: dict[str, Json] = {}
    paths = {path: what for content in contents.values() for path, what in content.paths}
    if contents:
        notes["paths"] = paths
        notes["selected"] = sum(content.total for content in contents.values())
    if image is not None:
        notes["reference"] = image.reference
        notes["manifest"] = None if image.manifest is None else str(image.manifest)
    if not notes:
        return recipe.text
    return f'{recipe.text[:-1]},"seen":{canonical_json(notes)}}}'


class Explainer:
    """Explains the misses of one build. ``previous``: the steps of the build to compare with, asked for at the first miss; ``recipe_of``: the
    recorded recipe of a key; ``evicted``: when gc took a key's record (seconds since the epoch)."""

    def __init__(
        self,
        previous: Callable[[], Sequence[PreviousStep]] | None = None,
        *,
        recipe_of: Callable[[str], str | None] | None = None,
        evicted: Callable[[str], float | None] | None = None,
    ) -> None:
        self._load = previous
        self._steps: Sequence[PreviousStep] | None = None
        self._recipe_of = recipe_of or (lambda key: None)
        self._evicted = evicted or (lambda key: None)
        self._reasons: dict[str, str] = {}
        self._noted: dict[str, str] = {}

    def reason(self, vertex: Vertex, recipe: str, *, key: str, forced: bool) -> str:
        """The first cause, as a phrase; empty if nothing is known of earlier builds. ``recipe``: as it would be recorded."""
        found = self.causes(vertex, recipe, key=key, forced=forced)
        reason = found[0] if found else ""
        self._reasons[key] = f"{vertex.note.instruction or vertex.note.title}: {reason}" if reason else ""
        return reason

    def causes(self, vertex: Vertex, recipe: str, *, key: str, forced: bool) -> list[str]:
        """Every difference, the first cause first."""
        if forced:
            return ["the cache is off for this step"]
        if self._load is None:
            return []
        if self._steps is None:
            self._steps = self._load()
        if not self._steps:
            return [_FIRST_BUILD]
        before = self._find(vertex)
        if before is None:
            return ["a new step"]
        if before.key == key:
            return [self._vanished(key)]
        old = before.recipe or self._recipe_of(before.key)
        if not old:
            when = self._evicted(before.key)
            return [_evicted_text(when)] if when is not None else ["what it was made from last time is no longer known"]
        return self._compare(json.loads(old), json.loads(recipe)) or ["its inputs changed"]

    def _find(self, vertex: Vertex) -> PreviousStep | None:
        note = vertex.note
        assert self._steps is not None
        same_stage = [step for step in self._steps if step.stage == note.stage]
        same_text = [step for step in same_stage if step.instruction == note.instruction]
        position = _position(note.title)
        same_place = [step for step in same_stage if position and _position(step.title) == position]
        both = [step for step in same_text if step in same_place]
        return next(iter(both or same_text or same_place), None)

    def _vanished(self, key: str) -> str:
        when = self._evicted(key)
        return "its layers are no longer in the store" if when is None else _evicted_text(when)

    # --- comparing -----------------------------------------------------------------------------------------------------

    def _compare(self, old: dict[str, Any], new: dict[str, Any]) -> list[str]:  # Any: the JSON edge
        was, now = old.get("op", {}), new.get("op", {})
        if was.get("type") != now.get("type"):
            return ["another instruction stood here"]
        own: list[str] = []
        for name in sorted(set(was) | set(now)):
            if name in ("root", "source", "mounts", "env", "nonce") or was.get(name) == now.get(name):
                continue
            own.append(_field(name, was.get(name), now.get(name)))
        own += _mapping("", was.get("env") or {}, now.get("env") or {})
        own += self._sources(old, new)
        if was.get("root") != now.get("root"):
            own.append(self._above(str(was.get("root")), str(now.get("root"))))
        return own

    def _sources(self, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
        was, now = old["op"], new["op"]
        if was.get("source") == now.get("source") and was.get("mounts") == now.get("mounts"):
            return []
        paths = _paths(old.get("seen", {}), new.get("seen", {}))
        if paths:
            return paths
        if was.get("source") != now.get("source"):
            return [self._above(str(was.get("source")), str(now.get("source")), what="what it copies from changed")]
        sources = [[mount.get("from") for mount in op.get("mounts") or []] for op in (was, now)]
        return ["what it mounts changed" if sources[0] != sources[1] else "its mounts changed"]

    def _above(self, old: str, new: str, *, what: str = "a step before it changed") -> str:
        cause = self._reasons.get(new)
        if cause:
            return f"after {cause}"
        before, after = self._recipe(old), self._recipe(new)
        seen_before, seen_after = before.get("seen", {}), after.get("seen", {})
        if "reference" in seen_before and "reference" in seen_after:
            first, second = str(seen_before["reference"]), str(seen_after["reference"])
            if first != second:
                return f"the base was {first}, is {second}"
            return f"base {first} moved from {_digest(seen_before)} to {_digest(seen_after)}"
        return what

    def _recipe(self, key: str) -> dict[str, Any]:
        text = next((step.recipe for step in self._steps or () if step.key == key and step.recipe), None)
        text = text or self._noted.get(key) or self._recipe_of(key)
        value = json.loads(text) if text else {}
        return value if isinstance(value, dict) else {}

    def note(self, key: str, recipe: str) -> None:
        """Tell of a step of this build that others may have been made from: a base image."""
        self._noted[key] = recipe


def _position(title: str) -> str:
    match = _POSITION.search(title)
    return match[1] if match else ""


def _paths(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    before, after = old.get("paths") or {}, new.get("paths") or {}
    if not before or not after:
        return []
    out = [
        _path(path, before[path], after[path])
        for path in sorted(before)
        if path in after and before[path] != after[path]
    ]
    out += [f"{path} was added" for path in sorted(after) if path not in before]
    out += [f"{path} was removed" for path in sorted(before) if path not in after]
    return out


def _path(path: str, old: str, new: str) -> str:
    before, after = old.split(" "), new.split(" ")
    if before[0] != after[0]:
        return f"{path} was a {before[0]}, is a {after[0]}"
    if before[0] == "file" and before[2:3] != after[2:3]:
        return f"{path} changed (content)"
    if before[0] == "symlink":
        return f"{path} changed (link target)"
    if before[1:2] != after[1:2]:
        return f"{path} changed (mode {before[1]}, is {after[1]})"
    return f"{path} changed (owner or attributes)"


def _mapping(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    out = []
    for name in sorted(set(old) | set(new)):
        if name not in old:
            out.append(f"{what}{name} is {_short(new[name])}, was not set")
        elif name not in new:
            out.append(f"{what}{name} is no longer set")
        elif old[name] != new[name]:
            out.append(f"{what}{name} was {_short(old[name])}, is {_short(new[name])}")
    return out


def _field(name: str, old: object, new: object) -> str:
    name = _NAMES.get(name, name)
    if isinstance(old, (str, int)) and isinstance(new, (str, int)) and not isinstance(old, bool):
        return f"{name} was {_short(old)}, is {_short(new)}"
    return f"{name} changed"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _SHORT else text[: _SHORT - 1] + "…"


def _digest(seen: Mapping[str, Any]) -> str:
    text = str(seen.get("manifest") or "an unknown digest")
    return text[:19] + "…" if len(text) > 20 else text


def _evicted_text(when: float) -> str:
    return "evicted by gc on " + time.strftime("%Y-%m-%d %H:%M", time.gmtime(when))
