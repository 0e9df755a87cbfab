"""``--chmod``: octal and symbolic file modes, as BuildKit's copies apply them.

Owns the grammar of chmod(1) as BSD's setmode(3) reads it, with a umask of zero. Touches no file.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from pybuild.errors import PybuildError
from pybuild.values import dataclass, pattern

_USER: Final = 0o4700
_GROUP: Final = 0o2070
_OTHER: Final = 0o0007
_EVERYONE: Final = _USER | _GROUP | _OTHER  # the sticky bit belongs to nobody: only "t" names it
_STICKY: Final = 0o1000
_SPECIAL: Final = 0o6000
_PERMISSIONS: Final = {"r": 0o444, "w": 0o222, "x": 0o111}
_SHIFTS: Final = {"u": 6, "g": 3, "o": 0}
_OCTAL: Final = pattern(r"0*[0-7]{1,4}\Z")
_CLAUSE: Final = pattern(r"(?P<who>[augo]*)(?P<actions>(?:[-+=][rwxXstugo]*)+)\Z")
_ACTION: Final = pattern(r"([-+=])([rwxXstugo]*)")


class InvalidMode(PybuildError):
    """``--chmod`` has a value that is neither octal nor symbolic."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="Write it in octal, as 0644, or symbolically, as u=rwX,go=rX")


@dataclass(frozen=True, slots=True)
class _Step:
    """Clear ``clear``, then set ``add``; or copy the permissions of ``copied`` (u, g or o) to ``classes`` with ``operator``."""

    clear: int = 0
    add: int = 0
    conditional: bool = False
    copied: str = ""
    classes: str = ""
    operator: str = ""


@dataclass(frozen=True, slots=True)
class ModeChange:
    """A parsed ``--chmod``: ``octal`` when given as a number."""

    octal: int | None
    steps: tuple[_Step, ...] = ()

    def apply(self, mode: int, *, directory: bool) -> int:
        """The permission bits (with setuid, setgid, sticky) that a file of ``mode`` gets."""
        if self.octal is not None:
            return self.octal
        result = mode & 0o7777
        for step in self.steps:
            if step.copied:
                result = _copy_class(result, step)
            elif not step.conditional:
                result = (result & ~step.clear) | step.add
            elif directory or mode & 0o111:
                result |= step.add
        return result

    @property
    def of_created_directories(self) -> int:
        """The mode of directories that a copy makes on its way to the destination: only a number reaches them."""
        return 0o755 if self.octal is None else self.octal & 0o777


@lru_cache(maxsize=256)
def parse_mode(text: str) -> ModeChange:
    """Read an octal or a symbolic mode. Raises InvalidMode."""
    if text[:1].isdecimal() or not text:
        if _OCTAL.match(text) is None:
            raise InvalidMode(f"invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777")
        return ModeChange(int(text, 8))
    steps: list[_Step] = []
    for clause in text.split(","):
        match = _CLAUSE.match(clause)
        if match is None:
            raise InvalidMode("invalid syntax")
        who = match["who"]
        for operator, permissions in _ACTION.findall(match["actions"]):
            steps += _action(who, operator, permissions)
    return ModeChange(None, tuple(steps))


def _action(who: str, operator: str, permissions: str) -> list[_Step]:
    bits = 0
    for name, mask in (("a", _EVERYONE), ("u", _USER), ("g", _GROUP), ("o", _OTHER)):
        if name in who:
            bits |= mask
    allowed = bits or 0o7777
    only_other = bool(bits) and not bits & ~_OTHER
    add = conditional = 0
    copies: list[str] = []
    for letter in permissions:
        if letter in _PERMISSIONS:
            add |= _PERMISSIONS[letter]
        elif letter == "X":
            if operator == "-":
                add |= 0o111
            else:
                conditional |= 0o111
        elif letter == "s" and not only_other:
            add |= _SPECIAL
        elif letter == "t" and not only_other:
            add |= _STICKY
            allowed |= _STICKY
        elif letter in _SHIFTS:
            copies.append(letter)
    steps: list[_Step] = []
    add &= allowed
    if operator == "=" and not copies:
        steps.append(_Step(clear=bits or _EVERYONE, add=add))
    elif operator == "-":
        steps.append(_Step(clear=add))
    elif add:
        steps.append(_Step(add=add))
    if conditional:
        steps.append(_Step(add=conditional & allowed, conditional=True))
    classes = "ugo" if not bits or "a" in who else who
    steps += (_Step(copied=letter, classes=classes, operator=operator) for letter in copies)
    return steps


def _copy_class(mode: int, step: _Step) -> int:
    value = mode >> _SHIFTS[step.copied] & 7
    for name in set(step.classes):
        shift = _SHIFTS[name]
        if step.operator == "=":
            mode = mode & ~(7 << shift) | value << shift
        elif step.operator == "+":
            mode |= value << shift
        else:
            mode &= ~(value << shift)
    return mode
