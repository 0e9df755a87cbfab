"""``--cache-from``, ``--cache-to``, ``--cache-repo`` and ``--cache-mounts-from/to``: their values as typed specifications.

Owns the attributes' names, defaults and what is refused; names and defaults are buildx's where buildx has them. Opens nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Final

from pybuild.errors import UsageError
from pybuild.values import dataclass, field

from .outputs import boolean, split_fields


class CacheType(Enum):
    """Where a cache lies."""

    REGISTRY = "registry"
    LOCAL = "local"
    INLINE = "inline"
    S3 = "s3"


class CacheMode(Enum):
    """What is exported: the steps that made the result's own layers, or all steps."""

    MIN = "min"
    MAX = "max"


@dataclass(frozen=True, slots=True)
class S3Bucket:
    """A place in an S3-compatible store. ``settings``: access keys and the like, as boto3's client takes them; never shown."""

    bucket: str
    region: str = ""
    endpoint_url: str = ""
    prefix: str = ""
    blobs_prefix: str = "blobs/"
    manifests_prefix: str = "manifests/"
    names: tuple[str, ...] = ("buildkit",)
    use_path_style: bool = False
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class CacheSource:
    """One ``--cache-from``. ``ref``: of a registry; ``path``: a layout's directory, with ``tag`` or ``digest``."""

    type: CacheType
    ref: str = ""
    path: str = ""
    tag: str = "latest"
    digest: str = ""
    bucket: S3Bucket | None = None

    def __str__(self) -> str:
        return _place(self.type, self.ref, self.path, self.bucket)


@dataclass(frozen=True, slots=True)
class CacheTarget:
    """One ``--cache-to``. ``ignore_errors``: a failure is only told of; ``oci``: OCI media types or Docker's."""

    type: CacheType
    mode: CacheMode = CacheMode.MIN
    ref: str = ""
    path: str = ""
    tag: str = "latest"
    bucket: S3Bucket | None = None
    compression: str = "gzip"
    compression_level: int | None = None
    force_compression: bool = False
    oci: bool = True
    ignore_errors: bool = True
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return _place(self.type, self.ref, self.path, self.bucket)


@dataclass(frozen=True, slots=True)
class CacheRepository:
    """One ``--cache-repo``: a repository that gets a manifest for each step as it ends. ``read``/``write``: which way it is used."""

    ref: str
    compression: str = "gzip"
    compression_level: int | None = None
    read: bool = True
    write: bool = True

    def __str__(self) -> str:
        return self.ref


@dataclass(frozen=True, slots=True)
class MountsPlace:
    """One ``--cache-mounts-from`` or ``--cache-mounts-to``: a reference in a registry, or a layout's directory.

    ``ids``: only these cache mounts (none: all that the build's steps have); ``max_size``: bytes of files that a mount may have when
    it is sent, 0 for no limit: then what was used least lately stays behind.
    """

    ref: str = ""
    path: str = ""
    tag: str = "latest"
    ids: tuple[str, ...] = ()
    max_size: int = 0

    def __str__(self) -> str:
        return self.ref or self.path


def _place(kind: CacheType, ref: str, path: str, bucket: S3Bucket | None) -> str:
    return ref or path or (f"s3://{bucket.bucket}/{bucket.prefix}" if bucket else kind.value)


_TYPES: Final = "the types are registry, local, inline and s3"
_COMPRESSIONS: Final = ("gzip", "zstd", "uncompressed")


