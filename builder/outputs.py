"""What a build's result becomes: ``--output`` values as typed values, read from buildx's CSV form. Writes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

from pybuild.errors import UsageError
from pybuild.values import dataclass, field


class OutputType(Enum):
    IMAGE = "image"
    REGISTRY = "registry"
    OCI = "oci"
    DOCKER = "docker"
    LOCAL = "local"
    TAR = "tar"
    CACHE_ONLY = "cacheonly"


@dataclass(frozen=True, slots=True)
class Output:
    """One ``--output``.

    ``dest``: a path, ``-`` for stdout, None where the type has a default (the local store); ``names``: image names;
    ``compression``: gzip, zstd or uncompressed, None for the default; ``compression_level``: None for the compressor's own;
    ``force_compression``: compress again what has another form; ``oci_media_types``: None for the type's default;
    ``tar``: False writes an ``oci``/``docker`` layout as a directory; ``push``, ``store``: what an image export does;
    ``source_date_epoch``: seconds for this output, negative: none at all, None: the build's; ``platform_split``: local/tar: a folder per platform (None: only when there are several); ``annotations``: level.key → value;
    ``attestation_prefix``: of the names of attestation files in local and tar exports; ``oci_artifact``: attestations as OCI artifacts (None:
    wherever OCI media types are used); ``inline_attestations``: also those
    that are for images only make an index (None: in ``image`` and ``registry`` exports).
    """

    type: OutputType
    dest: str | None = None
    names: tuple[str, ...] = ()
    push: bool = False
    push_by_digest: bool = False
    store: bool = True
    compression: str | None = None
    compression_level: int | None = None
    force_compression: bool = False
    oci_media_types: bool | None = None
    rewrite_timestamp: bool = False
    source_date_epoch: int | None = None
    tar: bool = True
    platform_split: bool | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    attestation_prefix: str = ""
    oci_artifact: bool | None = None
    inline_attestations: bool | None = None

    @property
    def to_stdout(self) -> bool:
        """True if the result itself goes to standard output, which then carries nothing else."""
        return self.dest == "-" or (self.dest is None and self.type in (OutputType.OCI, OutputType.TAR))


_TRUE, _FALSE = {"1", "t", "true", "yes", "on"}, {"0", "f", "false", "no", "off"}
# Keys of BuildKit's exporters that mean nothing to this store: accepted, so that command lines carry over.
_IGNORED = {
    "name-canonical",
    "unpack",
    "dangling-name-prefix",
    "danglingnameprefix",
    "registry.insecure",
    "buildinfo",
    "mode",
    "lossless",
}
_COMPRESSIONS = ("uncompressed", "gzip", "zstd", "estargz")


def split_fields(text: str, *, option: str) -> list[tuple[str, str | None]]:
    """The ``key=value`` fields of a CSV option value; a field without ``=`` has the value None. Raises UsageError."""
    if '"' not in text and "\r" not in text and "\n" not in text:
        cells = text.split(",") if text else []
    else:
        cells = _csv_cells(text, option=option)
    fields: list[tuple[str, str | None]] = []
    for cell in cells:
        key, separator, value = cell.partition("=")
        fields.append((key.strip().lower() if separator else cell, value if separator else None))
    return fields


def _csv_cells(text: str, *, option: str) -> list[str]:
    """The first row, where something is quoted; only then the csv module is worth its import."""
    import csv
    import io

    try:
        rows = list(csv.reader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise UsageError(f"invalid {option} value {text!r}: {error}") from error
    return rows[0] if rows else []


def boolean(text: str | None, *, option: str) -> bool:
    """A flag's value; None (written without ``=``) means true. Raises UsageError."""
    if text is None or text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise UsageError(f"invalid value {text!r} for {option}", hint="use true or false")


def parse_output(text: str) -> Output:
    """Read one ``--output`` value: a bare path (a local export), ``-`` (a tar on stdout) or ``type=…,key=value``. Raises UsageError."""
    fields = split_fields(text, option="--output")
    if len(fields) == 1 and fields[0][1] is None:
        if text == "-":
            return Output(type=OutputType.TAR, dest="-")
        return Output(type=OutputType.LOCAL, dest=text)
    values: dict[str, str | None] = {}
    annotations: dict[str, str] = {}
    for key, value in fields:
        if value is None and key == text:
            raise UsageError(f"invalid --output value {text!r}", hint="write type=oci,dest=FILE")
        if key.startswith("annotation"):
            annotations[key] = value or ""
        elif key in values:
            raise UsageError(f"--output has {key!r} twice")
        else:
            values[key] = value
    return _from_values(text, values, annotations)


