"""Mount points that a root file system lacked: how they vanish again after a step.

Never mounts anything. A stub is an empty file or directory made so that something could be mounted there; a layer must show
neither it nor a changed time of the directory around it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable


def remove_stubs(upper: str, stubs: Iterable[tuple[bytes, bool]]) -> None:
    """Remove stubs from ``upper``, a writable directory of which no overlay is mounted any more.

    ``stubs`` are (path relative to the root, is a directory) in the order they were made; the newest goes first. What the
    step put into a stub, or in its place, stays; the times of parents stay. Symbolic links are never followed: the step may
    have made them, to lead out of the root.
    """
    for path, directory in reversed(list(stubs)):
        *parents, name = path.split(b"/")
        parent = os.open(upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parents:
                below = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
                os.close(parent)
                parent = below
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            # utimensat(2) doesn't take an O_PATH descriptor, but takes its name.
            parent_path = f"/proc/self/fd/{parent}"
            times = os.stat(parent_path)
            if directory and stat.S_ISDIR(status.st_mode):
                os.rmdir(name, dir_fd=parent)
            elif not directory and stat.S_ISREG(status.st_mode) and status.st_size == 0:
                os.unlink(name, dir_fd=parent)
            else:
                continue
            os.utime(parent_path, ns=(times.st_atime_ns, times.st_mtime_ns))
        except OSError:
            continue
        finally:
            os.close(parent)
