"""SLSA provenance of a build, versions 1 and 0.2, with BuildKit's extension fields.

Owns the predicates: what they contain in which mode, and their options. Learns nothing by itself: what went into the build comes as a
``Capture`` and a ``FrontendRequest``. Values of secrets never come here, credentials in URLs are masked.

Follows slsa.dev/spec/v1.1/provenance, slsa.dev/spec/v0.2/provenance and BuildKit's ``docs/attestations/slsa-definitions.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pybuild.errors import PybuildError, UsageError
from pybuild.layers.descriptor import Platform
from pybuild.layers.digest import Digest
from pybuild.layers.references import Reference
from pybuild.parser.frontends import LANGUAGE_VERSION
from pybuild.values import dataclass, field

from .assemble import rfc3339
from .platforms import format_platform, normalize_platform
from .purl import image_purl
from .redaction import mask_credentials

BUILD_TYPE: Final = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md"
BUILD_TYPE_02: Final = "https://mobyproject.org/buildkit@v1"
PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
PREDICATE_TYPE_02: Final = "https://slsa.dev/provenance/v0.2"
FRONTEND: Final = "dockerfile.v0"
DOCKERFILE_VERSION: Final = ".".join(map(str, (*LANGUAGE_VERSION, 0)))
"""The version of the Dockerfile language that this builder implements."""
COMPATIBILITY_VERSION: Final = 30
"""BuildKit's number for the rules that results follow: OCI media types and artifacts by default."""

_TRUE: Final = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "false", "FALSE", "False"})

Json = Mapping[str, Any]  # Any: the JSON edge


class IncompleteMaterials(PybuildError):
    """``complete-materials=true``, but something that went into the build has no digest."""

    def __init__(self, locals_: Sequence[str]) -> None:
        super().__init__(
            "provenance materials are incomplete: local sources can't be captured: "
            + ", ".join(locals_ or ("unknown",)),
            hint="build from a git repository or a URL, or leave complete-materials away",
        )
        self.locals = tuple(locals_)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenanceOptions:
    """``--provenance``'s attributes. ``maximum``: mode=max; ``version``: ``v1`` or ``v0.2``; ``filename``: what local exports call it;
    ``inline_only``: only in images, not beside the files of local exports."""

    maximum: bool = True
    version: str = "v1"
    builder_id: str = ""
    reproducible: bool = False
    inline_only: bool = False
    complete_materials: bool = False
    filename: str = "provenance.json"

    @classmethod
    def parse(cls, attributes: Mapping[str, str]) -> ProvenanceOptions:
        """Read the attributes; unknown ones are left alone, as BuildKit does. Raises UsageError."""
        mode = attributes.get("mode", "max")
        if mode not in ("min", "max", "full"):
            raise UsageError(f'invalid mode "{mode}"', hint="use --provenance mode=min or mode=max")
        version = attributes.get("version") or "v1"
        if version not in ("v1", "v0.2"):
            raise UsageError(f"invalid provenance SLSA version: {version}", hint="use version=v1 or version=v0.2")
        return cls(
            maximum=mode != "min",
            version=version,
            builder_id=attributes.get("builder-id", ""),
            reproducible=_flag(attributes, "reproducible"),
            inline_only=attributes.get("inline-only", "") in _TRUE,
            complete_materials=_flag(attributes, "complete-materials"),
            filename=attributes.get("filename") or "provenance.json",
        )

    @property
    def predicate_type(self) -> str:
        return PREDICATE_TYPE if self.version == "v1" else PREDICATE_TYPE_02


def _flag(attributes: Mapping[str, str], name: str) -> bool:
    value = attributes.get(name, "false")
    if value not in _TRUE | _FALSE:
        raise UsageError(f'failed to parse {name} flag "{value}"', hint="use true or false")
    return value in _TRUE


# --- what went into a build ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ImageMaterial:
    """An image that was used. ``local``: it lay in an OCI layout."""

    reference: str
    digest: Digest
    platform: Platform | None = None
    local: bool = False


@dataclass(frozen=True, slots=True)
class GitMaterial:
    """A git tree. ``url``: the remote, with ``#ref`` if one was named."""

    url: str
    commit: str


