"""What a person sees of a step: ``[linux/arm64 build 2/5] RUN make``, in BuildKit's form.

Owns the prefix and the display form of an instruction's text. Display expansion is lenient: what can't be expanded is
shown as written, and nothing here ever fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from pybuild.errors import PybuildError
from pybuild.layers.descriptor import Platform

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


def expand_run_title(text: str, env: Mapping[str, str], *, escape: str, expand_one: Callable[[str], str | None]) -> str:
    """A RUN's text as shown: known variables replaced, unknown ones and all quotes kept. ``expand_one`` expands a ``${…}`` with a
    modifier, or gives None. The whole text is returned unchanged where a quote or brace is not closed."""
    out: list[str] = []
    position, quoted = 0, False
    while position < len(text):
        character = text[position]
        if character == "'" and not quoted:
            end = text.find("'", position + 1)
            if end < 0:
                return text
            out.append(text[position : end + 1])
            position = end + 1
        elif character == '"':
            quoted = not quoted
            out.append(character)
            position += 1
        elif character == escape:
            following = text[position + 1 : position + 2]
            if quoted and following not in {'"', "$", escape}:
                out.append(character)
            out.append(following)
            position += 1 + len(following)
        elif character == "$":
            piece = _variable(text, position)
            if piece is None:
                return text
            out.append(_value(piece, env, expand_one))
            position += len(piece)
        else:
            out.append(character)
            position += 1
    return text if quoted else "".join(out)


def _variable(text: str, position: int) -> str | None:
    """The variable reference that starts at ``position`` (a dollar), or None where a brace is not closed."""
    if text[position + 1 : position + 2] == "{":
        depth, end = 0, position + 1
        while end < len(text):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
            if depth == 0:
                return text[position:end]
        return None
    end = position + 1
    while end < len(text) and (text[end].isalnum() or text[end] == "_"):
        if end == position + 1 and text[end].isdigit():
            return text[position : end + 1]
        end += 1
    if end == position + 1 and text[end : end + 1] in {*"@*#?-$!"}:
        end += 1
    return text[position:end]


def _value(piece: str, env: Mapping[str, str], expand_one: Callable[[str], str | None]) -> str:
    if not piece.startswith("${"):
        return env.get(piece[1:], piece) if len(piece) > 1 else piece
    name = piece[2:-1]
    if name in env:
        return env[name]
    plain = "".join(_leading_name(name))
    if plain == name or plain not in env:
        return piece
    expanded = expand_one(piece)
    return piece if expanded is None else expanded


def _leading_name(text: str) -> list[str]:
    out = []
    for character in text:
        if not (character.isalnum() or character == "_"):
            break
        out.append(character)
    return out
