"""What this machine is, in an image's terms. Reads the kernel's own words only."""

from __future__ import annotations

import os

from pybuild.builder.platforms import normalize_platform
from pybuild.layers.descriptor import Platform


def host_platform() -> Platform:
    """The platform whose programs this machine runs without emulation."""
    name = os.uname()
    return normalize_platform(Platform(name.sysname.lower(), name.machine))
