"""Build arguments and their scopes."""

from __future__ import annotations

import pytest
from fakes.lowering import AMD64, chain, created_by, last_run, lowered, variables

from pybuild.builder.graph import (
    Exec,
)
from pybuild.layers.descriptor import Platform
from pybuild.parser.errors import DockerfileError

PREDEFINED = ("TARGETPLATFORM", "TARGETOS", "TARGETARCH", "BUILDPLATFORM", "TARGETSTAGE")


def test_global_arguments_reach_from_with_defaults_and_overrides():
    text = 'ARG a1="foo bar" a2=box\nARG a3="$a2-foo"\nFROM busy$a2 AS build\nARG a3 a4="123 456" a1\nRUN x\n'
    values = variables(lowered(text))
    assert (values["a1"], values["a3"], values["a4"]) == ("foo bar", "box-foo", "123 456")
    with pytest.raises(DockerfileError, match=r"busyx: failed to resolve source metadata for .*: not found"):
        lowered(text, build_args={"a2": "x"})


def test_a_global_argument_must_be_declared_again_in_a_stage():
    text = "ARG A=1\nFROM busybox\nRUN x\nARG A\nRUN y\n"
    image = lowered(text)
    first, second = (vertex.op for vertex in chain(image) if isinstance(vertex.op, Exec))
    assert "A" not in dict(first.env)
    assert dict(second.env)["A"] == "1"


def test_a_default_in_the_stage_beats_the_global_one_and_a_build_argument_beats_both():
    text = "ARG A=global\nFROM busybox\nARG A=stage\nRUN x\n"
    assert variables(lowered(text))["A"] == "stage"
    assert variables(lowered(text, build_args={"A": "given"}))["A"] == "given"
    assert variables(lowered(text, build_args={"A": ""}))["A"] == ""


def test_an_argument_without_a_value_is_not_set():
    image = lowered("FROM busybox\nARG A\nRUN x\n")
    assert "A" not in variables(image)
    assert created_by(image)[-2:] == ["ARG A", "RUN |1 A= /bin/sh -c x # buildkit"]


def test_env_and_arg_of_one_name():
    assert variables(lowered("FROM busybox\nARG A=arg\nENV A=env\nRUN x\n"))["A"] == "env"
    inherited = "FROM busybox AS base\nENV A=env\nARG A=arg\nFROM base\nRUN x\n"
    assert variables(lowered(inherited, build_args={"A": "given"}))["A"] == "env"


def test_an_argument_s_default_sees_what_was_declared_before():
    text = "FROM busybox\nENV V=v1\nARG A=${V}-a B=${A}-b\nRUN x\n"
    assert variables(lowered(text))["B"] == "v1-a-b"


def test_a_required_argument_is_named_when_missing():
    text = 'FROM busybox\nARG FOO\nARG BAR=${FOO:?"foo missing"}\n'
    with pytest.raises(DockerfileError, match="FOO: foo missing") as caught:
        lowered(text)
    assert caught.value.lines == (3, 3)
    lowered(text, build_args={"FOO": "123"})
    lowered(text, build_args={"BAR": "123"})


def test_a_required_global_argument_is_named_when_missing():
    text = 'ARG FOO=${FOO:?"custom error"}\nFROM busybox\n'
    with pytest.raises(DockerfileError, match="FOO: custom error"):
        lowered(text)
    lowered(text, build_args={"FOO": "bar"})


def test_modifiers_work_in_from():
    lowered("ARG V=busybox-1.2\nFROM ${V%-*}\n")
    lowered("ARG V=x/busybox\nFROM ${V##*/}\n")
    lowered("ARG V=busyfox\nFROM ${V/f/b}\n")
    with pytest.raises(DockerfileError, match="BASE: missing"):
        lowered("ARG BASE\nFROM ${BASE:?missing}\n")


def test_history_keeps_every_arg_line_and_runs_list_each_argument_once():
    text = "FROM busybox\nARG foo=bar\nARG bar=123\nARG foo=bar2\nRUN ls /etc/\n"
    assert created_by(lowered(text))[1:] == [
        "ARG foo=bar",
        "ARG bar=123",
        "ARG foo=bar2",
        "RUN |2 foo=bar2 bar=123 /bin/sh -c ls /etc/ # buildkit",
    ]


def test_platform_arguments_need_a_declaration():
    text = "FROM busybox\nARG TARGETPLATFORM TARGETOS TARGETARCH TARGETVARIANT BUILDPLATFORM BUILDARCH\nRUN x\n"
    values = variables(lowered(text, platform=Platform("linux", "arm", "v7"), build_platform=AMD64))
    assert values["TARGETPLATFORM"] == "linux/arm/v7"
    assert (values["TARGETOS"], values["TARGETARCH"], values["TARGETVARIANT"]) == ("linux", "arm", "v7")
    assert (values["BUILDPLATFORM"], values["BUILDARCH"]) == ("linux/amd64", "amd64")
    assert not set(PREDEFINED) & set(variables(lowered("FROM busybox\nRUN x\n")))


