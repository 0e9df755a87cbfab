"""Users and groups of an image: for processes and for files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[1] / "fakes"))

from solver_fakes import Tree  # found by the line above

from pybuild.builder.owners import (
    NO_ACCOUNTS,
    Accounts,
    InvalidUser,
    UnknownGroup,
    UnknownUser,
    names_accounts,
    read_accounts,
)

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
# a comment

daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
app:x:1000:1001:An app:/home/app:/bin/sh
broken
homeless:x:1002:1002
"""
GROUP = """\
root:x:0:
#ignored:x:5:app
staff:x:50:app,daemon
wheel:x:10:root,app
app:x:1001:
"""


@pytest.fixture
def accounts() -> Accounts:
    return read_accounts(Tree().file("etc/passwd", PASSWD).file("etc/group", GROUP))


@pytest.mark.parametrize(
    ("user", "uid", "gid", "groups", "home"),
    [
        ("", 0, 0, (10,), "/root"),
        ("root", 0, 0, (10,), "/root"),
        ("app", 1000, 1001, (50, 10), "/home/app"),
        ("1000", 1000, 1001, (50, 10), "/home/app"),
        ("4711", 4711, 0, (), "/"),
        ("app:wheel", 1000, 10, (), "/home/app"),
        ("app:7", 1000, 7, (), "/home/app"),
        ("1:2", 1, 2, (), "/usr/sbin"),
        ("4711:4712", 4711, 4712, (), "/"),
        ("homeless", 1002, 1002, (), "/"),
    ],
)
def test_a_process_runs_as(
    accounts: Accounts, user: str, uid: int, gid: int, groups: tuple[int, ...], home: str
) -> None:
    found = accounts.process_user(user)
    assert (found.uid, found.gid, found.groups, found.home) == (uid, gid, groups, home)


def test_unknown_names_are_errors_for_processes(accounts: Accounts) -> None:
    with pytest.raises(UnknownUser, match="unable to find user ghost: no matching entries in passwd file"):
        accounts.process_user("ghost")
    with pytest.raises(UnknownGroup, match="unable to find group ghosts: no matching entries in group file"):
        accounts.process_user("app:ghosts")


def test_numbers_have_a_limit(accounts: Accounts) -> None:
    with pytest.raises(InvalidUser, match="uids and gids must be in range 0-2147483647"):
        accounts.process_user("99999999999")


def test_an_image_without_accounts_has_root() -> None:
    assert NO_ACCOUNTS.process_user("").uid == 0


@pytest.mark.parametrize(
    ("owner", "needed"), [("1:2", False), ("root", False), ("root:root", False), ("app", True), ("1:staff", True)]
)
def test_numbers_and_root_need_no_accounts(owner: str, needed: bool) -> None:
    assert names_accounts(owner) is needed


def test_the_files_are_reached_through_links_inside_the_image() -> None:
    tree = Tree().file("usr/etc/passwd", PASSWD).link("etc/passwd", "/usr/etc/passwd")
    assert read_accounts(tree).process_user("app").uid == 1000


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_whatever_the_files_hold_root_can_be_found(passwd: bytes, group: bytes) -> None:
    accounts = read_accounts(Tree().file("etc/passwd", passwd).file("etc/group", group))
    assert accounts.process_user("0:0").uid == 0
    accounts.file_owner("anybody:anything")
