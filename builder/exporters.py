"""Exports: what becomes of a build's images. One function a destination; all write through parts that are handed in.

Owns names, compression defaults, and the response that buildx's metadata file shows. Never pushes or stores by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from pybuild.errors import PybuildError, UsageError
from pybuild.layers.descriptor import Descriptor, Platform
from pybuild.layers.digest import Digest
from pybuild.layers.entries import Kind, LayerEntry
from pybuild.layers.image import ImageConfig
from pybuild.layers.references import Reference
from pybuild.layers.views import FileView
from pybuild.values import dataclass, field, replace

from .assemble import (
    Annotations,
    AssembleOptions,
    BlobWriter,
    BuiltImage,
    LayerExports,
    rfc3339,
    write_index,
    write_manifest,
)
from .lower import LoweredImage
from .outputs import Output, OutputType
from .platforms import format_platform
from .progress import BuildWarning, Progress, StepDone, StepProgress, StepStarted
from .protocols import Snapshots
from .request import BuildRequest
from .reshape import LayerRewrites, dated, squashed, with_limited_times

if TYPE_CHECKING:
    from .attestations import Attestation


class ImageKeeper(Protocol):
    """Keeps images, sends them, writes them as archives. ``descriptor`` names a manifest or index whose blobs the store has."""

    def keep(self, names: Sequence[str], descriptor: Descriptor) -> None:
        """Put the image into the local store under ``names`` (canonical; none: by digest)."""

    def push(self, name: str, descriptor: Descriptor, *, by_digest: bool, step: str) -> None:
        """Push to the registry that ``name`` says; events go to the step."""

    def write_oci_archive(self, out: BinaryIO, descriptor: Descriptor, names: Sequence[str]) -> None:
        """Write an OCI layout as a tar."""

    def write_docker_archive(self, out: BinaryIO, descriptor: Descriptor, names: Sequence[str]) -> None:
        """Write what ``docker load`` reads."""

    def write_oci_layout(self, directory: Path, descriptor: Descriptor, names: Sequence[str]) -> None:
        """Write an OCI layout as a directory, adding to one that is there."""

    def write_tar(self, out: BinaryIO, entries: Sequence[LayerEntry]) -> None:
        """Write a plain tar of files."""


@dataclass(frozen=True, slots=True)
class ExportParts:
    """What exports run on. ``owner``: uid and gid that files of local exports get."""

    blobs: BlobWriter
    layers: LayerExports
    rewrites: LayerRewrites
    snapshots: Snapshots
    keeper: ImageKeeper
    owner: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class ExportReport:
    """What the exports tell: the image's ID and the metadata file's keys."""

    image_id: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)  # Any: the JSON edge


@dataclass(frozen=True, slots=True)
class _Written:
    """An image as it lies in the store: what its name points to, and the configuration's digest where that is a manifest."""

    descriptor: Descriptor
    config: Digest | None


