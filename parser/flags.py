"""Which flags each instruction has, and reading them: ``--name=value`` by BuildKit's rules.

Owns the flag tables and the checks of values that need no expansion. Never looks at arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from .go_text import parse_bool
from .suggest import closest, did_you_mean
from .tokens import Token, TokenError


class FlagKind(Enum):
    BOOL = "bool"
    STRING = "string"
    STRINGS = "strings"


_B, _S, _M = FlagKind.BOOL, FlagKind.STRING, FlagKind.STRINGS
FLAGS: dict[str, dict[str, FlagKind]] = {
    "ADD": {"chown": _S, "chmod": _S, "link": _B, "keep-git-dir": _B, "checksum": _S, "unpack": _B, "exclude": _M},
    "COPY": {"chown": _S, "from": _S, "chmod": _S, "link": _B, "exclude": _M, "parents": _B},
    "FROM": {"platform": _S},
    "HEALTHCHECK": {"interval": _S, "timeout": _S, "start-period": _S, "start-interval": _S, "retries": _S},
    "RUN": {"mount": _M, "network": _S, "security": _S, "device": _M},
}
"""An instruction that isn't named takes no flag."""

_UNCHECKED = frozenset({"ARG", "STOPSIGNAL"})  # BuildKit never reads the flags of these, so none is wrong.


class Flags:
    """The flags of one instruction, by name. ``token`` gives the last (for most: only) occurrence."""

    def __init__(self) -> None:
        self._tokens: dict[str, list[Token]] = {}

    def add(self, name: str, token: Token) -> None:
        self._tokens.setdefault(name, []).append(token)

    def token(self, name: str) -> Token | None:
        tokens = self._tokens.get(name)
        return tokens[-1] if tokens else None

    def tokens(self, name: str) -> Sequence[Token]:
        return self._tokens.get(name, ())

    def text(self, name: str, default: str = "") -> str:
        token = self.token(name)
        return default if token is None else flag_value(token) or ""

    def boolean(self, name: str) -> bool | None:
        """None where the flag wasn't written."""
        token = self.token(name)
        if token is None:
            return None
        return (flag_value(token) or "true").lower() == "true"


def flag_name(token: Token) -> str:
    return token.text[2:].partition("=")[0]


def flag_value(token: Token) -> str | None:
    """None for a bare ``--name``."""
    _, equal, value = token.text.partition("=")
    return value if equal else None


def read_flags(instruction: str, tokens: Sequence[Token]) -> Flags:
    """Check the flags of an instruction (upper case). Raises ``TokenError`` in BuildKit's words."""
    flags = Flags()
    if instruction in _UNCHECKED:
        return flags
    known = FLAGS.get(instruction, {})
    for token in tokens:
        name, value = flag_name(token), flag_value(token)
        kind = known.get(name)
        if kind is None:
            message = did_you_mean(f"unknown flag: --{name}", name, known)
            raise TokenError.at(message, token, hint=_unknown_hint(instruction, name, known=known))
        if kind is not FlagKind.STRINGS and flags.token(name) is not None:
            raise TokenError.at(f"duplicate flag specified: --{name}", token, hint=f"Keep one --{name}")
        if kind is not FlagKind.BOOL and value is None:
            raise TokenError.at(
                f"missing a value on flag: --{name}", token, hint=f"Write --{name}=VALUE, without a blank around ="
            )
        if kind is FlagKind.BOOL and value is not None:
            if value == "":
                raise TokenError.at(
                    f"missing a value on flag: --{name}", token, hint=f"Write --{name} or --{name}=false"
                )
            if value.lower() not in ("true", "false"):
                raise TokenError.at(
                    f"expecting boolean value for flag --{name}, not: {value}",
                    token,
                    hint="Booleans are true and false",
                )
        flags.add(name, token)
    return flags


def _unknown_hint(instruction: str, name: str, *, known: dict[str, FlagKind]) -> str | None:
    if closest(name, known) is not None:
        return None
    elsewhere = [other for other, flags in FLAGS.items() if name in flags]
    if elsewhere:
        return f"--{name} is a flag of {' and '.join(elsewhere)}"
    if known:
        return f"{instruction} knows " + ", ".join(f"--{flag}" for flag in sorted(known))
    return f"{instruction} takes no flags"


def check_device(value: str) -> None:
    """Raise ValueError where ``--device`` isn't ``NAME[,required]`` or ``name=NAME[,required=BOOL]``."""
    from .mounts import csv_fields

    named = ""
    for field in csv_fields(value, what="devices"):
        key, equal, text = field.partition("=")
        key = key.lower()
        if not equal and key == "required":
            continue
        if not equal or key not in ("name", "required"):
            if not named:
                named = field
                continue
            if not equal:
                raise ValueError(f"invalid field '{field}' must be a key=value pair")
            raise ValueError(did_you_mean(f"unexpected key '{key}' in '{field}'", key, ("name", "required")))
        if key == "name":
            if named:
                raise ValueError(f"device name already set to {named}")
            named = text
            continue
        try:
            parse_bool(text)
        except ValueError:
            raise ValueError(f"invalid value for {key}: {text}") from None
