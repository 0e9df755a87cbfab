"""Stages: names, dependencies, platforms, titles."""

from __future__ import annotations

import pytest
from fakes.lowering import (
    AMD64,
    BUSYBOX,
    DEFAULT_IMAGES,
    Images,
    base_image,
    chain,
    last_run,
    lowered,
    titles,
    variables,
)

from pybuild.builder.graph import (
    Exec,
    FileCopy,
    FileMake,
    ImageSource,
    Scratch,
)
from pybuild.layers.descriptor import Platform
from pybuild.parser.errors import DockerfileError

ARM64 = Platform("linux", "arm64")


def test_a_stage_begins_with_its_image_and_adds_a_vertex_per_step():
    image = lowered("FROM busybox\nRUN a\nCOPY x /y\nWORKDIR /w\n")
    assert [type(vertex.op) for vertex in chain(image)] == [ImageSource, Exec, FileCopy, FileMake]
    root = chain(image)[0].op
    assert isinstance(root, ImageSource)
    assert root.chain == base_image().diff_ids
    assert root.reference.startswith("docker.io/library/busybox:latest@sha256:")
    assert image.base is not None
    assert image.base.reference == BUSYBOX


def test_from_scratch_begins_with_nothing_and_docker_s_defaults():
    image = lowered("FROM scratch\nLABEL a=b\n")
    assert isinstance(image.vertex.op, Scratch)
    assert image.config.env == ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",)
    assert image.config.working_dir == "/"
    assert image.base is None


def test_an_image_without_layers_is_scratch():
    images = Images({BUSYBOX: base_image(layers=0)})
    assert isinstance(lowered("FROM busybox\n", images).vertex.op, Scratch)


def test_only_needed_stages_are_resolved():
    images = Images(DEFAULT_IMAGES)
    text = "FROM nosuch AS broken\nRUN x\nFROM alpine AS used\nRUN y\nFROM busybox\nCOPY --from=used /a /a\n"
    lowered(text, images)
    assert sorted(reference for reference, _ in images.asked) == [BUSYBOX.replace("busybox", "alpine"), BUSYBOX]


def test_each_image_is_resolved_once():
    images = Images(DEFAULT_IMAGES)
    lowered("FROM busybox AS a\nRUN x\nFROM busybox\nCOPY --from=a / /\nCOPY --from=busybox / /\n", images)
    assert images.asked == [(BUSYBOX, "linux/amd64")]


def test_a_target_is_found_by_name_in_any_case_and_never_by_index():
    text = "FROM busybox AS One\nRUN 1\nFROM busybox AS two\nRUN 2\nFROM busybox\nRUN 3\n"
    assert last_run(lowered(text)).args[-1] == "3"
    assert last_run(lowered(text, target="ONE")).args[-1] == "1"
    assert last_run(lowered(text, target="two")).args[-1] == "2"
    with pytest.raises(DockerfileError, match='target stage "1" could not be found'):
        lowered(text, target="1")
    assert lowered(text).stage_names == ("one", "two", "stage-2")


def test_a_mistyped_target_gets_a_suggestion():
    with pytest.raises(DockerfileError) as caught:
        lowered("FROM busybox AS build\n", target="biuld")
    assert str(caught.value) == 'target stage "biuld" could not be found (did you mean build?)'


def test_a_missing_image_is_reported_with_its_line_and_a_suggestion():
    with pytest.raises(DockerfileError) as caught:
        lowered("# x\nFROM busybax\n")
    found = "busybax: failed to resolve source metadata for docker.io/library/busybax:latest: not found"
    assert str(caught.value) == f"{found} (did you mean busybox?)"
    assert caught.value.lines == (2, 2)
    assert caught.value.text == "# x\nFROM busybax\n"


def test_the_first_of_several_missing_images_is_reported():
    with pytest.raises(DockerfileError) as caught:
        lowered("FROM nosuch1 AS a\nFROM nosuch2 AS b\nFROM busybox\nCOPY --from=b / /\nCOPY --from=a / /\n")
    assert str(caught.value).startswith("nosuch1: ")