class Exporters:
    """Runs the exports of one build."""

    def __init__(
        self,
        parts: ExportParts,
        *,
        request: BuildRequest,
        lowered: Sequence[LoweredImage],
        progress: Progress,
        clock: Callable[[], float],
        cancel: threading.Event,
        attested: Sequence[Sequence[Attestation]] = (),
    ) -> None:
        """``attested``: the attestations of each image, empty if there are none at all."""
        self._parts = parts
        self._attested = attested
        self._request = request
        self._epoch = next((each.source_date_epoch for each in lowered if each.source_date_epoch is not None), None)
        self._progress = progress
        self._clock = clock
        self._cancel = cancel
        self._report = ExportReport()

    def run(self, outputs: Sequence[Output], images: Sequence[BuiltImage], *, stdout: BinaryIO | None) -> ExportReport:
        """Carry out every output. Raises PybuildError; what was exported before stays."""
        if self._attested:
            from .export_attestations import check_export

            for output in outputs:
                check_export(output, self._attested, images=len(images))
        if self._epoch is not None:
            images = [dated(image, epoch=self._epoch) for image in images]
        if self._request.squash:
            images = [squashed(image, layers=self._parts.rewrites) for image in images]
        for output in outputs:
            match output.type:
                case OutputType.IMAGE | OutputType.REGISTRY:
                    self._image(output, images)
                case OutputType.OCI | OutputType.DOCKER:
                    self._archive(output, images, stdout)
                case OutputType.LOCAL:
                    self._local(output, images)
                case OutputType.TAR:
                    self._tar(output, images, stdout)
                case OutputType.CACHE_ONLY:
                    pass
        return self._report

    # --- images ------------------------------------------------------------------------------------------------------

    def _image(self, output: Output, images: Sequence[BuiltImage]) -> None:
        names = self._names(output)
        if output.push and not names:
            raise UsageError("tag is needed when pushing to registry", hint="add --tag HOST/NAME:TAG")
        step = self._begin("exporting to image")
        try:
            # Kept in the local store, layers stay as they are; compressing waits for a push. But attestations name the manifest: it is final.
            compression = output.compression or ("gzip" if output.push or self._attested else None)
            written = self._write(output, images, names, compression=compression, step=step)
            if output.store:
                self._parts.keeper.keep(names, written.descriptor)
                for name in names:
                    self._note(step, f"naming to {name}")
            self._end(step)
        except PybuildError as error:
            self._end(step, error)
            raise
        if output.push:
            for name in names:
                step = self._begin(f"pushing {name}")
                try:
                    self._parts.keeper.push(name, written.descriptor, by_digest=output.push_by_digest, step=step)
                    self._end(step)
                except PybuildError as error:
                    self._end(step, error)
                    raise
        self._tell(written, names)

    def _archive(self, output: Output, images: Sequence[BuiltImage], stdout: BinaryIO | None) -> None:
        docker = output.type is OutputType.DOCKER
        if docker and (len(images) > 1 or self._request.several_platforms()):
            raise PybuildError(
                "docker exporter does not currently support exporting manifest lists",
                hint="use --output type=oci, or build one platform",
            )
        names = self._names(output)
        step = self._begin(f"exporting to {output.type.value} image format")
        try:
            written = self._write(output, images, names, compression=output.compression or "gzip", step=step)
            epoch = self._epoch_of(output)
            created = rfc3339(float(int(self._clock())) if epoch is None else float(epoch))
            descriptor = replace(
                written.descriptor,
                annotations={"org.opencontainers.image.created": created, **written.descriptor.annotations},
            )
            keeper = self._parts.keeper
            if docker and output.dest is None:
                # `--output type=docker` without a destination loads into the local store, as with docker.
                keeper.keep(names, written.descriptor)
                for name in names:
                    self._note(step, f"naming to {name}")
            elif not output.tar:
                assert output.dest is not None  # checked when it was parsed
                keeper.write_oci_layout(Path(self._request.directory, output.dest), descriptor, names)
            else:
                write = keeper.write_docker_archive if docker else keeper.write_oci_archive
                self._to_file(output, stdout, lambda out: write(out, descriptor, names))
            self._end(step)
        except PybuildError as error:
            self._end(step, error)
            raise
        self._tell(replace(written, descriptor=descriptor), names)

    def _write(
        self, output: Output, images: Sequence[BuiltImage], names: Sequence[str], *, compression: str | None, step: str
    ) -> _Written:
        oci = output.oci_media_types is not False
        epoch = self._epoch_of(output)
        options = AssembleOptions(
            compression=compression,
            level=output.compression_level,
            force=output.force_compression,
            oci=oci,
            epoch=epoch,
            annotations=_merged(self._request.annotations, output),
        )
        parts = self._parts
        if output.rewrite_timestamp and epoch is None:
            self._progress.emit(BuildWarning("", "rewrite-timestamp is specified, but no source-date-epoch was found"))
        elif output.rewrite_timestamp and epoch is not None:
            images = self._limited(images, epoch)
        written = [write_manifest(image, options=options, layers=parts.layers, blobs=parts.blobs) for image in images]
        manifests = [manifest.descriptor for manifest in written]
        self._note(step, "exporting layers")
        for manifest in written:
            self._note(step, f"exporting manifest {manifest.descriptor.digest}")
            self._note(step, f"exporting config {_config_digest(manifest.config)}")
        if self._attested:
            from .export_attestations import attestation_manifests

            manifests += attestation_manifests(
                written,
                images,
                self._attested,
                output=output,
                names=names,
                blobs=parts.blobs,
                snapshots=parts.snapshots,
            )
        if len(manifests) == 1 and not self._request.several_platforms():
            if options.annotations.index or options.annotations.index_descriptor:
                raise PybuildError("index annotations not supported for single platform export")
            return _Written(manifests[0], _config_digest(written[0].config))
        index = write_index(manifests, options=options, write=parts.blobs.write)
        self._note(step, f"exporting manifest list {index.digest}")
        return _Written(index, None)

    def _epoch_of(self, output: Output) -> int | None:
        """SOURCE_DATE_EPOCH for an output: its own, or that of the build."""
        own = output.source_date_epoch
        return self._epoch if own is None else own if own >= 0 else None

    def _limited(self, images: Sequence[BuiltImage], epoch: int) -> list[BuiltImage]:
        step = self._begin(f"rewriting layers with source-date-epoch {epoch} ({rfc3339(epoch)})")
        out = [with_limited_times(image, epoch=epoch, layers=self._parts.rewrites) for image in images]
        self._end(step)
        return out

    def _names(self, output: Output) -> tuple[str, ...]:
        given = output.names or self._request.tags
        return tuple(dict.fromkeys(Reference.parse(name).canonical for name in given))

    def _tell(self, written: _Written, names: Sequence[str]) -> None:
        metadata = self._report.metadata
        descriptor = written.descriptor
        metadata["containerimage.digest"] = str(descriptor.digest)
        metadata["containerimage.descriptor"] = descriptor.to_json()
        if written.config is not None:
            metadata["containerimage.config.digest"] = str(written.config)
        if names:
            metadata["image.name"] = ",".join(names)
        self._report.image_id = str(written.config or descriptor.digest)

    # --- files -------------------------------------------------------------------------------------------------------

    def _local(self, output: Output, images: Sequence[BuiltImage]) -> None:
        from .tree_export import export_directory, refuse_overwrites

        assert output.dest is not None  # checked when it was parsed
        root = Path(self._request.directory, output.dest)
        step = self._begin("exporting to client directory")
        try:
            if len(images) > 1 and not self._split(output, images):
                stacks = {format_platform(image.platform): image.stack for image in images}
                refuse_overwrites(stacks, self._parts.snapshots.view)
            for position, image in enumerate(images):
                where = root / _folder(image.platform) if self._split(output, images) else root
                with self._parts.snapshots.view(image.stack) as view:
                    export_directory(
                        view, where, owner=self._parts.owner, epoch=self._epoch_of(output), cancel=self._cancel
                    )
                    files = self._attestation_files(output, images, position, view)
                if files:
                    from .export_attestations import write_files

                    write_files(where, files, owner=self._parts.owner, seconds=self._attestation_time())
            self._end(step)
        except PybuildError as error:
            self._end(step, error)
            raise

    def _tar(self, output: Output, images: Sequence[BuiltImage], stdout: BinaryIO | None) -> None:
        from .tree_export import entries_of

        step = self._begin("exporting to client tarball")

        def write(out: BinaryIO) -> None:
            entries: list[LayerEntry] = []
            for position, image in enumerate(images):
                prefix = ""
                if self._split(output, images):
                    prefix = _folder(image.platform) + "/"
                    entries.append(
                        LayerEntry(prefix.rstrip("/"), Kind.DIRECTORY, mtime_ns=(self._epoch_of(output) or 0) * 10**9)
                    )
                with self._parts.snapshots.view(image.stack) as view:
                    files = self._attestation_files(output, images, position, view)
                    taken = {prefix + name for name in files}
                    entries += [
                        e for e in entries_of(view, prefix=prefix, epoch=self._epoch_of(output)) if e.path not in taken
                    ]
                time_ns = self._attestation_time() * 10**9
                entries += [
                    LayerEntry(prefix + name, Kind.FILE, mode=0o600, mtime_ns=time_ns, size=len(data), data=data)
                    for name, data in files.items()
                ]
            self._parts.keeper.write_tar(out, entries)

        try:
            self._to_file(output, stdout, write)
            self._end(step)
        except PybuildError as error:
            self._end(step, error)
            raise

    def _attestation_files(
        self, output: Output, images: Sequence[BuiltImage], position: int, view: FileView
    ) -> dict[str, bytes]:
        if not self._attested:
            return {}
        from .export_attestations import attestation_files

        return attestation_files(
            self._attested[position],
            view,
            platform=_folder(images[position].platform),
            output=output,
            images=len(images),
            split=self._split(output, images),
        )

    def _attestation_time(self) -> int:
        return int(self._clock()) if self._epoch is None else self._epoch

    def _split(self, output: Output, images: Sequence[BuiltImage]) -> bool:
        several = len(images) > 1 or self._request.several_platforms()
        return several if output.platform_split is None else output.platform_split

    def _to_file(self, output: Output, stdout: BinaryIO | None, write: Callable[[BinaryIO], None]) -> None:
        """Write to ``dest`` (whole or not at all) or to stdout."""
        if output.dest in (None, "-"):
            if stdout is None:
                raise UsageError(f"--output type={output.type.value} needs dest=FILE here")
            write(stdout)
            stdout.flush()
            return
        path = Path(self._request.directory, str(output.dest))
        if path.is_dir():
            raise UsageError(f"--output dest={output.dest} is a directory", hint="give the name of a file")
        from pybuild.layers.whole_file import whole_file

        try:
            with whole_file(path) as out:
                write(out)
        except OSError as error:
            raise PybuildError(f"can't write {path}: {error.strerror}") from error

    # --- events ------------------------------------------------------------------------------------------------------

    def _begin(self, title: str) -> str:
        step = str(Digest.of(title.encode()))
        self._progress.emit(StepStarted(step, title, self._clock()))
        return step

    def _note(self, step: str, what: str) -> None:
        """A part of an export that is done: its name is all that there is to say."""
        self._progress.emit(StepProgress(step, what, 0, 0, True, self._clock()))

    def _end(self, step: str, error: PybuildError | None = None) -> None:
        self._progress.emit(StepDone(step, self._clock(), error=None if error is None else error.message))


