"""Which paths of a context a build reads, and that its files come before the first of them is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from fakes.lowering import lowered

from pybuild.builder.contexts_local import LocalContext
from pybuild.builder.late_context import LateViews, paths_read
from pybuild.builder.named_context import LocalContextRef
from pybuild.builder.request import LateContext
from pybuild.errors import PybuildError


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("FROM busybox\nRUN x\n", ()),
        ("FROM busybox\nCOPY a ./b/ /x/\n", ("/a", "/b")),
        ("FROM busybox\nCOPY ../a b/./c/../*.go /x/\n", ("/a", "/b/*.go")),
        ("FROM busybox\nARG d=src\nCOPY --link $d /x\n", ("/src",)),
        ("FROM busybox\nADD a.tar https://example.com/f /x/\n", ("/a.tar",)),
        ("FROM busybox\nCOPY <<E /x\nE\nRUN --mount=type=bind,source=m,target=/m y\n", ("/m",)),
        ("FROM busybox\nRUN --mount=type=bind,target=/m y\nCOPY a /\n", ("/",)),
        ("FROM busybox\nCOPY a .  /x/\n", ("/",)),
        ("FROM busybox AS other\nCOPY not /read\nFROM busybox\nCOPY a /\n", ("/a",)),
        ("FROM busybox AS other\nCOPY b /c\nFROM busybox\nCOPY --from=other /c /\n", ("/b",)),
        ("FROM busybox\nCOPY --from=named d /\nCOPY a /\n", ("/a",)),
    ],
)
def test_what_a_build_reads_is_what_its_reachable_instructions_name(text: str, paths: tuple[str, ...]) -> None:
    image = lowered(text, contexts={"named": LocalContextRef("named")}, main_context=LocalContextRef("context"))
    assert paths_read([image.vertex], "context") == paths


def test_the_files_come_once_and_before_the_first_look(tmp_path: Path) -> None:
    asked: list[Sequence[str]] = []

    def bring(paths: Sequence[str]) -> None:
        asked.append(paths)
        (tmp_path / "a").write_text("come")

    views = LateViews(
        {"context": LocalContext(tmp_path), "other": LocalContext("/")},
        "context",
        late=LateContext("", bring),
        paths=("/a",),
    )
    assert views.get("nosuch") is None
    assert views.get("other") is not None
    assert asked == []
    for _ in range(2):
        view = views.get("context")
        assert view is not None
        assert view.lookup("a") is not None
    assert asked == [("/a",)]


def test_files_that_did_not_come_are_asked_for_again(tmp_path: Path) -> None:
    answers = [PybuildError("the client has gone")]

    def bring(paths: Sequence[str]) -> None:
        if answers:
            raise answers.pop()

    views = LateViews({"context": LocalContext(tmp_path)}, "context", late=LateContext("", bring), paths=("/a",))
    with pytest.raises(PybuildError, match="gone"):
        views["context"]
    assert views["context"].lookup("a") is None
