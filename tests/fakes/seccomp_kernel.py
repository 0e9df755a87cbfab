"""What a seccomp program answers, and the numbers of calls: the kernel's part, for tests of ``daemon/seccomp.py``."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from pybuild.daemon import seccomp

PROFILE = json.loads((Path(seccomp.__file__).parent / "seccomp_default.json").read_text())


def evaluate(
    program: bytes, *, audit: int, number: int, arguments: tuple[int, ...] = (), big_endian: bool = False
) -> int:
    """Run a program as the kernel would, on one call, and give its return value."""
    arguments = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack((">" if big_endian else "<") + "IIQ6Q", number, audit, 0, *arguments)
    accumulator = 0
    position = 0
    while True:
        code, if_true, if_false, constant = struct.unpack_from("=HBBI", program, position * 8)
        position += 1
        match code:
            case 0x20:
                accumulator = struct.unpack_from((">" if big_endian else "<") + "I", data, constant)[0]
            case 0x54:
                accumulator &= constant
            case 0x05:
                position += constant
            case 0x15:
                position += if_true if accumulator == constant else if_false
            case 0x25:
                position += if_true if accumulator > constant else if_false
            case 0x35:
                position += if_true if accumulator >= constant else if_false
            case 0x06:
                return int(constant)
            case _:
                raise ValueError(f"instruction {code:#x}")


def call_number(call: str, architecture: str) -> int | None:
    """The number of a call that the profile names on an architecture, or None."""
    row = PROFILE["numbers"].get(call, [])
    column = PROFILE["architectures"].index(architecture)
    return row[column] if column < len(row) else None
