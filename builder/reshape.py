"""Images changed before they are exported: times limited to SOURCE_DATE_EPOCH, new layers merged into one.

Owns what that means for the history and for which layers. The bytes of layers are made by whoever is handed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from pybuild.layers.digest import Digest
from pybuild.layers.image import History
from pybuild.values import replace

from .assemble import BuiltImage, rfc3339

REWRITTEN: Final = "buildkit/rewritten-timestamp"
"""The annotation that BuildKit gives a layer whose times it has limited."""


class LayerRewrites(Protocol):
    """Makes layers from layers."""

    def limited(self, diff_id: Digest, *, epoch: int) -> Digest:
        """The same layer with no time after ``epoch`` (seconds)."""

    def merged(self, base: Sequence[Digest], own: Sequence[Digest]) -> Digest:
        """One layer that does on ``base`` what the layers ``own`` do one after the other."""


def dated(image: BuiltImage, *, epoch: int) -> BuiltImage:
    """The image with the build's SOURCE_DATE_EPOCH in its new history entries, whatever an exporter then makes of that."""
    created = rfc3339(epoch)
    history = [
        entry if position < image.base_history or entry.created is not None else replace(entry, created=created)
        for position, entry in enumerate(image.history)
    ]
    return replace(image, history=tuple(history))


def with_limited_times(image: BuiltImage, *, epoch: int, layers: LayerRewrites) -> BuiltImage:
    """The image with every new layer's times limited; the base's layers stay as they are."""
    own = [layers.limited(diff_id, epoch=epoch) for diff_id in image.stack[image.base_layers :]]
    marks = {REWRITTEN: str(epoch)}
    return replace(
        image,
        stack=(*image.stack[: image.base_layers], *own),
        layer_annotations={
            **image.layer_annotations,
            **dict.fromkeys(range(image.base_layers, len(image.stack)), marks),
        },
    )


def squashed(image: BuiltImage, *, layers: LayerRewrites) -> BuiltImage:
    """The image with all new layers in one, as ``docker build --squash`` makes it: the steps stay in the history, without layers."""
    base, own = image.stack[: image.base_layers], image.stack[image.base_layers :]
    if len(own) < 2:
        return image
    history = [
        entry if position < image.base_history else replace(entry, empty_layer=True)
        for position, entry in enumerate(image.history)
    ]
    # A base that tells less than it has: its layers must not be taken for ours.
    told = sum(not entry.empty_layer for entry in history)
    history += [History(comment="buildkit.exporter.image.v0")] * (len(base) - told)
    history.append(History(comment=f"merge of {len(own)} layers"))
    times = [made for made in image.layer_times[image.base_layers :] if made is not None]
    return replace(
        image,
        history=tuple(history),
        stack=(*base, layers.merged(base, own)),
        layer_times=(*image.layer_times[: image.base_layers], max(times, default=None)),
        layer_annotations={},
    )
