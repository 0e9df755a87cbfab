"""The words of ``pybuild why``: which step stands for which, and what is said of a difference."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pybuild.builder.graph import Note, Scratch, Vertex
from pybuild.builder.why import Explainer, PreviousStep
from pybuild.builder.why_compare import own_differences, path_differences, source_difference
from pybuild.builder.why_match import matches


def vertices(*instructions: str, stage: str = "build") -> list[Vertex]:
    total = len(instructions) + 1
    return [
        Vertex(Scratch(), (), Note(f"[{stage} {number}/{total}] {text}", stage=stage, instruction=text))
        for number, text in enumerate(instructions, 2)
    ]


def previous(*instructions: str, stage: str = "build") -> list[PreviousStep]:
    return [
        PreviousStep(stage, vertex.note.instruction, vertex.note.title, f"key of {vertex.note.instruction}")
        for vertex in vertices(*instructions, stage=stage)
    ]


def matched(old: list[PreviousStep], new: list[Vertex]) -> list[str]:
    found = matches(old, new)
    return [found[vertex].instruction if vertex in found else "-" for vertex in new]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (["RUN a", "RUN b"], ["RUN a", "RUN b"], ["RUN a", "RUN b"]),
        (["RUN a", "RUN b"], ["RUN a", "RUN x", "RUN b"], ["RUN a", "-", "RUN b"]),
        (["RUN a", "RUN b", "RUN c"], ["RUN a", "RUN c"], ["RUN a", "RUN c"]),
        (["RUN make all", "COPY x /"], ["RUN make most", "COPY x /"], ["RUN make all", "COPY x /"]),
        (["RUN a", "RUN a"], ["RUN a", "RUN a"], ["RUN a", "RUN a"]),
        (["RUN a", "COPY x /"], ["COPY x /", "RUN a"], ["COPY x /", "RUN a"]),
        (["RUN a"], ["COPY a /"], ["-"]),
        ([], ["RUN a"], ["-"]),
    ],
)
def test_instructions_are_aligned_like_lines(old: list[str], new: list[str], expected: list[str]) -> None:
    assert matched(previous(*old), vertices(*new)) == expected


def test_the_order_in_which_steps_ended_does_not_matter() -> None:
    assert matched(previous("RUN a", "RUN b", "RUN c")[::-1], vertices("RUN a", "RUN c")) == ["RUN a", "RUN c"]


def test_stages_are_apart() -> None:
    assert matched(previous("RUN a", stage="one"), vertices("RUN a", stage="two")) == ["-"]


def run(**changes: Any) -> dict[str, Any]:  # Any: recipes are JSON
    op = {
        "type": "run", "args": ["/bin/sh", "-c", "make"], "env": {"A": "1"}, "cwd": "/", "user": "", "mounts": [],
        "network": "default", "platform": {"os": "linux", "architecture": "amd64"}, "root": "r",
    }  # fmt: skip
    return {"op": {**op, **changes}, "seen": {"arguments": ["VERSION"]}}


CACHE = {"type": "cache", "target": "/c", "mode": 493, "from": None}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"args": ["/bin/sh", "-c", "make all"]}, "the command was make, is make all"),
        ({"args": ["/bin/bash", "-c", "make"]}, "SHELL was /bin/sh -c, is /bin/bash -c"),
        ({"args": ["make", "all"]}, "the command was /bin/sh -c make, is make all"),
        ({"env": {"A": "2"}}, "ENV A was 1, is 2"),
        ({"env": {}}, "ENV A is no longer set, was 1"),
        ({"env": {"A": "1", "VERSION": "3"}}, "ARG VERSION is 3, was not set"),
        ({"cwd": "/x"}, "WORKDIR was /, is /x"),
        ({"user": "app"}, "USER was root, is app"),
        ({"network": "none"}, "--network was default, is none"),
        ({"platform": {"os": "linux", "architecture": "arm64"}}, "the platform was linux/amd64, is linux/arm64"),
        ({"mounts": [CACHE]}, "--mount at /c was added"),
        ({"scripts": [{"name": "x"}]}, "the here-document changed"),
    ],
)
def test_each_difference_has_its_words(changes: dict[str, Any], expected: str) -> None:
    assert own_differences(run(), run(**changes)) == [expected]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"a": "file 644 x"}, {"a": "file 644 y"}, ["a changed (content)"]),
        ({"a": "file 644 x"}, {"a": "file 755 x"}, ["a changed (mode 644, is 755)"]),
        ({"a": "file 644 x"}, {"b": "file 644 x"}, ["a was renamed to b"]),
        ({"a": "file 644 x"}, {"b": "file 644 y"}, ["b was added", "a was removed"]),
        ({"a": "symlink x"}, {"a": "symlink y"}, ["a changed (link target)"]),
        ({"a": "file 644 x"}, {"a": "directory 755"}, ["a was a file, is a directory"]),
        ({"a": "directory 755", "b": "directory"}, {"a": "directory", "b": "directory 700"}, []),
    ],
)
def test_each_change_of_a_file_has_its_words(
    before: dict[str, str], after: dict[str, str], expected: list[str]
) -> None:
    assert path_differences({"paths": before}, {"paths": after}) == expected


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            {"reference": "docker.io/library/python:3-slim@sha256:" + "a" * 64, "manifest": "sha256:" + "a" * 64},
            {"reference": "docker.io/library/python:3-slim@sha256:" + "b" * 64, "manifest": "sha256:" + "b" * 64},
            "base python:3-slim moved from sha256:aaaaaaaaaaaa… to sha256:bbbbbbbbbbbb…",
        ),
        (
            {"reference": "a.example/x:1"},
            {"reference": "a.example/x:2"},
            "the base was a.example/x:1, is a.example/x:2",
        ),
        ({"url": "http://x/", "checksum": "a"}, {"url": "http://x/", "checksum": "b"}, "http://x/ changed (content)"),
        ({"git": "http://x/", "commit": "a"}, {"git": "http://x/", "commit": "b"}, "http://x/ moved from a to b"),
        ({"git": "http://x/"}, {"url": "http://x/"}, ""),
    ],
)
def test_each_change_of_a_source_has_its_words(old: dict[str, str], new: dict[str, str], expected: str) -> None:
    assert source_difference(old, new) == expected


def test_the_cause_is_named_by_the_step_where_it_began() -> None:
    first, second, third = vertices("COPY a /", "RUN b", "RUN c")
    names = ["new a", "new b", "new c"]
    recipes = [json.dumps({"op": {"type": "copy", "source": "s1"}, "seen": {"paths": {"f": "file 644 x"}}})]
    recipes += [json.dumps(run(root=f"key of {name}")) for name in ("COPY a /", "RUN b")]
    old = [
        PreviousStep(step.stage, step.instruction, step.title, step.key, recipe)
        for step, recipe in zip(previous("COPY a /", "RUN b", "RUN c"), recipes)
    ]
    explainer = Explainer(lambda: old)
    explainer.know([first, second, third], names)
    copied = json.dumps({"op": {"type": "copy", "source": "s2"}, "seen": {"paths": {"f": "file 644 y"}}})
    told = [
        explainer.reason(first, copied, key="new a", forced=False),
        explainer.reason(second, json.dumps(run(root="new a")), key="new b", forced=False),
        explainer.reason(third, json.dumps(run(root="new b")), key="new c", forced=False),
    ]
    assert told == ["f changed (content)", "after COPY a /: f changed (content)", "after COPY a /: f changed (content)"]


def test_a_step_that_failed_last_time_says_so() -> None:
    (only,) = vertices("RUN a")
    old = [PreviousStep("build", "RUN a", only.note.title, "k", "{}", "", "exit code: 1")]
    assert Explainer(lambda: old).causes(only, "{}", key="k", forced=False) == ["it failed last time"]


def test_nothing_is_known_of_a_first_build() -> None:
    (only,) = vertices("RUN a")
    assert Explainer(list).causes(only, "{}", key="k", forced=False) == ["first build here"]


@pytest.mark.parametrize("recipe", ["{", "[]", "7", '{"op": 5}', '{"op": {"type": "run", "mounts": 7}, "seen": []}'])
def test_whatever_a_cache_says_fails_no_build(recipe: str) -> None:
    (only,) = vertices("RUN a")
    old = [PreviousStep("build", "RUN a", only.note.title, "k", recipe)]
    assert Explainer(lambda: old).causes(only, json.dumps(run()), key="other", forced=False)
