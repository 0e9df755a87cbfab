"""Ctrl-C and SIGTERM while a command works: the first one stops it in good order, the second one at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def cancelling() -> Iterator[threading.Event]:
    """The event that the first signal sets; the handlers from before are put back at the end."""
    cancel = threading.Event()

    def handler(number: int, frame: object) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, handler) for number in numbers]
    try:
        yield cancel
    finally:
        for number, before in zip(numbers, previous):
            signal.signal(number, before)