@dataclass(frozen=True, slots=True)
class HttpMaterial:
    """A file that was downloaded."""

    url: str
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """Everything from outside that one result was made of. ``locals``: names of local sources; ``secrets``, ``ssh``: ids, and whether they
    were optional; ``network``: a step could reach the network."""

    images: tuple[ImageMaterial, ...] = ()
    git: tuple[GitMaterial, ...] = ()
    http: tuple[HttpMaterial, ...] = ()
    locals: tuple[str, ...] = ()
    secrets: Mapping[str, bool] = field(default_factory=dict)
    ssh: Mapping[str, bool] = field(default_factory=dict)
    network: bool = False

    @property
    def complete(self) -> bool:
        """True if everything has a digest."""
        return not self.locals

    def materials(self) -> list[dict[str, Any]]:  # Any: the JSON edge
        """``resolvedDependencies``: images, git, downloads, each sorted, each once."""
        out: list[dict[str, Any]] = []
        for image in _without_pinned_twins(sorted(set(self.images), key=lambda image: image.reference)):
            kind = "oci" if image.local else "docker"
            uri = image_purl(image.reference, platform=image.platform, kind=kind)
            out.append({"uri": uri, "digest": {image.digest.algorithm: image.digest.hex}})
        trees = {mask_credentials(tree.url): commit_digest(tree.commit) for tree in reversed(self.git)}
        files = {mask_credentials(file.url): {file.digest.algorithm: file.digest.hex} for file in reversed(self.http)}
        for found in (trees, files):
            out += [{"uri": uri, "digest": found[uri]} for uri in sorted(found)]
        return out


def _without_pinned_twins(images: Iterable[ImageMaterial]) -> list[ImageMaterial]:
    """Leave out images named by digest where the same repository and tag is there without one."""
    found = [(image, Reference.parse(image.reference)) for image in images]
    tagged = {f"{name.name}:{name.tag or 'latest'}" for _, name in found if not name.digest}
    return [image for image, name in found if not name.digest or f"{name.name}:{name.tag or 'latest'}" not in tagged]


