"""Users and groups of a root file system: numbers for names, from its ``/etc/passwd`` and ``/etc/group``.

Owns reading the two files and the rules by which a process (``USER``) and a copied file (``--chown``) get their numbers; these
differ on purpose, as they do in the reference. Never looks at this machine's accounts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pybuild.errors import PybuildError
from pybuild.layers.entries import Kind
from pybuild.layers.views import FileView
from pybuild.values import dataclass

from .copy_paths import resolve

_FILE_LIMIT_BYTES: Final = 10 << 20
_MAX_ID: Final = (1 << 31) - 1


class UnknownUser(PybuildError):
    """``USER`` names somebody that the image's ``/etc/passwd`` doesn't have."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"unable to find user {name}: no matching entries in passwd file",
            hint=f"add the user in an earlier RUN (for example: RUN useradd {name}), or use a number",
        )
        self.name = name


class UnknownGroup(PybuildError):
    """``USER`` names a group that the image's ``/etc/group`` doesn't have."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"unable to find group {name}: no matching entries in group file",
            hint=f"add the group in an earlier RUN (for example: RUN groupadd {name}), or use a number",
        )
        self.name = name


class InvalidUser(PybuildError):
    """A user or group that can't be one: out of range, or a name where there is no root file system to look it up in."""


@dataclass(frozen=True, slots=True)
class Account:
    """A line of ``/etc/passwd``."""

    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True)
class Group:
    """A line of ``/etc/group``."""

    name: str
    gid: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProcessUser:
    """Whom a process runs as; ``groups`` are the supplementary ones."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of a file. ``unknown``: names that were not found, and so count as root."""

    uid: int
    gid: int
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Accounts:
    """The users and groups of one root file system."""

    users: tuple[Account, ...]
    groups: tuple[Group, ...]

    def process_user(self, user: str) -> ProcessUser:
        """Whom ``USER user`` means: a name or number, with ``:group`` perhaps; empty is root.

        A number without an entry gets group 0; a name brings its primary and supplementary groups, but an explicit group stands
        alone. Raises UnknownUser, UnknownGroup, InvalidUser.
        """
        name, _, group = user.partition(":")
        uid, gid = _number(name), _number(group)
        home = "/"
        if uid is not None and gid is not None:
            return ProcessUser(uid, gid, (), self.home_of(uid))
        wanted = 0 if not name else uid
        found = next(
            (a for a in self.users if (a.uid == wanted if wanted is not None else a.name == name)),
            None,
        )
        if found is not None:
            result_uid, result_gid, home = found.uid, found.gid, found.home or "/"
        elif wanted is not None:
            result_uid, result_gid = wanted, 0
        else:
            raise UnknownUser(name)
        if group:
            return ProcessUser(result_uid, self._group(group, gid), (), home)
        supplementary = () if found is None else tuple(g.gid for g in self.groups if found.name in g.members)
        return ProcessUser(result_uid, result_gid, supplementary, home)

    def home_of(self, uid: int) -> str:
        """The home directory of a user by number, ``/`` for one without an entry."""
        return next((account.home or "/" for account in self.users if account.uid == uid), "/")

    def _group(self, name: str, number: int | None) -> int:
        found = next((g for g in self.groups if (g.gid == number if number is not None else g.name == name)), None)
        if found is not None:
            return found.gid
        if number is None:
            raise UnknownGroup(name)
        return number

    def file_owner(self, owner: str) -> Owner:
        """What ``--chown=owner`` means: a number alone stands for the group too; an unknown name is root."""
        name, separator, group = owner.partition(":")
        unknown: list[str] = []
        uid = gid = 0
        number = _file_number(name)
        if number is not None:
            uid = gid = number
        elif name:
            account = next((a for a in self.users if a.name == name), None)
            if account is None:
                unknown.append(name)
            else:
                uid, gid = account.uid, account.gid
        if separator:
            number = _file_number(group)
            if number is not None:
                gid = number
            elif group:
                found = next((g for g in self.groups if g.name == group), None)
                if found is None:
                    unknown.append(group)
                else:
                    gid = found.gid
            else:
                gid = 0
        return Owner(uid, gid, tuple(unknown))


NO_ACCOUNTS: Final = Accounts((), ())


def names_accounts(owner: str) -> bool:
    """True if ``--chown=owner`` can only be understood with the accounts of a root file system."""
    name, _, group = owner.partition(":")
    return any(part and _file_number(part) is None for part in (name, group))


def read_accounts(view: FileView) -> Accounts:
    """The users and groups of a root file system. Files that are missing or no files count as empty. Raises InvalidUser for one
    that is larger than 10 MiB."""
    users = tuple(
        Account(f[0], _integer(f, 2), _integer(f, 3), f[5] if len(f) > 5 else "") for f in _lines(view, "etc/passwd")
    )
    groups = tuple(
        Group(f[0], _integer(f, 2), tuple(f[3].split(",")) if len(f) > 3 and f[3] else ())
        for f in _lines(view, "etc/group")
        if not f[0].startswith("#")
    )
    return Accounts(users, groups)


def _lines(view: FileView, path: str) -> Iterator[list[str]]:
    resolved = resolve(view.lookup, path)
    node = view.lookup(resolved)
    if node is None or node.kind is not Kind.FILE:
        return
    with view.open(resolved) as file:
        data = file.read(_FILE_LIMIT_BYTES + 1)
    if len(data) > _FILE_LIMIT_BYTES:
        raise InvalidUser(f"/{path} exceeds {_FILE_LIMIT_BYTES} bytes")
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        line = line.strip()
        if line:
            yield line.split(":")


def _integer(fields: list[str], index: int) -> int:
    # A field that is no number counts as 0, as in the reference.
    try:
        return int(fields[index])
    except (IndexError, ValueError):
        return 0


def _number(text: str) -> int | None:
    if not text or not (text[1:] if text[0] in "+-" else text).isdecimal() or not text.isascii():
        return None
    number = int(text)
    if not 0 <= number <= _MAX_ID:
        raise InvalidUser(f"uids and gids must be in range 0-{_MAX_ID}")
    return number


def _file_number(text: str) -> int | None:
    if text == "root":
        return 0
    return _number(text)