def test_a_stage_inherits_from_a_stage():
    text = "FROM busybox AS base\nENV A=1\nLABEL l=base\nUSER u\nWORKDIR /w\nARG P=q\nFROM base\nRUN x\n"
    image = lowered(text)
    run = last_run(image)
    assert variables(image)["A"] == "1"
    assert variables(image)["P"] == "q"
    assert (run.user, run.cwd) == ("u", "/w")
    assert image.config.labels == {"l": "base"}


def test_copying_from_a_sibling_keeps_the_labels_of_the_base():
    text = "FROM scratch AS base\nLABEL m=base\nFROM base AS s\nLABEL m=s\nFROM base\nCOPY --from=s / /\n"
    assert lowered(text).config.labels == {"m": "base"}


def test_copy_from_names_indexes_and_images():
    text = (
        "FROM busybox AS one\nRUN 1\nFROM busybox\nCOPY --from=ONE /a /\nCOPY --from=0 /b /\nCOPY --from=alpine /c /\n"
    )
    image = lowered(text)
    *_, first, second, third = chain(image)
    assert first.inputs[1] is second.inputs[1]
    assert isinstance(first.inputs[1].op, Exec)
    source = third.inputs[1].op
    assert isinstance(source, ImageSource)
    assert source.reference.startswith("docker.io/library/alpine:latest@")


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("FROM busybox AS a\nCOPY --from=a f /\n", "circular dependency detected on stage: a", 2),
        (
            "FROM busybox AS a\nCOPY --from=c f /\nFROM busybox AS b\nCOPY --from=a f /\nFROM busybox AS c\nCOPY --from=b f /\n",
            "circular dependency detected on stage: a",
            4,
        ),
        (
            "FROM busybox AS a\nCOPY --from=b f /\nFROM busybox AS b\nRUN x\nFROM a\n",
            'cannot copy from stage "b", it needs to be defined before current stage "a"',
            2,
        ),
        (
            "FROM busybox AS a\nRUN --mount=from=b,target=/m x\nFROM busybox AS b\nFROM a\n",
            'cannot mount from stage "b" to "/m", stage needs to be defined before current command',
            2,
        ),
        ("FROM busybox\nCOPY --from=3 f /\n", "invalid stage index 3", 2),
        ("FROM busybox\nCOPY --from=-1 f /\n", "invalid stage index -1", 2),
        (
            "ARG X=y\nFROM busybox\nARG X\nCOPY --from=$X f /\n",
            "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a "
            "workaround",
            4,
        ),
        ("FROM ${BLANK}\n", "base name (${BLANK}) should not be blank", 1),
        ("FROM --platform=$NOPE busybox\n", "empty platform value from expression $NOPE", 1),
        ("FROM --platform=linux/a/b/c busybox\n", "failed to parse platform linux/a/b/c", 1),
        ("FROM BusyBox\n", 'failed to parse stage name "BusyBox": invalid reference format', 1),
    ],
)
def test_wrong_references_between_stages_are_refused_with_their_place(text, message, line):
    with pytest.raises(DockerfileError) as caught:
        lowered(text)
    assert message in str(caught.value)
    assert caught.value.lines == (line, line)


def test_a_later_stage_of_the_same_name_wins():
    text = "FROM busybox AS x\nRUN 1\nFROM busybox AS x\nRUN 2\nFROM x\nRUN 3\n"
    assert [vertex.op.args[-1] for vertex in chain(lowered(text)) if isinstance(vertex.op, Exec)] == ["2", "3"]


def test_a_stage_may_have_its_own_image_s_name():
    image = lowered("FROM busybox AS busybox\nRUN 1\n")
    assert isinstance(chain(image)[0].op, ImageSource)


def test_a_stage_for_another_platform_is_resolved_for_it():
    arm = Images({BUSYBOX: base_image(platform=ARM64)})
    image = lowered("FROM --platform=linux/arm64 busybox\nRUN x\n", arm)
    assert arm.asked == [(BUSYBOX, "linux/arm64")]
    assert last_run(image).platform == ARM64


