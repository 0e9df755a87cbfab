"""Large buffers on their way from the thread that fills them to a sink, so that reading goes on while the sink works.

Owns the buffers, the second thread and its errors. Knows nothing of what the bytes are.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable
from typing import Final, TypeAlias

from .digest import Digest

SLAB_BYTES: Final = 1 << 20
_SLABS: Final = 4

Sink: TypeAlias = Callable[[memoryview], object]
"""Takes the next bytes; must be done with them when it returns."""

Segment: TypeAlias = tuple[str, int, int, bool]  # path, start, end, last part of the file


class Slabs:
    """Buffers on their way to the sink. The second thread starts with the second slab, so a small layer has none.

    ``view`` and ``position`` belong to the one thread that fills; ``swap`` hands over and gives the next slab.
    """

    def __init__(self, sink: Sink, *, digests: bool) -> None:
        self._sink = sink
        self._made = 1
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[tuple[memoryview, int, list[Segment]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._hasher = _FileHasher() if digests else None
        self.segments: list[Segment] = []
        self.view = memoryview(bytearray(SLAB_BYTES))
        self.position = 0
        self.total = 0

    def swap(self) -> memoryview:
        if self._thread is None:
            self._thread = threading.Thread(target=self._drain, name="layer-sink", daemon=True)
            self._thread.start()
        self._full.put((self.view, self.position, self.segments))
        self.total += self.position
        self.position = 0
        self.segments = []
        if self._made < _SLABS:
            self._made += 1
            self.view = memoryview(bytearray(SLAB_BYTES))
        else:
            self.view = self._free.get()
        if self._error is not None:
            raise self._error
        return self.view

    def finish(self) -> tuple[tuple[str, Digest], ...]:
        """Hand over what is left and wait until the sink has it all."""
        self.total += self.position
        if self._thread is None:
            self._consume(self.view, self.position, self.segments)
        else:
            self._full.put((self.view, self.position, self.segments))
            self.stop()
        if self._error is not None:
            raise self._error
        return () if self._hasher is None else tuple(self._hasher.done)

    def stop(self) -> None:
        """End the second thread, if there is one. Idempotent."""
        if self._thread is not None:
            self._full.put(None)
            self._thread.join()
            self._thread = None

    def _drain(self) -> None:
        while (item := self._full.get()) is not None:
            view, length, segments = item
            try:
                if self._error is None:
                    self._consume(view, length, segments)
            except BaseException as error:  # handed to the thread that fills
                self._error = error
            self._free.put(view)

    def _consume(self, view: memoryview, length: int, segments: list[Segment]) -> None:
        self._sink(view[:length])
        if self._hasher is not None:
            for segment in segments:
                self._hasher.feed(view, segment)


class _FileHasher:
    """Digests of single files whose contents pass by in the slabs."""

    def __init__(self) -> None:
        self._current = hashlib.sha256(usedforsecurity=False)
        self.done: list[tuple[str, Digest]] = []

    def feed(self, view: memoryview, segment: Segment) -> None:
        path, start, end, last = segment
        self._current.update(view[start:end])
        if last:
            self.done.append((path, Digest("sha256", self._current.hexdigest())))
            self._current = hashlib.sha256(usedforsecurity=False)
