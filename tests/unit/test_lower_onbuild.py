"""ONBUILD triggers."""

from __future__ import annotations

import pytest
from fakes.lowering import BUSYBOX, Images, base_image, chain, created_by, lowered, titles

from pybuild.builder.graph import (
    Exec,
    FileCopy,
)
from pybuild.builder.lower import LoweredImage
from pybuild.parser.errors import DockerfileError

TRIGGERS = {
    BUSYBOX: base_image(on_build=("RUN echo 1", "COPY --from=alpine /a /b", "ENV X=1")),
    "docker.io/library/alpine:latest": base_image(layers=2),
}


def executed(image: LoweredImage) -> list[str]:
    return [vertex.op.args[-1] for vertex in chain(image) if isinstance(vertex.op, Exec)]


def test_triggers_of_the_base_run_first_and_are_cleared():
    image = lowered("FROM busybox\nRUN echo 2\n", Images(TRIGGERS))
    assert executed(image) == ["echo 1", "echo 2"]
    assert image.config.on_build == ()
    assert "X=1" in image.config.env
    assert created_by(image)[1:] == [
        "RUN /bin/sh -c echo 1 # buildkit",
        "COPY /a /b # buildkit",
        "ENV X=1",
        "RUN /bin/sh -c echo 2 # buildkit",
    ]


def test_triggers_are_marked_and_counted_in_titles():
    image = lowered("# comment\nFROM busybox AS x\nRUN echo 2\n", Images(TRIGGERS))
    assert titles(image)[1:] == [
        "[x 2/5] ONBUILD RUN echo 1",
        "[x 3/5] ONBUILD COPY --from=alpine /a /b",
        "[x 4/5] RUN echo 2",
    ]
    assert chain(image)[1].note.lines == (2, 2)


def test_a_trigger_may_need_an_image_that_nothing_else_needs():
    images = Images(TRIGGERS)
    lowered("FROM busybox\n", images)
    assert [reference for reference, _ in images.asked] == [BUSYBOX, "docker.io/library/alpine:latest"]


def test_a_stage_built_on_the_stage_runs_no_triggers_again():
    image = lowered("FROM busybox AS a\nRUN echo 2\nFROM a\nRUN echo 3\n", Images(TRIGGERS))
    assert executed(image) == ["echo 1", "echo 2", "echo 3"]


def test_triggers_of_a_stage_hold_for_stages_built_on_it():
    image = lowered(
        "FROM busybox AS base\nONBUILD RUN trigger\nRUN base\nFROM base AS mid\nRUN mid\nFROM mid\nRUN last\n"
    )
    assert executed(image) == ["base", "trigger", "mid", "last"]
    assert image.config.on_build == ()
    assert lowered("FROM busybox AS base\nONBUILD RUN x\n").config.on_build == ("RUN x",)


def test_a_trigger_may_copy_from_a_stage_of_the_child():
    text = "FROM alpine AS src\nRUN make\nFROM busybox AS base\nONBUILD COPY --from=src /in /out\nFROM base\nRUN last\n"
    image = lowered(text)
    copied = chain(image)[-2]
    assert isinstance(copied.op, FileCopy)
    assert isinstance(copied.inputs[1].op, Exec)


def test_a_trigger_of_an_image_may_mount_a_stage_whose_base_has_triggers_too():
    images = Images(
        {
            BUSYBOX: base_image(on_build=("RUN --mount=type=bind,target=/in,from=inputstage x",)),
            "docker.io/library/first:latest": base_image(on_build=("COPY --from=docker.io/library/second /a /b",)),
            "docker.io/library/second:latest": base_image(layers=3),
        }
    )
    image = lowered("FROM first AS inputstage\nRUN y\nFROM busybox AS base\nRUN z\n", images)
    assert executed(image) == ["x", "z"]
    mounted = chain(image)[1].inputs[1]
    assert isinstance(mounted.op, Exec)
    assert isinstance(mounted.inputs[0].op, FileCopy)


def test_a_trigger_with_a_heredoc():
    image = lowered("FROM busybox AS base\nONBUILD RUN <<EOF\necho a\nEOF\nFROM base\n")
    assert executed(image) == ["echo a\n"]
    stored = lowered("FROM busybox\nONBUILD COPY <<EOF /d\nx\nEOF\n").config.on_build
    again = lowered("FROM busybox\n", Images({BUSYBOX: base_image(on_build=stored)}))
    assert isinstance(again.vertex.op, FileCopy)
    assert again.vertex.op.inline[0].data == b"x\n"


def test_a_broken_trigger_is_reported_at_the_from():
    images = Images({BUSYBOX: base_image(on_build=("NOPE x",))})
    with pytest.raises(DockerfileError, match="ONBUILD trigger of the base image can't be parsed") as caught:
        lowered("# a\nFROM busybox\n", images)
    assert caught.value.lines == (2, 2)


def test_an_image_that_is_only_copied_from_has_its_triggers_ignored():
    images = Images(
        {
            BUSYBOX: base_image(on_build=("COPY --from=nosuch / /",)),
            **{k: v for k, v in TRIGGERS.items() if k != BUSYBOX},
        }
    )
    lowered("FROM alpine\nCOPY --from=busybox / /\n", images)


def test_a_failing_trigger_of_an_image_is_shown_at_the_from():
    images = Images({BUSYBOX: base_image(on_build=("ENV A=${B:?missing}",))})
    with pytest.raises(DockerfileError, match="B: missing") as caught:
        lowered("# a\n# b\nFROM busybox\n", images)
    assert caught.value.lines == (3, 3)
    assert caught.value.culprit is None
