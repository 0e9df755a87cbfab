"""Dockerfile instructions applied to a configuration alone (``import --change``, ``commit --change``): no step runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from pybuild.errors import UsageError
from pybuild.layers.descriptor import Platform
from pybuild.layers.image import ImageConfig
from pybuild.parser import parse

from .lower import LowerOptions, lower
from .protocols import ResolvedImage

_ALLOWED: Final = frozenset(
    [
        "CMD",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "HEALTHCHECK",
        "LABEL",
        "ONBUILD",
        "SHELL",
        "STOPSIGNAL",
        "USER",
        "VOLUME",
        "WORKDIR",
    ]
)


class _NoImages:
    """Changes name no image."""

    def resolve(self, reference: str, *, platform: Platform, pull: bool) -> NoReturn:
        raise UsageError(f"a change can't name the image {reference}")

    def ensure_layers(self, image: ResolvedImage, *, on_progress: Callable[[str, int, int], None]) -> None:
        return None

    def know_layers(self, image: ResolvedImage) -> None:
        return None


def apply_changes(config: ImageConfig, changes: Sequence[str]) -> ImageConfig:
    """``config`` with ``changes`` applied in order. Raises DockerfileError, UsageError for instructions that make files."""
    if not changes:
        return config
    dockerfile = parse("FROM scratch\n" + "\n".join(changes) + "\n", filename="--change")
    for instruction in dockerfile.stages[0].instructions:
        if instruction.name not in _ALLOWED:
            raise UsageError(f"{instruction.name} is not a valid change", hint=f"use {', '.join(sorted(_ALLOWED))}")
    made = lower(dockerfile, LowerOptions(image_resolver=_NoImages(), platform=config.platform)).config
    sets_env = any(instruction.name == "ENV" for instruction in dockerfile.stages[0].instructions)
    sets_directory = any(instruction.name == "WORKDIR" for instruction in dockerfile.stages[0].instructions)
    return made.with_(
        created=config.created,
        author=config.author,
        labels={**config.labels, **made.labels},
        env=made.env if sets_env else config.env,
        working_dir=made.working_dir if sets_directory else config.working_dir,
        diff_ids=config.diff_ids,
        history=config.history,
    )
