"""Quiet progress: nothing while all goes well; the failed step's output is shown by the error report."""

from __future__ import annotations

from pybuild.builder.progress import Event


class QuietRenderer:
    def emit(self, event: Event) -> None:
        return None

    def close(self) -> None:
        return None

    def pause(self) -> None:
        return None
