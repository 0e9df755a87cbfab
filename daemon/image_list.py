"""The local images as docker shows them: filtered rows for a list, and ``inspect``'s JSON. Reads the store only.

Shared by the command line and the Engine API, so that both say the same.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pybuild.errors import UsageError
from pybuild.layers.digest import Digest
from pybuild.layers.image import HealthCheck, ImageConfig
from pybuild.layers.images import Images, StoredImage, StoredPlatform
from pybuild.layers.references import InvalidReference, Reference
from pybuild.values import dataclass

from .machine import host_platform


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One line of ``pybuild images``: a name of an image, or an image without one. ``size`` in bytes."""

    repository: str
    tag: str
    digest: str
    id: Digest
    created: str | None
    size: int


@dataclass(frozen=True, slots=True)
class ImageFilter:
    """``--filter`` of ``images``. ``references``: patterns that a familiar name must match; ``until``: seconds since the epoch that an
    image must have been made before; None: no condition."""

    dangling: bool | None = None
    labels: tuple[tuple[str, str | None], ...] = ()
    references: tuple[str, ...] = ()
    name: str | None = None
    before: str | None = None
    since: str | None = None
    until: float | None = None

    @classmethod
    def parse(cls, filters: Sequence[str], *, name: str | None = None) -> ImageFilter:
        """Read ``KEY=VALUE`` filters. Raises UsageError for an unknown key."""
        dangling: bool | None = None
        labels: list[tuple[str, str | None]] = []
        references: list[str] = []
        times: dict[str, str] = {}
        for text in filters:
            key, separator, value = text.partition("=")
            if not separator:
                raise UsageError(f"invalid filter {text!r}", hint="write --filter KEY=VALUE")
            match key:
                case "dangling":
                    if value.lower() not in ("true", "false", "1", "0"):
                        raise UsageError(f"invalid filter 'dangling={value}'", hint="use true or false")
                    dangling = value.lower() in ("true", "1")
                case "label":
                    label, equals, wanted = value.partition("=")
                    labels.append((label, wanted if equals else None))
                case "reference":
                    references.append(value)
                case "before" | "since":
                    times[key] = value
                case _:
                    raise UsageError(
                        f"invalid filter {key!r}", hint="the filters are dangling, label, reference, before, since"
                    )
        return cls(dangling, tuple(labels), tuple(references), name, times.get("before"), times.get("since"))


def familiar(name: str) -> tuple[str, str]:
    """Repository and tag of a canonical name, as docker shows them."""
    try:
        reference = Reference.parse(name)
    except InvalidReference:
        return name, "<none>"
    return reference.familiar_name, reference.tag or "<none>"


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An image that a filter lets through: ``part`` is this machine's; ``shown``: the (repository, tag) pairs to be shown, empty for an image
    without a name."""

    image: StoredImage
    part: StoredPlatform | None
    shown: tuple[tuple[str, str], ...]

    @property
    def size(self) -> int:
        """Bytes of the layers: all platforms' of an image for several."""
        if len(self.image.platforms) > 1:
            return sum(item.size for item in self.image.platforms)
        return self.part.size if self.part is not None else 0


def listed_images(images: Images, wanted: ImageFilter) -> list[ListedImage]:
    """What ``wanted`` lets through, newest first."""
    limits = {
        key: images.get(*lookups(text)).stored
        for key, text in (("before", wanted.before), ("since", wanted.since))
        if text
    }
    found: list[ListedImage] = []
    for image in _one_for_each(images.list()):
        if wanted.dangling is bool(image.names):
            continue
        if "before" in limits and image.stored >= limits["before"]:
            continue
        if "since" in limits and image.stored <= limits["since"]:
            continue
        part = image.choose(host_platform()) or image.choose()
        labels = part.labels if part is not None else {}
        if not all(key in labels and value in (None, labels[key]) for key, value in wanted.labels):
            continue
        if wanted.until is not None and (made_at(part) or image.stored) >= wanted.until:
            continue
        named = [familiar(name) for name in image.names]
        shown = tuple(pair for pair in named if _matches(*pair, wanted))
        if shown or (not named and not wanted.references and wanted.name is None):
            found.append(ListedImage(image, part, shown))
    return found


def _one_for_each(images: Iterable[StoredImage]) -> Iterator[StoredImage]:
    """Without what is only another manifest of an image that is listed anyway: a build of the same image again, with other attestations or
    compression, takes its name. What has a name stays, of the others the newest of an ID."""
    here = host_platform()
    all_of_them = [(image, image.id(here)) for image in images]
    seen = {identifier for image, identifier in all_of_them if image.names}
    for image, identifier in all_of_them:
        if image.names or identifier not in seen:
            seen.add(identifier)
            yield image


