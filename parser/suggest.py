"""Did you mean …? Finds the option that a mistyped word most likely stands for. Never judges whether a word is wrong."""

from __future__ import annotations

from collections.abc import Iterable


def closest(value: str, options: Iterable[str], *, case_sensitive: bool = True) -> str | None:
    """The option at fewer than three single-character edits from ``value``, the nearest (then first) one; None if there is none.

    None also if ``value`` is one of the options: then something else is wrong with it. Without ``case_sensitive``, the
    answer takes the case of ``value`` where that is uniform.
    """
    wanted = value if case_sensitive else value.lower()
    best: str | None = None
    limit = 3
    for option in options:
        candidate = option if case_sensitive else option.lower()
        if candidate == wanted:
            return None
        distance = _distance(wanted, candidate, limit)
        if distance < limit:
            best, limit = (candidate if case_sensitive else _match_case(candidate, value)), distance
    return best


def did_you_mean(message: str, value: str, options: Iterable[str], *, case_sensitive: bool = True) -> str:
    """``message``, followed by `` (did you mean X?)`` where an option is near."""
    match = closest(value, options, case_sensitive=case_sensitive)
    return message if match is None else f"{message} (did you mean {match}?)"


def _match_case(option: str, model: str) -> str:
    if model == model.lower():
        return option.lower()
    if model == model.upper():
        return option.upper()
    return option


def _distance(left: str, right: str, limit: int) -> int:
    """Levenshtein's distance; any number not below ``limit`` once it can't be below any more (so long words cost nothing)."""
    if abs(len(left) - len(right)) >= limit:
        return limit
    previous = list(range(len(right) + 1))
    for row, char in enumerate(left, 1):
        current = [row]
        for column, other in enumerate(right, 1):
            current.append(min(previous[column] + 1, current[-1] + 1, previous[column - 1] + (char != other)))
        if min(current) >= limit:
            return limit
        previous = current
    return previous[-1]
