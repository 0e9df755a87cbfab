"""The rows of ``pybuild du``, and the filters over them: values only.

Owns their shapes and the filters' language (BuildKit's). Where the rows come from is ``survey.py``'s.
"""

from __future__ import annotations

import re
from enum import Enum

from pybuild.errors import UsageError
from pybuild.values import dataclass

from .images import StoredImage


class UsageType(Enum):
    """BuildKit's record types."""

    REGULAR = "regular"
    CACHE_MOUNT = "exec.cachemount"
    SOURCE = "source.local"
    GIT = "source.git.checkout"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class CacheUsage:
    """A row of the build cache. ``shared``: an image needs it too; ``in_use``: running work does; ``mutable``: a cache mount;
    ``parents``: the layer below. Sizes in bytes, times in seconds since the epoch; ``last_used`` None if never."""

    id: str
    type: UsageType
    size: int
    parents: tuple[str, ...] = ()
    description: str = ""
    shared: bool = False
    mutable: bool = False
    in_use: bool = False
    created: float = 0.0
    last_used: float | None = None
    usage_count: int = 0

    @property
    def reclaimable(self) -> bool:
        """docker's and buildx's column: true of all that nothing running needs."""
        return not self.in_use


@dataclass(frozen=True, slots=True)
class ImageUsage:
    """An image's part: ``size`` of all that it needs, ``shared`` the part of it that other images need too. In bytes on the disk."""

    image: StoredImage
    size: int
    shared: int


@dataclass(frozen=True, slots=True)
class Usage:
    """All of a store. ``layers_size``: bytes of all layers, each counted once, of images and cache together."""

    images: tuple[ImageUsage, ...]
    cache: tuple[CacheUsage, ...]
    layers_size: int

    @property
    def cache_size(self) -> int:
        return sum(row.size for row in self.cache)

    @property
    def cache_reclaimable(self) -> int:
        """Bytes that ``prune --all`` would free."""
        return sum(row.size for row in self.cache if not row.in_use and not row.shared)


class InvalidFilter(UsageError):
    """A filter can't be understood."""

    def __init__(self, text: str, *, reason: str) -> None:
        super().__init__(
            f"invalid filter {text!r}: {reason}",
            hint="filters are id, parents, description, type, inuse, shared, private, mutable, immutable (with ==, != or ~=) and until",
        )
        self.text = text


_TERM = re.compile(r"\s*([A-Za-z-]+)\s*(?:(==|!=|~=|=)(.*))?\Z", re.DOTALL)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_FLAGS = {"inuse", "shared", "private", "mutable", "immutable"}


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """A condition on rows: every term must hold. Text as BuildKit has it: ``type==regular,description~=apt``; a flag alone means that it
    is true; ``until=24h`` or ``unused-for=24h``: not used for so long."""

    terms: tuple[tuple[str, str, str], ...]
    unused_for_seconds: float = 0.0

    @classmethod
    def parse(cls, text: str) -> UsageFilter:
        """Raises InvalidFilter."""
        terms: list[tuple[str, str, str]] = []
        unused_for = 0.0
        for part in text.split(","):
            match = _TERM.match(part)
            if match is None:
                raise InvalidFilter(text, reason=f"{part!r} is no condition")
            name, operator, value = match[1].lower(), match[2] or "", (match[3] or "").strip()
            name = {"parent": "parents", "in-use": "inuse"}.get(name, name)
            if name in ("until", "unused-for"):
                unused_for = max(unused_for, _seconds(value, text))
                continue
            if name in _FLAGS:
                if value not in ("", "1", "0", "true", "false"):
                    raise InvalidFilter(text, reason=f"{name} is true or false")
                if operator == "~=":
                    raise InvalidFilter(text, reason=f"{name} has no text to match")
                truth = (value in ("", "1", "true")) != (operator == "!=")
                terms.append((name, "", "true" if truth else "false"))
                continue
            if name not in ("id", "parents", "description", "type"):
                raise InvalidFilter(text, reason=f"there is no field {name!r}")
            if not operator:
                raise InvalidFilter(text, reason=f"{name} needs a value")
            if operator == "~=":
                try:
                    re.compile(value)
                except re.error as error:
                    raise InvalidFilter(text, reason=str(error)) from error
            terms.append((name, "==" if operator == "=" else operator, value))
        return cls(tuple(terms), unused_for)

    def matches(self, row: CacheUsage, *, now: float | None = None) -> bool:
        """True if every term holds of the row at the time ``now``; without it only what has no time in it counts."""
        if now is not None and now - max(row.last_used or 0.0, row.created) < self.unused_for_seconds:
            return False
        return all(_holds(row, name, operator, value) for name, operator, value in self.terms)


def _seconds(value: str, text: str) -> float:
    """A duration as Go writes it (``1h30m``), with days and weeks too."""
    if not value or _DURATION.sub("", value):
        raise InvalidFilter(text, reason=f"{value!r} is no duration")
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(value))


def _holds(row: CacheUsage, name: str, operator: str, value: str) -> bool:
    match name:
        case "inuse":
            return row.in_use == (value == "true")
        case "shared":
            return row.shared == (value == "true")
        case "private":
            return row.shared != (value == "true")
        case "mutable":
            return row.mutable == (value == "true")
        case "immutable":
            return row.mutable != (value == "true")
        case "id":
            texts: tuple[str, ...] = (row.id,)
        case "parents":
            texts = (";".join(row.parents),)
        case "type":
            texts = (row.type.value,)
        case _:
            texts = (row.description,)
    if operator == "~=":
        return any(re.search(value, text) for text in texts)
    found = any(text == value or (name == "id" and value and text.startswith(value)) for text in texts)
    return found == (operator == "==")
