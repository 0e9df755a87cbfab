"""The build checks: each rule's finding, its exceptions, switching rules off, the reports."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.builder.check_report import error_text, result_json, warnings_text
from pybuild.builder.check_rules import RULES, CheckSettings, InvalidCheckOptions
from pybuild.builder.checks import (
    CheckOptions,
    CheckResult,
    check,
    check_file,
    findings_before,
    findings_of_build,
)
from pybuild.layers.descriptor import Platform
from pybuild.layers.digest import Digest
from pybuild.layers.image import ImageConfig
from pybuild.parser.dockerignore import IgnoreMatcher
from pybuild.parser.errors import DockerfileSyntaxError
from pybuild.parser.parse import parse

AMD64 = Platform(os="linux", architecture="amd64")
ARM64 = Platform(os="linux", architecture="arm64")


def known_base(name: str, platform: Platform) -> ImageConfig:
    return ImageConfig(platform=platform, env=("PATH=/bin", "BASE=1"), diff_ids=(Digest.of(b"layer"),))


def checked(text: str, *, ignore: str | None = None, **options: Any) -> CheckResult:
    matcher = None if ignore is None else IgnoreMatcher.from_text(ignore)
    base = {"platform": AMD64, "base_config": known_base, **options}
    return check_file(text, filename="Dockerfile", options=CheckOptions(ignore=matcher, **base))


def found(text: str, **options: Any) -> list[tuple[str, int, str]]:
    """Rule, line and message of each finding, sorted by line; the checks must come to an end."""
    result = checked(text, **options)
    assert result.error is None, result.error
    return sorted(
        ((w.rule, w.lines[0] if w.lines else 0, w.message) for w in result.warnings),
        key=lambda item: (item[1], item[2]),
    )


CASES: dict[str, tuple[str, list[tuple[str, int, str]]]] = {
    "stage name in capitals": (
        "\nFROM scratch AS BadStageName\nFROM scratch as base2\nFROM scratch AS base3\n",
        [
            ("StageNameCasing", 2, "Stage name 'BadStageName' should be lowercase"),
            ("FromAsCasing", 3, "'as' and 'FROM' keywords' casing do not match"),
        ],
    ),
    "AS after from": (
        "from scratch AS base\n\nfrom scratch as base2\n",
        [("FromAsCasing", 1, "'AS' and 'from' keywords' casing do not match")],
    ),
    "empty continuation": (
        "FROM scratch\nCOPY Dockerfile \\\n\n.\nCOPY Dockerfile \\\n.\n",
        [("NoEmptyContinuation", 4, "Empty continuation line")],
    ),
    "mixed case": (
        "From scratch as base\nFROM scratch AS base2\n",
        [
            (
                "ConsistentInstructionCasing",
                1,
                "Command 'From' should match the case of the command majority (uppercase)",
            )
        ],
    ),
    "lower case among capitals": (
        "FROM scratch\ncopy Dockerfile /foo\nCOPY Dockerfile /bar\n",
        [
            (
                "ConsistentInstructionCasing",
                2,
                "Command 'copy' should match the case of the command majority (uppercase)",
            )
        ],
    ),
    "mixed case among small letters": (
        "frOM scratch as base\nfrom scratch as base2\n",
        [
            (
                "ConsistentInstructionCasing",
                1,
                "Command 'frOM' should match the case of the command majority (lowercase)",
            )
        ],
    ),
    "capitals among small letters": (
        "FROM scratch\ncopy Dockerfile /foo\ncopy Dockerfile /bar\n",
        [
            (
                "ConsistentInstructionCasing",
                1,
                "Command 'FROM' should match the case of the command majority (lowercase)",
            )
        ],
    ),
    "small letters throughout": ("from scratch\ncopy Dockerfile /foo\n", []),
    "a heredoc's body is no instruction": ("FROM alpine\nRUN <<'EOT'\nenv\nEOT\n", []),
    "duplicate names": (
        "FROM scratch AS b\nFROM scratch AS b\n",
        [("DuplicateStageName", 2, 'Duplicate stage name "b", stage names should be unique')],
    ),
    "reserved names": (
        "FROM scratch AS scratch\nFROM scratch AS context\n",
        [
            ("ReservedStageName", 1, 'Stage name should not use the same name as reserved stage "scratch"'),
            ("ReservedStageName", 2, 'Stage name should not use the same name as reserved stage "context"'),
        ],
    ),
    "reserved names as bases are fine": ("FROM scratch\nFROM scratch AS a\n", []),
    "shell forms": (
        "FROM scratch\nCMD mycommand\nENTRYPOINT mycommand\n",
        [
            (
                "JSONArgsRecommended",
                2,
                "JSON arguments recommended for CMD to prevent unintended behavior related to OS signals",
            ),
            (
                "JSONArgsRecommended",
                3,
                "JSON arguments recommended for ENTRYPOINT to prevent unintended behavior related to OS signals",
            ),
        ],
    ),
    "a SHELL of one's own wants shell forms": ('FROM scratch\nSHELL ["/my/shell"]\nCMD x\nENTRYPOINT y\n', []),
    "an inherited SHELL too": ('FROM scratch AS base\nSHELL ["/my/shell"]\nFROM base\nCMD x\n', []),
    "maintainer": (
        "FROM scratch\nMAINTAINER me@example.org\n",
        [("MaintainerDeprecated", 2, "Maintainer instruction is deprecated in favor of using label")],
    ),
    "declared arguments in FROM": ("ARG base=scratch\nFROM $base\nCOPY f .\n", []),
    "platform arguments are declared": ("FROM --platform=$BUILDPLATFORM scratch\n", []),
    "an argument without a value is declared": ("ARG DEBUG\nFROM scratch${DEBUG}\n", []),
    "a default for nothing": ("ARG DEBUG\nFROM scra${DEBUG:-tch}\n", []),
    "an undeclared argument": (
        "ARG tag=latest\nFROM busybox:${tag}${version} AS b\n",
        [("UndefinedArgInFrom", 2, "FROM argument 'version' is not declared")],
    ),
    "a relative directory": (
        "FROM scratch\nWORKDIR app/\nWORKDIR sub\n",
        [("WorkdirRelativePath", 2, 'Relative workdir "app/" can have unexpected results if the base image changes')],
    ),
    "relative to a stage's directory": ("FROM scratch AS a\nWORKDIR /app\nFROM a AS b\nWORKDIR sub/\n", []),
    "a declared variable": ("FROM scratch\nARG foo\nCOPY Dockerfile${foo} .\n", []),
    "a variable declared in the base stage": ("FROM alpine AS base\nARG foo=Dockerfile\nFROM base\nCOPY $foo .\n", []),
    "the shell's own variables": ("FROM alpine\nRUN echo $HOME\n", []),
    "a variable of the base image": ("FROM alpine\nCOPY $BASE .\n", []),
    "a variable used too early": (
        "FROM alpine\nCOPY $foo .\nARG foo=bar\nRUN echo $foo\n",
        [("UndefinedVar", 2, "Usage of undefined variable '$foo'")],
    ),
    "a mistyped variable": (
        "FROM alpine\nARG DIR_BINARIES=b/\nARG DIR_ASSETS=a/\nCOPY $DIR_ASSET .\n",
        [("UndefinedVar", 4, "Usage of undefined variable '$DIR_ASSET' (did you mean $DIR_ASSETS?)")],
    ),
    "a mistyped PATH": (
        "FROM scratch\nENV PATH=$PAHT:/tmp/bin\n",
        [("UndefinedVar", 2, "Usage of undefined variable '$PAHT' (did you mean $PATH?)")],
    ),
    "variables everywhere they are expanded": (
        "FROM scratch\nLABEL a=$u1\nUSER $u2\nVOLUME $u3\nWORKDIR /$u4\nSTOPSIGNAL 1$u5\nCOPY --chown=$u6 --chmod=$u7 $u8 $u9 /d/\n"
        "RUN --mount=target=$u10 x\nCOPY <<EOF <<'END' /d/\n$v1\nEOF\n$v2\nEND\nARG long=$v3\nADD --checksum=$v4 https://h/f /\n",
        [
            *(
                ("UndefinedVar", line, f"Usage of undefined variable '${name}'")
                for line, name in [
                    (2, "u1"),
                    (3, "u2"),
                    (4, "u3"),
                    (5, "u4"),
                    (6, "u5"),
                    (7, "u6"),
                    (7, "u7"),
                    (7, "u8"),
                    (7, "u9"),
                    (8, "u10"),
                    (9, "v1"),
                    (14, "v3"),
                    (15, "v4"),
                ]
            ),
        ],
    ),
    "several instructions where the last counts": (
        'FROM scratch\nENTRYPOINT ["/a"]\nENTRYPOINT ["/b"]\nCMD ["/a"]\nCOPY <<EOF /a\nx\nEOF\nCMD ["/b"]\nHEALTHCHECK CMD ["/a"]\n'
        "HEALTHCHECK NONE\n",
        [
            (
                "MultipleInstructionsDisallowed",
                line,
                f"Multiple {name} instructions should not be used in the same stage because only the last one will be used",
            )
            for line, name in [(2, "ENTRYPOINT"), (4, "CMD"), (9, "HEALTHCHECK")]
        ],
    ),
    "one in each stage": ('FROM scratch AS a\nCMD ["/a"]\nFROM a AS b\nCMD ["/b"]\n', []),
    "legacy pairs": (
        "FROM scratch\nENV testkey value\nLABEL key value\n",
        [
            ("LegacyKeyValueFormat", 2, '"ENV key=value" should be used instead of legacy "ENV key value" format'),
            ("LegacyKeyValueFormat", 3, '"LABEL key=value" should be used instead of legacy "LABEL key value" format'),
        ],
    ),
    "the target platform as platform": (
        "FROM --platform=$TARGETPLATFORM scratch\nFROM --platform=${TARGETPLATFORM} scratch\n",
        [
            (
                "RedundantTargetPlatform",
                1,
                "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
            ),
            (
                "RedundantTargetPlatform",
                2,
                "Setting platform to predefined ${TARGETPLATFORM} in FROM is redundant as this is the default behavior",
            ),
        ],
    ),
    "secrets": (
        "FROM scratch\nARG SECRET_PASSPHRASE\nENV SUPER_Secret=foo\nENV password=bar secret=baz\nARG super_duper_secret_token=foo auth=bar\n"
        "ENV apikey=bar sunflower=foo\nENV git_key=\nENV PUBLIC_KEY=\nARG public_token\nARG SECRET_PASSPHRASE_FILE\nENV password_file=bar "
        "secret_File=baz\nARG AUTH_MODULE_VERSION\n# check=skip=SecretsUsedInArgOrEnv // wanted\nENV password=bar\n# check=skip=all\nARG password\n",
        [
            ("SecretsUsedInArgOrEnv", line, f'Do not use ARG or ENV instructions for sensitive data ({what} "{name}")')
            for line, what, name in [
                (2, "ARG", "SECRET_PASSPHRASE"),
                (3, "ENV", "SUPER_Secret"),
                (4, "ENV", "password"),
                (4, "ENV", "secret"),
                (5, "ARG", "auth"),
                (5, "ARG", "super_duper_secret_token"),
                (6, "ENV", "apikey"),
                (7, "ENV", "git_key"),
            ]
        ],
    ),
    "an empty default in a base name": (
        "ARG VERSION=latest\nARG V\nFROM busybox:$VERSION\n",
        [],
    ),
    "a constant platform": (
        "FROM --platform=linux/amd64 scratch\n",
        [("FromPlatformFlagConstDisallowed", 1, 'FROM --platform flag should not use constant value "linux/amd64"')],
    ),
    "a constant platform that the stage is named after": (
        "FROM --platform=linux/amd64 scratch AS my_amd64_stage\nFROM --platform=linux/amd64 scratch AS linux\n",
        [],
    ),
    "protocols in capitals": (
        "FROM scratch\nEXPOSE 80/TcP 8080/TCP 8080/udp\n",
        [
            ("ExposeProtoCasing", 2, "Defined protocol '80/TcP' in EXPOSE instruction should be lowercase"),
            ("ExposeProtoCasing", 2, "Defined protocol '8080/TCP' in EXPOSE instruction should be lowercase"),
        ],
    ),
    "ports with hosts": (
        "FROM scratch\nEXPOSE 127.0.0.1:80:80 [::1]:8080:8080 5000:5000 8000\n",
        [
            (
                "ExposeInvalidFormat",
                2,
                f"EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'",
            )
            for port in ["127.0.0.1:80:80", "5000:5000", "[::1]:8080:8080"]
        ],
    ),
    "descriptions, which are experimental": ("# something else\nARG foo=bar\nFROM scratch\n", []),
    "descriptions when asked for": (
        "# check=experimental=InvalidDefinitionDescription\n# bar this is the bar\nARG foo=bar\n# BasE this is the BasE image\n"
        "FROM scratch AS base\n# definitely a bad comment\nARG version=latest\n# definitely a bad comment\nARG foo=baz bar=qux baz=quux\n",
        [
            ("InvalidDefinitionDescription", 3, "Comment for ARG should follow the format: `# foo <description>`"),
            ("InvalidDefinitionDescription", 5, "Comment for FROM should follow the format: `# base <description>`"),
            ("InvalidDefinitionDescription", 7, "Comment for ARG should follow the format: `# version <description>`"),
            (
                "InvalidDefinitionDescription",
                9,
                "Comment for ARG should follow the format: `# <arg_key> <description>`",
            ),
        ],
    ),
    "good descriptions": (
        "# check=skip=all;experimental=InvalidDefinitionDescription\n# foo this is the foo\nARG foo=bar\n\n# base this is the base image\n"
        "FROM scratch AS base\n# version this is it\nARG version=latest\n# baz this is the baz\nARG foo=baz bar=qux baz=quux\n#\nARG bit=bat\n"
        "# comment for something else\nCOPY Dockerfile .\n",
        [],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_rule_finds_what_the_reference_finds(name: str) -> None:
    text, expected = CASES[name]
    assert found(text) == sorted(expected, key=lambda item: (item[1], item[2]))


def test_every_rule_is_exercised_here() -> None:
    exercised = {rule for _, expected in CASES.values() for rule, _, _ in expected}
    assert set(RULES) - exercised == {"CopyIgnoredFile", "InvalidBaseImagePlatform", "InvalidDefaultArgInFrom"}
    assert len(RULES) == 22


def test_findings_carry_the_rules_page_and_description() -> None:
    (warning,) = checked("FROM scratch AS BAD\n").warnings
    assert warning.url == "https://docs.docker.com/go/dockerfile/rule/stage-name-casing/"
    assert warning.detail == "Stage names should be lowercase"


# --- what needs more than the text -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("copy", "ignore", "expected"),
    [
        ("COPY Dockerfile .", "Dockerfile", ['Attempting to Copy file "Dockerfile" that is excluded by .dockerignore']),
        (
            "ADD Dockerfile /windy",
            "Dockerfile",
            ['Attempting to Add file "Dockerfile" that is excluded by .dockerignore'],
        ),
        ("COPY ./a/../b/ .", "b", ['Attempting to Copy file "b" that is excluded by .dockerignore']),
        ("COPY b/c .", "b", ['Attempting to Copy file "b/c" that is excluded by .dockerignore']),
        ("COPY ./Dockerfile .", "**\n!Dockerfile", []),
        ("COPY . .", "**\n!Dockerfile", []),
        ("COPY . .", ".*", []),
        ("COPY . .", "*", ['Attempting to Copy file "." that is excluded by .dockerignore']),
        ("COPY <<Dockerfile /\nDockerfile", "Dockerfile", []),
        ("ADD https://example.com/Dockerfile .", "**/Dockerfile", []),
        ("ADD https://example.com/r.git#Dockerfile .", "**/Dockerfile", []),
        ("COPY --from=base /foobar /Dockerfile", "foobar", []),
    ],
)
def test_copies_of_excluded_files_are_found(copy: str, ignore: str, expected: list[str]) -> None:
    text = f"FROM scratch AS base\nFROM scratch\n{copy}\n"
    assert [message for _, _, message in found(text, ignore=ignore)] == expected


def test_a_base_image_for_another_machine_is_found() -> None:
    def other(name: str, platform: Platform) -> ImageConfig:
        return known_base(name, ARM64)

    assert found("FROM busybox\n", base_config=other) == [
        (
            "InvalidBaseImagePlatform",
            1,
            'Base image busybox was pulled with platform "linux/arm64", expected "linux/amd64" for current build',
        )
    ]


def test_defaults_must_make_a_base_name_even_when_arguments_are_given() -> None:
    message = "Default value for ARG busybox:$VERSION results in empty or invalid base image name"
    text = "ARG VERSION\nFROM busybox:$VERSION\n"
    assert found(text, build_args={"VERSION": "latest"}) == [("InvalidDefaultArgInFrom", 2, message)]
    assert found('ARG V=""\nFROM busybox:stable$V\n', build_args={"V": "-musl"}) == []
    assert found("ARG V\nFROM busybox:stable$V\n", build_args={"V": "-musl"}) == []


def test_unknown_base_images_may_define_any_variable() -> None:
    def unknown(name: str, platform: Platform) -> None:
        return None

    text = "FROM busybox\nCOPY $foo .\nCMD x\n"
    assert [rule for rule, _, _ in found(text, base_config=unknown)] == ["JSONArgsRecommended"]
    assert [rule for rule, _, _ in found(text)] == ["UndefinedVar", "JSONArgsRecommended"]


def test_onbuild_triggers_define_variables() -> None:
    def with_trigger(name: str, platform: Platform) -> ImageConfig:
        return known_base(name, platform).with_(on_build=("ARG foo=1",))

    assert found("FROM busybox\nCOPY $foo .\n", base_config=with_trigger) == []
    assert found("FROM scratch AS b\nONBUILD ARG foo=1\nFROM b\nCOPY $foo .\n") == []


def test_a_build_checks_only_the_stages_it_needs() -> None:
    text = "FROM scratch AS first\nCOPY $foo .\nFROM scratch AS second\nCOPY $bar .\nFROM first as Third\n"
    assert [line for _, line, _ in found(text, all_stages=True)] == [2, 4, 5, 5]
    assert [line for _, line, _ in found(text, all_stages=False)] == [2, 5, 5]
    assert [line for _, line, _ in found(text, target="second")] == [4, 5, 5]


def test_rules_that_lowering_decides_can_be_left_to_it() -> None:
    text = "FROM alpine${x}\nCOPY $foo .\nCMD a\n"
    assert {rule for rule, _, _ in found(text, lowered=False)} == {"JSONArgsRecommended"}


# --- switching rules off ---------------------------------------------------------------------------------------------

TWO = "FROM scratch as base\ncopy Dockerfile .\n"


@pytest.mark.parametrize(
    ("directive", "argument", "rules", "error"),
    [
        ("", None, ["FromAsCasing", "ConsistentInstructionCasing"], None),
        ("#check=skip=all", None, [], None),
        ("#check=skip=all;error=true", None, [], None),
        ("# check = skip=ConsistentInstructionCasing,FromAsCasing", None, [], None),
        ("#check=skip=ConsistentInstructionCasing", None, ["FromAsCasing"], None),
        (
            "#check=skip=ConsistentInstructionCasing;error=true",
            None,
            ["FromAsCasing"],
            "lint violation found for rules: FromAsCasing",
        ),
        (
            "#check=skip=all",
            "skip=ConsistentInstructionCasing;error=true",
            ["FromAsCasing"],
            "lint violation found for rules: FromAsCasing",
        ),
        ("#check=error=true", "skip=all", [], None),
        (
            "#check=error=true",
            None,
            ["FromAsCasing", "ConsistentInstructionCasing"],
            "lint violation found for rules: ConsistentInstructionCasing, FromAsCasing",
        ),
        ("#check=skip", None, [], 'failed to parse check options: invalid check option "skip"'),
        ("#check=sip=all", None, [], 'failed to parse check options: invalid check option "sip"'),
        ("", "error=perhaps", [], None),
    ],
)
def test_the_directive_and_the_build_argument_decide(
    directive: str, argument: str | None, rules: list[str], error: str | None
) -> None:
    arguments: Mapping[str, str] = {} if argument is None else {"BUILDKIT_DOCKERFILE_CHECK": argument}
    result = checked(f"{directive}\n{TWO}", build_args=arguments)
    if argument == "error=perhaps":
        assert result.error is not None
        assert result.error.message.startswith(
            'failed to parse BUILDKIT_DOCKERFILE_CHECK: failed to parse check option "error=perhaps"'
        )
        return
    assert [warning.rule for warning in result.warnings] == rules
    assert (None if result.error is None else result.error.message) == error


@pytest.mark.parametrize(
    "text",
    [
        "FROM scratch\n# check=skip=JSONArgsRecommended\nCMD mycommand\n",
        "FROM scratch\n# check=skip=MaintainerDeprecated\nMAINTAINER me\n",
        "FROM scratch\n# check=skip=LegacyKeyValueFormat\nENV testkey value\n",
        "FROM scratch\n# check=skip=WorkdirRelativePath\nWORKDIR app/\n",
        "\n# check=skip=RedundantTargetPlatform\nFROM --platform=$TARGETPLATFORM scratch\n",
        "\n# check=skip=StageNameCasing,DuplicateStageName // both\nFROM scratch AS BASE\n",
    ],
)
def test_a_comment_above_an_instruction_switches_a_rule_off_there(text: str) -> None:
    assert found(text) == []


def test_a_comment_switches_off_nothing_elsewhere() -> None:
    text = "FROM scratch\n# check=skip=all\nENV a b\nENV c d\n"
    assert [line for _, line, _ in found(text)] == [4]


@given(st.text(alphabet="skiperorxmntal=,;AB true", max_size=30))
@settings(deadline=None, max_examples=200)
def test_any_options_are_read_or_refused(text: str) -> None:
    try:
        CheckSettings.parse(text)
    except InvalidCheckOptions:
        return


# --- errors and reports ----------------------------------------------------------------------------------------------


def test_findings_before_an_error_are_told() -> None:
    result = checked("\nFROM scratch AS BadStageName\nMAINTAINER me@example.org\nBADCMD\n")
    assert [warning.rule for warning in result.warnings] == ["StageNameCasing", "MaintainerDeprecated"]
    assert result.error is not None
    assert result.error.message == "dockerfile parse error on line 4: unknown instruction: BADCMD"
    assert result.error.lines == (4, 4)


def test_a_failing_FROM_is_told_after_its_finding() -> None:
    result = checked("FROM --platform=$BULIDPLATFORM scratch\nCOPY Dockerfile .\n")
    assert [warning.message for warning in result.warnings] == [
        "FROM argument 'BULIDPLATFORM' is not declared (did you mean BUILDPLATFORM?)"
    ]
    assert result.error is not None
    assert result.error.message == "empty platform value from expression $BULIDPLATFORM (did you mean BUILDPLATFORM?)"


def test_a_build_tells_what_it_finds_and_leaves_errors_to_lowering() -> None:
    options = CheckOptions(platform=AMD64, all_stages=False, lowered=False)
    broken = parse("FROM scratch as a\nCMD x\nFROM --platform=$nothing a\n")
    assert [warning.rule for warning in findings_of_build(broken, options=options)] == ["FromAsCasing"]
    with pytest.raises(InvalidCheckOptions):
        findings_of_build(parse("# check=what\nFROM scratch\n"), options=options)


def test_a_syntax_error_brings_the_findings_before_it() -> None:
    with pytest.raises(DockerfileSyntaxError) as caught:
        parse("FROM scratch AS A\nMAINTAINER me\nBAD\nMAINTAINER me\n")
    found_before = findings_before(caught.value, build_args={})
    assert [(warning.rule, warning.lines) for warning in found_before] == [
        ("StageNameCasing", (1, 1)),
        ("MaintainerDeprecated", (2, 2)),
    ]
    assert findings_before(caught.value, build_args={"BUILDKIT_DOCKERFILE_CHECK": "skip=all"}) == ()


def test_check_of_a_parsed_file_gives_the_findings() -> None:
    warnings = check(parse("FROM scratch\nCMD x\n"), options=CheckOptions(platform=AMD64))
    assert [warning.rule for warning in warnings] == ["JSONArgsRecommended"]


def test_the_text_is_the_one_buildx_prints() -> None:
    result = checked("FROM scratch AS base\nMAINTAINER me\n")
    assert warnings_text(result) == (
        "Check complete, 1 warning has been found!\n"
        "\n"
        "WARNING: MaintainerDeprecated - https://docs.docker.com/go/dockerfile/rule/maintainer-deprecated/\n"
        "Maintainer instruction is deprecated in favor of using label\n"
        "Dockerfile:2\n"
        "--------------------\n"
        "   1 |     FROM scratch AS base\n"
        "   2 | >>> MAINTAINER me\n"
        "   3 |     \n"
        "--------------------\n"
    )
    assert result.exit_code == 1
    assert error_text(result) == ""
    clean = checked("FROM scratch\n")
    assert (warnings_text(clean), clean.exit_code) == ("Check complete, no warnings found.\n", 0)


def test_the_error_is_shown_with_its_lines() -> None:
    result = checked("FROM scratch\nBADCMD\n")
    assert warnings_text(result) == ""
    assert error_text(result).startswith(
        "dockerfile parse error on line 2: unknown instruction: BADCMD\nDockerfile:2\n"
    )
    assert result.exit_code == 1


def test_the_json_has_the_reference_shape() -> None:
    text = "FROM scratch\nENV a \\\n  b\n"
    document = json.loads(result_json(checked(text)))
    assert document["warnings"] == [
        {
            "ruleName": "LegacyKeyValueFormat",
            "description": "Legacy key/value format with whitespace separator should not be used",
            "url": "https://docs.docker.com/go/dockerfile/rule/legacy-key-value-format/",
            "detail": '"ENV key=value" should be used instead of legacy "ENV key value" format',
            "location": {
                "ranges": [{"start": {"line": 2}, "end": {"line": 2}}, {"start": {"line": 3}, "end": {"line": 3}}]
            },
        }
    ]
    (source,) = document["sources"]
    assert (source["filename"], base64.b64decode(source["data"]).decode()) == ("Dockerfile", text)
    assert "buildError" not in document
    broken = json.loads(result_json(checked("FROM scratch\nBADCMD\n")))
    assert broken["buildError"]["location"] == {"ranges": [{"start": {"line": 2}, "end": {"line": 2}}]}


@given(st.lists(st.sampled_from([
    "FROM scratch", "FROM $x AS B", "ARG a=$b", "ENV k v", "ENV k=$a", "COPY $a $b /", "RUN --mount=type=secret,id=$q x", "WORKDIR ${x?no}",
    "EXPOSE $p 80/TCP", "ONBUILD ENV a=$b", "CMD x", "# check=skip=all", "SHELL [\"a\"]", "FROM B", "COPY --from=B a b", "BAD", "ARG", "LABEL a",
]), max_size=8))  # fmt: skip
@settings(deadline=None, max_examples=200)
def test_whatever_the_file_there_is_a_result(lines: list[str]) -> None:
    result = checked("\n".join(lines))
    warnings_text(result)
    json.loads(result_json(result))
