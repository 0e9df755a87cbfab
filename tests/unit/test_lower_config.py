"""What instructions leave in the configuration and the history."""

from __future__ import annotations

import pytest
from fakes.lowering import BUSYBOX, DEFAULT_IMAGES, Images, base_image, chain, created_by, lowered

from pybuild.builder.graph import (
    FileCopy,
    FileMake,
    ImageSource,
)
from pybuild.layers.descriptor import Platform
from pybuild.layers.image import ImageConfig
from pybuild.parser.errors import DockerfileError


def config(text: str, base: ImageConfig | None = None, **options: object) -> ImageConfig:
    images = Images(DEFAULT_IMAGES if base is None else {BUSYBOX: base})
    return lowered(f"FROM busybox\n{text}\n", images, **options).config


def entries(text: str, **options: object) -> list[str]:
    return created_by(lowered(f"FROM busybox\n{text}\n", **options))[1:]


def test_env_is_set_replaced_in_place_and_noted():
    base = base_image(env=("A=1", "PATH=/bin", "B=2"))
    assert config("ENV B=3 C=4", base).env == ("A=1", "PATH=/bin", "B=3", "C=4")
    assert entries("ENV A=\"x y\" B='$z'") == ["ENV A=x y B=$z"]


def test_env_sees_the_values_from_before_the_instruction():
    assert config("ENV abc=hello\nENV abc=bye def=$abc\nENV ghi=$abc").env[1:] == ("abc=bye", "def=hello", "ghi=bye")


def test_an_empty_value_differs_from_an_unset_one():
    assert config("ENV A=\nENV B=${A-unset} C=${A:-empty} D=${Z-unset}").env[1:] == ("A=", "B=", "C=empty", "D=unset")


def test_the_path_is_always_set():
    assert config("", base_image(env=("A=1",))).env[1].startswith("PATH=/usr/local/sbin:")


def test_labels_are_merged_and_the_client_s_win():
    base = base_image(labels={"a": "1", "b": "1"})
    assert config("LABEL b=2 c=2", base, labels={"c": "3", "d": "3"}).labels == {"a": "1", "b": "2", "c": "3", "d": "3"}
    assert entries('LABEL "a b"="c d" e=f') == ["LABEL a b=c d e=f"]
    assert entries("LABEL x=y", labels={"z": "1"}) == ["LABEL x=y"]


def test_cmd_and_entrypoint_in_both_forms():
    assert config('CMD ["a", "b"]').cmd == ("a", "b")
    assert config("CMD a  b").cmd == ("/bin/sh", "-c", "a  b")
    assert config('SHELL ["/bin/bash", "-o", "pipefail", "-c"]\nENTRYPOINT a b').entrypoint == (
        "/bin/bash", "-o", "pipefail", "-c", "a b",
    )  # fmt: skip
    assert entries('CMD ["a", "b c"]\nENTRYPOINT x') == ['CMD ["a" "b c"]', 'ENTRYPOINT ["/bin/sh" "-c" "x"]']
    assert config("CMD a").args_escaped


def test_an_entrypoint_drops_an_inherited_command_only():
    base = base_image(cmd=("old",), entrypoint=("e",))
    assert config('ENTRYPOINT ["x"]', base).cmd is None
    assert config('CMD ["new"]\nENTRYPOINT ["x"]', base).cmd == ("new",)
    assert config("LABEL a=b", base).cmd == ("old",)
    stage = 'FROM busybox AS a\nCMD ["c"]\nFROM a\nENTRYPOINT ["e"]\n'
    assert lowered(stage).config.cmd is None


def test_an_empty_list_unsets():
    base = base_image(cmd=("old",), entrypoint=("e",))
    assert config("CMD []", base).cmd is None
    assert config("ENTRYPOINT []", base).entrypoint is None


def test_shell_is_kept_in_the_configuration():
    image = config('SHELL ["/bin/bash", "-c"]')
    assert image.shell == ("/bin/bash", "-c")
    assert entries('SHELL ["/bin/bash", "-c"]') == ["SHELL [/bin/bash -c]"]


def test_user_workdir_and_variables_in_them():
    image = config("ARG U=me\nENV D=/data\nUSER $U:1000\nWORKDIR ${D}/x")
    assert (image.user, image.working_dir) == ("me:1000", "/data/x")
    assert entries("USER a") == ["USER a"]


def test_workdir_joins_and_keeps_its_trailing_slash():
    image = lowered("FROM busybox\nWORKDIR /a/\nWORKDIR b/../c\nWORKDIR /\nWORKDIR d\n")
    assert created_by(image)[1:] == ["WORKDIR /a/", "WORKDIR /a/c", "WORKDIR /", "WORKDIR /d"]
    assert [entry.empty_layer for entry in image.history[1:]] == [False, False, True, False]
    makes = [vertex.op.directory for vertex in chain(image) if isinstance(vertex.op, FileMake)]
    assert makes == ["/a", "/a/c", "/d"]


def test_workdir_is_made_by_the_current_user():
    image = lowered("FROM busybox\nUSER 1000\nWORKDIR /a\n")
    assert image.vertex.op == FileMake(directory="/a", user="1000")


def test_a_relative_workdir_of_the_base_is_made_absolute():
    assert config("WORKDIR x", base_image(working_dir="app")).working_dir == "/app/x"


def test_expose_sorts_expands_and_ranges():
    image = config("ENV P='80 8080'\nEXPOSE 9000-9001/udp $P", base_image(exposed_ports=("22/tcp",)))
    assert image.exposed_ports == ("22/tcp", "80/tcp", "8080/tcp", "9000/udp", "9001/udp")
    assert entries("EXPOSE 443 80/tcp 53/UDP") == ["EXPOSE [443/tcp 53/udp 80/tcp]"]


