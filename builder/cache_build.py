"""What a build asks of the caches that lie elsewhere, besides looking up and bringing. Satisfied by ``daemon/caches.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pybuild.layers.descriptor import Descriptor
from pybuild.layers.digest import Digest

from .assemble import BuiltImage
from .solver_remote import RemoteCache
from .solver_steps import Result, Step, StepReport
from .why import PreviousStep


class BuildCaches(RemoteCache, Protocol):
    """The caches of one build."""

    def previous_steps(self) -> Sequence[PreviousStep]:
        """The steps of the builds that the caches come from: for explaining misses where nothing was built yet."""

    def latest_step(self, stage: str, instruction: str) -> PreviousStep | None:
        """The step of this instruction that some build sent last, where steps are kept one by one."""

    def before_running(self, steps: Sequence[Step]) -> None:
        """These steps are about to run: cache mounts that they use are filled, where they are empty and a source has them."""

    def with_inline(
        self,
        images: Sequence[BuiltImage],
        results: Sequence[Result],
        *,
        reports: Sequence[StepReport],
        bases: Sequence[tuple[Digest, ...]],
    ) -> tuple[BuiltImage, ...]:
        """The images with their cache in their configurations, if that was asked for; else as they are. ``bases``: the stacks of base
        images."""

    def export(
        self, *, reports: Sequence[StepReport], results: Sequence[Result], bases: Sequence[tuple[Digest, ...]]
    ) -> Descriptor | None:
        """Send the steps to where the build was told to; returns the manifest of the last cache that was written. Raises PybuildError
        only where failing was asked for."""
