"""Image configuration, manifest and index (OCI image specification: ``config.md``, ``manifest.md``, ``image-index.md``),
with Docker's extensions to the configuration (docker-image-spec: Healthcheck, OnBuild, Shell).

Values, and their canonical JSON; no I/O. Fields that pybuild doesn't know are kept in ``extra`` and written back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from pybuild.errors import PybuildError
from pybuild.values import dataclass, field, replace

from .descriptor import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Platform,
)
from .digest import Digest

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class InvalidImage(PybuildError):
    """A manifest, index or configuration is not what the specification says."""


def json_bytes(value: object) -> bytes:
    """The one JSON encoding of everything we write: compact, keys in the order given, UTF-8. JSON has no other bytes: each that is not
    UTF-8 becomes U+FFFD, as in Go's encoding/json."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in text).encode()


def json_object(data: bytes, what: str) -> dict[str, Any]:  # Any: the JSON edge
    """Read a JSON object that somebody else wrote. Raises InvalidImage naming ``what``."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidImage(f"{what} is not valid JSON") from error
    if not isinstance(value, dict):
        raise InvalidImage(f"{what} is not a JSON object")
    return value


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """Docker's health check; durations in nanoseconds, 0 meaning inherited or default."""

    test: tuple[str, ...]
    interval_ns: int = 0
    timeout_ns: int = 0
    start_period_ns: int = 0
    start_interval_ns: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True)
class History:
    """One entry of the configuration's history. ``created`` is RFC 3339 text or None when unknown."""

    created: str | None = None
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """An image configuration.

    ``env`` keeps its order (``NAME=value``); ``cmd``/``entrypoint``/``shell`` are None when unset, which differs from
    empty. ``created`` is RFC 3339 text. ``extra`` holds unknown top-level fields, ``extra_config`` those of ``config``.
    """

    platform: Platform
    created: str | None = None
    author: str = ""
    user: str = ""
    exposed_ports: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    args_escaped: bool = False
    volumes: tuple[str, ...] = ()
    working_dir: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = ""
    healthcheck: HealthCheck | None = None
    on_build: tuple[str, ...] = ()
    shell: tuple[str, ...] | None = None
    diff_ids: tuple[Digest, ...] = ()
    history: tuple[History, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)  # Any: unknown JSON
    extra_config: Mapping[str, Any] = field(default_factory=dict)  # Any: unknown JSON

    @classmethod
    def empty(cls, platform: Platform) -> ImageConfig:
        """What ``FROM scratch`` starts with: the default PATH and ``/`` as the working directory."""
        return cls(platform=platform, env=(f"PATH={DEFAULT_PATH}",), working_dir="/")

    def with_(self, **changes: Any) -> ImageConfig:  # Any: dataclasses.replace's own signature
        """A copy with fields replaced."""
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:  # Any: the JSON edge
        config: dict[str, Any] = {}
        if self.user:
            config["User"] = self.user
        if self.exposed_ports:
            config["ExposedPorts"] = {port: {} for port in sorted(self.exposed_ports)}
        if self.env:
            config["Env"] = list(self.env)
        if self.entrypoint is not None:
            config["Entrypoint"] = list(self.entrypoint)
        if self.cmd is not None:
            config["Cmd"] = list(self.cmd)
        if self.volumes:
            config["Volumes"] = {path: {} for path in sorted(self.volumes)}
        if self.working_dir:
            config["WorkingDir"] = self.working_dir
        if self.labels:
            config["Labels"] = dict(sorted(self.labels.items()))
        if self.stop_signal:
            config["StopSignal"] = self.stop_signal
        if self.args_escaped:
            config["ArgsEscaped"] = True
        if self.healthcheck is not None:
            config["Healthcheck"] = _health_json(self.healthcheck)
        if self.on_build:
            config["OnBuild"] = list(self.on_build)
        if self.shell is not None:
            config["Shell"] = list(self.shell)
        config.update(self.extra_config)
        out: dict[str, Any] = {}
        if self.created is not None:
            out["created"] = self.created
        if self.author:
            out["author"] = self.author
        out |= self.platform.to_json()
        out["config"] = config
        out["rootfs"] = {"type": "layers", "diff_ids": [str(diff_id) for diff_id in self.diff_ids]}
        if self.history:
            out["history"] = [_history_json(entry) for entry in self.history]
        out.update(self.extra)
        return out

    def to_bytes(self) -> bytes:
        return json_bytes(self.to_json())

    @classmethod
    def from_bytes(cls, data: bytes) -> ImageConfig:
        """Read a configuration written by any tool. Raises InvalidImage."""
        value = json_object(data, "the image configuration")
        try:
            return _config_from_json(value)
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise InvalidImage(f"the image configuration has a field of the wrong type ({error})") from error


