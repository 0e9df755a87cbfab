"""Which steps of a build an exported cache gets.

Owns the difference between mode=min and mode=max. Looks nothing up by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pybuild.layers.digest import Digest

from .cache_format import CachedStep
from .cache_specs import CacheMode
from .solver_steps import Result, StepReport


def exported_steps(
    reports: Sequence[StepReport],
    results: Sequence[Result],
    *,
    mode: CacheMode,
    step_of: Callable[[str], CachedStep | None],
) -> tuple[CachedStep, ...]:
    """The steps to export, in an order that doesn't depend on which ended first. ``step_of``: what is known of a key here.

    ``min``: the steps whose layers the results consist of; what other stages made stays out, and a ``COPY --from`` is found by its
    own key without it. ``max``: all.
    """
    prefixes = {result.stack[:length] for result in results for length in range(len(result.stack) + 1)}
    found: dict[str, CachedStep] = {}
    for report in reports:
        if report.step.is_source or report.error or report.key in found:
            continue
        known = step_of(report.key)
        if known is None or (mode is CacheMode.MIN and known.record.layers not in prefixes):
            continue
        note = report.vertex.note
        found[report.key] = CachedStep(
            known.record,
            aliases=known.aliases,
            stage=note.stage,
            instruction=note.instruction,
            title=note.title,
        )
    return tuple(sorted(found.values(), key=lambda step: (len(step.record.layers), step.record.key)))


def base_count(stack: Sequence[Digest], bases: Sequence[tuple[Digest, ...]]) -> int:
    """How many layers of a stack, from below, are a base image's. ``bases``: their stacks."""
    return max((len(base) for base in bases if tuple(stack[: len(base)]) == base), default=0)
