"""What a build gives to all its RUN steps, and the privileges that steps need for it to be asked for.

Runs nothing: a build that finds every step in its cache checks privileges and imports no more than this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from pybuild.errors import PybuildError
from pybuild.layers.descriptor import Platform
from pybuild.layers.digest import Digest
from pybuild.layers.entries import Layer
from pybuild.values import dataclass

from .graph import Exec, Network, Security
from .protocols import ProcessSpec, Secrets


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
class FailedProcess:
    """A process that failed, while all it had is still there. ``spec``: how it was run, secrets included; ``stack``: what it ran on;
    ``commit``: makes a layer of what it has changed."""

    op: Exec
    spec: ProcessSpec
    stack: tuple[Digest, ...]
    error: PybuildError
    commit: Callable[[], Layer]


class OnFailure(Protocol):
    """What ``--on-error`` does."""

    def __call__(self, failed: FailedProcess) -> str | None:
        """Called by the step's thread; the step ends when this returns. A text is shown as a hint with the error."""


@dataclass(frozen=True, slots=True)
class ExecSettings:
    """What a build gives to all its steps. ``ssh``: agent sockets on this machine by id; ``root_owner``: the numbers on this
    machine that are root inside of steps; ``host``: what this machine is; ``on_failure``: called when a process has failed."""

    secrets: Secrets
    ssh: Mapping[str, str]
    root_owner: tuple[int, int] = (0, 0)
    host: Platform | None = None
    on_failure: OnFailure | None = None
