"""Compiles Docker's default seccomp profile into the BPF program that the kernel runs. Never installs it.

The profile is data (``seccomp_default.json``): which calls are let through for which machine, capability set and kernel, and
the numbers that calls have on each architecture (from the kernel's system call tables). The program looks a call up by
binary search, so that it costs about eight comparisons; the kernel moreover remembers constant answers (Linux 5.11).

    architecture? ─▶ number ─▶ allow | EPERM | ENOSYS | compare an argument, then one of these

A call that the profile doesn't name answers EPERM; one newer than every call that it names answers ENOSYS, so that
programs take their fallback instead of failing, which is what runc does too.
"""

from __future__ import annotations

import functools
import struct
from pathlib import Path
from typing import Any

from pybuild.values import dataclass

from . import capabilities

# include/uapi/linux/seccomp.h
RET_KILL_THREAD = 0x00000000
RET_ERRNO = 0x00050000
RET_ALLOW = 0x7FFF0000
OFFSET_NUMBER = 0
OFFSET_ARCHITECTURE = 4
OFFSET_ARGUMENTS = 16

# include/uapi/linux/bpf_common.h: class | size or operation | mode or source
LOAD_WORD = 0x20
AND = 0x54
JUMP_ALWAYS = 0x05
JUMP_EQUAL = 0x15
JUMP_GREATER = 0x25
JUMP_GREATER_EQUAL = 0x35
RETURN = 0x06

EPERM = 1
ENOSYS = 38
X32_BIT = 0x40000000
"""Set in the number of an x32 call (arch/x86/include/uapi/asm/unistd.h)."""
ARM_PRIVATE = 0x0F0000
"""Where the private calls of 32-bit ARM begin; they say nothing about which calls are new."""
BIG_ENDIAN = ("s390x",)

Instruction = tuple[int, int, int, int]
"""struct sock_filter: code, jump if true, jump if false, constant."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Argument ``index``, all 64 bits, compared with ``value``; ``&==`` means (argument & value) == datum."""

    index: int
    operator: str
    value: int
    datum: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call gets: ``action`` at once if there are no conditions, else ``action`` if any holds and EPERM if none does."""

    action: int
    conditions: tuple[Condition, ...] = ()


DENY = Answer(RET_ERRNO | EPERM)
UNKNOWN = Answer(RET_ERRNO | ENOSYS)


def default_program(bounding: int, *, machine: str, kernel: tuple[int, int]) -> bytes:
    """The program for a process whose bounding set is the mask ``bounding``.

    Parameters: ``machine`` as uname(2) calls it; ``kernel``: major and minor version. Returns an array of struct sock_filter.
    Raises LookupError for a machine whose call numbers aren't known here.
    """
    return _compile(bounding, machine, kernel)


@functools.lru_cache(maxsize=8)
def _compile(bounding: int, machine: str, kernel: tuple[int, int]) -> bytes:
    profile = _profile()
    if machine not in profile["architectures"]:
        raise LookupError(machine)
    answers = _answers(profile, bounding=bounding, machine=machine, kernel=kernel)
    sections: dict[int, list[Instruction]] = {}
    compatible = profile["compatible"].get(machine, [])
    for architecture in (machine, *compatible):
        if architecture == "x32":
            continue
        table = _table(profile, architecture, answers)
        if architecture == "x86_64":
            table = [
                *_below(table, X32_BIT),
                *((start | X32_BIT, answer) for start, answer in _table(profile, "x32", answers)),
            ]
        body = [(LOAD_WORD, 0, 0, OFFSET_NUMBER), *_search(table, big_endian=machine in BIG_ENDIAN)]
        sections[profile["audit"][architecture]] = body
    program: list[Instruction] = [(LOAD_WORD, 0, 0, OFFSET_ARCHITECTURE)]
    for audit, body in sections.items():
        # Jumps that depend on a condition reach 255 instructions only.
        program += [(JUMP_EQUAL, 1, 0, audit), (JUMP_ALWAYS, 0, 0, len(body)), *body]
    program.append((RETURN, 0, 0, RET_KILL_THREAD))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


@functools.lru_cache(maxsize=1)
def _profile() -> dict[str, Any]:  # Any: JSON, of a known file
    import json

    profile: dict[str, Any] = json.loads((Path(__file__).parent / "seccomp_default.json").read_text())
    return profile


def _applies(rule: dict[str, Any], *, bounding: int, machine: str, kernel: tuple[int, int]) -> bool:
    def has(name: str) -> bool:
        return bool(bounding & capabilities.mask([name]))

    return not (
        ("if_capability" in rule and not has(rule["if_capability"]))
        or ("unless_capability" in rule and has(rule["unless_capability"]))
        or ("if_machine" in rule and machine not in rule["if_machine"])
        or ("unless_machine" in rule and machine in rule["unless_machine"])
        or ("if_kernel" in rule and kernel < tuple(rule["if_kernel"]))
    )


def _answers(profile: dict[str, Any], *, bounding: int, machine: str, kernel: tuple[int, int]) -> dict[str, Answer]:
    """What each call that the profile names gets. A rule without a condition wins over those with one."""
    answers: dict[str, Answer] = {}
    for rule in profile["rules"]:
        if not _applies(rule, bounding=bounding, machine=machine, kernel=kernel):
            continue
        action = RET_ERRNO | rule["errno"] if "errno" in rule else RET_ALLOW
        condition = (Condition(*rule["argument"]),) if "argument" in rule else ()
        for call in rule["calls"]:
            known = answers.get(call)
            if known is None or (known.conditions and not condition):
                answers[call] = Answer(action, condition)
            elif known.conditions:
                answers[call] = Answer(action, known.conditions + condition)
    return answers


def _table(profile: dict[str, Any], architecture: str, answers: dict[str, Answer]) -> list[tuple[int, Answer]]:
    """Answers by number as intervals: each from its start to the next one's, the last without end."""
    column = profile["architectures"].index(architecture)
    numbered = {}
    for call, answer in answers.items():
        row = profile["numbers"][call]
        if column < len(row) and row[column] is not None:
            numbered[row[column]] = answer
    newest = max(number for number in numbered if number < ARM_PRIVATE)
    table: list[tuple[int, Answer]] = []
    for number in sorted(numbered):
        _append(table, number, numbered[number])
        if number + 1 not in numbered:
            _append(table, number + 1, DENY if number < newest else UNKNOWN)
    if table[0][0] != 0:
        table.insert(0, (0, DENY))
    return table


