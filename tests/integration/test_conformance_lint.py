"""The build checks, seen from the command line: ``build --check``, ``--call=check``, and the warnings of a build."""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, refused, write_files

pytestmark = pytest.mark.integration

Finding = tuple[str, int, str]
ENTRY = 'ENTRYPOINT ["x"]\n'

# Dockerfile, further arguments, what is found.
CASES: list[tuple[str, tuple[str, ...], list[Finding]]] = [
    (
        "FROM scratch AS BadStageName\n",
        (),
        [("StageNameCasing", 1, "Stage name 'BadStageName' should be lowercase")],
    ),
    ("FROM scratch as base\n", (), [("FromAsCasing", 1, "'as' and 'FROM' keywords' casing do not match")]),
    ("from scratch as base\ncopy Dockerfile /\n", (), []),
    (
        "FROM scratch\ncopy Dockerfile /\n",
        (),
        [
            (
                "ConsistentInstructionCasing",
                2,
                "Command 'copy' should match the case of the command majority (uppercase)",
            )
        ],
    ),
    (
        "FROM scratch AS b\nFROM scratch AS b\n",
        (),
        [("DuplicateStageName", 2, 'Duplicate stage name "b", stage names should be unique')],
    ),
    (
        "FROM scratch AS scratch\n",
        (),
        [("ReservedStageName", 1, 'Stage name should not use the same name as reserved stage "scratch"')],
    ),
    (
        "FROM scratch\nCMD echo x\n",
        (),
        [
            (
                "JSONArgsRecommended",
                2,
                "JSON arguments recommended for CMD to prevent unintended behavior related to OS signals",
            )
        ],
    ),
    ('FROM scratch\nSHELL ["/bin/x", "-c"]\nCMD echo x\n', (), []),
    (
        "FROM scratch\nMAINTAINER me\n",
        (),
        [("MaintainerDeprecated", 2, "Maintainer instruction is deprecated in favor of using label")],
    ),
    (
        "ARG BASE=scratch\nFROM scratch$BASR\n",
        (),
        [("UndefinedArgInFrom", 2, "FROM argument 'BASR' is not declared (did you mean BASE?)")],
    ),
    (
        "FROM scratch\nWORKDIR app\n",
        (),
        [("WorkdirRelativePath", 2, 'Relative workdir "app" can have unexpected results if the base image changes')],
    ),
    (
        "FROM scratch\nARG DIR_ASSETS=a\nCOPY $DIR_ASSET /\n",
        (),
        [("UndefinedVar", 3, "Usage of undefined variable '$DIR_ASSET' (did you mean $DIR_ASSETS?)")],
    ),
    (
        f"FROM scratch\n{ENTRY}{ENTRY}",
        (),
        [
            (
                "MultipleInstructionsDisallowed",
                2,
                "Multiple ENTRYPOINT instructions should not be used in the same stage because only the last one will be used",
            )
        ],
    ),
    (
        "FROM scratch\nENV a b\nLABEL c d\n",
        (),
        [
            ("LegacyKeyValueFormat", 2, '"ENV key=value" should be used instead of legacy "ENV key value" format'),
            ("LegacyKeyValueFormat", 3, '"LABEL key=value" should be used instead of legacy "LABEL key value" format'),
        ],
    ),
    (
        "FROM --platform=$TARGETPLATFORM scratch\n",
        (),
        [
            (
                "RedundantTargetPlatform",
                1,
                "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
            )
        ],
    ),
    (
        "FROM --platform=linux/amd64 scratch\n",
        (),
        [
            (
                "FromPlatformFlagConstDisallowed",
                1,
                'FROM --platform flag should not use constant value "linux/amd64"',
            )
        ],
    ),
    (
        "ARG IMAGE\nFROM $IMAGE\n",
        ("--build-arg=IMAGE=scratch",),
        [
            (
                "InvalidDefaultArgInFrom",
                2,
                "Default value for ARG $IMAGE results in empty or invalid base image name",
            )
        ],
    ),
    (
        "FROM scratch\nARG PASSWORD\nENV AWS_SECRET_ACCESS_KEY=x\n",
        (),
        [
            ("SecretsUsedInArgOrEnv", 2, 'Do not use ARG or ENV instructions for sensitive data (ARG "PASSWORD")'),
            (
                "SecretsUsedInArgOrEnv",
                3,
                'Do not use ARG or ENV instructions for sensitive data (ENV "AWS_SECRET_ACCESS_KEY")',
            ),
        ],
    ),
    (
        "FROM scratch\nEXPOSE 80/TcP\n",
        (),
        [("ExposeProtoCasing", 2, "Defined protocol '80/TcP' in EXPOSE instruction should be lowercase")],
    ),
    (
        "FROM scratch\nEXPOSE 127.0.0.1:80:80\n",
        (),
        [
            (
                "ExposeInvalidFormat",
                2,
                "EXPOSE instruction should not define an IP address or host-port mapping, found '127.0.0.1:80:80'",
            )
        ],
    ),
    (
        "FROM scratch\nCOPY Dockerfile \\\n\n/\n",
        (),
        [("NoEmptyContinuation", 4, "Empty continuation line")],
    ),
    ("# check=skip=all\nFROM scratch as base\nMAINTAINER me\n", (), []),
    ("# check=skip=FromAsCasing\nFROM scratch as base\n", (), []),
    ("FROM scratch\n# check=skip=LegacyKeyValueFormat\nENV a b\n", (), []),
    (
        "# check=skip=all\nFROM scratch as base\n",
        ("--build-arg=BUILDKIT_DOCKERFILE_CHECK=skip=StageNameCasing",),
        [("FromAsCasing", 2, "'as' and 'FROM' keywords' casing do not match")],
    ),
    (
        "# check=experimental=InvalidDefinitionDescription\n# bar is something\nARG foo=bar\nFROM scratch\n",
        (),
        [("InvalidDefinitionDescription", 3, "Comment for ARG should follow the format: `# foo <description>`")],
    ),
    ("# bar is something\nARG foo=bar\nFROM scratch\n", (), []),
]


