"""``pybuild``, telling on SIGUSR2 what it holds: writes the number of objects by type, as JSON, to the file that COUNTS names.

A program for tests. Makes the bounded memories small, so that they are full soon.
"""

from __future__ import annotations

import collections
import gc
import json
import os
import signal

from pybuild.__main__ import program
from pybuild.daemon import api_events
from pybuild.layers import unpacked


def tell(number: int, frame: object) -> None:
    gc.collect()
    counts = collections.Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())
    file = os.environ["COUNTS"]
    with open(f"{file}.draft", "w", encoding="utf-8") as out:
        json.dump(counts, out)
    os.rename(f"{file}.draft", file)


if __name__ == "__main__":
    api_events._KEPT = 8  # type: ignore[misc]  # final for everybody else
    unpacked._INDEXED_ENTRIES = 4000  # type: ignore[misc]  # the same
    unpacked._REMEMBERED_ENTRIES = 4000  # type: ignore[misc]  # the same
    gc.freeze = lambda: None  # frozen objects aren't listed
    signal.signal(signal.SIGUSR2, tell)
    program()