def made_at(part: StoredPlatform | None) -> float | None:
    """When an image says it was made, in seconds since the epoch; None if it doesn't."""
    from pybuild.builder.assemble import parse_rfc3339

    return parse_rfc3339(part.created) if part is not None and part.created else None


def image_rows(images: Images, wanted: ImageFilter) -> list[ImageRow]:
    """The rows that ``wanted`` lets through, newest first."""
    rows: list[ImageRow] = []
    for listed in listed_images(images, wanted):
        identifier = listed.image.id(host_platform())
        created = listed.part.created if listed.part is not None else None
        for repository, tag in listed.shown or (("<none>", "<none>"),):
            rows.append(
                ImageRow(repository, tag, str(listed.image.descriptor.digest), identifier, created, listed.size)
            )
    return rows


def lookups(text: str) -> tuple[str, ...]:
    """What ``Images.find`` is to try for a name as a user types it: the canonical name, then the text as an ID or digest."""
    candidates: list[str] = []
    try:
        reference = Reference.parse(text)
        candidates.append(reference.with_default_tag().canonical)
        if reference.digest is not None:
            candidates.append(str(reference.digest))
    except InvalidReference:
        pass
    return (*candidates, text)


def _matches(repository: str, tag: str, wanted: ImageFilter) -> bool:
    full = f"{repository}:{tag}"
    if wanted.name is not None:
        name, colon, wanted_tag = wanted.name.rpartition(":")
        if not colon or "/" in wanted_tag:
            name, wanted_tag = wanted.name, ""
        try:
            name = Reference.parse(name).familiar_name
        except InvalidReference:
            pass
        if not fnmatch.fnmatchcase(repository, name) or (wanted_tag and tag != wanted_tag):
            return False
    return not wanted.references or any(
        fnmatch.fnmatchcase(full, pattern) or fnmatch.fnmatchcase(repository, pattern) for pattern in wanted.references
    )


def inspect_image(
    images: Images, image: StoredImage, *, platform: str | None = None
) -> dict[str, Any]:  # Any: the JSON edge
    """``docker inspect``'s answer for an image. Raises UsageError if it has nothing for ``platform``."""
    from pybuild.builder.platforms import parse_platform

    here = host_platform()
    part = image.choose(parse_platform(platform, default=here)) if platform else image.choose(here) or image.choose()
    if part is None:
        raise UsageError(f"the image has nothing for {platform or here}")
    config = images.config(part)
    names = [":".join(familiar(name)) for name in image.names if "@" not in name]
    repositories = dict.fromkeys(familiar(name)[0] for name in image.names)
    out: dict[str, Any] = {
        "Id": str(part.config),
        "RepoTags": names,
        "RepoDigests": [f"{repository}@{image.descriptor.digest}" for repository in repositories],
        "Comment": config.history[-1].comment if config.history else "",
        "Created": config.created or "",
        "Author": config.author,
        "Architecture": config.platform.architecture,
        "Os": config.platform.os,
        "Size": part.size,
        "RootFS": {"Type": "layers", "Layers": [str(diff_id) for diff_id in config.diff_ids]},
        "Metadata": {"LastTagTime": None},
        "Descriptor": image.descriptor.to_json(),
        "Config": container_config(config),
    }
    if config.platform.variant:
        out["Variant"] = config.platform.variant
    if config.platform.os_version:
        out["OsVersion"] = config.platform.os_version
    return out


def container_config(config: ImageConfig) -> dict[str, Any]:  # Any: the JSON edge
    """The ``Config`` object of ``docker inspect``: every field that docker always shows, set or not."""
    value = config.to_json()["config"]
    out: dict[str, Any] = {
        "Hostname": "",
        "User": config.user,
        "Env": list(config.env),
        "Cmd": None if config.cmd is None else list(config.cmd),
        "Image": "",
        "Volumes": value.get("Volumes"),
        "WorkingDir": config.working_dir,
        "Entrypoint": None if config.entrypoint is None else list(config.entrypoint),
        "OnBuild": list(config.on_build) or None,
        "Labels": dict(config.labels) or None,
    }
    if config.exposed_ports:
        out["ExposedPorts"] = value["ExposedPorts"]
    if config.stop_signal:
        out["StopSignal"] = config.stop_signal
    if config.shell is not None:
        out["Shell"] = list(config.shell)
    if isinstance(config.healthcheck, HealthCheck):
        out["Healthcheck"] = value["Healthcheck"]
    return out
