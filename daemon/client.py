"""The addresses of daemons, and (to come in this module's neighbours) talking to one. Serves nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping


def default_address(variables: Mapping[str, str]) -> str:
    """Where a daemon listens unless it is told otherwise: ``/run/pybuild.sock``, for an ordinary user in its runtime directory."""
    from .userns import identity

    if identity().uid == 0:
        return "unix:///run/pybuild.sock"
    directory = variables.get("XDG_RUNTIME_DIR") or f"/tmp/pybuild-{identity().uid}"
    return f"unix://{os.path.join(directory, 'pybuild.sock')}"
