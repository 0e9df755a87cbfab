"""What builds did: for ``pybuild why``, and for listing builds.

Owns the tables ``build`` and ``build_step``. Never decides why a step ran: that is told by the builder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pybuild.errors import PybuildError
from pybuild.values import dataclass, fields

from .database import Database, Row, storable

KEPT_BUILDS = 200


@dataclass(frozen=True, slots=True)
class BuildStep:
    """A step of a finished or failed build. ``step``: its identifier in the progress; ``key``: the cache key, ``recipe``: what went into
    it, as canonical JSON text; ``reason``: why it wasn't cached, in words; ``lines``: of the Dockerfile; ``stage``: name or index."""

    step: str
    title: str
    instruction: str = ""
    stage: str = ""
    lines: tuple[int, int] | None = None
    key: str = ""
    recipe: str = ""
    cached: bool = False
    reason: str = ""
    seconds: float = 0.0
    error: str = ""
    platform: str = ""


@dataclass(frozen=True, slots=True)
class BuildRecord:
    """A build. ``ref``: its identifier; ``subject``: what was built, equal for builds that compare (context, Dockerfile, target, platform);
    ``names``: the image names it was given; ``result``: the digest of what it made; times in seconds since the epoch."""

    ref: str
    subject: str
    started: float
    finished: float | None = None
    names: tuple[str, ...] = ()
    result: str = ""
    error: str = ""
    details: str = ""
    """Anything else worth keeping, as JSON text."""
    steps: tuple[BuildStep, ...] = ()


class AmbiguousBuild(PybuildError):
    """Several builds begin with what was given."""

    def __init__(self, text: str) -> None:
        super().__init__(f"several builds begin with {text!r}", hint="give more of the build's reference")
        self.text = text


class Builds:
    """The builds of one store; the last ``KEPT_BUILDS`` are kept."""

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def record(self, build: BuildRecord) -> None:
        """Remember a build with its steps, in place of what was remembered under its ``ref``. Idempotent."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM build WHERE ref = ?", (build.ref,))
            head = {"names": build.names, "result": build.result, "error": build.error, "details": build.details}
            connection.execute(
                "INSERT INTO build VALUES (?, ?, ?, ?, ?)",
                (build.ref, storable(build.subject), build.started, build.finished, json.dumps(head)),
            )
            connection.executemany(
                "INSERT INTO build_step VALUES (?, ?, ?)",
                [(build.ref, position, _step_text(step)) for position, step in enumerate(build.steps)],
            )
            connection.execute(
                "DELETE FROM build WHERE ref NOT IN (SELECT ref FROM build ORDER BY started DESC, ref LIMIT ?)",
                (KEPT_BUILDS,),
            )

    def last(self, *, subject: str | None = None, before: float | None = None) -> BuildRecord | None:
        """The latest build, or the latest of ``subject``, that started before ``before``; None if there is none."""
        row = self._database.row(
            "SELECT ref, subject, started, finished, record FROM build"
            " WHERE (?1 IS NULL OR subject = ?1) AND (?2 IS NULL OR started < ?2) ORDER BY started DESC, ref LIMIT 1",
            (None if subject is None else storable(subject), before),
        )
        return None if row is None else self._load(row)

    def find(self, text: str) -> BuildRecord | None:
        """The build whose ``ref`` is or begins with ``text``, else the latest that gave an image this name or had this result.
        Raises AmbiguousBuild."""
        if not text:
            return None
        rows = self._database.query(
            "SELECT ref, subject, started, finished, record FROM build"
            " WHERE substr(ref, 1, length(?1)) = ?1 ORDER BY ref <> ?1, ref LIMIT 2",
            (text,),
        )
        if len(rows) > 1 and rows[0][0] != text:
            raise AmbiguousBuild(text)
        if rows:
            return self._load(rows[0])
        for row in self._database.query(
            "SELECT ref, subject, started, finished, record FROM build ORDER BY started DESC, ref"
        ):
            head = json.loads(row[4])
            if text in head["names"] or text == head["result"]:
                return self._load(row)
        return None

    def list(self) -> tuple[BuildRecord, ...]:
        """All builds, the latest first, without their steps."""
        rows = self._database.query(
            "SELECT ref, subject, started, finished, record FROM build ORDER BY started DESC, ref"
        )
        return tuple(_build(row, ()) for row in rows)

    def clear(self) -> None:
        """Forget all builds."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM build")

    def _load(self, row: Row) -> BuildRecord:
        rows = self._database.query("SELECT step FROM build_step WHERE build = ? ORDER BY position", (row[0],))
        return _build(row, tuple(_step(step) for (step,) in rows))


def _build(row: Row, steps: tuple[BuildStep, ...]) -> BuildRecord:
    ref, subject, started, finished, record = row
    head = json.loads(record)
    return BuildRecord(
        ref=ref,
        subject=subject,
        started=started,
        finished=finished,
        names=tuple(head["names"]),
        result=head["result"],
        error=head["error"],
        details=head["details"],
        steps=steps,
    )


_STEP_FIELDS = tuple(one.name for one in fields(BuildStep))


def _step_text(step: BuildStep) -> str:
    return json.dumps({name: getattr(step, name) for name in _STEP_FIELDS})


def _step(text: str) -> BuildStep:
    value: dict[str, Any] = json.loads(text)  # Any: the JSON edge
    lines = value.get("lines")
    value["lines"] = None if lines is None else (lines[0], lines[1])
    return BuildStep(**{name: value[name] for name in _STEP_FIELDS if name in value})
