"""Platform names as Dockerfiles and command lines write them, and the build arguments made of them.

Owns parsing, normalising and formatting (the rules of containerd's platform package: aliases, default variants).
Refuses to look at this machine: the default operating system and architecture are passed in.
"""

from __future__ import annotations

import re
from typing import Final

from pybuild.errors import PybuildError
from pybuild.layers.descriptor import Platform
from pybuild.values import pattern, replace

_COMPONENT: Final = pattern(r"[A-Za-z0-9_.-]+\Z")
_OS: Final = pattern(r"([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.%-]*)((?:\+[A-Za-z0-9_.%-]+)*)\))?\Z")
_SYSTEMS: Final = frozenset(
    {
        "aix",
        "android",
        "darwin",
        "dragonfly",
        "freebsd",
        "hurd",
        "illumos",
        "ios",
        "js",
        "linux",
        "nacl",
        "netbsd",
        "openbsd",
        "plan9",
        "solaris",
        "windows",
        "zos",
    }
)
_ARCHITECTURES: Final = frozenset(
    {
        "386",
        "amd64",
        "amd64p32",
        "arm",
        "armbe",
        "arm64",
        "arm64be",
        "ppc64",
        "ppc64le",
        "loong64",
        "mips",
        "mipsle",
        "mips64",
        "mips64le",
        "mips64p32",
        "mips64p32le",
        "ppc",
        "riscv",
        "riscv64",
        "s390",
        "s390x",
        "sparc",
        "sparc64",
        "wasm",
    }
)
_ARM64_VARIANTS: Final = {"8": "", "v8": "", "v8.0": "", "9": "v9", "9.0": "v9", "v9.0": "v9"}


class InvalidPlatform(PybuildError):
    """A platform name that can't be understood."""

    def __init__(self, text: str, reason: str, *, part: str | None = None) -> None:
        """``reason``: what is wrong with ``text``, or with a ``part`` of it."""
        told = f'"{text}": {reason}' if part is None else f'"{part}" is an {reason % text}'
        super().__init__(f"{told}: invalid argument", hint="a platform looks like linux/amd64 or linux/arm/v7")
        self.text = text


def normalize_architecture(architecture: str, variant: str) -> tuple[str, str]:
    """The public name of an architecture and its variant: ``x86_64`` is amd64, ``aarch64`` is arm64, ``armhf`` arm/v7."""
    architecture, variant = architecture.lower(), variant.lower()
    match architecture:
        case "i386":
            return "386", ""
        case "x86_64" | "x86-64" | "amd64":
            return "amd64", "" if variant == "v1" else variant
        case "aarch64" | "arm64":
            return "arm64", _ARM64_VARIANTS.get(variant, variant)
        case "armhf":
            return "arm", "v7"
        case "armel":
            return "arm", "v6"
        case "arm":
            if variant in {"", "7"}:
                return "arm", "v7"
            return "arm", f"v{variant}" if variant in {"5", "6", "8"} else variant
        case _:
            return architecture, variant


def normalize_platform(platform: Platform) -> Platform:
    """``platform`` with canonical names; two names of one platform become equal."""
    architecture, variant = normalize_architecture(platform.architecture, platform.variant)
    system = platform.os.lower()
    return replace(
        platform,
        os="darwin" if system == "macos" else system,
        architecture=architecture,
        variant=variant,
        os_features=tuple(sorted(set(platform.os_features))),
    )


def parse_platform(text: str, *, default: Platform) -> Platform:
    """Read ``os``, ``arch``, ``os/arch`` or ``os/arch/variant``; what is missing comes from ``default``. Raises InvalidPlatform."""
    if "*" in text:
        raise InvalidPlatform(text, "wildcards not yet supported")
    parts = text.split("/", 3)
    system = _OS.match(parts[0])
    if system is None:
        form = r"^([A-Za-z0-9_-]+)(?:\\(([A-Za-z0-9_.%%-]*)((?:\\+[A-Za-z0-9_.%%-]+)*)\\))?$"
        reason = f'invalid OS component of "%s": OSAndVersion specifier component must match "{form}"'
        raise InvalidPlatform(text, reason, part=parts[0])
    for part in parts[1:]:
        if not _COMPONENT.match(part):
            reason = 'invalid component of "%s": platform specifier component must match "^[A-Za-z0-9_.-]+$"'
            raise InvalidPlatform(text, reason, part=part)
    name = system[1].lower()
    name = "darwin" if name == "macos" else name
    version = _decode(system[2] or "")
    features = tuple(sorted({_decode(item) for item in (system[3] or "").split("+") if item}))
    if len(parts) == 1:
        if name in _SYSTEMS:
            return Platform(name, default.architecture, default.variant, version, features)
        architecture, variant = normalize_architecture(parts[0], "")
        if architecture not in _ARCHITECTURES:
            raise InvalidPlatform(text, "unknown operating system or architecture")
        return Platform(default.os, architecture, "" if (architecture, variant) == ("arm", "v7") else variant)
    if len(parts) == 2:
        architecture, variant = normalize_architecture(parts[1], "")
        return Platform(
            name, architecture, "" if (architecture, variant) == ("arm", "v7") else variant, version, features
        )
    if len(parts) == 3:
        architecture, variant = normalize_architecture(parts[1], parts[2])
        return Platform(
            name, architecture, "v8" if architecture == "arm64" and not variant else variant, version, features
        )
    raise InvalidPlatform(text, "cannot parse platform specifier")


def format_platform(platform: Platform) -> str:
    """``linux/arm64/v8``; with a version or features ``windows(10.0.17763+win32k)/amd64``."""
    if not platform.os:
        return "unknown"
    system = platform.os
    if platform.os_version or platform.os_features:
        features = "".join(f"+{_encode(item)}" for item in sorted(set(platform.os_features)) if item)
        system += f"({_encode(platform.os_version)}{features})"
    return "/".join(part for part in (system, platform.architecture, platform.variant) if part)


def same_machine(one: Platform, other: Platform) -> bool:
    """True if both have the same operating system and architecture, whatever the variants."""
    return (one.os, one.architecture) == (other.os, other.architecture)


def platform_arguments(target: Platform, build: Platform, *, stage: str) -> dict[str, str]:
    """The predefined global arguments. ``stage`` is the target stage's name, ``default`` when it has none."""
    return {
        "BUILDPLATFORM": str(build),
        "BUILDOS": build.os,
        "BUILDOSVERSION": build.os_version,
        "BUILDARCH": build.architecture,
        "BUILDVARIANT": build.variant,
        "TARGETPLATFORM": format_platform(target),
        "TARGETOS": target.os,
        "TARGETOSVERSION": target.os_version,
        "TARGETARCH": target.architecture,
        "TARGETVARIANT": target.variant,
        "TARGETSTAGE": stage or "default",
    }


def _decode(text: str) -> str:
    return re.sub(r"%([0-9A-Fa-f]{2})", lambda found: chr(int(found[1], 16)), text)


def _encode(text: str) -> str:
    return re.sub(r"[%+()/]", lambda found: f"%{ord(found[0]):02X}", text)
