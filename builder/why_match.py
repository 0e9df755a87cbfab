"""Which step of the last build stands for which one of this build.

Owns the matching: per stage, the steps of both builds are aligned like the lines of two texts, so that an inserted, removed or edited
instruction doesn't shift the others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Final

from .graph import Vertex

if TYPE_CHECKING:
    from .why import PreviousStep

_POSITION: Final = r"\[(?:[^\]]* )?(\d+)/\d+\]"


def matches(previous: Sequence[PreviousStep], vertices: Sequence[Vertex]) -> dict[Vertex, PreviousStep]:
    """The earlier step for each vertex that has one."""
    out: dict[Vertex, PreviousStep] = {}
    stages: dict[tuple[str, str], list[Vertex]] = {}
    for vertex in vertices:
        note = vertex.note
        if note.instruction:
            stages.setdefault((note.stage, "" if note.platform is None else str(note.platform)), []).append(vertex)
    platforms = {step.platform for step in previous}
    for (stage, platform), members in stages.items():
        wanted = platform if platform in platforms else ""
        old = [step for step in previous if step.stage == stage and (step.platform == wanted or not step.platform)]
        if not old and not wanted:
            old = [step for step in previous if step.stage == stage]
        out.update(_aligned(_ordered(old), sorted(members, key=lambda vertex: _position(vertex.note.title))))
    return out


def _aligned(old: Sequence[PreviousStep], new: Sequence[Vertex]) -> dict[Vertex, PreviousStep]:
    out: dict[Vertex, PreviousStep] = {}
    before, after = [step.instruction for step in old], [vertex.note.instruction for vertex in new]
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag == "equal":
            out.update(zip(new[j1:j2], old[i1:i2]))
        elif tag == "replace":
            out.update(_edited(old[i1:i2], new[j1:j2]))
    # An instruction that moved is still itself.
    taken = set(map(id, out.values()))
    for vertex in new:
        if vertex not in out:
            same = next(
                (step for step in old if id(step) not in taken and step.instruction == vertex.note.instruction), None
            )
            if same is not None:
                out[vertex] = same
                taken.add(id(same))
    return out


def _edited(old: Sequence[PreviousStep], new: Sequence[Vertex]) -> dict[Vertex, PreviousStep]:
    """Pairs in a block of differing instructions: the most alike of the same keyword first, in order."""
    if len(old) == len(new):
        return {
            vertex: step
            for vertex, step in zip(new, old)
            if _keyword(step.instruction) == _keyword(vertex.note.instruction)
        }
    pairs = sorted(
        (
            (-SequenceMatcher(None, step.instruction, vertex.note.instruction).ratio(), i, j)
            for i, step in enumerate(old)
            for j, vertex in enumerate(new)
            if _keyword(step.instruction) == _keyword(vertex.note.instruction)
        ),
    )
    out: dict[Vertex, PreviousStep] = {}
    used_old: set[int] = set()
    used_new: set[int] = set()
    for ratio, i, j in pairs:
        if i in used_old or j in used_new or -ratio < 0.5:
            continue
        used_old.add(i)
        used_new.add(j)
        out[new[j]] = old[i]
    return out


def _ordered(steps: Sequence[PreviousStep]) -> list[PreviousStep]:
    return sorted(steps, key=lambda step: _position(step.title))


def _position(title: str) -> int:
    match = re.search(_POSITION, title)
    return int(match[1]) if match else 0


def _keyword(instruction: str) -> str:
    return instruction.partition(" ")[0].upper()