def test_the_build_platform_is_available_to_from():
    images = Images(DEFAULT_IMAGES)
    text = "FROM --platform=$BUILDPLATFORM busybox AS b\nRUN x\nFROM --platform=$TARGETPLATFORM alpine\nCOPY --from=b / /\n"
    lowered(text, images, platform=ARM64, build_platform=AMD64, implicit_platform=False)
    assert set(images.asked) == {(BUSYBOX, "linux/amd64"), ("docker.io/library/alpine:latest", "linux/arm64")}


def test_the_requested_platform_is_the_image_s():
    arm = Images({BUSYBOX: base_image(platform=Platform("linux", "arm64", "v8"))})
    image = lowered("FROM busybox\n", arm, platform=ARM64, implicit_platform=False)
    assert image.config.platform == ARM64
    assert lowered("FROM busybox\n", arm).config.platform == ARM64
    forced = lowered("FROM busybox\n", arm, platform=AMD64, implicit_platform=False)
    assert forced.config.platform == AMD64


def test_a_base_for_another_machine_is_warned_about():
    arm = Images({BUSYBOX: base_image(platform=ARM64)})
    (warning,) = lowered("FROM busybox\n", arm).warnings
    assert warning.rule == "InvalidBaseImagePlatform"
    assert warning.message == (
        'Base image busybox was pulled with platform "linux/arm64", expected "linux/amd64" for current build'
    )
    assert warning.lines == (1, 1)


def test_os_version_is_kept_from_the_base():
    platform = Platform("windows", "amd64", os_version="10.0.1")
    image = lowered(
        "FROM busybox\n", Images({BUSYBOX: base_image(platform=platform)}), platform=Platform("windows", "amd64")
    )
    assert image.config.platform.os_version == "10.0.1"


def test_titles_number_the_steps_of_each_stage():
    text = "FROM busybox AS build\nENV A=1\nRUN make\nFROM scratch\nCOPY --from=build /a /\nWORKDIR /w\n"
    image = lowered(text)
    assert titles(image) == ["FROM scratch", "[stage-1 1/2] COPY --from=build /a /", "[stage-1 2/2] WORKDIR /w"]
    build = chain(image)[1].inputs[1]
    assert build.note.title == "[build 2/2] RUN make"
    assert build.inputs[0].note.title.startswith("[build 1/2] FROM docker.io/library/busybox:latest@sha256:")
    assert build.note.lines == (3, 3)
    assert build.note.stage == "build"


def test_a_lone_stage_is_not_named_in_titles():
    image = lowered("FROM busybox\nrun make\n")
    assert titles(image)[1] == "[2/2] RUN make"


def test_step_numbers_are_padded():
    image = lowered("FROM busybox\n" + "RUN x\n" * 11)
    assert titles(image)[1] == "[ 2/12] RUN x"


def test_titles_carry_the_platform_when_there_are_several():
    text = "FROM --platform=$BUILDPLATFORM busybox\nARG TARGETARCH\nRUN x\n"
    image = lowered(text, platform=ARM64, build_platform=AMD64, implicit_platform=False, several_platforms=True)
    assert titles(image)[0].startswith("[linux/amd64 1/2] FROM docker.io/library/busybox:latest@")
    assert titles(image)[1] == "[linux/amd64->arm64 2/2] RUN x"


def test_two_hundred_stages_and_a_thousand_steps_are_no_trouble():
    stages = ["FROM busybox AS s0\nRUN x\n"]
    stages += [f"FROM s{n - 1} AS s{n}\nCOPY --from=s{n - 1} /a /b\n" for n in range(1, 200)]
    assert len(chain(lowered("".join(stages)))) == 201
    assert len(chain(lowered("FROM busybox\n" + "RUN x\n" * 1000))) == 1001


def test_lowering_is_deterministic():
    text = "FROM busybox AS b\nARG X=1\nRUN --mount=type=cache,target=/c make\nFROM alpine\nCOPY --from=b a b /d/\n"
    first, second = lowered(text), lowered(text)
    assert [vertex.op for vertex in chain(first)] == [vertex.op for vertex in chain(second)]
    assert first.history == second.history
    assert first.config == second.config
