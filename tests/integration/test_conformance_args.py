"""Arguments and environment, seen from the command line: where values come from, who sees them, what they change."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, build_files, build_image, refused, write_files

pytestmark = pytest.mark.integration


def test_a_global_argument_takes_part_in_from_and_a_build_argument_beats_its_default(pybuild: Command, tmp_path: Path):
    text = "\nARG tag=nosuchtag\nFROM busybox:${tag}\n"
    pybuild.build(text, tmp_path / "c", "--build-arg", "tag=latest")
    assert "nosuchtag" in refused(pybuild, text, tmp_path / "c")


def test_a_required_argument_that_is_missing_stops_the_build_with_its_message(pybuild: Command, tmp_path: Path):
    first = '\nARG FOO=${FOO:?"custom error"}\nFROM busybox\n'
    assert "FOO: custom error" in refused(pybuild, first, tmp_path / "c")
    pybuild.build(first, tmp_path / "c", "--build-arg=FOO=bar")
    in_stage = '\nFROM scratch\nARG FOO\nARG BAR=${FOO:?"foo missing"}\n'
    error = refused(pybuild, in_stage, tmp_path / "c")
    assert "FOO: foo missing" in error
    assert ">>> ARG BAR" in error
    pybuild.build(in_stage, tmp_path / "c", "--build-arg=FOO=123")
    pybuild.build(in_stage, tmp_path / "c", "--build-arg=BAR=123")


def test_several_arguments_on_a_line_build_on_each_other_and_enter_stages_by_name(pybuild: Command, tmp_path: Path):
    out = build_files(
        pybuild,
        """
ARG a1="foo bar" a2=box
ARG a3="$a2-foo"
FROM busy$a2 AS build
ARG a3 a4="123 456" a1
RUN echo -n "$a1:$a3:$a4" > /out
FROM busy$a2 AS other
ARG a3
ARG a5="bar-$a3"
RUN echo -n $a5 > /out2; echo -n "[$a1]" >> /out2
FROM scratch
COPY --from=build /out .
COPY --from=other /out2 .
""",
        tmp_path / "c",
    )
    assert (out / "out").read_text() == "foo bar:box-foo:123 456"
    assert (out / "out2").read_text() == "bar-box-foo[]"


def test_the_target_stage_is_an_argument_once_it_is_declared(pybuild: Command, tmp_path: Path):
    text = """
FROM busybox AS base
WORKDIR /out
RUN echo -n "value:$TARGETSTAGE" > /out/first
ARG TARGETSTAGE
RUN echo -n "value:$TARGETSTAGE" > /out/second
FROM scratch AS foo
COPY --from=base /out/ /
FROM scratch
COPY --from=base /out/ /
"""
    for arguments, extra, expected in (
        (["--target=foo"], "", "foo"),
        ([], "", "default"),
        ([], "\nFROM scratch AS final\nCOPY --from=base /out/ /\n", "final"),
    ):
        out = build_files(pybuild, text + extra, tmp_path / "c", *arguments)
        assert (out / "first").read_text() == "value:"
        assert (out / "second").read_text() == f"value:{expected}"


def test_proxies_reach_steps_but_do_not_make_them_run_again(pybuild: Command, tmp_path: Path):
    text = """
FROM busybox AS build
ARG FOO
ARG BAR
ARG BAZ=bazcontent
RUN echo -n $HTTP_PROXY::$NO_PROXY::$FOO::$BAR::$BAZ > /out
FROM scratch
COPY --from=build /out /
"""
    for arguments, expected in (
        (["FOO=foocontents", "http_proxy=hpvalue", "NO_PROXY=npvalue"], "hpvalue::npvalue::foocontents::::bazcontent"),
        (["FOO=foocontents", "http_proxy=hpvalue2"], "hpvalue::npvalue::foocontents::::bazcontent"),
        (["FOO=foocontents2", "http_proxy=hpvalue2"], "hpvalue2::::foocontents2::::bazcontent"),
    ):
        flags = [f"--build-arg={item}" for item in arguments]
        assert (build_files(pybuild, text, tmp_path / "c", *flags) / "out").read_text() == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "my_arg=def_val my_arg=def_val my_arg=d"),
        (["--build-arg=my_arg="], "my_arg=def_val my_arg=def_val my_arg=d"),
        (["--build-arg=my_arg=override"], "my_arg=override my_arg=override my_arg=ov"),
    ],
)
def test_environment_made_of_arguments_with_defaults_and_trims(
    pybuild: Command, tmp_path: Path, flags: list[str], expected: str
):
    context = write_files(tmp_path / "c", {"my.sh": "\n#!/usr/bin/env sh\necho -n $my_arg $* > /out\n"}, mode=0o700)
    out = build_files(
        pybuild,
        """
ARG image=idlebox
FROM busy${image#idle} AS build
ARG my_arg
ENV my_arg "my_arg=${my_arg:-def_val}"
ENV my_trimmed_arg "${my_arg%%e*}"
COPY my.sh my.sh
RUN ./my.sh $my_arg $my_trimmed_arg
FROM scratch
COPY --from=build /out /out
""",
        context,
        *flags,
    )
    assert (out / "out").read_text() == expected


def test_an_empty_argument_is_in_the_environment_and_an_unset_one_is_not(pybuild: Command, tmp_path: Path):
    out = build_files(
        pybuild,
        """
FROM busybox AS build
ARG FOO
ARG BAR=
ENV EMPTY=
ENV myenv foo%sbar
RUN env > env.txt && [ "$myenv" = 'foo%sbar' ]
FROM scratch
COPY --from=build env.txt .
""",
        tmp_path / "c",
    )
    lines = (out / "env.txt").read_text().splitlines()
    assert {"BAR=", "EMPTY=", "myenv=foo%sbar"} <= set(lines)
    assert not [line for line in lines if line.startswith("FOO")]


def test_within_one_instruction_variables_have_the_values_from_before_it(pybuild: Command, tmp_path: Path):
    image = build_image(
        pybuild,
        """
FROM scratch
ENV abc=hello
ENV abc=bye def=$abc
ENV ghi=$abc
LABEL a=${abc/b/d} b="x${unset-y}" c='$abc' d=\\$abc
ARG abc=argument
ENV wins=$abc
STOPSIGNAL ${sig:-SIGINT}
USER ${who:-1}:2
""",
        tmp_path / "c",
    )
    assert image.config["Env"][1:] == ["abc=bye", "def=hello", "ghi=bye", "wins=argument"]
    assert image.config["Labels"] == {"a": "dye", "b": "xy", "c": "$abc", "d": "$abc"}
    assert (image.config["StopSignal"], image.config["User"]) == ("SIGINT", "1:2")


def test_expose_reads_ports_from_arguments(pybuild: Command, tmp_path: Path):
    image = build_image(
        pybuild, '\nFROM scratch\nARG PORTS="3000 4000/udp"\nEXPOSE $PORTS\nEXPOSE 5000\n', tmp_path / "c"
    )
    assert sorted(image.config["ExposedPorts"]) == ["3000/tcp", "4000/udp", "5000/tcp"]