class _Attributes:
    """The attributes of one value; each is taken once, and what is left at the end is unknown."""

    def __init__(self, fields: Sequence[tuple[str, str | None]], *, option: str) -> None:
        self.option = option
        self.values: dict[str, list[str]] = {}
        for key, value in fields:
            if value is None:
                raise UsageError(f"invalid {option} value {key!r}", hint=f"write {option} type=registry,ref=NAME")
            self.values.setdefault(key.lower(), []).append(value)

    def take(self, *names: str, default: str = "") -> str:
        found = default
        for name in names:
            values = self.values.pop(name, None)
            if values is not None:
                found = values[-1]
        return found

    def take_all(self, name: str) -> tuple[str, ...]:
        return tuple(self.values.pop(name, ()))

    def flag(self, name: str, *, default: bool) -> bool:
        text = self.take(name)
        return default if not text else boolean(text, option=f"{self.option} {name}")

    def level(self) -> int | None:
        text = self.take("compression-level")
        if text and not text.lstrip("-").isdecimal():
            raise UsageError(f"invalid compression-level {text!r} in {self.option}", hint="a whole number")
        return int(text) if text else None

    def compression(self, default: str = "gzip") -> str:
        text = self.take("compression", default=default)
        if text not in _COMPRESSIONS:
            raise UsageError(f"unknown compression {text!r} in {self.option}", hint="use gzip, zstd or uncompressed")
        return text

    def type(self) -> CacheType:
        text = self.take("type")
        if not text:
            raise UsageError(f"{self.option} needs a type", hint=_TYPES)
        try:
            return CacheType(text)
        except ValueError:
            raise UsageError(f"unknown cache type {text!r} in {self.option}", hint=_TYPES) from None

    def need(self, value: str, *, what: str) -> str:
        if not value:
            raise UsageError(f"{self.option} needs {what}")
        return value

    def end(self, kind: str) -> None:
        for name in self.values:
            raise UsageError(f"unknown attribute {name!r} in {self.option} type={kind}")


def parse_cache_from(text: str) -> CacheSource:
    """Read one ``--cache-from`` value; a bare reference means ``type=registry``. Raises UsageError."""
    option = "--cache-from"
    fields = split_fields(text, option=option)
    if len(fields) == 1 and fields[0][1] is None and fields[0][0]:
        return CacheSource(CacheType.REGISTRY, ref=reference_text(text, option=option))
    values = _Attributes(fields, option=option)
    kind = values.type()
    match kind:
        case CacheType.REGISTRY:
            ref = reference_text(values.need(values.take("ref"), what="ref=NAME"), option=option)
            found = CacheSource(kind, ref=ref)
        case CacheType.LOCAL:
            path = values.need(values.take("src"), what="src=DIRECTORY")
            found = CacheSource(kind, path=path, tag=values.take("tag", default="latest"), digest=values.take("digest"))
        case CacheType.INLINE:
            raise UsageError(
                "type=inline can't be imported from as such",
                hint="name the image: --cache-from type=registry,ref=IMAGE",
            )
        case CacheType.S3:
            found = CacheSource(kind, bucket=_bucket(values))
    values.end(kind.value)
    return found


def parse_cache_to(text: str) -> CacheTarget:
    """Read one ``--cache-to`` value; a bare reference means ``type=registry``. Raises UsageError."""
    option = "--cache-to"
    fields = split_fields(text, option=option)
    if len(fields) == 1 and fields[0][1] is None and fields[0][0]:
        if text == "inline":
            return CacheTarget(CacheType.INLINE)
        return CacheTarget(CacheType.REGISTRY, ref=reference_text(text, option=option))
    values = _Attributes(fields, option=option)
    kind = values.type()
    if kind is CacheType.INLINE:
        mode = values.take("mode", default="min")
        if mode != "min":
            raise UsageError("type=inline holds the result's own layers only", hint="mode=max needs type=registry")
        values.end(kind.value)
        return CacheTarget(kind)
    mode_text = values.take("mode", default="min")
    if mode_text not in ("min", "max"):
        raise UsageError(f"unknown mode {mode_text!r} in {option}", hint="use mode=min or mode=max")
    ref = path = tag = ""
    bucket = None
    match kind:
        case CacheType.REGISTRY:
            ref = reference_text(values.need(values.take("ref"), what="ref=NAME"), option=option)
        case CacheType.LOCAL:
            path = values.need(values.take("dest"), what="dest=DIRECTORY")
            tag = values.take("tag", default="latest")
        case CacheType.S3:
            bucket = _bucket(values)
    warnings = []
    if not values.flag("image-manifest", default=True):
        warnings.append(f"{option} image-manifest=false: caches are always image manifests, which every registry takes")
    target = CacheTarget(
        kind,
        mode=CacheMode(mode_text),
        ref=ref,
        path=path,
        tag=tag or "latest",
        bucket=bucket,
        compression=values.compression(),
        compression_level=values.level(),
        force_compression=values.flag("force-compression", default=False),
        oci=values.flag("oci-mediatypes", default=True),
        ignore_errors=values.flag("ignore-error", default=True),
        warnings=tuple(warnings),
    )
    values.end(kind.value)
    return target