def commit_digest(commit: str) -> dict[str, str]:
    """A commit as a digest set: git's object format shows in the length."""
    return {"sha256" if len(commit) == 64 else "sha1": commit}


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendRequest:
    """What the client asked for. ``frontend``: empty for a graph that no Dockerfile made; ``args``: the frontend's options, as
    ``build-arg:NAME``, ``label:NAME``, ``target``, …; ``uri``, ``digest``: of a remote context; ``path``: of the Dockerfile;
    ``vcs``: what the client says of the version control of a local context."""

    frontend: str = FRONTEND
    args: Mapping[str, str] = field(default_factory=dict)
    uri: str = ""
    digest: Mapping[str, str] = field(default_factory=dict)
    path: str = ""
    vcs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """One run of the builder. ``platform``: of the machine; times in seconds since the epoch; ``environment``: what the configuration adds."""

    id: str
    platform: Platform
    started: float
    finished: float
    environment: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON from the configuration


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What only mode=max tells: the steps, their places in the source, the layers that they gave. JSON values."""

    build_config: Json
    source: Json | None = None
    layers: Json = field(default_factory=dict)


# --- predicates ------------------------------------------------------------------------------------------------------


def predicate(
    capture: Capture,
    request: FrontendRequest,
    *,
    invocation: Invocation,
    options: ProvenanceOptions,
    details: Details | None = None,
) -> dict[str, Any]:  # Any: the JSON edge
    """The predicate in the version that the options ask for. ``details`` are left out where they are None (mode=min).

    Raises IncompleteMaterials when complete ones are asked for.
    """
    if options.complete_materials and not capture.complete:
        raise IncompleteMaterials(capture.locals)
    document = _slsa_1(capture, request, invocation, options, details)
    return document if options.version == "v1" else _slsa_02(document)


def _slsa_1(
    capture: Capture,
    request: FrontendRequest,
    invocation: Invocation,
    options: ProvenanceOptions,
    details: Details | None,
) -> dict[str, Any]:  # Any: the JSON edge
    definition: dict[str, Any] = {"buildType": BUILD_TYPE}
    materials = capture.materials()
    if materials:
        definition["resolvedDependencies"] = materials
    parameters, complete = _parameters(capture, request, maximum=options.maximum)
    definition["externalParameters"] = {"configSource": _config_source(request), "request": parameters}
    internal: dict[str, Any] = {"builderPlatform": format_platform(normalize_platform(invocation.platform))}
    if details is not None:
        internal["buildConfig"] = details.build_config
    if request.frontend == FRONTEND:
        internal["dockerfileVersion"] = DOCKERFILE_VERSION
    definition["internalParameters"] = {**invocation.environment, **dict(sorted(internal.items()))}
    metadata: dict[str, Any] = {
        "invocationId": invocation.id,
        "startedOn": rfc3339(invocation.started),
        "finishedOn": rfc3339(max(invocation.finished, invocation.started + 1e-6)),
        "buildkit_metadata": _metadata(request, details),
    }
    if capture.complete and not capture.network:
        metadata["buildkit_hermetic"] = True
    metadata["buildkit_completeness"] = {"request": complete, "resolvedDependencies": capture.complete}
    if options.reproducible:
        metadata["buildkit_reproducible"] = True
    return {
        "buildDefinition": definition,
        "runDetails": {"builder": {"id": options.builder_id}, "metadata": metadata},
    }


def _config_source(request: FrontendRequest) -> dict[str, Any]:  # Any: the JSON edge
    out: dict[str, Any] = {}
    if request.uri:
        out["uri"] = mask_credentials(request.uri)
    if request.digest:
        out["digest"] = dict(request.digest)
    if request.path:
        out["path"] = request.path
    return out


def _parameters(
    capture: Capture, request: FrontendRequest, *, maximum: bool
) -> tuple[dict[str, Any], bool]:  # Any: the JSON edge
    """The request, and whether it is complete: mode=min leaves out build arguments, labels, secrets and ssh."""
    out: dict[str, Any] = {}
    complete = bool(request.frontend)
    if request.frontend:
        out["frontend"] = request.frontend
    args = dict(request.args)
    if not maximum:
        args = {key: value for key, value in args.items() if not key.startswith(("build-arg:", "label:"))}
        complete = complete and len(args) == len(request.args)
    if args:
        out["args"] = dict(sorted(args.items()))
    if maximum:
        for key, ids in (("secrets", capture.secrets), ("ssh", capture.ssh)):
            if ids:
                out[key] = [{"id": id, "optional": True} if ids[id] else {"id": id} for id in sorted(ids)]
    if capture.locals:
        out["locals"] = [{"name": name} for name in sorted(set(capture.locals))]
    out["compatibilityVersion"] = COMPATIBILITY_VERSION
    return out, complete


def _metadata(request: FrontendRequest, details: Details | None) -> dict[str, Any]:  # Any: the JSON edge
    out: dict[str, Any] = {}
    vcs = {key: mask_credentials(value) if key == "source" else value for key, value in request.vcs.items() if value}
    if vcs:
        out["vcs"] = dict(sorted(vcs.items()))
    if details is not None:
        if details.source is not None:
            out["source"] = details.source
        if details.layers:
            out["layers"] = details.layers
    return out


def _slsa_02(document: Json) -> dict[str, Any]:  # Any: the JSON edge
    """The same facts under version 0.2's names."""
    definition, run = document["buildDefinition"], document["runDetails"]
    external, internal = definition["externalParameters"], dict(definition["internalParameters"])
    metadata = run["metadata"]
    source = dict(external["configSource"])
    if "path" in source:
        source["entryPoint"] = source.pop("path")
    config = internal.pop("buildConfig", None)
    internal["platform"] = internal.pop("builderPlatform")
    out: dict[str, Any] = {"builder": run["builder"], "buildType": BUILD_TYPE_02}
    if "resolvedDependencies" in definition:
        out["materials"] = definition["resolvedDependencies"]
    out["invocation"] = {
        "configSource": source,
        "parameters": external["request"],
        "environment": dict(sorted(internal.items())),
    }
    if config is not None:
        out["buildConfig"] = config
    completeness = metadata["buildkit_completeness"]
    out["metadata"] = {
        "buildInvocationID": metadata["invocationId"],
        "buildStartedOn": metadata["startedOn"],
        "buildFinishedOn": metadata["finishedOn"],
        "completeness": {
            "parameters": completeness["request"],
            "environment": True,
            "materials": completeness["resolvedDependencies"],
        },
        "reproducible": metadata.get("buildkit_reproducible", False),
        "https://mobyproject.org/buildkit@v1#metadata": metadata["buildkit_metadata"],
    }
    if metadata.get("buildkit_hermetic"):
        out["metadata"]["https://mobyproject.org/buildkit@v1#hermetic"] = True
    return out
