"""Go's conventions for text, where error messages and values must read as BuildKit's: ``%q``, white space, durations, booleans.

Only the conversions; what they are used for is decided elsewhere. A conversion that fails raises ValueError with Go's words.
"""

from __future__ import annotations

import re

from pybuild.values import pattern

SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
"""What unicode.IsSpace takes for white space. Python's own ``str.strip()`` knows four more."""

_ESCAPES = {
    '"': '\\"', "\\": "\\\\", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v",
}  # fmt: skip


def quote(text: str) -> str:
    """``text`` as Go's ``%q`` shows it."""
    out = []
    for char in text:
        code = ord(char)
        if char in _ESCAPES:
            out.append(_ESCAPES[char])
        elif char == " " or (char.isprintable() and not char.isspace()):
            out.append(char)
        elif 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, kept by surrogateescape
            out.append(f"\\x{code - 0xDC00:02x}")
        elif code < 0x80:
            out.append(f"\\x{code:02x}")
        elif code < 0x10000:
            out.append(f"\\u{code:04x}")
        else:
            out.append(f"\\U{code:08x}")
    return '"' + "".join(out) + '"'


_DURATION = pattern(r"([0-9]*)(?:\.([0-9]*))?([^0-9.]*)")
_UNITS = {
    "ns": 1, "us": 1_000, "\u00b5s": 1_000, "\u03bcs": 1_000, "ms": 1_000_000, "s": 1_000_000_000,
    "m": 60_000_000_000, "h": 3_600_000_000_000,
}  # fmt: skip


def parse_duration(text: str) -> int:
    """Nanoseconds of a duration such as ``1h15m30.5s`` (time.ParseDuration)."""
    invalid = ValueError(f"time: invalid duration {quote(text)}")
    sign, rest = 1, text
    if rest[:1] in ("+", "-"):
        sign, rest = (-1 if rest[0] == "-" else 1), rest[1:]
    if rest == "0":
        return 0
    if not rest:
        raise invalid
    total = 0
    while rest:
        match = _DURATION.match(rest)
        if match is None or not (match[1] or match[2]) or len(match[1]) > 30:
            raise invalid
        whole, fraction, unit = match[1], match[2] or "", match[3]
        if not unit:
            raise ValueError(f"time: missing unit in duration {quote(text)}")
        if unit not in _UNITS:
            raise ValueError(f"time: unknown unit {quote(unit)} in duration {quote(text)}")
        scale = _UNITS[unit]
        total += int(whole or "0") * scale + int(scale * int(fraction[:18] or "0") / 10 ** len(fraction[:18]))
        if total > (1 << 63) - 1:
            raise invalid
        rest = rest[match.end() :]
    return sign * total


def parse_bool(text: str) -> bool:
    """strconv.ParseBool."""
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise ValueError(f"strconv.ParseBool: parsing {quote(text)}: invalid syntax")


_DIGITS = {8: pattern(r"[0-7]+"), 10: pattern(r"[0-9]+")}


def parse_unsigned(text: str, *, base: int, bits: int = 32) -> int:
    """strconv.ParseUint for base 8 or 10: digits only, no sign, no underscore."""
    if not _DIGITS[base].fullmatch(text):
        raise ValueError(f"strconv.ParseUint: parsing {quote(text)}: invalid syntax")
    value = _bounded(text, base)
    if value >= 1 << bits:
        raise ValueError(f"strconv.ParseUint: parsing {quote(text)}: value out of range")
    return value


def parse_signed(text: str, *, bits: int) -> int:
    """strconv.ParseInt for base 10."""
    digits = text[1:] if text[:1] in ("+", "-") else text
    if not _DIGITS[10].fullmatch(digits):
        raise ValueError(f"strconv.ParseInt: parsing {quote(text)}: invalid syntax")
    value = _bounded(digits, 10) * (-1 if text[0] == "-" else 1)
    if not -(1 << (bits - 1)) <= value < 1 << (bits - 1):
        raise ValueError(f"strconv.ParseInt: parsing {quote(text)}: value out of range")
    return value


def _bounded(digits: str, base: int) -> int:
    significant = digits.lstrip("0")
    # Python refuses to convert thousands of digits; so many are out of any range here.
    return int(significant or "0", base) if len(significant) <= 40 else 1 << 200


_SIZE = pattern(r"(.*[0-9. ])([^0-9. ]*)", re.DOTALL)
_SIZE_NUMBER = pattern(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def parse_size(text: str) -> int:
    """Bytes of ``64m``, ``1.5GiB``, ``100`` (docker/go-units' RAMInBytes: units are powers of 1024)."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"invalid size: '{text}'")
    number, suffix = match[1].removesuffix(" "), match[2].lower()
    if not _SIZE_NUMBER.fullmatch(number):
        raise ValueError(f"strconv.ParseFloat: parsing {quote(number)}: invalid syntax")
    value = float(number)
    if value < 0:
        raise ValueError(f"invalid size: '{text}'")
    factor = 1
    if suffix not in ("", "b"):
        if suffix[0] not in "kmgtp" or suffix[1:] not in ("", "b", "ib"):
            raise ValueError(f"invalid suffix: '{suffix}'")
        factor = 1024 ** ("kmgtp".index(suffix[0]) + 1)
    if value * factor >= 1 << 63:
        raise ValueError(f"invalid size: '{text}'")
    return int(value * factor)
