"""``--call=outline`` and ``--call=targets``."""

from __future__ import annotations

import base64
import json

import pytest

from pybuild.builder.outline import outline, targets
from pybuild.errors import PybuildError
from pybuild.layers.descriptor import Platform
from pybuild.parser.parse import parse

AMD64 = Platform(os="linux", architecture="amd64")

ARGUMENTS = """
ARG inherited=box
ARG inherited2=box2
ARG unused=abc${inherited2}
# sfx is a suffix
ARG sfx="usy${inherited}"

FROM b${sfx} AS first
# this is not assigned to anything
ARG FOO=123
# BAR is a number
ARG BAR=456
RUN true

FROM alpine${unused} AS second
ARG BAZ
RUN true

FROM scratch AS third
ARG ABC=a
# check=skip=all
ARG password
# alternate_password will show up in the outline
# check=skip=all
ARG alternate_password

# target defines build target
FROM third AS target
COPY --from=first /etc/passwd /

FROM second
"""

MOUNTS = """
FROM busybox AS first
RUN --mount=type=secret,target=/etc/passwd,required=true --mount=type=ssh true

FROM alpine AS second
RUN --mount=type=secret,id=unused --mount=type=ssh,id=ssh2 true

FROM scratch AS third
ARG BAR
RUN --mount=type=secret,id=second${BAR} true

FROM third AS target
COPY --from=first /foo /
RUN --mount=type=ssh,id=ssh3,required true

FROM second
"""


def test_arguments_of_the_target_and_of_all_it_needs() -> None:
    result = outline(parse(ARGUMENTS), platform=AMD64, target="target", build_args={"BAR": "678"})
    assert (result.name, result.description) == ("target", "defines build target")
    assert [(item.name, item.value, item.description, item.lines[0]) for item in result.arguments] == [
        ("inherited", "box", "", 2),
        ("sfx", "usybox", "is a suffix", 6),
        ("FOO", "123", "", 10),
        ("BAR", "678", "is a number", 12),
        ("ABC", "a", "", 20),
        ("password", "", "", 22),
        ("alternate_password", "", "will show up in the outline", 25),
    ]


def test_arguments_made_of_each_other() -> None:
    text = (
        "ARG FOO=123\nARG ABC=abc\nARG DEF=def\nARG FOO=${FOO}${ABC}\nARG BAR=${FOO}456\nARG FOO=${FOO}456${BAR}\nFROM scratch\n"
        "ARG FOO\nARG INFOO=123\nARG INBAR=${INFOO}456\nARG INFOO=${INFOO}456${INBAR}\n"
    )
    result = outline(parse(text), platform=AMD64)
    assert [(item.name, item.value) for item in result.arguments] == [
        ("ABC", "abc"),
        ("BAR", "123abc456"),
        ("FOO", "123abc456123abc456"),
        ("INBAR", "123456"),
        ("INFOO", "123456123456"),
    ]


def test_secrets_and_ssh_of_the_target_and_of_all_it_needs() -> None:
    result = outline(parse(MOUNTS), platform=AMD64, target="target", build_args={"BAR": "678"})
    assert [(item.name, item.required, item.lines[0]) for item in result.secrets] == [
        ("passwd", True, 3),
        ("second678", False, 10),
    ]
    assert [(item.name, item.required, item.lines[0]) for item in result.ssh] == [
        ("default", False, 3),
        ("ssh3", True, 14),
    ]


def test_the_outlines_json_leaves_out_what_is_empty() -> None:
    text = "ARG A=1\nFROM scratch${A:+}\nRUN --mount=type=secret,id=s x\n"
    document = json.loads(outline(parse(text), platform=AMD64).to_json())
    assert document == {
        "args": [{"name": "A", "value": "1", "location": {"ranges": [{"start": {"line": 1}, "end": {"line": 1}}]}}],
        "secrets": [{"name": "s", "location": {"ranges": [{"start": {"line": 3}, "end": {"line": 3}}]}}],
        "sources": [base64.b64encode(text.encode()).decode()],
    }


def test_the_outlines_text_is_the_one_buildx_prints() -> None:
    text = "# v is a version\nARG v=1\n# b builds\nFROM scratch AS b\nARG v\nRUN --mount=type=secret,id=key,required --mount=type=ssh x\n"
    assert outline(parse(text), platform=AMD64).to_text() == (
        "TARGET:      b\n"
        "DESCRIPTION: builds\n"
        "\n"
        "BUILD ARG   VALUE   DESCRIPTION\n"
        "v           1       is a version\n"
        "\n"
        "SECRET   REQUIRED\n"
        "key      true\n"
        "\n"
        "SSH       REQUIRED\n"
        "default   \n"
        "\n"
    )  # fmt: skip


def test_an_unknown_target_gets_a_suggestion() -> None:
    with pytest.raises(PybuildError, match=r"target stage .* could not be found \(did you mean base\?\)"):
        outline(parse("FROM scratch AS base\n"), platform=AMD64, target="bsae")


def test_targets_are_the_stages() -> None:
    text = "ARG i=alpine\n# build defines stage for compiling the binary\nFROM --platform=$BUILDPLATFORM $i AS Build\nFROM busybox as second\nFROM second\n"
    result = targets(parse(text))
    assert json.loads(result.to_json())["targets"] == [
        {
            "name": "build",
            "description": "defines stage for compiling the binary",
            "base": "$i",
            "platform": "$BUILDPLATFORM",
            "location": {"ranges": [{"start": {"line": 3}, "end": {"line": 3}}]},
        },
        {"name": "second", "base": "busybox", "location": {"ranges": [{"start": {"line": 4}, "end": {"line": 4}}]}},
        {"default": True, "base": "second", "location": {"ranges": [{"start": {"line": 5}, "end": {"line": 5}}]}},
    ]
    assert result.to_text() == (
        "TARGET    DESCRIPTION\n"
        "build     defines stage for compiling the binary\n"
        "second    \n"
        "(default) \n"
    )  # fmt: skip
    named = targets(parse("FROM scratch AS last\n"))
    assert named.to_text() == "TARGET         DESCRIPTION\nlast (default) \n"