def test_a_build_argument_overrides_a_predefined_one():
    text = "FROM busybox\nARG TARGETARCH\nRUN x\n"
    assert variables(lowered(text, build_args={"TARGETARCH": "z80"}))["TARGETARCH"] == "z80"


def test_targetstage_is_the_target_s_name():
    text = "FROM busybox AS base\nARG TARGETSTAGE\nRUN x\nFROM base AS foo\nRUN y\nFROM base\nRUN z\n"
    assert variables(lowered(text, target="foo"))["TARGETSTAGE"] == "foo"
    assert variables(lowered(text))["TARGETSTAGE"] == "default"
    assert variables(lowered(text + "FROM base AS final\nRUN w\n"))["TARGETSTAGE"] == "final"


def test_proxies_reach_run_hidden_and_in_both_spellings():
    image = lowered("FROM busybox\nRUN x\n", build_args={"HTTP_PROXY": "http://p"}, proxies={"no_proxy": "local"})
    run = last_run(image)
    assert run.hidden_env == (
        ("HTTP_PROXY", "http://p"),
        ("http_proxy", "http://p"),
        ("NO_PROXY", "local"),
        ("no_proxy", "local"),
    )
    assert "HTTP_PROXY" not in dict(run.env)
    assert created_by(image)[-1] == "RUN /bin/sh -c x # buildkit"
    assert image.unused_build_args == ()


def test_a_declared_proxy_is_an_ordinary_argument_too():
    image = lowered("FROM busybox\nARG HTTP_PROXY\nRUN x\n", build_args={"HTTP_PROXY": "http://p"})
    assert variables(image)["HTTP_PROXY"] == "http://p"
    assert created_by(image)[-1] == "RUN |1 HTTP_PROXY=http://p /bin/sh -c x # buildkit"


def test_the_lower_case_proxy_and_the_build_argument_win():
    given = {"ALL_PROXY": "upper", "all_proxy": "lower"}
    image = lowered("FROM busybox\nRUN x\n", build_args=given, proxies={"all_proxy": "client"})
    assert last_run(image).hidden_env == (("ALL_PROXY", "lower"), ("all_proxy", "lower"))


def test_unused_build_arguments_are_listed():
    text = "ARG G\nFROM busybox AS other\nARG O\nFROM busybox\nARG A\nONBUILD ARG T\n"
    given = dict.fromkeys(("G", "O", "A", "T", "X", "B", "BUILDKIT_INLINE_CACHE", "SOURCE_DATE_EPOCH", "TARGETOS"), "1")
    image = lowered(text, build_args=given)
    assert image.unused_build_args == ("B", "X")


def test_control_arguments_set_hostname_and_cache_namespace():
    text = "FROM busybox\nRUN --mount=type=cache,target=/c x\n"
    run = last_run(lowered(text, build_args={"BUILDKIT_SANDBOX_HOSTNAME": "h", "BUILDKIT_CACHE_MOUNT_NS": "n"}))
    assert run.hostname == "h"
    assert run.mounts[0].id == "n//c"
    assert last_run(lowered(text)).hostname == "buildkitsandbox"
    assert last_run(lowered(text, hostname="other")).hostname == "other"


def test_scan_arguments_reach_no_process():
    text = "FROM busybox AS a\nARG BUILDKIT_SBOM_SCAN_STAGE=true\nRUN x\nFROM busybox\nARG BUILDKIT_SBOM_SCAN_CONTEXT=1\nCOPY --from=a / /\n"
    image = lowered(text)
    assert image.scan.context
    assert [name for name, _ in image.scan.stages] == ["a"]
    run = image.scan.stages[0][1].op
    assert isinstance(run, Exec)
    assert "BUILDKIT_SBOM_SCAN_STAGE" not in dict(run.env)


def test_undeclared_arguments_in_from_are_warned_about():
    (warning,) = lowered("ARG VERSION=1\nFROM busybox${VERSIN}\n").warnings
    assert (warning.rule, warning.lines) == ("UndefinedArgInFrom", (2, 2))
    assert warning.message == "FROM argument 'VERSIN' is not declared (did you mean VERSION?)"


def test_later_variables_come_last_in_the_environment():
    image = lowered("FROM busybox\nENV A=1\nARG B=2\nENV A=3\nRUN x\n")
    assert last_run(image).env == (("PATH", "/bin"), ("B", "2"), ("A", "3"))