def _from_values(text: str, values: dict[str, str | None], annotations: dict[str, str]) -> Output:
    kind = values.pop("type", None)
    if not kind:
        raise UsageError(f"--output {text!r} has no type", hint="write type=image|registry|oci|docker|local|tar")
    try:
        output_type = OutputType(kind)
    except ValueError:
        raise UsageError(
            f"unknown output type {kind!r}", hint="the types are image, registry, oci, docker, local and tar"
        ) from None

    def flag(key: str, default: bool) -> bool:
        return boolean(values.pop(key), option=f"--output {key}") if key in values else default

    def optional_flag(key: str) -> bool | None:
        return boolean(values.pop(key), option=f"--output {key}") if key in values else None

    compression = values.pop("compression", None)
    if compression is not None and compression not in _COMPRESSIONS:
        raise UsageError(f"unknown compression {compression!r}", hint="use gzip, zstd or uncompressed")
    if compression == "estargz":
        raise UsageError("compression=estargz is not supported", hint="use gzip, zstd or uncompressed")
    level_text = values.pop("compression-level", None)
    if level_text is not None and not level_text.lstrip("-").isdecimal():
        raise UsageError(f"invalid compression-level {level_text!r}", hint="a whole number")
    dest = values.pop("dest", None)
    epoch = _epoch(values.pop("source-date-epoch")) if "source-date-epoch" in values else None
    output = Output(
        type=output_type,
        dest=dest,
        names=tuple(name for name in (values.pop("name", None) or "").split(",") if name),
        push=flag("push", output_type is OutputType.REGISTRY),
        push_by_digest=flag("push-by-digest", False),
        store=flag("store", True),
        compression=compression,
        compression_level=None if level_text is None else int(level_text),
        force_compression=flag("force-compression", False),
        oci_media_types=optional_flag("oci-mediatypes"),
        rewrite_timestamp=flag("rewrite-timestamp", False),
        source_date_epoch=epoch,
        tar=flag("tar", True),
        platform_split=optional_flag("platform-split"),
        attestation_prefix=values.pop("attestation-prefix", None) or "",
        oci_artifact=optional_flag("oci-artifact"),
        inline_attestations=optional_flag("attestation-inline"),
        annotations=annotations,
    )
    if output.oci_artifact and output.oci_media_types is False:
        raise UsageError('exporter option "oci-artifact=true" conflicts with "oci-mediatypes=false"')
    if output.rewrite_timestamp and boolean(values.get("unpack", "false"), option="--output unpack"):
        raise UsageError('exporter option "rewrite-timestamp" conflicts with "unpack"')
    leftover = [key for key in values if key not in _IGNORED]
    if leftover:
        raise UsageError(f"unknown --output key {leftover[0]!r} for type={output_type.value}")
    if output_type is OutputType.LOCAL and not dest:
        raise UsageError("--output type=local needs dest=DIRECTORY")
    if output_type is OutputType.LOCAL and dest == "-":
        raise UsageError("--output type=local can't write to stdout", hint="use type=tar,dest=-")
    if output_type is OutputType.OCI and output.tar is False and not dest:
        raise UsageError("--output type=oci,tar=false needs dest=DIRECTORY")
    return output


def _epoch(text: str | None) -> int:
    """Seconds, or -1 for the empty text that means none. Raises UsageError."""
    if not text:
        return -1
    if not text.isdecimal():
        raise UsageError(f"invalid source-date-epoch: {text}", hint="whole seconds since 1970")
    return int(text)


def check_outputs(outputs: Sequence[Output]) -> None:
    """Refuse combinations that can't be carried out: two results on stdout, two on one path. Raises UsageError."""
    destinations = [output.dest for output in outputs if output.dest]
    for dest in set(destinations):
        if destinations.count(dest) > 1:
            where = "stdout" if dest == "-" else dest
            raise UsageError(f"two outputs go to {where}")