def parse_cache_repo(text: str) -> CacheRepository:
    """Read one ``--cache-repo`` value: ``REPOSITORY[,compression=…][,mode=r|w|rw]``. Raises UsageError."""
    option = "--cache-repo"
    fields = split_fields(text, option=option)
    if fields and fields[0][1] is None:
        fields = [("ref", fields[0][0]), *fields[1:]]
    values = _Attributes(fields, option=option)
    ref = reference_text(values.need(values.take("ref"), what="a repository"), option=option)
    if ":" in ref.rpartition("/")[2] or "@" in ref:
        raise UsageError(f"{option} takes a repository, without a tag: {ref!r}")
    mode = values.take("mode", default="rw")
    if mode not in ("r", "w", "rw"):
        raise UsageError(f"unknown mode {mode!r} in {option}", hint="use mode=r, mode=w or mode=rw")
    found = CacheRepository(
        ref,
        compression=values.compression(),
        compression_level=values.level(),
        read="r" in mode,
        write="w" in mode,
    )
    values.end("registry")
    return found


def parse_mounts_place(text: str, *, option: str) -> MountsPlace:
    """Read one ``--cache-mounts-from`` or ``--cache-mounts-to`` value: a reference, a directory (``/…``, ``./…``, ``../…``), or
    ``ref=…|path=…,id=…,max-size=…``. Raises UsageError."""
    fields = split_fields(text, option=option)
    if fields and fields[0][1] is None:
        name = fields[0][0]
        kind = "path" if name.startswith(("/", "./", "../")) or name in (".", "..") else "ref"
        fields = [(kind, name), *fields[1:]]
    values = _Attributes(fields, option=option)
    kind = values.take("type", default="")
    if kind not in ("", "registry", "local"):
        raise UsageError(f"unknown type {kind!r} in {option}", hint="use type=registry or type=local")
    ref, path = values.take("ref"), values.take("dest", "src", "path")
    if bool(ref) == bool(path):
        raise UsageError(f"{option} needs a reference or a directory")
    found = MountsPlace(
        ref=reference_text(ref, option=option) if ref else "",
        path=path,
        tag=values.take("tag", default="latest"),
        ids=values.take_all("id"),
        max_size=_size(values.take("max-size"), option=option),
    )
    values.end(kind or "registry")
    return found


def reference_text(text: str, *, option: str) -> str:
    """A reference as typed, refused if it can't be one. Raises UsageError."""
    from pybuild.layers.references import InvalidReference, Reference

    try:
        Reference.parse(text)
    except InvalidReference as error:
        raise UsageError(f"{option}: {error.message}", hint=error.hint) from error
    return text


def _size(text: str, *, option: str) -> int:
    from pybuild.parser.go_text import parse_size

    try:
        return parse_size(text) if text else 0
    except ValueError:
        raise UsageError(f"invalid max-size {text!r} in {option}", hint="write it like 500MB or 2GB") from None


def _bucket(values: _Attributes) -> S3Bucket:
    settings = {
        ours: text
        for ours, theirs in (
            ("aws_access_key_id", "access_key_id"),
            ("aws_secret_access_key", "secret_access_key"),
            ("aws_session_token", "session_token"),
        )
        if (text := values.take(theirs))
    }
    # buildx's own knobs of its S3 client, which have no meaning here.
    values.take("touch_refresh")
    values.take("upload_parallelism")
    names = tuple(name for name in values.take("name", default="buildkit").split(";") if name)
    return S3Bucket(
        bucket=values.need(values.take("bucket"), what="bucket=NAME"),
        region=values.take("region"),
        endpoint_url=values.take("endpoint_url"),
        prefix=values.take("prefix"),
        blobs_prefix=values.take("blobs_prefix", default="blobs/"),
        manifests_prefix=values.take("manifests_prefix", default="manifests/"),
        names=names or ("buildkit",),
        use_path_style=values.flag("use_path_style", default=False),
        settings=settings,
    )