def _health_json(check: HealthCheck) -> dict[str, Any]:  # Any: the JSON edge
    out: dict[str, Any] = {"Test": list(check.test)} if check.test else {}
    for key, value in (
        ("Interval", check.interval_ns),
        ("Timeout", check.timeout_ns),
        ("StartPeriod", check.start_period_ns),
        ("StartInterval", check.start_interval_ns),
        ("Retries", check.retries),
    ):
        if value:
            out[key] = value
    return out


def _history_json(entry: History) -> dict[str, Any]:  # Any: the JSON edge
    out: dict[str, Any] = {}
    if entry.created is not None:
        out["created"] = entry.created
    for key, value in (("author", entry.author), ("created_by", entry.created_by), ("comment", entry.comment)):
        if value:
            out[key] = value
    if entry.empty_layer:
        out["empty_layer"] = True
    return out


_TOP_KEYS = {
    "created",
    "author",
    "architecture",
    "os",
    "os.version",
    "os.features",
    "variant",
    "config",
    "rootfs",
    "history",
}
_CONFIG_KEYS = {
    "User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal", "ArgsEscaped",
    "Healthcheck", "OnBuild", "Shell",
}  # fmt: skip


def _texts(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError("expected a list of strings")
    return tuple(value)


def _config_from_json(value: dict[str, Any]) -> ImageConfig:  # Any: the JSON edge
    config = value.get("config") or {}
    health = config.get("Healthcheck")
    rootfs = value.get("rootfs") or {}
    return ImageConfig(
        platform=Platform.from_json(value),
        created=value.get("created"),
        author=str(value.get("author") or ""),
        user=str(config.get("User") or ""),
        exposed_ports=tuple(config.get("ExposedPorts") or {}),
        env=_texts(config.get("Env")),
        entrypoint=None if config.get("Entrypoint") is None else _texts(config["Entrypoint"]),
        cmd=None if config.get("Cmd") is None else _texts(config["Cmd"]),
        args_escaped=bool(config.get("ArgsEscaped")),
        volumes=tuple(config.get("Volumes") or {}),
        working_dir=str(config.get("WorkingDir") or ""),
        labels={str(k): str(v) for k, v in (config.get("Labels") or {}).items()},
        stop_signal=str(config.get("StopSignal") or ""),
        healthcheck=None
        if health is None
        else HealthCheck(
            test=_texts(health.get("Test")),
            interval_ns=int(health.get("Interval") or 0),
            timeout_ns=int(health.get("Timeout") or 0),
            start_period_ns=int(health.get("StartPeriod") or 0),
            start_interval_ns=int(health.get("StartInterval") or 0),
            retries=int(health.get("Retries") or 0),
        ),
        on_build=_texts(config.get("OnBuild")),
        shell=None if config.get("Shell") is None else _texts(config["Shell"]),
        diff_ids=tuple(Digest.parse(text) for text in _texts(rootfs.get("diff_ids"))),
        history=tuple(
            History(
                created=entry.get("created"),
                created_by=str(entry.get("created_by") or ""),
                author=str(entry.get("author") or ""),
                comment=str(entry.get("comment") or ""),
                empty_layer=bool(entry.get("empty_layer")),
            )
            for entry in value.get("history") or []
        ),
        extra={k: v for k, v in value.items() if k not in _TOP_KEYS},
        extra_config={k: v for k, v in config.items() if k not in _CONFIG_KEYS},
    )


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest: a configuration and its layers, lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str = OCI_MANIFEST
    annotations: Mapping[str, str] = field(default_factory=dict)
    subject: Descriptor | None = None
    artifact_type: str = ""

    def to_bytes(self) -> bytes:
        out: dict[str, Any] = {"schemaVersion": 2, "mediaType": self.media_type}
        if self.artifact_type:
            out["artifactType"] = self.artifact_type
        out["config"] = self.config.to_json()
        out["layers"] = [layer.to_json() for layer in self.layers]
        if self.subject is not None:
            out["subject"] = self.subject.to_json()
        if self.annotations:
            out["annotations"] = dict(sorted(self.annotations.items()))
        return json_bytes(out)

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read a manifest. Raises InvalidImage, InvalidDescriptor or InvalidDigest."""
        value = json_object(data, "the manifest")
        layers, annotations = value.get("layers") or [], value.get("annotations") or {}
        if not isinstance(layers, list) or not isinstance(annotations, dict):
            raise InvalidImage("the manifest has a field of the wrong type")
        subject = value.get("subject")
        return cls(
            config=Descriptor.from_json(value.get("config")),
            layers=tuple(Descriptor.from_json(layer) for layer in layers),
            media_type=str(value.get("mediaType") or OCI_MANIFEST),
            annotations={str(k): str(v) for k, v in annotations.items()},
            subject=None if subject is None else Descriptor.from_json(subject),
            artifact_type=str(value.get("artifactType") or ""),
        )


@dataclass(frozen=True, slots=True)
class Index:
    """An image index (manifest list): one descriptor per platform or attestation."""

    manifests: tuple[Descriptor, ...]
    media_type: str = OCI_INDEX
    annotations: Mapping[str, str] = field(default_factory=dict)
    subject: Descriptor | None = None
    artifact_type: str = ""

    def to_bytes(self) -> bytes:
        out: dict[str, Any] = {"schemaVersion": 2, "mediaType": self.media_type}
        if self.artifact_type:
            out["artifactType"] = self.artifact_type
        out["manifests"] = [manifest.to_json() for manifest in self.manifests]
        if self.subject is not None:
            out["subject"] = self.subject.to_json()
        if self.annotations:
            out["annotations"] = dict(sorted(self.annotations.items()))
        return json_bytes(out)

    @classmethod
    def from_bytes(cls, data: bytes) -> Index:
        """Read an index. Raises InvalidImage, InvalidDescriptor or InvalidDigest."""
        value = json_object(data, "the index")
        manifests, annotations = value.get("manifests") or [], value.get("annotations") or {}
        if not isinstance(manifests, list) or not isinstance(annotations, dict):
            raise InvalidImage("the index has a field of the wrong type")
        subject = value.get("subject")
        return cls(
            manifests=tuple(Descriptor.from_json(manifest) for manifest in manifests),
            media_type=str(value.get("mediaType") or OCI_INDEX),
            annotations={str(k): str(v) for k, v in annotations.items()},
            subject=None if subject is None else Descriptor.from_json(subject),
            artifact_type=str(value.get("artifactType") or ""),
        )


def media_type_of(data: bytes, declared: str = "") -> str:
    """The media type of a manifest or index from its own ``mediaType``, else ``declared``, else its shape. Raises InvalidImage."""
    value = json_object(data, "the manifest")
    own = value.get("mediaType")
    if isinstance(own, str) and own:
        return own
    if declared in INDEX_TYPES or declared in MANIFEST_TYPES:
        return declared
    if "manifests" in value:
        return OCI_INDEX
    if "layers" in value and "config" in value:
        return OCI_MANIFEST
    raise InvalidImage("the document is neither a manifest nor an index")


def chain_ids(diff_ids: tuple[Digest, ...]) -> tuple[Digest, ...]:
    """The chain ID of every prefix (``config.md``, "Layer ChainID"): position i is the stack of diff_ids[0..i]."""
    out: list[Digest] = []
    for diff_id in diff_ids:
        out.append(diff_id if not out else Digest.of(f"{out[-1]} {diff_id}".encode()))
    return tuple(out)
