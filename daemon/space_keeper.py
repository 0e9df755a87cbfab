"""Holds the store to the configuration's gc policy, while builds run and when they end.

Owns when that is looked after: when the disk has become fuller, and in any case now and then. What may go is decided by ``layers/gc.py``, which
never takes what an image or running work needs; so a cap smaller than what one build needs is exceeded until that build has ended.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from pybuild.errors import PybuildError

from .settings import GcPolicy

if TYPE_CHECKING:
    from pybuild.layers.store import Store

_LOOK_SECONDS: Final = 1.0
_IDLE_LOOKS: Final = 60
_LEAST_GROWTH_BYTES: Final = 16 << 20


@contextmanager
def kept_within(store: Store, policy: GcPolicy) -> Iterator[None]:
    """Hold ``store`` to ``policy`` until the context ends, and once more then, whether or not it ends well."""
    if not policy.is_set:
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(store, policy, stop), name="gc", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def enforce(store: Store, policy: GcPolicy) -> None:
    """Bring ``store`` within ``policy`` now, as far as nothing running needs it. Raises StoreBusy, StoreFull."""
    if not policy.is_set:
        return
    from pybuild.layers.gc import Collector, PrunePolicy

    collector = Collector(store)
    if policy.keep_seconds:
        collector.prune(PrunePolicy(keep_duration_seconds=policy.keep_seconds, all=True))
    if policy.max_used_bytes or policy.min_free_bytes:
        collector.prune(
            PrunePolicy(
                max_used_bytes=policy.max_used_bytes,
                reserved_bytes=policy.reserved_bytes,
                min_free_bytes=policy.min_free_bytes,
                all=True,
            )
        )


def _watch(store: Store, policy: GcPolicy, stop: threading.Event) -> None:
    growth = max(_LEAST_GROWTH_BYTES, policy.max_used_bytes // 20)
    free = shutil.disk_usage(store.root).free
    idle = 0
    while not stop.wait(_LOOK_SECONDS):
        now = shutil.disk_usage(store.root).free
        idle += 1
        if free - now < growth and idle < _IDLE_LOOKS:
            free = max(free, now)
            continue
        idle = 0
        try:
            enforce(store, policy)
        except PybuildError:
            pass  # busy, or full beyond help: the build itself tells of that
        free = shutil.disk_usage(store.root).free
