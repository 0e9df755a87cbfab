"""Names of platforms and the arguments made of them."""

import pytest

from pybuild.builder.platforms import (
    InvalidPlatform,
    format_platform,
    normalize_platform,
    parse_platform,
    platform_arguments,
)
from pybuild.layers.descriptor import Platform

HERE = Platform("linux", "amd64")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("arm64", "linux/arm64"),
        ("aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64/v8"),
        ("linux/arm64", "linux/arm64"),
        ("linux/arm", "linux/arm"),
        ("linux/arm/v7", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("armhf", "linux/arm"),
        ("armel", "linux/arm/v6"),
        ("i386", "linux/386"),
        ("linux", "linux/amd64"),
        ("Linux/AMD64", "linux/amd64"),
        ("macos/arm64", "darwin/arm64"),
        ("windows(10.0.17763)/amd64", "windows(10.0.17763)/amd64"),
        ("windows(10.0.17763+win32k)/amd64", "windows(10.0.17763+win32k)/amd64"),
        ("linux/nonsense", "linux/nonsense"),
    ],
)
def test_a_platform_is_read_in_all_its_spellings(text, shown):
    assert format_platform(parse_platform(text, default=HERE)) == shown


@pytest.mark.parametrize("text", ["", "nonsense", "linux/", "a/b/c/d", "linux/*", "lin ux/amd64", "linux/amd64/"])
def test_what_is_no_platform_is_refused(text):
    with pytest.raises(InvalidPlatform):
        parse_platform(text, default=HERE)


def test_equal_platforms_normalise_to_equal_values():
    assert normalize_platform(Platform("linux", "arm64", "v8")) == Platform("linux", "arm64")
    assert normalize_platform(Platform("linux", "arm")) == Platform("linux", "arm", "v7")
    assert normalize_platform(Platform("linux", "x86_64")) == HERE


def test_predefined_arguments_name_both_platforms_and_the_target_stage():
    values = platform_arguments(Platform("linux", "arm", "v7"), HERE, stage="")
    assert values["TARGETPLATFORM"] == "linux/arm/v7"
    assert (values["TARGETOS"], values["TARGETARCH"], values["TARGETVARIANT"]) == ("linux", "arm", "v7")
    assert (values["BUILDPLATFORM"], values["BUILDARCH"], values["BUILDVARIANT"]) == ("linux/amd64", "amd64", "")
    assert values["TARGETSTAGE"] == "default"
    assert platform_arguments(HERE, HERE, stage="app")["TARGETSTAGE"] == "app"
