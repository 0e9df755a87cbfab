"""The engine: everything that works on one root, put together. The composition root, and the only place that constructs concrete parts.

The command line uses it in its own process and the daemon serves it; neither has a second way to do the same thing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from pybuild import __version__
from pybuild.errors import PybuildError, UsageError
from pybuild.layers.descriptor import Platform
from pybuild.layers.digest import Digest
from pybuild.layers.store import Store
from pybuild.values import dataclass, replace

from .image_list import lookups
from .machine import host_platform
from .registries import Registries
from .settings import Settings
from .store_queries import StoreQueries

if TYPE_CHECKING:
    from pybuild.builder.build import BuildParts, BuildResult
    from pybuild.builder.progress import Progress
    from pybuild.builder.protocols import ExitStatus, ImageSource, Terminal
    from pybuild.builder.request import BuildRequest, SecretSource
    from pybuild.builder.solver import Prediction
    from pybuild.layers.cache_index import CacheIndex as CacheSession
    from pybuild.layers.snapshots import SnapshotStore
    from pybuild.parser import Dockerfile
    from pybuild.registry_client.credentials import Credentials
    from pybuild.registry_client.pull import PulledImage
    from pybuild.registry_client.push import PushReport
    from pybuild.registry_client.transfers import OnTransfer

    from .cache_places import Layouts
    from .caches import BuildCachesHere
    from .executor import NamespaceExecutor
    from .failed_steps import AroundShell
    from .lazy_layers import LazyLayers
    from .one_shot import RunOptions
    from .policed_sources import Remotes


# More than the processors: steps also wait, for the network and for each other. BuildKit sets no limit.
_PARALLEL_STEPS = 16


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """What ``load`` brought: a name, None for an image without one, and the image's ID."""

    name: str | None
    id: Digest


