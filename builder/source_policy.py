"""Source policies: rules that refuse sources or replace them by others, in BuildKit's JSON form (``sourcepolicy``, version 1).

Owns matching and replacing of identifiers, such as ``docker-image://docker.io/library/alpine:latest``, ``https://host/file``,
``git://host/repository.git#ref`` and ``local://context``. Fetches nothing; who does asks here first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from pybuild.errors import PybuildError
from pybuild.values import dataclass, field

_MOST_CHANGES: Final = 10


class InvalidSourcePolicy(PybuildError):
    """The policy can't be read."""


class SourceDenied(PybuildError):
    """A rule refuses a source."""

    def __init__(self, identifier: str) -> None:
        super().__init__(f'source "{identifier}" not allowed: source denied by policy')
        self.identifier = identifier


class Action(Enum):
    """By BuildKit's names; their numbers are the positions."""

    ALLOW = "ALLOW"
    DENY = "DENY"
    CONVERT = "CONVERT"


@dataclass(frozen=True, slots=True)
class Rule:
    """``pattern``: what identifiers it is for; ``attributes``: (name, value, wanted) that a source must have, or must not; ``replacement``: the
    new identifier, with ``${N}`` for what groups matched; ``updates``: attributes that the source then has."""

    action: Action
    pattern: re.Pattern[str]
    attributes: tuple[tuple[str, re.Pattern[str], bool], ...] = ()
    replacement: str = ""
    updates: Mapping[str, str] = field(default_factory=dict)

    def match(self, source: Source) -> re.Match[str] | None:
        """The match if the rule is for ``source``."""
        for name, value, wanted in self.attributes:
            if (value.fullmatch(source.attributes.get(name, "")) is not None) != wanted:
                return None
        return self.pattern.fullmatch(source.identifier)


@dataclass(frozen=True, slots=True)
class Source:
    """A source by its identifier; ``attributes`` such as ``http.checksum`` and ``git.fullurl``."""

    identifier: str
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SourcePolicy:
    """Rules in order."""

    rules: tuple[Rule, ...]

    def apply(self, source: Source) -> Source:
        """What is to be fetched for ``source``. Raises SourceDenied, InvalidSourcePolicy (rules that never come to an end)."""
        for _ in range(_MOST_CHANGES):
            changed = self._once(source)
            if changed is None:
                return source
            source = changed
        raise InvalidSourcePolicy(f"the source policy changes {source.identifier} again and again")

    def _once(self, source: Source) -> Source | None:
        denied = False
        for rule in self.rules:
            match = rule.match(source)
            if match is None:
                continue
            if rule.action is Action.CONVERT:
                replaced = _filled(rule.replacement, match) if rule.replacement else source.identifier
                changed = Source(replaced, {**source.attributes, **rule.updates})
                if changed != source:
                    return changed
            else:
                denied = rule.action is Action.DENY
        if denied:
            raise SourceDenied(source.identifier)
        return None


def parse_source_policy(text: str | bytes) -> SourcePolicy:
    """Read the JSON form. Raises InvalidSourcePolicy."""
    try:
        value = json.loads(text)
        return SourcePolicy(tuple(_rule(rule) for rule in value.get("rules") or ()))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, re.error) as error:
        raise InvalidSourcePolicy(f"failed to parse source policy: {error}") from error


def _rule(value: Mapping[str, Any]) -> Rule:  # Any: the JSON edge
    selector = value["selector"]
    kind = _named(selector.get("matchType", selector.get("match_type", 0)), ("WILDCARD", "EXACT", "REGEX"))
    updates = value.get("updates") or {}
    return Rule(
        Action(_named(value.get("action", 0), ("ALLOW", "DENY", "CONVERT"))),
        _pattern(selector["identifier"], kind),
        tuple(_constraint(item) for item in selector.get("constraints") or ()),
        updates.get("identifier", ""),
        dict(updates.get("attrs") or {}),
    )


def _constraint(value: Mapping[str, Any]) -> tuple[str, re.Pattern[str], bool]:  # Any: the JSON edge
    condition = _named(value.get("condition", 0), ("EQUAL", "NOTEQUAL", "MATCHES"))
    kind = "WILDCARD" if condition == "MATCHES" else "EXACT"
    return value["key"], _pattern(value.get("value", ""), kind), condition != "NOTEQUAL"


def _named(value: object, names: tuple[str, ...]) -> str:
    """An enumeration's value by name or number."""
    name = names[value] if isinstance(value, int) else str(value)
    if name not in names:
        raise ValueError(f"unknown value {value!r}")
    return name


def _pattern(identifier: str, kind: str) -> re.Pattern[str]:
    if kind == "REGEX":
        # As Go's regexp: it may match anywhere.
        return re.compile(f"(?s:.*?)(?:{identifier})(?s:.*)")
    if kind == "EXACT":
        return re.compile(re.escape(identifier))
    return re.compile(
        "".join("(.*)" if part == "*" else re.escape(part) for part in re.split(r"(\*)", identifier)), re.DOTALL
    )


def _filled(text: str, match: re.Match[str]) -> str:
    return re.sub(r"\$\{(\d+)\}|\$(\d+)", lambda found: match[int(found[1] or found[2])] or "", text)