def test_volumes_accumulate():
    image = config('VOLUME /b /a\nVOLUME ["/c d"]', base_image(volumes=("/z",)))
    assert image.volumes == ("/a", "/b", "/c d", "/z")
    assert entries("VOLUME /b /a") == ["VOLUME [/b /a]"]


def test_stopsignal():
    assert config("ENV S=SIGINT\nSTOPSIGNAL $S").stop_signal == "SIGINT"
    assert entries("STOPSIGNAL 9") == ["STOPSIGNAL 9"]


def test_healthcheck_in_its_three_forms():
    shell = config("HEALTHCHECK --interval=5m --retries=3 CMD curl -f x || exit 1").healthcheck
    assert shell is not None
    assert shell.test == ("CMD-SHELL", "curl -f x || exit 1")
    assert (shell.interval_ns, shell.retries, shell.timeout_ns) == (300 * 10**9, 3, 0)
    assert config('HEALTHCHECK CMD ["a", "b"]').healthcheck.test == ("CMD", "a", "b")
    assert config("HEALTHCHECK NONE").healthcheck.test == ("NONE",)
    assert entries("HEALTHCHECK NONE") == [
        "HEALTHCHECK {Test:[NONE] Interval:0s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}"
    ]


def test_maintainer_is_the_author():
    assert config("MAINTAINER Some One <a@b>").author == "Some One <a@b>"
    assert entries("MAINTAINER x") == ["MAINTAINER x"]


def test_onbuild_is_kept_without_history():
    image = lowered("FROM busybox\nONBUILD RUN a\nONBUILD COPY . /x\n")
    assert image.config.on_build == ("RUN a", "COPY . /x")
    assert created_by(image) == ["layer 0"]


def test_the_base_s_history_comes_first_and_new_entries_have_no_time():
    image = lowered("FROM alpine\nRUN a\nLABEL x=y\n")
    assert [entry.created is None for entry in image.history] == [False, False, True, True]
    assert [entry.empty_layer for entry in image.history] == [False, False, False, True]
    assert image.history[2].created_by == "RUN /bin/sh -c a # buildkit"
    assert {entry.comment for entry in image.history[2:]} == {"buildkit.dockerfile.v0"}


def test_each_layer_has_exactly_one_entry():
    text = "FROM busybox\nRUN a\nENV b=c\nCOPY d /e\nADD f /g\nWORKDIR /h\nWORKDIR /\nCOPY <<I /j\nx\nI\nARG k\nCMD l\n"
    image = lowered(text)
    made = [vertex for vertex in chain(image) if not isinstance(vertex.op, ImageSource)]
    assert sum(not entry.empty_layer for entry in image.history) == 1 + len(made)


def test_what_only_the_base_s_builder_knew_is_dropped():
    base = base_image(extra={"docker_version": "1", "id": "x"}, extra_config={"Hostname": "h"}, author="a")
    image = config("LABEL a=b", base)
    assert (image.extra, image.extra_config, image.created, image.diff_ids, image.history) == ({}, {}, None, (), ())
    assert image.author == "a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ENV E=\nVOLUME $E", "VOLUME specified can not be an empty string"),
        ("ENV S=NOPE\nSTOPSIGNAL $S", "invalid signal: NOPE"),
        ("ENV P=x\nEXPOSE $P", "invalid containerPort: x"),
        ("ENV A=${B:?missing}", "B: missing"),
    ],
)
def test_wrong_values_are_refused_with_their_line(text, message):
    with pytest.raises(DockerfileError) as caught:
        config(text)
    assert message in str(caught.value)
    assert caught.value.lines == ((3, 3) if "\n" in text else (2, 2))


def test_an_undefined_variable_is_warned_about_once_with_a_suggestion():
    image = lowered("FROM busybox\nENV FOO=1\nLABEL a=$FO b=$FO\nARG X\nLABEL c=$X\n")
    (warning,) = image.warnings
    assert (warning.rule, warning.lines) == ("UndefinedVar", (3, 3))
    assert warning.message == "Usage of undefined variable '$FO' (did you mean $FOO?)"


def test_windows_has_its_own_shell_and_no_default_path():
    windows = Platform("windows", "amd64")
    image = lowered("FROM scratch\nENTRYPOINT foo bar\nCOPY Dockerfile .\n", platform=windows, implicit_platform=False)
    assert image.config.entrypoint == ("cmd", "/S", "/C", "foo bar")
    assert image.config.env == ()
    assert isinstance(image.vertex.op, FileCopy)
    assert image.vertex.op.destination == "/"


def test_windows_paths_lose_their_drive():
    text = "# escape=`\nFROM scratch\nWORKDIR C:\\app\nWORKDIR sub\\dir\nCOPY a C:\\other\\\nCOPY a b\\c\n"
    image = lowered(text, platform=Platform("windows", "amd64"))
    assert image.config.working_dir == "\\app\\sub\\dir"
    assert created_by(image)[:2] == ["WORKDIR /app", "WORKDIR /app/sub/dir"]
    assert [vertex.op.destination for vertex in chain(image)[-2:]] == ["/other/", "/app/sub/dir/b/c"]


def test_a_check_can_be_turned_off():
    def wanted(rule: str, instruction: object) -> bool:
        return rule != "UndefinedVar"

    assert lowered("FROM busybox\nLABEL a=$NOPE\n", wanted_check=wanted).warnings == ()


def test_a_global_argument_that_a_stage_forgot_gets_its_remedy():
    (warning,) = lowered("ARG VERSION=1\nFROM busybox\nRUN x\nLABEL v=$VERSION\n").warnings
    assert warning.detail == "ARG VERSION on line 1 is global; add `ARG VERSION` to this stage before line 4"