class Engine(StoreQueries):
    """All that can be done with one root. A context manager; thread-safe."""

    def __init__(self, store: Store, settings: Settings, registries: Registries, *, ends_process: bool = False) -> None:
        self._ends_process = ends_process
        self.store = store
        self.settings = settings
        self.registries = registries
        self._lock = threading.Lock()
        self._parent: Engine | None = None
        self._executor: NamespaceExecutor | None = None
        self._snapshots: SnapshotStore | None = None

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        settings: Settings,
        docker_config: Path,
        variables: Mapping[str, str],
        debug: Callable[[str], None] | None = None,
        offline: bool = False,
        ends_process: bool = False,
        warn: Callable[[str], None] | None = None,
    ) -> Engine:
        """Open the store at ``root``. ``variables``: the environment for credential helpers and proxies; ``debug`` gets a redacted line
        for each request to a registry; ``ends_process``: the process ends soon after ``close``, which then leaves the database to it;
        ``warn``: see DockerConfig. Raises StoreUnusable, StoreTooNew."""
        store = Store(root, clock=time.time)
        registries = Registries(
            settings,
            docker_config=docker_config,
            variables=variables,
            # Servers and their logs know builders by the second name: some filter by it.
            user_agent=f"pybuild/{__version__} (compatible; buildkit/v0.26)",
            log=debug,
            offline=offline,
            warn=warn,
        )
        return cls(store, settings, registries, ends_process=ends_process)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the launcher and the connections, write what is pending, and close the database."""
        if self._executor is not None:
            self._executor.close()
            self._executor = None
        self.registries.close()
        if self._ends_process:
            # Closing the last connection copies the write-ahead log into the database and waits for the disk; the next one can do that.
            self.store.flush()
        else:
            self.store.close()

    @contextmanager
    def acting_for(self, credentials: Credentials) -> Iterator[Engine]:
        """The same engine with somebody else's credentials for registries: a client's of the daemon."""
        registries = self.registries.acting_for(credentials)
        other = Engine(self.store, self.settings, registries)
        other._parent = self
        try:
            yield other
        finally:
            registries.close()

    def reload(self, settings: Settings) -> None:
        """Use other settings from now on; what runs goes on with those it began with."""
        self.settings = settings
        self.registries = self.registries.with_settings(settings)

    # --- parts -------------------------------------------------------------------------------------------------------

    @property
    def executor(self) -> NamespaceExecutor:
        if self._parent is not None:
            return self._parent.executor
        with self._lock:
            if self._executor is None:
                from .executor import NamespaceExecutor

                self._executor = NamespaceExecutor()
            return self._executor

    @property
    def snapshots(self) -> SnapshotStore:
        if self._parent is not None:
            return self._parent.snapshots
        with self._lock:
            if self._snapshots is None:
                from pybuild.layers.snapshots import SnapshotStore

                self._snapshots = SnapshotStore(
                    self.store.root,
                    blobs=self.store.blobs,
                    layers=self.store.layers,
                    leases=self.store.leases,
                    cache_mounts=self.store.cache_mounts,
                    active=self.store.active,
                    facts=self.store.facts,
                )
            return self._snapshots

    def lazy_layers(self, *, cancel: threading.Event | None = None, progress: Progress | None = None) -> LazyLayers:
        """What fetches layers that the store only knows, for one piece of work. ``progress``: gets warnings of registries that fail."""
        from .lazy_layers import LazyLayers

        return LazyLayers(self.store, self.snapshots, self.registries, cancel=cancel, progress=progress)

    # --- building ----------------------------------------------------------------------------------------------------

    def build(
        self,
        request: BuildRequest,
        *,
        progress: Progress,
        cancel: threading.Event,
        stdout: BinaryIO | None = None,
        on_dockerfile: Callable[[Dockerfile], None] | None = None,
        around_shell: AroundShell | None = None,
        layouts: Layouts | None = None,
    ) -> BuildResult:
        """Build; ``on_dockerfile`` gets the parsed Dockerfile; ``around_shell``: holds the caller's terminal for ``--on-error=shell``, which
        is not possible without; ``layouts``: opens the caches of directories (default: on this machine). Raises BuildFailed, Cancelled,
        PybuildError."""
        from pybuild.builder.build import build

        with self._within_policy(), self.store.lease(), self.store.active.make() as scratch:
            cache = self.store.open_cache()
            caches = self._caches(request, progress=progress, cancel=cancel, cache=cache, layouts=layouts)
            told = 0 if self._executor is None else len(self._executor.notices)
            try:
                parts = self._parts(request, progress=progress, cancel=cancel, cache=cache, scratch=scratch)
                if caches is not None:
                    parts = replace(parts, caches=caches)
                if request.on_error is not None:
                    from .failed_steps import on_failure

                    handler = on_failure(self, request.on_error, around=around_shell, cancel=cancel)
                    parts = replace(parts, on_failure=handler)
                return build(
                    request, parts, progress=progress, cancel=cancel, stdout=stdout, on_dockerfile=on_dockerfile
                )
            finally:
                if caches is not None:
                    caches.close()
                cache.flush()
                notices = () if self._executor is None else self._executor.notices[told:]
                if notices:
                    from .sandbox_notices import tell_notices

                    tell_notices(notices, progress=progress, clock=time.time)

    @contextmanager
    def _within_policy(self) -> Iterator[None]:
        """Hold the store to the gc policy of the configuration meanwhile and at the end."""
        policy = self.settings.gc
        if not policy.is_set:
            yield
            return
        from .space_keeper import enforce, kept_within

        try:
            with kept_within(self.store, policy):
                yield
        finally:
            with suppress(PybuildError):  # what was built is built; the next build tries again
                enforce(self.store, policy)

    def predict(
        self, request: BuildRequest, *, progress: Progress, cancel: threading.Event, layouts: Layouts | None = None
    ) -> list[Prediction]:
        """What a build would run, and why; runs and keeps nothing. Raises as ``build``."""
        from pybuild.builder.build import predict

        with self.store.lease(), self.store.active.make() as scratch:
            cache = self.store.open_cache()
            try:
                parts = self._parts(request, progress=progress, cancel=cancel, cache=cache, scratch=scratch)
                reading = replace(
                    request, cache_to=(), cache_repo=tuple(f"{text},mode=r" for text in request.cache_repo)
                )
                caches = self._caches(reading, progress=progress, cancel=cancel, cache=cache, layouts=layouts)
                return predict(
                    request,
                    parts if caches is None else replace(parts, caches=caches),
                    progress=progress,
                    cancel=cancel,
                )
            finally:
                cache.flush()

    def _caches(
        self,
        request: BuildRequest,
        *,
        progress: Progress,
        cancel: threading.Event,
        cache: CacheSession,
        layouts: Layouts | None,
    ) -> BuildCachesHere | None:
        """The caches elsewhere that the request names. Raises UsageError."""
        inline = request.build_args.get("BUILDKIT_INLINE_CACHE", "").lower() in ("1", "true")
        named = (request.cache_from, request.cache_to, request.cache_repo)
        if not (any(named) or inline or request.cache_mounts_from or request.cache_mounts_to):
            return None
        from .cache_opening import layouts_below, open_caches

        return open_caches(
            request,
            layouts=layouts or layouts_below(request.directory),
            inline=inline,
            store=self.store,
            snapshots=self.snapshots,
            cache=cache,
            registries=self.registries,
            lazy=self.lazy_layers(cancel=cancel, progress=progress),
            progress=progress,
            cancel=cancel,
        )

    def _parts(
        self,
        request: BuildRequest,
        *,
        progress: Progress,
        cancel: threading.Event,
        cache: CacheSession,
        scratch: Path,
    ) -> BuildParts:
        from pybuild.builder.build import BuildParts
        from pybuild.builder.exporters import ExportParts

        from .image_keeper import CacheRecipes, StoreKeeper, StoreLayers
        from .image_source import StoreImageSource
        from .layer_rewrites import StoreRewrites
        from .parts_on_demand import ExecutorOnDemand, LazyLayersOnDemand, SnapshotsOnDemand
        from .remotes_on_demand import RemotesOnDemand
        from .ssh_sockets import SshSockets

        snapshots = SnapshotsOnDemand(lambda: self.snapshots, index=self.store.layers)
        ssh = SshSockets(snapshots)
        remotes: Remotes = RemotesOnDemand(
            self.store.root / "remotes",
            self.registries,
            secrets=request.secret_values
            or {
                secret.id: _value(secret)
                for secret in request.secrets
                if secret.id.startswith(("HTTP_AUTH", "GIT_AUTH"))
            },
            cancel=cancel,
            ssh_socket=lambda: ssh.served.get("default") or (request.agents or {}).get("default"),
        )
        lazy = LazyLayersOnDemand(lambda: self.lazy_layers(cancel=cancel, progress=progress))
        layers = StoreLayers(self.store, lazy=lazy, cancel=cancel)
        images: ImageSource = StoreImageSource(self.store, snapshots, self.registries, lazy=lazy, cancel=cancel)
        if request.source_policy is not None:
            from .policed_sources import PolicedImages, PolicedRemotes

            images = PolicedImages(images, request.source_policy)
            remotes = PolicedRemotes(remotes, request.source_policy)
        return BuildParts(
            executor=ExecutorOnDemand(lambda: self.executor),
            snapshots=snapshots,
            cache=cache,
            images=images,
            remotes=remotes,
            epochs=remotes,
            exports=ExportParts(
                blobs=self.store.blobs,
                layers=layers,
                rewrites=StoreRewrites(self.store, lambda: self.snapshots),
                snapshots=snapshots,
                keeper=StoreKeeper(
                    self,
                    progress=progress,
                    cancel=cancel,
                    lazy=lazy,
                    # A step that was sent when it ended needn't be sent again with the image.
                    siblings=tuple(text.partition(",")[0] for text in request.cache_repo),
                ),
                owner=(os.geteuid(), os.getegid()),
            ),
            builds=self.store.builds,
            recipes=CacheRecipes(cache),
            layer_times=layers,
            distant=lazy,
            ssh=ssh,
            preload=cache.stat_index.preload,
            platform=host_platform(),
            scratch=str(scratch),
            clock=time.time,
            nonce=lambda: os.urandom(13).hex()[:25],
            cold=request.no_cache or (not request.cache_from and cache.is_empty()),
            max_parallelism=self.settings.max_parallelism or max(_PARALLEL_STEPS, 2 * (os.cpu_count() or 1)),
            entitlements=self.settings.entitlements,
            provenance_environment=self._provenance_environment(request),
        )

    def _provenance_environment(self, request: BuildRequest) -> Mapping[str, Any]:  # Any: JSON that an operator wrote
        if not self.settings.provenance_directory or (request.provenance is None and not request.metadata_provenance):
            return {}
        from .provenance_environment import read_provenance_environment

        return read_provenance_environment(self.settings.provenance_directory)

    # --- images ------------------------------------------------------------------------------------------------------

    def tag(self, source: str, target: str) -> None:
        """Give a local image another name. Raises ImageNotFound, InvalidReference."""
        image = self.find_image(source)
        self.store.images.tag(image.descriptor.digest, canonical_tag(target))

    def tags_of(self, name: str) -> list[str]:
        """All local names of a repository. Raises UsageError if there is none."""
        from pybuild.layers.references import Reference

        repository = Reference.parse(name)
        if repository.tag is not None or repository.digest is not None:
            raise UsageError("a tag can't be used with --all-tags", hint=f"write {repository.familiar_name}")
        found = [known for known in self.store.images.names() if Reference.parse(known).name == repository.name]
        if not found:
            raise UsageError(f"no local image has the name {repository.familiar_name}")
        return found

    def save_images(
        self,
        names: Sequence[str],
        *,
        dest: str | None,
        stdout: BinaryIO,
        docker: bool,
        platforms: Sequence[Platform] = (),
        cancel: threading.Event | None = None,
    ) -> None:
        """Write images to the file ``dest`` (whole or not at all) or to ``stdout``. Raises ImageNotFound, ExportFailed."""
        from .archives import save_images

        save_images(self, names, dest=dest, stdout=stdout, docker=docker, platforms=platforms, cancel=cancel)

    def load_images(self, source: BinaryIO, *, platforms: Sequence[Platform] = ()) -> list[LoadedImage]:
        """Read images from an archive; all or none. Raises InvalidArchive and the like."""
        from .archives import load_images

        return load_images(self, source, platforms=platforms)

    def import_image(
        self,
        source: str,
        *,
        stdin: BinaryIO,
        name: str | None,
        changes: Sequence[str] = (),
        message: str = "",
        platform: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Digest:
        """Make an image from a tar of a root file system: a path, a URL, or ``-``. Returns its ID. Raises PybuildError."""
        from .archives import import_image

        return import_image(
            self,
            source,
            stdin=stdin,
            name=name,
            changes=changes,
            message=message,
            platform=platform,
            labels=labels or {},
        )

    def run_image(
        self,
        name: str,
        options: RunOptions,
        *,
        on_output: Callable[[int, bytes], None],
        cancel: threading.Event,
        stdin: int | None = None,
        terminal: Terminal | None = None,
    ) -> ExitStatus:
        """Run one process in a throw-away copy of a local image; ``stdin``: the descriptor that is its standard input; ``terminal``: where
        its terminal is shown. Raises PybuildError."""
        from .one_shot import run_once

        image = self.find_image(name)
        part = image.choose(host_platform()) or image.choose()
        if part is None:
            raise UsageError(f"{name} holds no image for this machine")
        with self.store.lease():
            self.lazy_layers(cancel=cancel).need(part.diff_ids, unpack=True)
            return run_once(
                self.store.images.config(part),
                options,
                executor=self.executor,
                snapshots=self.snapshots,
                on_output=on_output,
                cancel=cancel,
                stdin=stdin,
                terminal=terminal,
            )

    # --- registries --------------------------------------------------------------------------------------------------

    def pull(
        self,
        name: str,
        *,
        platform: Platform | None = None,
        all_platforms: bool = False,
        on_transfer: OnTransfer,
        cancel: threading.Event | None = None,
    ) -> PulledImage:
        """Fetch an image into the store, unpacked. Raises RegistryError and the like; then the store names nothing new."""
        from .distribution import pull_image

        with self.store.lease():
            return pull_image(
                self, name, platform=platform, all_platforms=all_platforms, on_transfer=on_transfer, cancel=cancel
            )

    def push(
        self,
        name: str,
        *,
        platform: Platform | None = None,
        compression: str = "gzip",
        level: int | None = None,
        force: bool = False,
        on_transfer: OnTransfer,
        cancel: threading.Event | None = None,
    ) -> PushReport:
        """Send a local image; layers that are not compressed yet are compressed first. Raises RegistryError and the like."""
        from .distribution import push_image

        with self.store.lease():
            return push_image(
                self,
                name,
                platform=platform,
                compression=compression,
                level=level,
                force=force,
                on_transfer=on_transfer,
                cancel=cancel,
            )

    def raw_manifest(self, name: str) -> bytes:
        """The bytes of a local image's manifest or index, else the registry's. Raises RegistryError."""
        image = self.store.images.find(*lookups(name))
        if image is not None:
            return self.store.blobs.read(image.descriptor.digest, limit_bytes=64 << 20)
        from .registry_commands import registry_manifest

        return registry_manifest(self.registries, name).data


def canonical_tag(name: str) -> str:
    """A name for an image in its canonical form. Raises InvalidReference, UsageError for one with a digest."""
    from pybuild.layers.references import Reference

    reference = Reference.parse(name)
    if reference.digest is not None:
        raise UsageError(
            "refusing to create a tag with a digest reference", hint=f"write {reference.familiar_name}:TAG"
        )
    return reference.with_default_tag().canonical


def _value(secret: SecretSource) -> bytes:
    if secret.path is None:
        return secret.value or b""
    try:
        return Path(secret.path).read_bytes()
    except OSError as error:
        raise PybuildError(f"secret {secret.id}: can't read {secret.path}: {error.strerror}") from error
