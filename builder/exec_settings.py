"""What a build gives to all its RUN steps, and the privileges that steps need for it to be asked for.

Runs nothing: a build that finds every step in its cache checks privileges and imports no more than this.
"""

from __future__ import annotations

from collections.abc import Mapping

from pybuild.errors import PybuildError
from pybuild.values import dataclass

from .graph import Exec, Network, Security
from .protocols import Secrets


class EntitlementMissing(PybuildError):
    """A step asks for a privilege that the build was not given."""

    def __init__(self, entitlement: str) -> None:
        super().__init__(
            f"entitlement {entitlement} is not allowed",
            hint=f"run the build with --allow {entitlement}, if the configuration permits it",
        )
        self.entitlement = entitlement


class EntitlementRefused(PybuildError):
    """The configuration doesn't let builds have a privilege that this one was given."""

    def __init__(self, entitlement: str) -> None:
        super().__init__(
            f"granting entitlement {entitlement} is not allowed by build daemon configuration",
            hint=f'permit it in the configuration file: insecure-entitlements = ["{entitlement}"]',
        )
        self.entitlement = entitlement


def entitlements_of(op: Exec) -> tuple[str, ...]:
    """The entitlements that a step needs."""
    needed = []
    if op.network is Network.HOST:
        needed.append("network.host")
    if op.security is Security.INSECURE:
        needed.append("security.insecure")
    return tuple(needed)


@dataclass(frozen=True, slots=True)
class ExecSettings:
    """What a build gives to all its steps. ``ssh``: agent sockets on this machine by id; ``root_owner``: the numbers on this
    machine that are root inside of steps."""

    secrets: Secrets
    ssh: Mapping[str, str]
    root_owner: tuple[int, int] = (0, 0)
