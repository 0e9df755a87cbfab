"""Extended attributes and owners of files in unpacked layers: which attributes belong into a layer, which are overlayfs's or our own,
and where an owner is kept when this process can't give files away.

Owns reading and writing them. Never decides what a layer contains.

``user.pybuild.owner`` (text ``uid:gid``) holds the owner of a file or directory of an unpacked layer in a store whose user has one id
only: in a user namespace with a single id mapped, or as an ordinary user without one. Symlinks and special files can't have
``user.*`` attributes (xattr(7)): theirs is lost there.
"""

from __future__ import annotations

import errno
import os
import threading
from enum import Enum
from typing import Final

from pybuild.values import dataclass

CAPABILITY: Final = "security.capability"
OWNER: Final = "user.pybuild.owner"
OPAQUE: Final = ("trusted.overlay.opaque", "user.overlay.opaque")
OVERLAY_PREFIXES: Final = ("trusted.overlay.", "user.overlay.")
REDIRECT: Final = ("trusted.overlay.redirect", "user.overlay.redirect")
_PRIVATE_PREFIXES: Final = ("trusted.", "user.overlay.", "user.pybuild.")
# ENOTSUP: the file system has none; ENODATA: this file has not; EPERM: user.* of a symlink or special file.
_ABSENT: Final = (errno.ENODATA, errno.ENOTSUP, errno.EPERM)


class Owners(Enum):
    """How unpacked files keep their owners. NATIVE: chown(2) works. RECORDED: as attributes (see above)."""

    NATIVE = "native"
    RECORDED = "recorded"


@dataclass(frozen=True, slots=True)
class Ownership:
    """What this process may do to files of a store, found out once by ``probe``.

    ``opaque``: the attribute that marks an opaque directory: overlayfs reads ``trusted.*`` outside of user namespaces, and
    ``user.*`` (mount option ``userxattr``) inside, where nobody may set the other.
    """

    owners: Owners
    opaque: str
    uid: int
    gid: int

    @classmethod
    def probe(cls, directory: str) -> Ownership:
        """Try on a nameless file in ``directory``, which must be writable."""
        descriptor = _nameless(directory)
        try:
            mine = os.fstat(descriptor)
            owners = Owners.NATIVE
            try:
                # The ids that distributions use most; a namespace with sub-ids has them, one with a single id has not.
                os.fchown(descriptor, 1, 1)
            except OSError:
                owners = Owners.RECORDED
            opaque = OPAQUE[0]
            try:
                os.setxattr(descriptor, "trusted.pybuild.probe", b"y")
            except OSError:
                opaque = OPAQUE[1]
            return cls(owners, opaque, mine.st_uid, mine.st_gid)
        finally:
            os.close(descriptor)


def _nameless(directory: str) -> int:
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:  # a file system without O_TMPFILE (open(2))
        path = f"{directory}/probe-{os.getpid()}-{threading.get_ident()}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.unlink(path)
        return descriptor


def get(path: str, name: str) -> bytes | None:
    """One attribute of what is at ``path``, which is not followed; None if there is none."""
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise


def names(path: str) -> list[str]:
    """The attributes of what is at ``path``, which is not followed. Cheaper than asking for one that is rarely there."""
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno in _ABSENT:
            return []
        raise


def is_opaque(path: str) -> bool:
    """True if the directory at ``path`` hides what lies below it in lower layers."""
    return any(name in OPAQUE and get(path, name) == b"y" for name in names(path))


def is_redirected(path: str) -> bool:
    """True if overlayfs stored a directory's rename as a reference (``redirect_dir=on``), which no layer can express."""
    return any(name in REDIRECT for name in names(path))


def recorded_owner(path: str) -> tuple[int, int] | None:
    """The owner kept in an attribute, None if there is none."""
    value = get(path, OWNER)
    if value is None:
        return None
    uid, colon, gid = value.partition(b":")
    if not (colon and uid.isdigit() and gid.isdigit()):
        return None
    return int(uid), int(gid)


def layer_xattrs(path: str) -> tuple[tuple[str, bytes], ...]:
    """The attributes of a file that a layer made here holds: file capabilities only, as BuildKit's layers do."""
    value = get(path, CAPABILITY) if CAPABILITY in names(path) else None
    return () if not value else ((CAPABILITY, value),)


def may_set(name: str) -> bool:
    """False for attributes that an archive must not bring into an unpacked layer: overlayfs's, ours, and all that only the host's
    administrator may set."""
    return not name.startswith(_PRIVATE_PREFIXES)
