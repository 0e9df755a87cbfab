"""``check --fix``: what is repaired, what is left alone, and that the meaning stays."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.builder.check_fixes import fix
from pybuild.builder.checks import CheckOptions, check_file
from pybuild.errors import PybuildError
from pybuild.layers.descriptor import Platform
from pybuild.layers.image import ImageConfig
from pybuild.parser.ast import Copy, Env, Expose, From, Instruction, Label
from pybuild.parser.expand import expand
from pybuild.parser.parse import parse

AMD64 = Platform(os="linux", architecture="amd64")


def plain_base(name: str, platform: Platform) -> ImageConfig:
    return ImageConfig(platform=platform)


def fixed(text: str, **options: object) -> str:
    return fix(parse(text), platform=AMD64, base_config=plain_base)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("From scratch\nCOPY a b\ncopy c d\n", "FROM scratch\nCOPY a b\nCOPY c d\n"),
        ("from scratch\ncopy a b\nRUN x\n", "from scratch\ncopy a b\nrun x\n"),
        ("FROM scratch as a\n", "FROM scratch AS a\n"),
        ("from scratch AS a\n", "from scratch as a\n"),
        ("FROM scratch \\\n  as \\\n  Base\n", "FROM scratch \\\n  AS \\\n  base\n"),
        (
            "FROM scratch AS Build\nFROM BUILD\nCOPY --from=Build a b\nRUN --mount=from=BUILD,target=/x y\n",
            "FROM scratch AS build\nFROM build\nCOPY --from=build a b\nRUN --mount=from=build,target=/x y\n",
        ),
        ("FROM scratch\nENV a b\n", "FROM scratch\nENV a=b\n"),
        ("FROM scratch\nENV a b c\n", 'FROM scratch\nENV a="b c"\n'),
        ("FROM scratch\nLABEL a  b\\\n c\n", 'FROM scratch\nLABEL a="b c"\n'),
        ('FROM scratch\nENV p $a/q "r s"\n', 'FROM scratch\nENV p=$a/q\\ "r s"\n'),
        ("FROM scratch\nENV a 'b  c'\n", "FROM scratch\nENV a='b  c'\n"),
        ("FROM scratch\nENV a ${b:-c d} e\n", 'FROM scratch\nENV a="${b:-c d} e"\n'),
        ("FROM alpine\nCMD prog --flag=x arg\n", 'FROM alpine\nCMD ["prog", "--flag=x", "arg"]\n'),
        ("FROM --platform=$TARGETPLATFORM alpine\n", "FROM alpine\n"),
        ("FROM scratch\nEXPOSE 80/TCP 53/Udp 8080\n", "FROM scratch\nEXPOSE 80/tcp 53/udp 8080\n"),
        ("FROM scratch\nRUN a \\\n\n  \n  b\nRUN c\n", "FROM scratch\nRUN a \\\n  b\nRUN c\n"),
        ("FROM scratch\r\nENV a b\r\n", "FROM scratch\r\nENV a=b\r\n"),
    ],
)  # fmt: skip
def test_a_finding_is_repaired(before: str, after: str) -> None:
    assert fixed(before) == after


@pytest.mark.parametrize(
    "text",
    [
        "FROM alpine\nENTRYPOINT prog arg\n",
        'FROM alpine\nENTRYPOINT ["prog"]\nCMD arg\n',
        'FROM alpine AS a\nENTRYPOINT ["prog"]\nFROM a\nCMD arg\n',
        'FROM alpine AS a\nCMD arg\nFROM a\nENTRYPOINT ["prog"]\n',
        "FROM alpine\nCMD echo $HOME\n",
        "FROM alpine\nCMD exec prog\n",
        "FROM alpine\nCMD A=1 prog\n",
        "FROM alpine\nCMD prog | other\n",
        "FROM alpine\nCMD prog 'a b'\n",
        "ARG base\nFROM $base\nCMD prog\n",
        "FROM scratch\nENV a \\\n  # why\n  b\n",
        "FROM scratch\nEXPOSE 80/$TCP\n",
        "FROM scratch\nRUN <<EOF\na \\\n\nb\nEOF\n",
        "# check=skip=all\nFROM scratch as A\nenv a b\n",
        "FROM scratch\n# check=skip=LegacyKeyValueFormat\nENV a b\n",
        "ARG TARGETPLATFORM=linux/arm64\nFROM --platform=$TARGETPLATFORM alpine\n",
    ],
)
def test_what_might_change_the_meaning_is_left_alone(text: str) -> None:
    assert fixed(text) == text


def test_cmd_needs_to_know_the_base_image() -> None:
    text = "FROM alpine\nCMD prog\n"
    assert fix(parse(text)) == text
    assert fix(parse("FROM scratch\nCMD prog\n")) == 'FROM scratch\nCMD ["prog"]\n'

    def with_entrypoint(name: str, platform: Platform) -> ImageConfig:
        return ImageConfig(platform=platform, entrypoint=("/run",))

    assert fix(parse(text), platform=AMD64, base_config=with_entrypoint) == text


def meaning(text: str) -> list[object]:
    """What a build takes from a file, as far as fixes touch it; commands aside."""

    def pairs(instruction: Env | Label) -> list[tuple[str, str]]:
        scope = {"a": 'x  "y', "HOME": "'h"}
        return [
            (expand(pair.key, scope).text, "" if pair.value is None else expand(pair.value, scope).text)
            for pair in instruction.pairs
        ]

    def one(instruction: Instruction) -> object:
        match instruction:
            case From():
                platform = instruction.platform.text if instruction.platform else "$TARGETPLATFORM"
                return "FROM", instruction.image.text.lower(), (instruction.stage_name or "").lower(), platform
            case Env() | Label():
                return instruction.name, pairs(instruction)
            case Copy():
                return "COPY", (instruction.from_ or "").lower(), instruction.text.split()[-1]
            case Expose():
                return "EXPOSE", [word.text.lower() for word in instruction.ports]
            case _:
                return instruction.name

    return [one(instruction) for instruction in parse(text).instructions]


lines = st.sampled_from(
    [
        "FROM scratch AS Base", "from base as x", "FROM --platform=$TARGETPLATFORM Base AS y", "ENV a b c", "env k $a 'q  r' \"s\"",
        "ENV w it\\ s \\$a", "LABEL l \"a b\" c", "label a=b c='d e'", "COPY --from=BASE f /g", "RUN a \\\n\n b", "EXPOSE 1/TCP 2/udp",
        "CMD run --it", "ENTRYPOINT x", "# comment", "", "ENV e ${a:-b c}d", "copy <<EOF /h\nENV x y\n\nEOF", "ENV t a\tb",
    ]
)  # fmt: skip


@given(st.lists(lines, max_size=8))
@settings(deadline=None, max_examples=200)
def test_fixes_keep_the_meaning_and_need_no_second_round(body: list[str]) -> None:
    text = "\n".join(["FROM scratch AS First", *body, ""])
    try:
        before = meaning(text)
    except PybuildError:
        return
    after = fixed(text)
    assert meaning(after) == before
    assert fixed(after) == after
    options = CheckOptions(platform=AMD64, base_config=plain_base)
    left = {warning.rule for warning in check_file(after, filename="Dockerfile", options=options).warnings}
    assert not left & {
        "ConsistentInstructionCasing",
        "FromAsCasing",
        "StageNameCasing",
        "ExposeProtoCasing",
        "NoEmptyContinuation",
    }
