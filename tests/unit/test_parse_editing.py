"""The tree renders to the text it came from, and edits change what they say and nothing else."""

from __future__ import annotations

import json

import pytest

from pybuild.parser import (
    Arg,
    Comment,
    Copy,
    Dockerfile,
    DockerfileSyntaxError,
    Env,
    From,
    Run,
    instructions_of,
    parse,
    parse_instruction,
)
from pybuild.parser.serialize import to_json

TEXT = """\
\ufeff# syntax=docker/dockerfile:1\r
ARG V=1\r
  FROM base:${V}  AS build \r
# comment
RUN --mount=type=cache,target=/c make \\
      # why
   all\t
COPY <<EOF --x /dst
body
EOF

FROM build
ENV A=1 B="two"  C=3"""


@pytest.fixture
def dockerfile() -> Dockerfile:
    return parse(TEXT)


def test_an_unchanged_tree_renders_to_its_text(dockerfile: Dockerfile) -> None:
    assert dockerfile.render() == TEXT


def test_only_blanks_stand_between_nodes(dockerfile: Dockerfile) -> None:
    at = 0
    for node in dockerfile.nodes:
        assert not TEXT[at : node.span.start.offset].strip("\ufeff\r\n\t ")
        at = node.span.end.offset
    assert not TEXT[at:].strip()


def test_every_part_is_where_it_says(dockerfile: Dockerfile) -> None:
    (image,) = (one.image for one in instructions_of(dockerfile, From) if one.stage_name == "build")
    assert TEXT[image.span.start.offset : image.span.end.offset] == image.text == "base:${V}"
    (env,) = instructions_of(dockerfile, Env)
    for pair in env.pairs:
        assert pair.value is not None
        assert TEXT[pair.value.span.start.offset : pair.value.span.end.offset] == pair.value.text
        assert TEXT[pair.span.start.offset : pair.span.end.offset] == f"{pair.key.text}={pair.value.text}"
    (run,) = instructions_of(dockerfile, Run)
    target = dict(run.mounts[0].options)["target"]
    assert target is not None
    assert TEXT[target.span.start.offset : target.span.end.offset] == "/c"


def test_a_word_is_replaced_in_place(dockerfile: Dockerfile) -> None:
    (first, _) = instructions_of(dockerfile, From)
    changed = dockerfile.replace(first.image, "other@sha256:00")
    assert changed.render() == TEXT.replace("base:${V}", "other@sha256:00")
    assert changed.stages[0].from_.image.text == "other@sha256:00"
    assert dockerfile.render() == TEXT


def test_an_instruction_is_replaced_by_another_ones_source(dockerfile: Dockerfile) -> None:
    (run,) = instructions_of(dockerfile, Run)
    changed = dockerfile.replace(run, parse_instruction("RUN make install"))
    assert changed.render() == TEXT.replace(run.source, "RUN make install")


def test_flags_mounts_heredocs_pairs_comments_and_directives_are_replaced_too(dockerfile: Dockerfile) -> None:
    (run,) = instructions_of(dockerfile, Run)
    (copy,) = instructions_of(dockerfile, Copy)
    (env,) = instructions_of(dockerfile, Env)
    (comment,) = (node for node in dockerfile.nodes if isinstance(node, Comment))
    changes = [
        (run.flags[0], "--network=none", "--mount=type=cache,target=/c"),
        (run.mounts[0], "--mount=type=tmpfs,target=/t", "--mount=type=cache,target=/c"),
        (copy.sources[0], "other\nEOF", "body\nEOF"),
        (env.pairs[1], "B=2", 'B="two"'),
        (comment, "# another", "# comment"),
        (dockerfile.directives[0], "# syntax=docker/dockerfile:1.4", "# syntax=docker/dockerfile:1"),
    ]
    for part, new, old in changes:
        assert dockerfile.replace(part, new).render() == TEXT.replace(old, new, 1)


def test_several_edits_are_made_at_once(dockerfile: Dockerfile) -> None:
    (env,) = instructions_of(dockerfile, Env)
    changed = dockerfile.edit([(env.pairs[2].span, "C=c"), (env.pairs[0].span, "A=a")])
    assert changed.render() == TEXT.replace("A=1", "A=a").replace("C=3", "C=c")
    with pytest.raises(ValueError, match="overlap"):
        dockerfile.edit([(env.span, "ENV x=y"), (env.pairs[0].span, "A=a")])


def test_nodes_are_removed_with_their_lines(dockerfile: Dockerfile) -> None:
    (run,) = instructions_of(dockerfile, Run)
    assert dockerfile.remove(run).render() == TEXT.replace(run.source + "\n", "")
    (arg,) = instructions_of(dockerfile, Arg)
    assert dockerfile.remove(arg).render() == TEXT.replace("ARG V=1\r\n", "")
    assert dockerfile.remove(dockerfile.nodes[0]).render() == "\ufeff" + TEXT.split("\r\n", 1)[1]
    (env,) = instructions_of(dockerfile, Env)
    assert dockerfile.remove(env).render() == TEXT[: -len(env.source)]


