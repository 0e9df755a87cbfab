"""ONBUILD triggers, seen from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, build_files, build_image, refused

pytestmark = pytest.mark.integration


def test_triggers_run_once_and_are_cleared_in_the_child(pybuild: Command, tmp_path: Path, registry: str):
    base, child = (f"{registry}/conformance/onbuild:{tag}" for tag in ("base", "child"))
    push = "--output=type=image,push=true,name="
    pybuild.build("FROM busybox\nONBUILD RUN mkdir -p /out && echo -n 11 >> /out/foo\n", tmp_path / "b", push + base)
    pybuild.build(f"FROM {base}\n", tmp_path / "c", push + child)
    out = build_files(pybuild, f"FROM {child} AS base\nFROM scratch\nCOPY --from=base /out /\n", tmp_path / "d")
    assert (out / "foo").read_text() == "11"
    image = build_image(pybuild, f"FROM {base}\n", tmp_path / "c")
    assert not image.config.get("OnBuild")
    assert image.history[-1] == "RUN /bin/sh -c mkdir -p /out && echo -n 11 >> /out/foo # buildkit"
    assert "ONBUILD" not in "".join(image.history)


def test_triggers_do_not_run_again_for_stages_built_on_the_child(pybuild: Command, tmp_path: Path):
    pybuild.build(
        "FROM busybox\nONBUILD RUN mkdir -p /out && echo -n yes >> /out/didrun\n", tmp_path / "b", "-t", "onb"
    )
    out = build_files(
        pybuild,
        """
FROM onb AS base
RUN [ -f /out/didrun ] && touch /step1
RUN rm /out/didrun
RUN [ ! -f /out/didrun ] && touch /step2
FROM base AS child
RUN [ ! -f /out/didrun ] && touch /step3
FROM scratch
COPY --from=child /step* /
""",
        tmp_path / "c",
    )
    assert sorted(item.name for item in out.iterdir()) == ["step1", "step2", "step3"]


def test_triggers_of_a_layout_given_as_context_use_stages_of_the_child(pybuild: Command, tmp_path: Path):
    layout = tmp_path / "layout"
    pybuild.build(
        "FROM busybox:latest\nONBUILD COPY --from=otherstage /testfile /out/foo\n",
        tmp_path / "b",
        f"--output=type=oci,dest={layout},tar=false",
    )
    digest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    out = build_files(
        pybuild,
        """
FROM busybox AS otherstage
RUN echo -n "hello" > /testfile
FROM base AS inputstage
FROM scratch
COPY --from=inputstage /out/foo /bar
""",
        tmp_path / "c",
        f"--build-context=base=oci-layout://{layout}@{digest}",
    )
    assert (out / "bar").read_text() == "hello"


def test_triggers_of_a_stage_hold_for_the_stages_on_it(pybuild: Command, tmp_path: Path):
    out = build_files(
        pybuild,
        """
FROM busybox AS src
RUN mkdir -p /in && echo -n 12 > /in/file
FROM busybox AS base
ONBUILD RUN mkdir -p /out && echo -n 11 >> /out/foo
ONBUILD COPY --from=src /in/file /out/file
FROM base AS mid
RUN cp /out/foo /out/bar && cp /out/file /out/baz
FROM scratch
COPY --from=mid /out/ba* /
""",
        tmp_path / "c",
    )
    assert {item.name: item.read_text() for item in out.iterdir()} == {"bar": "11", "baz": "12"}


def test_triggers_bring_images_stages_and_mounts_of_their_own(pybuild: Command, tmp_path: Path, registry: str):
    release, first, second = (f"{registry}/conformance/deps:{tag}" for tag in ("release", "one", "two"))
    push = "--output=type=image,push=true,name="
    pybuild.build("FROM scratch\nCOPY <<E /etc/release\nrelease 3.4.5\nE\n", tmp_path / "r", push + release)
    pybuild.build(f"FROM busybox\nONBUILD COPY --from={release} /etc/release /out/r2\n", tmp_path / "a", push + first)
    out = build_files(
        pybuild,
        f"FROM {first} AS base\nRUN cat /out/r2 > /out/r3\nFROM scratch\nCOPY --from=base /out /\n",
        tmp_path / "c",
    )
    assert (out / "r3").read_text() == "release 3.4.5\n"
    pybuild.build(
        "FROM busybox\nONBUILD RUN --mount=type=bind,target=/in,from=inputstage "
        "mkdir /out && cat /in/foo > /out/bar && cat /in/out/r2 > /out/bar2\n",
        tmp_path / "b",
        push + second,
    )
    out = build_files(
        pybuild,
        f"""
FROM {first} AS inputstage
RUN cat /out/r2 > /out/r4
RUN echo -n foo > /foo
FROM {second} AS base
RUN echo -n bar3 > /out/bar3
FROM scratch
COPY --from=base /out /
""",
        tmp_path / "d",
    )
    assert {item.name: item.read_text() for item in out.iterdir()} == {
        "bar": "foo",
        "bar2": "release 3.4.5\n",
        "bar3": "bar3",
    }


def test_triggers_may_use_cache_mounts(pybuild: Command, tmp_path: Path):
    pybuild.build(
        "FROM busybox\nONBUILD RUN --mount=type=cache,target=/cache echo -n 42 >> /cache/foo && echo -n 11 >> /bar\n",
        tmp_path / "b",
        "-t",
        "onc",
    )
    pybuild.build(
        'FROM onc\nRUN --mount=type=cache,target=/cache [ "$(cat /cache/foo)" = "42" ] && [ "$(cat /bar)" = "11" ]\n',
        tmp_path / "c",
    )


def test_what_may_not_be_a_trigger(pybuild: Command, tmp_path: Path):
    for text, expected in (
        ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
        ("ONBUILD MAINTAINER x", "MAINTAINER isn't allowed as an ONBUILD trigger"),
    ):
        assert expected in refused(pybuild, f"FROM scratch\n{text}\n", tmp_path / "c")
