"""What a person sees of a step: ``[linux/arm64 build 2/5] RUN make``, in BuildKit's form.

Owns the prefix and the display form of an instruction's text: what can't be expanded is shown as written, nothing here fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pybuild.errors import PybuildError
from pybuild.layers.descriptor import Platform
from pybuild.parser.errors import DockerfileError
from pybuild.parser.expand import expand_text

from .platforms import format_platform, normalize_platform, parse_platform

SECRET_MASK: Final = "****"


def upper_first_word(text: str) -> str:
    """The instruction's keyword in capitals, as every title shows it."""
    keyword, space, rest = text.partition(" ")
    return keyword.upper() + space + rest


def step_prefix(
    *, stage: str, index: int, total: int, platform: Platform | None = None, env: Mapping[str, str] | None = None
) -> str:
    """``[build 2/5] ``; with ``platform`` (several are being built) ``[linux/arm64 build 2/5] ``, and with the target's where a
    stage cross-compiles: ``[linux/amd64->arm64 build 2/5] ``. Empty when the stage has no steps of its own."""
    if total == 0:
        return ""
    words = []
    if platform is not None:
        words.append(format_platform(platform) + _cross_target(platform, env or {}))
    if stage:
        words.append(stage)
    words.append(f"{index:{len(str(total))}d}/{total}")
    return f"[{' '.join(words)}] "


def _cross_target(base: Platform, env: Mapping[str, str]) -> str:
    target = _platform_of(env, base)
    if target is None or (target.os, target.architecture) == (base.os, base.architecture):
        return ""
    if target.os == base.os:
        return "->" + "/".join(part for part in (target.architecture, target.variant) if part)
    return "->" + format_platform(target)


def _platform_of(env: Mapping[str, str], base: Platform) -> Platform | None:
    if "TARGETPLATFORM" in env:
        try:
            return normalize_platform(parse_platform(env["TARGETPLATFORM"], default=base))
        except PybuildError:
            return None
    if not any(name in env for name in ("TARGETOS", "TARGETARCH", "TARGETVARIANT")):
        return None
    return normalize_platform(
        Platform(
            env.get("TARGETOS") or base.os, env.get("TARGETARCH") or base.architecture, env.get("TARGETVARIANT") or ""
        )
    )


def summarize_heredoc(body: str) -> str:
    """The first line of a here-document, with ``...`` if there is more."""
    lines = body.strip().replace("\r\n", "\n").split("\n")
    return lines[0] + ("..." if len(lines) > 1 else "")


def display_text(text: str, env: Mapping[str, str], *, escape: str, run: bool = False) -> str:
    """An instruction's line as shown: variables replaced as in a word; of a ``run`` the quotes and the unknown variables stay."""
    text = text.strip()
    try:
        text = expand_text(text, env, escape=escape, keep_quotes=run, keep_unset=run).text
    except DockerfileError:
        pass  # a shell's own syntax, which the shell will judge
    return upper_first_word(text)