def test_lines_are_inserted_around_nodes(dockerfile: Dockerfile) -> None:
    first, second = instructions_of(dockerfile, From)
    assert dockerfile.insert_before(first, "ARG W").render() == TEXT.replace("  FROM", "ARG W\r\n  FROM")
    assert dockerfile.insert_after(second, "WORKDIR /\n").render() == TEXT.replace(
        "FROM build\n", "FROM build\nWORKDIR /\n"
    )
    (env,) = instructions_of(dockerfile, Env)
    assert dockerfile.insert_after(env, "CMD x").render() == TEXT + "\r\nCMD x\r\n"
    assert dockerfile.insert_before(dockerfile.nodes[0], "# top").render() == "\ufeff# top\r\n" + TEXT[1:]


def test_an_edit_that_breaks_the_file_is_refused(dockerfile: Dockerfile) -> None:
    (first, _) = instructions_of(dockerfile, From)
    with pytest.raises(DockerfileSyntaxError):
        dockerfile.replace(first, "FORM x")
    assert dockerfile.render() == TEXT


def test_the_tree_can_not_be_changed_in_place(dockerfile: Dockerfile) -> None:
    with pytest.raises(AttributeError):
        dockerfile.escape = "`"  # type: ignore[misc]  # that it is refused is the point
    assert hash(dockerfile.instructions[0]) == hash(parse(TEXT).instructions[0])
    assert dockerfile == parse(TEXT)


def test_stages_are_found_by_name_and_index() -> None:
    dockerfile = parse("FROM a AS One\nFROM b\nFROM c AS one\nFROM d AS 3\n".replace(" AS 3", ""))
    assert [stage.index for stage in dockerfile.stages] == [0, 1, 2, 3]
    for wanted, index in (("one", 2), ("ONE", 2), ("0", 0), ("1", 1)):
        stage = dockerfile.stage(wanted)
        assert stage is not None
        assert stage.index == index
    assert dockerfile.stage("4") is None
    assert dockerfile.stage("two") is None
    assert dockerfile.stage("-1") is None


def test_global_arguments_are_those_before_the_first_from() -> None:
    dockerfile = parse("ARG a\nARG b c=1\nFROM x\nARG d\n")
    assert [pair.key.text for arg in dockerfile.global_args for pair in arg.args] == ["a", "b", "c"]
    assert [one.name for one in dockerfile.stages[0].instructions] == ["ARG"]


def test_the_json_form_names_every_node(dockerfile: Dockerfile) -> None:
    document = json.loads(json.dumps(to_json(dockerfile)))
    assert [node["kind"] for node in document["nodes"]] == [
        "directive", "instruction", "instruction", "comment", "instruction", "instruction", "blank", "instruction",
        "instruction",
    ]  # fmt: skip
    assert document["stages"] == [
        {"index": 0, "name": "build", "from": 2, "instructions": [4, 5]},
        {"index": 1, "name": None, "from": 7, "instructions": [8]},
    ]
    assert document["global_args"] == [1]
    assert document["syntax"] == {"reference": "docker/dockerfile:1", "command_line": "docker/dockerfile:1", "line": 1}
    run, copy = document["nodes"][4], document["nodes"][5]
    assert run["name"] == "RUN"
    assert run["command"] == {"form": "shell", "text": "make    all", "heredocs": []}
    assert run["mounts"][0]["options"][0]["key"] == "target"
    assert copy["from"] is None
    assert copy["sources"][0]["form"] == "heredoc"
    assert copy["destination"]["text"] == "/dst"
    for node in document["nodes"]:
        start, end = node["span"]["start"]["offset"], node["span"]["end"]["offset"]
        assert node.get("source", TEXT[start:end]) == TEXT[start:end]


def test_every_instruction_has_a_json_form() -> None:
    text = (
        "FROM a\nADD a b\nARG a\nCMD a\nCOPY a b\nENTRYPOINT []\nENV a=b\nEXPOSE 1\nHEALTHCHECK NONE\nLABEL a b\nMAINTAINER a\n"
        'ONBUILD RUN ["x"]\nRUN x\nSHELL ["x"]\nSTOPSIGNAL 9\nUSER a\nVOLUME a\nWORKDIR a\n'
    )
    document = to_json(parse(text))
    nodes = document["nodes"]
    assert isinstance(nodes, list)
    names = [node["name"] for node in nodes if isinstance(node, dict)]
    assert len(names) == 18
    assert len(set(names)) == 18
    json.dumps(document)
