"""Files that appear whole or not at all, for whatever a user named as a destination.

Owns telling a file that may be replaced from one that must stay what it is: a device, a pipe (``/dev/null``, ``/dev/stdout``, a FIFO) is written to,
never replaced, and a symbolic link is followed. Decides nothing about what is written.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A stream whose content becomes the file ``path`` when the block ends without an error; it is closed here. Raises OSError."""
    try:
        replaceable = stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        replaceable = True
    if not replaceable:
        # By the name given: what /dev/stdout leads to may have no other. A directory says so itself.
        with open(path, "wb") as out:
            yield out
        return
    real = os.path.realpath(path)
    directory, name = os.path.split(real)
    draft = os.path.join(directory, f".{name[:200]}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with open(draft, "xb") as out:
            yield out
        os.replace(draft, real)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(draft)
