"""What can be asked of a store, and freed in it, as the command line shows it. The part of the engine that builds and transfers nothing.

``client.RemoteEngine`` answers the same questions from a daemon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pybuild.errors import UsageError
from pybuild.layers.images import ImageInUse, ImageNotFound, Removal, StoredImage
from pybuild.layers.store import Store
from pybuild.values import replace

from .image_list import ImageFilter, image_rows, inspect_image, lookups

if TYPE_CHECKING:
    from pybuild.layers.build_usage import BuildUsage
    from pybuild.layers.builds import BuildRecord, BuildStep
    from pybuild.layers.descriptor import Platform
    from pybuild.layers.gc import ImagePruneReport, PrunePolicy, PruneReport
    from pybuild.layers.image import ImageConfig
    from pybuild.layers.usage import Usage

    from .image_list import ImageRow
    from .remote_values import BuildCauses, ImageHistory


class StoreQueries:
    """Questions about one store. Thread-safe."""

    store: Store

    def find_image(self, name: str) -> StoredImage:
        """A local image by name, ID or digest. Raises ImageNotFound, AmbiguousImage."""
        try:
            return self.store.images.get(*lookups(name))
        except ImageNotFound as error:
            raise ImageNotFound(name) from error

    def image_rows(self, wanted: ImageFilter) -> list[ImageRow]:
        """The rows of ``pybuild images``."""
        return image_rows(self.store.images, wanted)

    def inspect(self, name: str, *, platform: str | None) -> dict[str, Any]:  # Any: the JSON edge
        """``docker inspect``'s answer. Raises ImageNotFound, UsageError."""
        return inspect_image(self.store.images, self.find_image(name), platform=platform)

    def history(self, name: str) -> ImageHistory:
        """The steps that made an image. Raises ImageNotFound, UsageError."""
        from .remote_values import ImageHistory

        part = self.find_image(name).choose()
        if part is None:
            raise UsageError(f"{name} holds no image for any platform")
        return ImageHistory(part.config, self.store.images.history(part))

    def base_config(self, name: str, *, platform: Platform) -> ImageConfig | None:
        """See ``image_source.known_config``."""
        from .image_source import known_config

        return known_config(self.store, name, platform)

    def remove_image(self, name: str, *, force: bool, keep_layers: bool = False) -> Removal:
        """Take a name away, and the image with its last one; what nothing needs then is freed, unless ``keep_layers`` leaves that to the
        next collection. An ID stands for all that have it. Raises ImageNotFound, ImageInUse."""
        images = self.store.images
        image = self.find_image(name)
        by_id = not set(lookups(name)) & set(image.names)
        others = images.with_config(image.id()) if by_id else ()
        if by_id and not force and sum("@" not in tag for each in others for tag in each.names) > 1:
            raise ImageInUse(name, reason="image is referenced in multiple repositories", forceable=True)
        removal = images.remove(*lookups(name), force=force)
        if not removal.deleted:
            return removal
        # The same image under other manifests (its layers compressed or not): without a name, or meant by the ID.
        untagged = list(removal.untagged)
        for other in images.with_config(removal.deleted[0]):
            if (by_id or not other.names) and images.discard(other):
                untagged += other.names
        if not keep_layers:
            from pybuild.layers.gc import Collector

            Collector(self.store).collect()
        return replace(removal, untagged=tuple(untagged))

    # --- space -------------------------------------------------------------------------------------------------------

    def usage(self) -> Usage:
        """What the store holds."""
        from pybuild.layers.gc import Collector

        return Collector(self.store).usage()

    def build_usage(self) -> tuple[BuildUsage, ...]:
        """What the recorded builds hold of it."""
        from pybuild.layers.build_usage import build_usage

        return build_usage(self.store.builds, self.store.cache, self.usage().cache)

    def prune(self, policy: PrunePolicy, *, dry_run: bool) -> PruneReport:
        """Free what ``policy`` doesn't keep of the build cache."""
        from pybuild.layers.gc import Collector

        return Collector(self.store).prune(policy, dry_run=dry_run)

    def prune_images(self, *, all: bool) -> ImagePruneReport:
        """Remove images without a name, or all."""
        from pybuild.layers.gc import Collector

        return Collector(self.store).prune_images(all=all)

    # --- builds ------------------------------------------------------------------------------------------------------

    def build_records(self) -> tuple[BuildRecord, ...]:
        """The builds that are remembered, the last one first."""
        return self.store.builds.list()

    def build_causes(self, name: str | None, *, with_causes: bool) -> BuildCauses | None:
        """A remembered build, the last one without a name, and why its steps ran; None if there is none of this name."""
        from .remote_values import BuildCauses

        builds = self.store.builds
        found = builds.last() if name is None else builds.find(name)
        if found is None:
            return None
        causes = {step.key: tuple(self.causes(found, step)) for step in found.steps if with_causes and not step.cached}
        return BuildCauses(found, causes)

    def causes(self, build: BuildRecord, step: BuildStep) -> list[str]:
        """Every reason why ``step`` of a recorded build was not cached, the first cause first."""
        from pybuild.builder.graph import Note, Scratch, Vertex
        from pybuild.builder.recording import previous_steps
        from pybuild.builder.why import Explainer

        from .image_keeper import CacheRecipes

        if not step.recipe:
            return [step.reason] if step.reason else []
        recipes = CacheRecipes(self.store.cache)
        explainer = Explainer(
            lambda: previous_steps(self.store.builds, build.subject, before=build.started),
            recipe_of=recipes.recipe_of,
            evicted=recipes.evicted,
        )
        note = Note(step.title, step.lines, step.stage, step.instruction)
        found = explainer.causes(Vertex(Scratch(), (), note), step.recipe, key=step.key, forced=False)
        # What was said while the build ran knows more: the causes above it.
        return list(dict.fromkeys([step.reason, *found])) if step.reason else found
