"""SOURCE_DATE_EPOCH in its forms."""

from __future__ import annotations

import pytest
from fakes.lowering import lowered, variables

from pybuild.builder.git_reference import GitReference
from pybuild.builder.graph import (
    GitSource,
    HttpSource,
)
from pybuild.builder.named_context import GitContextRef, HttpContextRef
from pybuild.parser.errors import DockerfileError


class Times:
    """Remote sources with fixed times."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def git_time(self, source: GitSource) -> int | None:
        self.asked.append(source)
        return 111

    def http_time(self, source: HttpSource) -> int | None:
        self.asked.append(source)
        return 222


def epoch(text: str = "FROM busybox\n", **options: object) -> int | None:
    return lowered(text, **options).source_date_epoch


def test_an_epoch_is_a_number_from_a_build_argument_or_the_client():
    assert epoch(build_args={"SOURCE_DATE_EPOCH": "1700000501"}) == 1700000501
    assert epoch(source_date_epoch=5) == 5
    assert epoch(source_date_epoch=5, build_args={"SOURCE_DATE_EPOCH": "6"}) == 6
    assert epoch() is None


def test_a_global_default_works_and_can_be_overridden_and_reset():
    text = "ARG SOURCE_DATE_EPOCH=7\nFROM busybox\nARG SOURCE_DATE_EPOCH\nRUN x\n"
    assert epoch(text) == 7
    assert variables(lowered(text))["SOURCE_DATE_EPOCH"] == "7"
    assert epoch(text, build_args={"SOURCE_DATE_EPOCH": "8"}) == 8
    reset = lowered(text, build_args={"SOURCE_DATE_EPOCH": ""})
    assert reset.source_date_epoch is None
    assert "SOURCE_DATE_EPOCH" not in variables(reset)


def test_the_context_s_time():
    given = {"SOURCE_DATE_EPOCH": "context"}
    times = Times()
    assert epoch(build_args=given, epoch_source=times) is None
    repository = GitContextRef(GitReference("https://h/r.git", "main"))
    assert epoch(build_args=given, epoch_source=times, main_context=repository) == 111
    assert epoch(build_args=given, epoch_source=times, main_context=HttpContextRef("https://h/c.tar")) == 222
    text = "FROM busybox\nARG SOURCE_DATE_EPOCH\nRUN x\n"
    image = lowered(text, build_args=given, epoch_source=times, main_context=repository)
    assert variables(image)["SOURCE_DATE_EPOCH"] == "111"
    assert "SOURCE_DATE_EPOCH" not in variables(lowered(text, build_args=given))


def test_a_named_context_s_time():
    contexts = {"src": HttpContextRef("https://h/c.tar")}
    assert epoch(build_args={"SOURCE_DATE_EPOCH": "src"}, contexts=contexts, epoch_source=Times()) == 222


def test_a_source_stage_s_time():
    times = Times()
    text = "ARG SOURCE_DATE_EPOCH=src\nFROM scratch AS src\nARG U=https://h/src.tar\nADD $U /\nFROM busybox\n"
    assert epoch(text, epoch_source=times) == 222
    assert times.asked == [HttpSource("https://h/src.tar", "src.tar")]
    git = "FROM scratch AS src\nADD https://h/r.git#v1 /\nFROM busybox\n"
    assert epoch(git, epoch_source=times, build_args={"SOURCE_DATE_EPOCH": "SRC"}) == 111


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM busybox\n", "invalid SOURCE_DATE_EPOCH: src"),
        ("FROM busybox AS src\nADD https://h/x /\n", "SOURCE_DATE_EPOCH stage must use FROM scratch"),
        ("FROM scratch AS src\nCOPY x /\n", "SOURCE_DATE_EPOCH stage does not meet source-only requirements"),
        ("FROM scratch AS src\nARG x\n", "SOURCE_DATE_EPOCH stage must contain exactly one remote ADD"),
        ("FROM scratch AS src\nADD https://h/x /\nADD https://h/y /\n", "must contain exactly one remote ADD"),
        ("FROM scratch AS src\nADD x /\n", "source must be a single HTTP(S) or Git ADD"),
        ("FROM scratch AS src\nADD https://h/x https://h/y /\n", "must contain exactly one remote ADD source"),
    ],
)
def test_a_wrong_epoch_is_refused(text, message):
    with pytest.raises(DockerfileError) as caught:
        epoch(text, build_args={"SOURCE_DATE_EPOCH": "src"})
    assert message in str(caught.value)
