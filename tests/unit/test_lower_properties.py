"""Properties that hold for every Dockerfile."""

from __future__ import annotations

from fakes.lowering import chain, lowered
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pybuild.builder.graph import (
    Exec,
    FileCopy,
    FileMake,
    ImageSource,
    Merge,
    Vertex,
)
from pybuild.builder.named_context import LocalContextRef
from pybuild.parser.errors import DockerfileError

WORDS = st.sampled_from(
    [
        "a",
        "/b/",
        ".",
        "..",
        "$X",
        "${X:-d}",
        "${Y}",
        "'q r'",
        '"$X"',
        "*.c",
        "a/./b",
        "x=y",
        "80/tcp",
        "/",
        "$$",
        "${X%%/*}",
    ]
)
FLAGS = st.sampled_from(
    [
        "",
        "--link ",
        "--chown=1:$X ",
        "--chmod=u+x ",
        "--from=s0 ",
        "--from=0 ",
        "--from=busybox ",
        "--from=ctx ",
        "--parents ",
        "--exclude=*.x ",
    ]
)
MOUNTS = st.sampled_from(
    ["", "--mount=target=/m ", "--mount=type=cache,target=$X ", "--mount=type=secret,id=$X ", "--mount=type=ssh ", "--mount=from=s0,target=/m,rw ", "--network=none "]
)  # fmt: skip
INSTRUCTIONS = st.one_of(
    st.builds("RUN {}{}".format, MOUNTS, WORDS),
    st.builds('RUN ["{}"]'.format, st.sampled_from(["a", "b c"])),
    st.builds("RUN <<E\n{}\nE".format, WORDS),
    st.builds("COPY {}{} {}".format, FLAGS, WORDS, WORDS),
    st.builds("COPY <<E {}\n{}\nE".format, WORDS, WORDS),
    st.builds("ADD {} {}".format, st.sampled_from(["a.tar", "https://h/a", "https://h/r.git#v1", "$X"]), WORDS),
    st.builds("ADD https://h/a b https://h/c {}/".format, WORDS),
    st.builds("WORKDIR {}".format, WORDS),
    st.builds("ENV X={} Y={}".format, WORDS, WORDS),
    st.builds("ARG {}".format, st.sampled_from(["X", "X=1", "Y=$X", "X=1 Y=$X", "TARGETARCH"])),
    st.builds("EXPOSE {}".format, st.sampled_from(["80", "1-3/udp", "$X", "8080:80"])),
    st.builds("USER {}".format, WORDS),
    st.builds("LABEL {}={}".format, WORDS, WORDS),
    st.builds("VOLUME {}".format, WORDS),
    st.builds("CMD {}".format, WORDS),
    st.builds("ENTRYPOINT {}".format, WORDS),
    st.builds("ONBUILD RUN {}".format, WORDS),
    st.builds("ONBUILD COPY --from=busybox {} /o".format, WORDS),
    st.just('SHELL ["/bin/bash", "-c"]'),
    st.just("HEALTHCHECK CMD x"),
)
STAGES = st.builds(
    lambda base, instructions: (base, instructions),
    st.sampled_from(["busybox", "alpine", "scratch", "s0", "s1", "ctx", "busy$A"]),
    st.lists(INSTRUCTIONS, max_size=6),
)
DOCKERFILES = st.lists(STAGES, min_size=1, max_size=4).map(
    lambda stages: (
        "ARG A=box\n"
        + "".join(
            f"FROM {base} AS s{number}\n" + "".join(f"{text}\n" for text in instructions)
            for number, (base, instructions) in enumerate(stages)
        )
    )
)


class Remotes:
    """Git remotes whose references all name one commit."""

    def git_commit(self, remote: str, ref: str, *, checksum: str = "") -> str:
        return "0" * 40

    def http(self, url: str, *, checksum: object) -> object:
        raise AssertionError("lowering downloads nothing")

    def git_tree(self, remote: str, **options: object) -> object:
        raise AssertionError("lowering checks nothing out")


@given(DOCKERFILES)
@settings(deadline=None, max_examples=300)
def test_any_dockerfile_is_lowered_or_refused_and_layers_match_history(text):
    options = {"contexts": {"ctx": LocalContextRef("ctx")}, "remote_sources": Remotes()}
    try:
        image = lowered(text, **options)
    except DockerfileError as error:
        refusal = error
    else:
        refusal = None
    event("refused" if refusal else "lowered")
    if refusal:
        assert refusal.text == text
        return
    again = lowered(text, **options)
    assert [vertex.op for vertex in chain(image)] == [vertex.op for vertex in chain(again)]
    assert (image.history, image.config, image.warnings) == (again.history, again.config, again.warnings)
    root, *made = chain(image)
    layers = len(root.op.chain) if isinstance(root.op, ImageSource) else 0
    assert sum(not entry.empty_layer for entry in image.history) == layers + len(made)
    assert all(isinstance(vertex.op, Exec | FileCopy | FileMake | Merge) for vertex in made)
    for vertex in everything(image.vertex):
        assert vertex.note.title
        if isinstance(vertex.op, FileCopy):
            assert vertex.op.destination.startswith("/")
            assert all(source.startswith("/") for source in vertex.op.sources)
            assert len(vertex.inputs) == (not vertex.op.link) + bool(vertex.op.sources)
        if isinstance(vertex.op, Exec):
            assert vertex.op.cwd.startswith("/")
            assert all(mount.target for mount in vertex.op.mounts)


def everything(vertex: Vertex) -> list[Vertex]:
    """The vertex and all it needs."""
    seen: dict[Vertex, None] = {}
    waiting = [vertex]
    while waiting:
        found = waiting.pop()
        if found not in seen:
            seen[found] = None
            waiting.extend(found.inputs)
    return list(seen)