def _append(table: list[tuple[int, Answer]], start: int, answer: Answer) -> None:
    if not table or table[-1][1] != answer:
        table.append((start, answer))


def _below(table: list[tuple[int, Answer]], limit: int) -> list[tuple[int, Answer]]:
    return [(start, answer) for start, answer in table if start < limit]


def _search(table: list[tuple[int, Answer]], *, big_endian: bool) -> list[Instruction]:
    """Binary search for the interval that the number in the accumulator falls into."""
    if len(table) == 1:
        return _answer(table[0][1], big_endian=big_endian)
    middle = len(table) // 2
    below = _search(table[:middle], big_endian=big_endian)
    above = _search(table[middle:], big_endian=big_endian)
    start = table[middle][0]
    if len(below) <= 255:
        return [(JUMP_GREATER_EQUAL, len(below), 0, start), *below, *above]
    return [(JUMP_GREATER_EQUAL, 0, 1, start), (JUMP_ALWAYS, 0, 0, len(below)), *below, *above]


def _answer(answer: Answer, *, big_endian: bool) -> list[Instruction]:
    if not answer.conditions:
        return [(RETURN, 0, 0, answer.action)]
    code: list[Instruction] = []
    for condition in answer.conditions:
        code += _condition(condition, answer.action, big_endian=big_endian)
    return [*code, (RETURN, 0, 0, DENY.action)]


def _condition(condition: Condition, action: int, *, big_endian: bool) -> list[Instruction]:
    """Return ``action`` if the condition holds, else go on behind these instructions."""
    offset = OFFSET_ARGUMENTS + 8 * condition.index
    low, high = (offset + 4, offset) if big_endian else (offset, offset + 4)
    value_low, value_high = condition.value & 0xFFFFFFFF, condition.value >> 32
    matched = (RETURN, 0, 0, action)
    match condition.operator:
        case "==":
            return [
                (LOAD_WORD, 0, 0, high),
                (JUMP_EQUAL, 0, 3, value_high),
                (LOAD_WORD, 0, 0, low),
                (JUMP_EQUAL, 0, 1, value_low),
                matched,
            ]
        case ">":
            return [
                (LOAD_WORD, 0, 0, high),
                (JUMP_GREATER, 3, 0, value_high),
                (JUMP_EQUAL, 0, 3, value_high),
                (LOAD_WORD, 0, 0, low),
                (JUMP_GREATER, 0, 1, value_low),
                matched,
            ]
        case "<":
            return [
                (LOAD_WORD, 0, 0, high),
                (JUMP_GREATER, 4, 0, value_high),
                (JUMP_EQUAL, 0, 2, value_high),
                (LOAD_WORD, 0, 0, low),
                (JUMP_GREATER_EQUAL, 1, 0, value_low),
                matched,
            ]
        case "&==":
            return [
                (LOAD_WORD, 0, 0, high),
                (AND, 0, 0, value_high),
                (JUMP_EQUAL, 0, 4, condition.datum >> 32),
                (LOAD_WORD, 0, 0, low),
                (AND, 0, 0, value_low),
                (JUMP_EQUAL, 0, 1, condition.datum & 0xFFFFFFFF),
                matched,
            ]
        case _:
            raise ValueError(condition.operator)