def checked(pybuild: Command, context: Path, *arguments: str) -> tuple[dict[str, Any], int]:
    result = pybuild.run("build", "--call=check,format=json", *arguments, str(context), check=False)
    return json.loads(result.stdout), result.returncode


def findings(document: dict[str, Any]) -> list[Finding]:
    return [
        (w["ruleName"], w["location"]["ranges"][0]["start"]["line"], w["detail"])
        for w in document.get("warnings") or []
    ]


def told(stderr: str) -> list[Finding]:
    """The warnings that a build lists at its end."""
    found = re.findall(r"^ - (\w+): (.*) \(line (\d+)\)$", stderr, re.MULTILINE)
    return [(rule, int(line), text) for rule, text, line in found]


@pytest.mark.parametrize(("dockerfile", "arguments", "expected"), CASES)
def test_rules_find_what_they_are_for(
    pybuild: Command, tmp_path: Path, dockerfile: str, arguments: tuple[str, ...], expected: list[Finding]
) -> None:
    context = write_files(tmp_path / "c", {"Dockerfile": dockerfile})
    document, status = checked(pybuild, context, *arguments)
    assert sorted(findings(document)) == sorted(expected)
    assert (status != 0) == bool(expected)


def test_a_build_tells_each_finding_once_whatever_the_platforms(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = "FROM scratch AS BadName\nMAINTAINER me\nARG A\nCOPY $Dockerfile${A} /\n"
    result = pybuild.build(
        dockerfile, tmp_path / "c", "--platform=linux/amd64,linux/arm64", f"--metadata-file={tmp_path / 'm'}"
    )
    expected = [("StageNameCasing", 1), ("MaintainerDeprecated", 2), ("UndefinedVar", 4)]
    assert [finding[:2] for finding in told(result.stderr)] == expected
    assert " 3 warnings found:" in result.stderr
    warnings = json.loads((tmp_path / "m").read_text())["buildx.build.warnings"]
    assert [w["range"][0]["start"]["line"] for w in warnings] == [1, 2, 4]
    assert {w["level"] for w in warnings} == {1}
    assert base64.b64decode(warnings[1]["short"]).decode().startswith("MaintainerDeprecated: Maintainer instruction")
    assert base64.b64decode(warnings[1]["sourceInfo"]["data"]).decode() == dockerfile
    assert warnings[0]["url"] == "https://docs.docker.com/go/dockerfile/rule/stage-name-casing/"


def test_warnings_come_before_an_error(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = "\nFROM scratch AS BadStageName\nMAINTAINER me@example.org\nBADCMD\n"
    message = refused(pybuild, dockerfile, tmp_path / "c")
    assert "dockerfile parse error on line 4: unknown instruction: BADCMD" in message.splitlines()[-1]
    assert ">>> BADCMD" in message
    assert [finding[:2] for finding in told(message)] == [("StageNameCasing", 2), ("MaintainerDeprecated", 3)]
    document, status = checked(pybuild, tmp_path / "c")
    assert status != 0
    assert document["buildError"]["message"] == "dockerfile parse error on line 4: unknown instruction: BADCMD"
    assert document["buildError"]["location"]["ranges"][0]["start"]["line"] == 4
    later = refused(pybuild, "ARG BASE=x\nFROM --platform=$BASR scratch\n", tmp_path / "d")
    assert "UndefinedArgInFrom: FROM argument 'BASR' is not declared (did you mean BASE?) (line 2)" in later


def test_findings_may_fail_a_build(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = "# check=skip=ConsistentInstructionCasing;error=true\nFROM scratch as base\ncopy Dockerfile .\n"
    message = refused(pybuild, dockerfile, tmp_path / "c")
    assert message.splitlines()[-1].endswith("lint violation found for rules: FromAsCasing")
    assert ">>> FROM scratch as base" in message
    document, _ = checked(pybuild, tmp_path / "c")
    assert document["buildError"]["location"]["ranges"][0]["start"]["line"] == 2
    pybuild.build(dockerfile, tmp_path / "c", "--build-arg=BUILDKIT_DOCKERFILE_CHECK=skip=all")


def test_files_that_are_ignored_are_told_by_the_check_and_by_the_failing_build(
    pybuild: Command, tmp_path: Path
) -> None:
    context = write_files(tmp_path / "c", {".dockerignore": "Dockerfile\n"})
    dockerfile = "\nFROM scratch\nCOPY Dockerfile .\nADD Dockerfile /windy\n"
    message = refused(pybuild, dockerfile, context)
    expected = [
        ("CopyIgnoredFile", 3, 'Attempting to Copy file "Dockerfile" that is excluded by .dockerignore'),
        ("CopyIgnoredFile", 4, 'Attempting to Add file "Dockerfile" that is excluded by .dockerignore'),
    ]
    assert told(message) == expected
    assert re.search(
        r'failed to solve: failed to compute cache key: failed to calculate checksum of ref [^\s]+ "/Dockerfile": not found',
        message,
    )
    assert findings(checked(pybuild, context)[0]) == expected


def test_a_check_looks_at_all_stages_and_a_build_at_those_it_needs(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = "\nFROM scratch AS first\nCOPY $foo .\n\nFROM scratch AS second\nCOPY $bar .\n"
    assert [line for _, line, _ in told(pybuild.build(dockerfile, tmp_path / "c").stderr)] == [6]
    assert [line for _, line, _ in findings(checked(pybuild, tmp_path / "c")[0])] == [3, 6]
    assert [line for _, line, _ in findings(checked(pybuild, tmp_path / "c", "--target=first")[0])] == [3]


def test_a_base_for_another_platform_is_told(pybuild: Command, tmp_path: Path, registry: str) -> None:
    target = f"{registry}/conformance/baseplatform:latest"
    pybuild.build(
        "FROM scratch\nCOPY Dockerfile /foo\n", tmp_path / "c", "--platform=linux/arm64",
        f"--output=type=image,name={target},push=true,store=false",
    )  # fmt: skip
    result = pybuild.build(f"FROM {target}\nENV foo=bar\n", tmp_path / "c", "--platform=linux/amd64")
    text = f'Base image {target} was pulled with platform "linux/arm64", expected "linux/amd64" for current build'
    assert told(result.stderr) == [("InvalidBaseImagePlatform", 1, text)]
    # Of several platforms only the first is warned about.
    for platforms, expected in (("linux/arm64,linux/amd64", 0), ("linux/amd64,linux/arm64", 1)):
        result = pybuild.build(f"FROM {target}\nENV foo=bar\n", tmp_path / "c", f"--platform={platforms}")
        assert len(told(result.stderr)) == expected


def test_a_check_prints_what_buildx_prints(pybuild: Command, tmp_path: Path) -> None:
    context = write_files(tmp_path / "c", {"Dockerfile": "FROM scratch\n"})
    good = pybuild.run("build", "--check", str(context))
    assert good.stdout == "Check complete, no warnings found.\n"
    (context / "Dockerfile").write_text("FROM scratch\nMAINTAINER me\n")
    bad = pybuild.run("build", "--check", str(context), check=False)
    assert bad.returncode == 1
    assert bad.stdout.startswith(
        "Check complete, 1 warning has been found!\n\nWARNING: MaintainerDeprecated - https://"
    )
    assert "Dockerfile:2\n--------------------\n" in bad.stdout
    assert pybuild.run("build", "--call=check,ignorestatus=true", str(context)).returncode == 0


def test_a_check_knows_the_bases_that_builds_have_found_in_registries(
    pybuild: Command, tmp_path: Path, registry: str
) -> None:
    target = f"{registry}/conformance/known:latest"
    output = f"--output=type=image,name={target},push=true,store=false"
    pybuild.build("FROM scratch\nENV known=1\n", tmp_path / "c", output)
    dockerfile = f"FROM {target}\nLABEL a=$known b=$unknown\n"
    context = write_files(tmp_path / "d", {"Dockerfile": dockerfile})
    assert findings(checked(pybuild, context)[0]) == []  # what such a base sets can't be told
    pybuild.build(dockerfile, context)
    assert findings(checked(pybuild, context)[0]) == [
        ("UndefinedVar", 2, "Usage of undefined variable '$unknown' (did you mean $known?)")
    ]
