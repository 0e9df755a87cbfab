"""Dockerfiles lowered over images in memory: what the tests of lowering share."""

from __future__ import annotations

from collections.abc import Mapping

from pybuild.builder.graph import Exec, ImageSource, Scratch, Vertex
from pybuild.builder.lower import LoweredImage, LowerOptions, lower
from pybuild.builder.protocols import ResolvedImage
from pybuild.errors import PybuildError
from pybuild.layers.descriptor import OCI_LAYER_GZIP, OCI_MANIFEST, Descriptor, Platform
from pybuild.layers.digest import Digest
from pybuild.layers.image import History, ImageConfig
from pybuild.parser import parse

AMD64 = Platform("linux", "amd64")


class Images:
    """Images in memory, by canonical reference. Answers as a registry would, and remembers what it was asked."""

    def __init__(self, images: Mapping[str, ImageConfig]) -> None:
        self.images = images
        self.asked: list[tuple[str, str]] = []

    def resolve(self, reference: str, *, platform: Platform, pull: bool) -> ResolvedImage:
        self.asked.append((reference, str(platform)))
        config = self.images.get(reference)
        if config is None:
            raise PybuildError("not found")
        data = config.to_bytes()
        layers = tuple(Descriptor(OCI_LAYER_GZIP, diff_id, 1) for diff_id in config.diff_ids)
        manifest = Descriptor(OCI_MANIFEST, Digest.of(data), len(data))
        return ResolvedImage(reference, manifest, Digest.of(data), config, layers)

    def ensure_layers(self, image: ResolvedImage, *, on_progress: object) -> None:
        raise AssertionError("lowering pulls no layers")

    def know_layers(self, image: ResolvedImage) -> None:
        raise AssertionError("lowering pulls no layers")


def base_image(*, layers: int = 1, platform: Platform = AMD64, **fields: object) -> ImageConfig:
    """A configuration with so many layers, each with its history entry."""
    diff_ids = tuple(Digest.of(f"layer {number}".encode()) for number in range(layers))
    history = tuple(History(created="2020-01-01T00:00:00Z", created_by=f"layer {number}") for number in range(layers))
    fields = {"env": ("PATH=/bin",), "created": "2020-01-01T00:00:00Z", "history": history} | fields
    return ImageConfig(platform=platform, diff_ids=diff_ids, **fields)


BUSYBOX = "docker.io/library/busybox:latest"


DEFAULT_IMAGES = {BUSYBOX: base_image(), "docker.io/library/alpine:latest": base_image(layers=2)}


def lowered(text: str, images: Images | None = None, **options: object) -> LoweredImage:
    """Lower a Dockerfile's text with busybox and alpine at hand."""
    chosen: dict[str, object] = {"platform": AMD64} | options
    source = images or Images(DEFAULT_IMAGES)
    return lower(parse(text), LowerOptions(image_resolver=source, **chosen))


def chain(image: LoweredImage) -> list[Vertex]:
    """The target's vertexes from its root up, following input 0."""
    out = [image.vertex]
    while out[-1].inputs and not isinstance(out[-1].op, ImageSource | Scratch):
        out.append(out[-1].inputs[0])
    return out[::-1]


def created_by(image: LoweredImage) -> list[str]:
    return [entry.created_by for entry in image.history]


def last_run(image: LoweredImage) -> Exec:
    assert isinstance(image.vertex.op, Exec)
    return image.vertex.op


def variables(image: LoweredImage) -> dict[str, str]:
    return dict(last_run(image).env)


def titles(image: LoweredImage) -> list[str]:
    return [vertex.note.title for vertex in chain(image)]
