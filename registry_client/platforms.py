"""Which entry of an index fits a platform: variants, what an older CPU's images run on, Windows versions.

Values only. The order of preference is the one that containerd's platform matching documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pybuild.layers.descriptor import Descriptor, Platform

_ARCHITECTURES: Final = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "i386": "386",
    "i686": "386",
    "armhf": "arm",
    "armel": "arm",
}


def normal(platform: Platform) -> Platform:
    """The same platform in Go's names, with the variant that an architecture has when none is given."""
    os = platform.os.lower() or "linux"
    architecture = platform.architecture.lower()
    variant = platform.variant.lower()
    if architecture == "armel" and not variant:
        variant = "v6"
    architecture = _ARCHITECTURES.get(architecture, architecture)
    if os == "macos":
        os = "darwin"
    match architecture:
        case "arm64":
            variant = "v8" if variant in ("", "8", "v8.0") else variant
        case "arm":
            variant = {"": "v7", "5": "v5", "6": "v6", "7": "v7", "8": "v8"}.get(variant, variant)
        case "amd64":
            variant = variant or "v1"
    return Platform(os, architecture, variant, platform.os_version, platform.os_features)


def runnable(platform: Platform) -> tuple[tuple[str, str], ...]:
    """(architecture, variant) pairs that ``platform`` runs, best first."""
    wanted = normal(platform)
    number = _number(wanted.variant)
    pairs = [(wanted.architecture, wanted.variant)]
    match wanted.architecture:
        case "amd64":
            pairs += [("amd64", f"v{n}") for n in range(number - 1, 0, -1)] + [("386", "")]
        case "arm":
            pairs += [("arm", f"v{n}") for n in range(min(number, 9) - 1, 4, -1)]
        case "arm64":
            pairs += [("arm64", f"v{n}") for n in range(min(number, 20) - 1, 7, -1)]
            pairs += [("arm", f"v{n}") for n in (8, 7, 6, 5)]
    return tuple(dict.fromkeys(pairs))


def rank(offered: Platform, wanted: Platform) -> tuple[int, int] | None:
    """How well ``offered`` fits, lower is better; None if it doesn't run on ``wanted``."""
    have, want = normal(offered), normal(wanted)
    if have.os != want.os or have.os == "unknown":
        return None
    order = runnable(wanted)
    try:
        position = order.index((have.architecture, have.variant))
    except ValueError:
        return None
    if have.os == "windows" and want.os_version and have.os_version:
        # A Windows container needs its host's build: the first three numbers of the version (hcsshim's rule).
        if have.os_version.split(".")[:3] != want.os_version.split(".")[:3]:
            return None
        return position, 0 if have.os_version == want.os_version else 1
    if want.os_version and have.os_version != want.os_version:
        return position, 2
    return position, 0


def choose(entries: Sequence[Descriptor], wanted: Platform) -> Descriptor | None:
    """The entry that fits best, the first of equals; entries without a platform don't count."""
    best: tuple[tuple[int, int], Descriptor] | None = None
    for entry in entries:
        if entry.platform is None:
            continue
        fit = rank(entry.platform, wanted)
        if fit is not None and (best is None or fit < best[0]):
            best = (fit, entry)
    return None if best is None else best[1]


def _number(variant: str) -> int:
    digits = variant.removeprefix("v").partition(".")[0]
    return int(digits) if digits.isdecimal() and len(digits) < 3 else 0
