"""Why a step was not taken from the cache, in words.

Owns comparing what went into a step with what went into it last time, and finding the first cause: its own change, or that of the step
above it that began it all. Decides nothing: it only reads recipes. Where recipes of earlier builds come from is told by whoever
constructs an ``Explainer``. Which step is which is ``why_match.py``'s, the words for differences ``why_compare.py``'s.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pybuild.values import dataclass

from .content import ContentDigest
from .graph import GitSource, HttpSource, ImageSource, Op, Vertex
from .keys import Json, Recipe, canonical_json

_FIRST_BUILD: Final = "first build here"


@dataclass(frozen=True, slots=True)
class PreviousStep:
    """A step of the build to compare with. ``recipe`` may be empty: then it is looked up by ``key``; ``error``: how it failed."""

    stage: str
    instruction: str
    title: str
    key: str
    recipe: str = ""
    platform: str = ""
    error: str = ""


def recorded_recipe(
    recipe: Recipe,
    contents: Mapping[int, ContentDigest],
    *,
    image: ImageSource | None = None,
    sources: Mapping[int, Op] | None = None,
    arguments: Sequence[str] = (),
) -> str:
    """The recipe as it is kept, with what doesn't enter the key: the selected paths; of base images, downloads and repositories
    (``image`` itself, or ``sources`` by input) their names; which variables are ``arguments``."""
    notes: dict[str, Json] = {}
    if contents:
        notes["paths"] = {path: what for content in contents.values() for path, what in content.paths}
        notes["selected"] = sum(content.total for content in contents.values())
    if image is not None:
        notes.update(_described(image))
    inputs = {str(position): described for position, op in (sources or {}).items() if (described := _described(op))}
    if inputs:
        notes["inputs"] = inputs
    if arguments:
        notes["arguments"] = list(arguments)
    if not notes:
        return recipe.text
    return f'{recipe.text[:-1]},"seen":{canonical_json(notes)}}}'


def _described(op: Op) -> dict[str, Json]:
    match op:
        case ImageSource():
            return {"reference": op.reference, "manifest": None if op.manifest is None else str(op.manifest)}
        case HttpSource():
            return {"url": op.url, "checksum": None if op.checksum is None else str(op.checksum)}
        case GitSource():
            return {"git": op.remote, "ref": op.ref, "commit": op.commit}
        case _:
            return {}


class Explainer:
    """Explains the misses of one build. ``previous``: the steps of the build to compare with, asked for at the first miss; ``recipe_of``: the
    recorded recipe of a key; ``evicted``: when gc took a key's record (seconds since the epoch); ``find``: a step by stage and
    instruction from elsewhere, when the previous build has none."""

    def __init__(
        self,
        previous: Callable[[], Sequence[PreviousStep]] | None = None,
        *,
        recipe_of: Callable[[str], str | None] | None = None,
        evicted: Callable[[str], float | None] | None = None,
        find: Callable[[str, str], PreviousStep | None] | None = None,
    ) -> None:
        self._load = previous
        self._steps: Sequence[PreviousStep] | None = None
        self._recipe_of = recipe_of or (lambda key: None)
        self._evicted = evicted or (lambda key: None)
        self._find = find or (lambda stage, instruction: None)
        self._reasons: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._vertices: Sequence[Vertex] = ()
        self._merged: Mapping[str, Sequence[str]] = {}
        self._matches: Mapping[Vertex, PreviousStep] | None = None

    def know(
        self, vertices: Sequence[Vertex], keys: Sequence[str], *, merged: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """Tell of all steps of this build with their keys, in order: what moved can't be told from what is new otherwise. ``merged``: the
        inputs' keys of steps that only stack others."""
        self._merged = merged or {}
        self._vertices = vertices
        self._names = {key: _name(vertex) for vertex, key in zip(vertices, keys, strict=True)}
        self._matches = None

    def reason(self, vertex: Vertex, recipe: str, *, key: str, forced: bool) -> str:
        """The first cause, as a phrase; empty if nothing is known of earlier builds. ``recipe``: as it would be recorded."""
        found = self.causes(vertex, recipe, key=key, forced=forced)
        reason = found[0] if found else ""
        # Whatever comes after names the step that began it, not the one before it.
        self._reasons[key] = reason if reason.startswith("after ") or not reason else f"after {_name(vertex)}: {reason}"
        return reason

    def causes(self, vertex: Vertex, recipe: str, *, key: str, forced: bool) -> list[str]:
        """Every difference, the first cause first."""
        if forced:
            return ["the cache is off for this step"]
        if self._load is None:
            return []
        if self._steps is None:
            self._steps = self._load()
        before = self._before(vertex) or self._find(vertex.note.stage, vertex.note.instruction)
        if before is None:
            return ["a new step" if self._steps else _FIRST_BUILD]
        if before.key == key:
            return [self._vanished(before)]
        old = before.recipe or self._recipe_of(before.key)
        if not old:
            when = self._evicted(before.key)
            return [_evicted_text(when)] if when is not None else ["what it was made from last time is no longer known"]
        try:
            return self._compare(json.loads(old), json.loads(recipe)) or ["its inputs changed"]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            # Recipes of other machines come over a cache: whatever is in them, no build fails because of it.
            return ["what it was made from last time can't be read"]

    def _before(self, vertex: Vertex) -> PreviousStep | None:
        from .why_match import matches

        assert self._steps is not None
        if self._matches is None or vertex not in self._vertices:
            self._matches = matches(self._steps, self._vertices if vertex in self._vertices else (vertex,))
        return self._matches.get(vertex)

    def _vanished(self, before: PreviousStep) -> str:
        if before.error:
            return "it failed last time"
        when = self._evicted(before.key)
        return "its layers are no longer in the store" if when is None else _evicted_text(when)

    # --- comparing -----------------------------------------------------------------------------------------------------

    def _compare(self, old: dict[str, Any], new: dict[str, Any]) -> list[str]:  # Any: the JSON edge
        from .why_compare import own_differences, path_differences

        was, now = old.get("op", {}), new.get("op", {})
        if was.get("type") != now.get("type"):
            return ["another instruction stood here"]
        own = own_differences(old, new)
        paths = path_differences(old.get("seen", {}), new.get("seen", {}))
        own += paths
        above: list[str] = []
        if was.get("source") != now.get("source") and not paths:
            position = 0 if now.get("link") else 1
            above.append(self._input(old, new, position, "source", otherwise=_files_changed(old, new)))
        if not paths:
            above += self._mounted(old, new)
        if was.get("root") != now.get("root"):
            above.append(self._input(old, new, 0, "root", otherwise=""))
        return list(dict.fromkeys([*own, *filter(None, above)]))

    def _mounted(self, old: dict[str, Any], new: dict[str, Any]) -> list[str]:  # Any: the JSON edge
        """What bind mounts show changed."""
        from .why_compare import mounts_by_target, source_difference

        before, after = (mounts_by_target(recipe["op"].get("mounts") or []) for recipe in (old, new))
        out = []
        for target in before.keys() & after.keys():
            first, second = before[target].get("from"), after[target].get("from")
            if first == second:
                continue
            inputs = [recipe.get("seen", {}).get("inputs", {}) for recipe in (old, new)]
            known = next(
                (
                    text
                    for at in sorted(inputs[1])
                    if at != "0" and (text := source_difference(inputs[0].get(at, {}), inputs[1][at]))
                ),
                "",
            )
            out.append(known or self._above(str(first), str(second)) or f"what is mounted at {target} changed")
        return sorted(out)

    def _input(
        self, old: dict[str, Any], new: dict[str, Any], position: int, name: str, *, otherwise: str
    ) -> str:  # Any: the JSON edge
        from .why_compare import source_difference

        first, second = (recipe.get("seen", {}).get("inputs", {}).get(str(position), {}) for recipe in (old, new))
        known = source_difference(first, second)
        return known or self._above(str(old["op"].get(name)), str(new["op"].get(name))) or otherwise or _ABOVE

    def _above(self, old: str, new: str) -> str:
        """Why the step of key ``new`` is not the one of key ``old`` that stood there last time."""
        for key in (new, *reversed(self._merged.get(new, ()))):
            cause = self._reasons.get(key)
            if cause:
                return cause
        was = next((step for step in self._steps or () if step.key == old), None)
        if was is None:
            return ""
        name = was.instruction or was.title
        now = self._names.get(new)
        if old not in self._names and name not in self._names.values() and self._names:
            return f"{name} was removed before it"
        if now is not None and now != name:
            return f"the step before it was {name}, is {now}"
        return ""


_ABOVE: Final = "a step before it changed"


def _files_changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:  # Any: the JSON edge
    first, second = (recipe.get("seen", {}).get("selected") for recipe in (old, new))
    if first is None or second is None:
        return "what it copies from changed"
    if first != second:
        return f"it takes {second} files, took {first}"
    return f"some of its {second} files changed"


def _name(vertex: Vertex) -> str:
    return vertex.note.instruction or vertex.note.title


def _evicted_text(when: float) -> str:
    return "evicted by gc on " + time.strftime("%Y-%m-%d %H:%M", time.gmtime(when))
