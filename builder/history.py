"""The ``created_by`` texts of an image's history, exactly as BuildKit's Dockerfile frontend writes them.

Owns the texts and the entries. Times are not known here: ``created`` stays None and is filled at export.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from pybuild.layers.image import HealthCheck, History
from pybuild.parser.go_text import quote
from pybuild.values import replace

COMMENT: Final = "buildkit.dockerfile.v0"
EXPORTER_COMMENT: Final = "buildkit.exporter.image.v0"
"""Marks an entry for a layer that no instruction made (a named context in place of an image)."""


def config_entry(text: str) -> History:
    """An entry of an instruction that makes no layer."""
    return History(created_by=text, comment=COMMENT, empty_layer=True)


def layer_entry(text: str, *, buildkit: bool = True) -> History:
    """An entry of an instruction that makes one; RUN, COPY and ADD carry the mark ``# buildkit``, WORKDIR doesn't."""
    return History(created_by=f"{text} # buildkit" if buildkit else text, comment=COMMENT)


def context_entry(text: str) -> History:
    """The entry of a layer that a context brought in place of an image."""
    return History(created_by=text, comment=EXPORTER_COMMENT)


def run_text(args: Sequence[str], *, arguments: Sequence[tuple[str, str | None]], env: Mapping[str, str]) -> str:
    """``RUN |2 a=1 b=2 /bin/sh -c …``: ``arguments`` are the stage's ARGs in the order declared; each is listed once, with the
    value it has now."""
    values = {name: env.get(name, default or "") for name, default in arguments}
    words = [f"|{len(values)}", *(f"{name}={value}" for name, value in values.items())] if values else []
    return " ".join(["RUN", *words, *args])


def pairs_text(keyword: str, pairs: Iterable[tuple[str, str]]) -> str:
    """``ENV a=1 b=2``, ``LABEL …``."""
    return " ".join([keyword, *(f"{key}={value}" for key, value in pairs)])


def arg_text(arguments: Iterable[tuple[str, str | None]]) -> str:
    """``ARG a=1 b``."""
    return " ".join(["ARG", *(name if value is None else f"{name}={value}" for name, value in arguments)])


def quoted_text(keyword: str, args: Iterable[str]) -> str:
    """``CMD ["a" "b"]``: Go's ``%q`` of a list."""
    return f"{keyword} [{' '.join(quote(arg) for arg in args)}]"


def list_text(keyword: str, items: Iterable[str]) -> str:
    """``EXPOSE [80/tcp 443/tcp]``: Go's ``%v`` of a list."""
    return f"{keyword} [{' '.join(items)}]"


def healthcheck_text(check: HealthCheck) -> str:
    """``HEALTHCHECK {Test:[CMD-SHELL x] Interval:5s …}``: Go's ``%+v`` of the structure."""
    return (
        f"HEALTHCHECK {{Test:[{' '.join(check.test)}] Interval:{duration(check.interval_ns)}"
        f" Timeout:{duration(check.timeout_ns)} StartPeriod:{duration(check.start_period_ns)}"
        f" StartInterval:{duration(check.start_interval_ns)} Retries:{check.retries}}}"
    )


def duration(nanoseconds: int) -> str:
    """``nanoseconds`` as Go's ``time.Duration`` prints: ``1m30s``, ``1.5s``, ``100ms``, ``0s``."""
    if nanoseconds == 0:
        return "0s"
    sign, value = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    for limit, unit, size in ((1_000, "ns", 1), (1_000_000, "µs", 1_000), (1_000_000_000, "ms", 1_000_000)):
        if value < limit:
            return f"{sign}{_decimal(value, size)}{unit}"
    minutes, rest = divmod(value, 60_000_000_000)
    hours, minutes = divmod(minutes, 60)
    seconds = _decimal(rest, 1_000_000_000) + "s"
    if hours:
        return f"{sign}{hours}h{minutes}m{seconds}"
    return f"{sign}{minutes}m{seconds}" if minutes else f"{sign}{seconds}"


def _decimal(value: int, size: int) -> str:
    whole, rest = divmod(value, size)
    fraction = f"{rest:0{len(str(size)) - 1}d}".rstrip("0") if rest else ""
    return f"{whole}.{fraction}" if fraction else str(whole)


def matching_history(history: Sequence[History], layers: int) -> tuple[History, ...]:
    """``history`` with exactly ``layers`` entries that stand for a layer. Images of other tools may have fewer (entries are added at the
    end) or more (the surplus is marked empty, as BuildKit does)."""
    out: list[History] = []
    for entry in history:
        if not entry.empty_layer:
            if layers == 0:
                entry = replace(entry, empty_layer=True)
            else:
                layers -= 1
        out.append(entry)
    out += [context_entry("")] * layers
    return tuple(out)
