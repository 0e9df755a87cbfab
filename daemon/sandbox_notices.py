"""Tells in a build's progress what its steps had to do without on this machine. Finds nothing out itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pybuild.builder.progress import Progress, StepDone, StepLog, StepStarted
from pybuild.layers.digest import Digest

_TITLE = "[internal] what steps had to do without"


def tell_notices(notices: Sequence[str], *, progress: Progress, clock: Callable[[], float]) -> None:
    """Show the notices as the output of a step of its own; nothing without any."""
    if not notices:
        return
    step = str(Digest.of(_TITLE.encode()))
    progress.emit(StepStarted(step, _TITLE, clock()))
    for notice in notices:
        progress.emit(StepLog(step, 2, notice.encode("utf-8", "surrogateescape") + b"\n", clock()))
    progress.emit(StepDone(step, clock()))