def _config_digest(config: ImageConfig) -> Digest:
    return Digest.of(config.to_bytes())


def _folder(platform: Platform) -> str:
    """The name of a platform's folder: with the operating system's version, which may be all that differs."""
    return format_platform(platform).replace("/", "_")


def _merged(annotations: Annotations, output: Output) -> Annotations:
    """``--annotation`` with the output's own ``annotation[-LEVEL][PLATFORM].KEY=VALUE`` attributes on top."""
    if not output.annotations:
        return annotations
    levels: dict[str, dict[str, dict[str, str]]] = {
        "": {platform: dict(values) for platform, values in annotations.manifest.items()},
        "manifest-descriptor": {platform: dict(values) for platform, values in annotations.manifest_descriptor.items()},
        "index": {"": dict(annotations.index)},
        "index-descriptor": {"": dict(annotations.index_descriptor)},
    }
    for key, value in output.annotations.items():
        head, dot, name = key.removeprefix("annotation").partition(".")
        level, bracket, platform = head.lstrip("-").partition("[")
        level = "" if level == "manifest" else level
        if not dot or not name or level not in levels:
            raise UsageError(
                f"invalid annotation key {key!r}", hint="write annotation.KEY=VALUE or annotation-index.KEY=VALUE"
            )
        levels[level].setdefault(platform.rstrip("]") if bracket else "", {})[name] = value
    return Annotations(
        manifest=levels[""],
        manifest_descriptor=levels["manifest-descriptor"],
        index=levels["index"][""],
        index_descriptor=levels["index-descriptor"][""],
    )
