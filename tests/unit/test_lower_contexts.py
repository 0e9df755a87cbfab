"""Named contexts in the place of images, stages and sources."""

from __future__ import annotations

import pytest
from fakes.lowering import BUSYBOX, DEFAULT_IMAGES, Images, base_image, chain, created_by, lowered, titles, variables

from pybuild.builder.git_reference import GitReference
from pybuild.builder.graph import (
    ContextSource,
    FileCopy,
    GitSource,
    HttpSource,
    ImageSource,
    Scratch,
)
from pybuild.builder.named_context import (
    GitContextRef,
    HttpContextRef,
    ImageContextRef,
    LocalContextRef,
    ScratchContextRef,
    TargetContextRef,
)
from pybuild.builder.progress import StepDone, StepStarted
from pybuild.layers.descriptor import Platform
from pybuild.parser.errors import DockerfileError

ARM64 = Platform("linux", "arm64")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Remotes:
    """Git remotes whose references all name one commit."""

    def git_commit(self, remote: str, ref: str, *, checksum: str = "") -> str:
        return COMMIT

    def http(self, url: str, *, checksum: object) -> object:
        raise AssertionError("lowering downloads nothing")

    def git_tree(self, remote: str, **options: object) -> object:
        raise AssertionError("lowering checks nothing out")


def test_a_context_replaces_an_image():
    images = Images(DEFAULT_IMAGES)
    image = lowered("FROM nosuch:latest\nRUN x\n", images, contexts={"nosuch": ImageContextRef("alpine")})
    assert images.asked == [("docker.io/library/alpine:latest", "linux/amd64")]
    assert titles(image)[0] == "[context nosuch] alpine"
    assert [entry.created_by for entry in image.history[:2]] == ["layer 0", "layer 1"]


def test_a_context_replaces_a_stage_and_its_commands_never_run():
    text = "FROM nosuch AS build\nCOPY --from=alsonot / /\nRUN x\nFROM busybox\nCOPY --from=build /a /\n"
    images = Images(DEFAULT_IMAGES)
    image = lowered(text, images, contexts={"build": LocalContextRef("build")})
    assert image.vertex.inputs[1].op == ContextSource("build")
    assert image.vertex.inputs[1].note.title == "[context build] load from client"
    assert isinstance(image.vertex.op, FileCopy)
    assert not image.vertex.op.keep_owner
    assert images.asked == [(BUSYBOX, "linux/amd64")]


def test_a_context_is_found_by_copy_and_mount():
    text = "FROM busybox\nCOPY --from=src a /\nRUN --mount=from=src,target=/m x\n"
    image = lowered(text, contexts={"src": LocalContextRef("src")})
    assert image.vertex.inputs[1].op == ContextSource("src")
    assert image.vertex.inputs[0].inputs[1] is image.vertex.inputs[1]


def test_a_context_for_one_platform():
    contexts = {"busybox::linux/arm64": ImageContextRef("alpine")}
    images = Images(DEFAULT_IMAGES)
    lowered("FROM busybox\n", images, contexts=contexts)
    lowered("FROM busybox\n", images, contexts=contexts, platform=ARM64)
    assert images.asked == [(BUSYBOX, "linux/amd64"), ("docker.io/library/alpine:latest", "linux/arm64")]


def test_scratch_and_context_are_never_replaced():
    contexts = {"scratch": LocalContextRef("x"), "context": LocalContextRef("x")}
    assert isinstance(lowered("FROM scratch\n", contexts=contexts).vertex.op, Scratch)


def test_unused_contexts_are_never_resolved():
    images = Images(DEFAULT_IMAGES)
    lowered("FROM busybox\n", images, contexts={"other": ImageContextRef("nosuch")})
    assert len(images.asked) == 1


def test_a_scratch_context():
    image = lowered("FROM busybox AS b\nRUN x\nFROM scratch\nCOPY --from=b / /\n", contexts={"b": ScratchContextRef()})
    assert isinstance(image.vertex.inputs[1].op, Scratch)


def test_an_oci_layout():
    location = "oci-layout:///dir:v1"
    images = Images({location: base_image(layers=3, env=("A=layout",))})
    image = lowered("FROM base\nRUN x\n", images, contexts={"base": ImageContextRef("v1", layout="/dir")})
    assert images.asked == [(location, "linux/amd64")]
    root = chain(image)[0].op
    assert isinstance(root, ImageSource)
    assert root.reference == location
    assert variables(image)["A"] == "layout"


