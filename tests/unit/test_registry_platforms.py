"""Which entry of an index is taken."""

from __future__ import annotations

import pytest

from pybuild.layers.descriptor import OCI_MANIFEST, Descriptor, Platform
from pybuild.layers.digest import Digest
from pybuild.registry_client.platforms import choose


def _platform(text: str) -> Platform:
    text, _, version = text.partition("@")
    os, architecture, variant = ([*text.split("/"), ""])[:3]
    return Platform(os, architecture, variant, version)


@pytest.mark.parametrize(
    ("wanted", "offered", "taken"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/amd64", ["linux/arm64", "windows/amd64"], None),
        ("linux/amd64", ["unknown/unknown", "linux/amd64"], 1),
        ("linux/amd64", ["linux/amd64/v3", "linux/amd64/v1"], 1),
        ("linux/amd64", ["linux/amd64/v3"], None),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], 1),
        ("linux/amd64", ["linux/386"], 0),
        ("linux/amd64", ["linux/386", "linux/amd64"], 1),
        ("linux/arm64", ["linux/arm64/v8"], 0),
        ("linux/arm64/v8", ["linux/arm64"], 0),
        ("linux/arm64", ["linux/arm64/v9", "linux/arm/v7"], 1),
        ("linux/arm64", ["linux/arm/v6", "linux/arm/v7"], 1),
        ("linux/arm", ["linux/arm/v6", "linux/arm/v7"], 1),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6"], 1),
        ("linux/arm/v6", ["linux/arm/v7"], None),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm/v5"], 1),
        ("linux/aarch64", ["linux/arm64"], 0),
        ("linux/x86_64", ["linux/amd64"], 0),
        ("linux/riscv64", ["linux/riscv64"], 0),
        ("linux/amd64", ["linux/amd64", "linux/amd64"], 0),
        ("windows/amd64@10.0.17763.100", ["windows/amd64@10.0.20348.1", "windows/amd64@10.0.17763.99"], 1),
        ("windows/amd64@10.0.17763.100", ["windows/amd64@10.0.17763.99", "windows/amd64@10.0.17763.100"], 1),
        ("windows/amd64@10.0.17763.100", ["windows/amd64@10.0.20348.1"], None),
        ("windows/amd64", ["windows/amd64@10.0.20348.1"], 0),
    ],
)
def test_the_best_entry_for_a_platform(wanted: str, offered: list[str], taken: int | None) -> None:
    entries = [
        Descriptor(OCI_MANIFEST, Digest.of(str(n).encode()), 1, platform=_platform(text))
        for n, text in enumerate(offered)
    ]
    assert choose(entries, _platform(wanted)) == (None if taken is None else entries[taken])


def test_entries_without_a_platform_are_left_to_their_configuration() -> None:
    entry = Descriptor(OCI_MANIFEST, Digest.of(b""), 1)
    assert choose([entry], Platform("linux", "amd64")) is None
