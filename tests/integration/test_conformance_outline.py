"""--call=outline, targets and subrequests.describe, seen from the command line."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, write_files

pytestmark = pytest.mark.integration


def called(pybuild: Command, tmp_path: Path, call: str, dockerfile: str, *arguments: str) -> Any:
    context = write_files(tmp_path / "c", {"Dockerfile": dockerfile})
    document = json.loads(pybuild.run("build", f"--call={call},format=json", *arguments, str(context)).stdout)
    if isinstance(document, dict):
        assert [base64.b64decode(source).decode() for source in document["sources"]] == [dockerfile]
    return document


def line(item: dict[str, Any]) -> int:
    found = item["location"]["ranges"][0]["start"]["line"]
    assert isinstance(found, int)
    return found


def test_an_outline_has_the_arguments_that_the_target_takes(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = """
ARG inherited=box
ARG inherited2=box2
ARG unused=abc${inherited2}
# sfx is a suffix
ARG sfx="usy${inherited}"

FROM b${sfx} AS first
# this says nothing
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
# alternate_password is told
# check=skip=all
ARG alternate_password

# target defines build target
FROM third AS target
COPY --from=first /etc/passwd /

FROM second
"""
    outline = called(pybuild, tmp_path, "outline", dockerfile, "--target=target", "--build-arg=BAR=678")
    assert (outline["name"], outline["description"]) == ("target", "defines build target")
    assert [(a["name"], a.get("value", ""), a.get("description", ""), line(a)) for a in outline["args"]] == [
        ("inherited", "box", "", 2),
        ("sfx", "usybox", "is a suffix", 6),
        ("FOO", "123", "", 10),
        ("BAR", "678", "is a number", 12),
        ("ABC", "a", "", 20),
        ("password", "", "", 22),
        ("alternate_password", "", "is told", 25),
    ]
    text = pybuild.run("build", "--call=outline", "--target=target", str(tmp_path / "c")).stdout
    assert text.startswith("TARGET:      target\nDESCRIPTION: defines build target\n\nBUILD ARG ")


def test_an_outline_has_the_secrets_and_agents_that_the_target_needs(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = """
FROM busybox AS first
RUN --mount=type=secret,target=/etc/passwd,required=true --mount=type=ssh true

FROM busybox AS second
RUN --mount=type=secret,id=unused --mount=type=ssh,id=ssh2 true

FROM scratch AS third
ARG BAR
RUN --mount=type=secret,id=second${BAR} true

FROM third AS target
COPY --from=first /foo /
RUN --mount=type=ssh,id=ssh3,required true

FROM second
"""
    outline = called(pybuild, tmp_path, "outline", dockerfile, "--target=target", "--build-arg=BAR=678")
    found = [(s["name"], s.get("required", False), line(s)) for s in outline["secrets"]]
    assert found == [("passwd", True, 3), ("second678", False, 10)]
    found = [(s["name"], s.get("required", False), line(s)) for s in outline["ssh"]]
    assert found == [("default", False, 3), ("ssh3", True, 14)]


def test_an_outline_has_the_last_values_of_arguments(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = """
ARG FOO=123
ARG ABC=abc
ARG DEF=def
ARG FOO=${FOO}${ABC}
ARG BAR=${FOO}456
ARG FOO=${FOO}456${BAR}
FROM scratch
ARG FOO
ARG INFOO=123
ARG INBAR=${INFOO}456
ARG INFOO=${INFOO}456${INBAR}
"""
    outline = called(pybuild, tmp_path, "outline", dockerfile)
    assert [(argument["name"], argument["value"]) for argument in outline["args"]] == [
        ("ABC", "abc"),
        ("BAR", "123abc456"),
        ("FOO", "123abc456123abc456"),
        ("INBAR", "123456"),
        ("INFOO", "123456123456"),
    ]


def test_targets_are_listed_with_their_bases(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = """
# build defines stage for compiling the binary
FROM alpine AS build
RUN true

FROM busybox as second
RUN false

FROM alpine
RUN false

# binary returns the compiled binary
FROM second AS binary
"""
    listed = called(pybuild, tmp_path, "targets", dockerfile)
    assert [
        (t.get("name", ""), t["base"], t.get("description", ""), t.get("default", False), line(t))
        for t in listed["targets"]
    ] == [
        ("build", "alpine", "defines stage for compiling the binary", False, 3),
        ("second", "busybox", "", False, 6),
        ("", "alpine", "", False, 9),
        ("binary", "second", "returns the compiled binary", True, 13),
    ]
    text = pybuild.run("build", "--call=targets", str(tmp_path / "c")).stdout
    assert [row.split()[0] for row in text.splitlines() if row.strip()][:3] == ["TARGET", "build", "second"]


def test_what_can_be_called_is_described(pybuild: Command, tmp_path: Path) -> None:
    described = called(pybuild, tmp_path, "subrequests.describe", "FROM scratch\nCOPY Dockerfile Dockerfile\n")
    names = {request["name"]: (request["type"], request["version"]) for request in described}
    assert names["frontend.outline"] == names["frontend.targets"] == ("rpc", "1.0.0")
    text = pybuild.run("build", "--call=subrequests.describe", str(tmp_path / "c")).stdout
    assert text.splitlines()[1].split()[:2] == ["outline", "1.0.0"]
    bad = pybuild.run("build", "--call=nothing", str(tmp_path / "c"), check=False)
    assert "nothing" in bad.stderr.splitlines()[-1]