def test_git_and_http_contexts():
    contexts = {
        "repo": GitContextRef(GitReference("https://h/r.git", "main", "sub")),
        "file": HttpContextRef("https://h/f"),
    }
    text = "FROM busybox\nCOPY --from=repo a /\nCOPY --from=file context /f\n"
    image = lowered(text, contexts=contexts, remote_sources=Remotes())
    assert image.vertex.inputs[1].op == HttpSource("https://h/f", "context")
    assert image.vertex.inputs[0].inputs[1].op == GitSource("https://h/r.git", "main", "sub", COMMIT)


def test_the_main_context_may_be_a_repository():
    main = GitContextRef(GitReference("https://h/r.git", COMMIT))
    image = lowered("FROM busybox\nCOPY a /\n", main_context=main)
    assert image.vertex.inputs[1].op == GitSource("https://h/r.git", COMMIT, "", COMMIT)


def test_a_local_context_in_place_of_an_image_becomes_a_layer():
    image = lowered("FROM base\nENV A=1\nRUN x\n", contexts={"base": LocalContextRef("base")})
    nothing, layer, _ = chain(image)
    assert isinstance(nothing.op, Scratch)
    assert layer.op == FileCopy(sources=("/",), destination="/")
    assert layer.inputs[1].op == ContextSource("base")
    assert variables(image)["PATH"].startswith("/usr/local/sbin")
    assert [(entry.created_by, entry.empty_layer) for entry in image.history] == [
        ("ENV A=1", True),
        ("[context base] load from client", False),
        ("RUN /bin/sh -c x # buildkit", False),
    ]
    bare = lowered("FROM base\n", contexts={"base": LocalContextRef("base")})
    assert isinstance(bare.vertex.op, FileCopy)


def test_the_result_of_another_build():
    other = lowered("FROM busybox\nENV A=1\nRUN other\n")
    target = TargetContextRef("t", other.vertex, other.config, other.history)
    image = lowered("FROM base\nRUN x\n", contexts={"base": target})
    assert chain(image)[-2] is other.vertex
    assert variables(image)["A"] == "1"
    assert created_by(image)[: len(other.history)] == created_by(other)
    assert image.base_layers == 2


def test_an_image_context_keeps_times_in_history():
    image = lowered("FROM base\nRUN x\n", contexts={"base": ImageContextRef("busybox")})
    assert image.history[0].created == "2020-01-01T00:00:00Z"
    assert image.base is not None


def test_a_missing_image_of_a_context_is_named():
    with pytest.raises(DockerfileError, match=r"nosuch: failed to resolve source metadata for .*: not found") as caught:
        lowered("FROM busybox\nCOPY --from=c a /\n", contexts={"c": ImageContextRef("nosuch")})
    assert caught.value.lines == (2, 2)


def test_progress_tells_of_metadata():
    class Recorder:
        def __init__(self) -> None:
            self.events: list[object] = []

        def emit(self, event: object) -> None:
            self.events.append(event)

    recorder = Recorder()
    lowered("FROM busybox\n", progress=recorder)
    started, done = recorder.events
    assert isinstance(started, StepStarted)
    assert started.title == "[internal] load metadata for docker.io/library/busybox:latest"
    assert isinstance(done, StepDone)
    assert done.step == started.step


def test_triggers_of_another_build_s_result_run():
    other = lowered("FROM busybox\nONBUILD RUN trigger\n")
    target = TargetContextRef("t", other.vertex, other.config, other.history)
    image = lowered("FROM base\nRUN x\n", contexts={"base": target})
    assert [vertex.op.args[-1] for vertex in chain(image)[1:]] == ["trigger", "x"]
    assert image.config.on_build == ()


def test_an_image_is_not_looked_for_where_a_context_stands_for_it_on_this_platform_only():
    images = Images(DEFAULT_IMAGES)
    contexts = {"busybox::linux/arm64": LocalContextRef("x")}
    image = lowered("FROM busybox\nRUN x\n", images, contexts=contexts)
    assert isinstance(chain(image)[0].op, ImageSource)
    assert images.asked == [(BUSYBOX, "linux/amd64")]
