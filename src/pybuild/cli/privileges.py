"""Decides whether a command must enter a user namespace first, and does so through ``daemon.userns``."""

from __future__ import annotations

import os
from collections.abc import Mapping

_MARK = "PYBUILD_ROOTLESS_UID"


def real_user_id(variables: Mapping[str, str]) -> int:
    """The user that started the command: inside our own user namespace the id seen from outside."""
    mark = variables.get(_MARK, "")
    return int(mark) if mark.isdigit() else os.geteuid()
