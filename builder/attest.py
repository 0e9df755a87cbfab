"""Which attestations a build makes: puts together provenance and SBOMs of each platform's result.

Owns what is captured from a solved graph and from the client's request. The predicates are ``provenance.py``'s, the scan is ``sbom.py``'s, and
storing is ``export_attestations.py``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from pybuild.layers.descriptor import Descriptor, Platform
from pybuild.layers.digest import Digest
from pybuild.layers.views import FileView
from pybuild.values import dataclass, field, replace

from .attestations import Attestation, Blobs
from .contexts import ContextKind, OpenedContext
from .graph import ContextSource, Exec, GitSource, HttpSource, Network, Note, SecretMount, SshMount, Vertex
from .lower import LoweredImage
from .named_context import ImageContextRef, NamedContext
from .platforms import format_platform, normalize_platform
from .protocols import ResolvedImage
from .provenance import (
    Capture,
    FrontendRequest,
    GitMaterial,
    HttpMaterial,
    ImageMaterial,
    Invocation,
    ProvenanceOptions,
    commit_digest,
    predicate,
)
from .provenance_steps import SourceFile, details, steps_of
from .redaction import mask_credentials
from .request import BuildRequest
from .sbom import ScannerChoice, read_bundle, scan_step
from .solver_steps import Result, Step

_LAYOUT = "oci-layout://"


@dataclass(frozen=True, slots=True)
class Attested:
    """``of_images``: the attestations of each image, nothing at all if none was asked for; ``metadata``: for the build's metadata."""

    of_images: tuple[tuple[Attestation, ...], ...]
    metadata: Mapping[str, Any]  # Any: the JSON edge


class Attester:
    """Makes the attestations of one build. ``machine``: the platform that it runs on; ``ref``: its identifier; ``environment``: what the
    configuration adds to provenance."""

    def __init__(
        self,
        request: BuildRequest,
        *,
        machine: Platform,
        ref: str,
        started: float,
        clock: Callable[[], float],
        environment: Mapping[str, Any],  # Any: JSON from the configuration
    ) -> None:
        """Raises UsageError for attributes that can't be."""
        self._request = request
        self._machine = machine
        self._ref = ref
        self._started = started
        self._clock = clock
        self._environment = environment
        self._options = None if request.provenance is None else ProvenanceOptions.parse(request.provenance)
        self.choice = None if request.sbom is None else ScannerChoice.parse(request.sbom)
        self._scanner: ResolvedImage | None = None

    def scans(self, lowered: Sequence[LoweredImage], scanner: ResolvedImage) -> list[Vertex]:
        """The steps that scan each result with ``scanner``, the image of ``choice``."""
        assert self.choice is not None  # callers ask only if a scanner was chosen
        self._scanner = scanner
        return [self._scan(each, scanner, self.choice) for each in lowered]

    def _scan(self, lowered: LoweredImage, scanner: ResolvedImage, choice: ScannerChoice) -> Vertex:
        extras = list(lowered.scan.stages)
        if lowered.scan.context:
            context = Vertex(ContextSource("context"), (), Note("[internal] load build context"))
            extras.insert(0, ("context", context))
        return scan_step(
            scanner,
            choice,
            core=lowered.vertex,
            extras=extras,
            machine=self._machine,
            platform=platform_name(lowered.platform),
            nonce=self._ref if self._request.no_cache or self._request.no_cache_filter else "",
        )

    def attest(
        self,
        lowered: Sequence[LoweredImage],
        inputs: Inputs,
        *,
        steps: Mapping[Vertex, Step],
        scanned: Sequence[Result],
        view_of: Callable[[Sequence[Digest]], AbstractContextManager[FileView]],
    ) -> Attested:
        """What is claimed about each result. ``scanned``: the results of ``scans``. Raises IncompleteMaterials, InvalidBundle."""
        inputs = replace(inputs, scanner=self._scanner)
        own: list[tuple[Attestation, ...]] = []
        metadata: dict[Platform, Any] = {}
        for position, each in enumerate(lowered):
            made: list[Attestation] = []
            if scanned:
                with view_of(scanned[position].stack) as view:
                    made += read_bundle(view)
            target = steps[each.vertex]
            if self._options is not None:
                made.append(self._provenance(inputs, each, target, self._options))
            own.append(tuple(made))
            if self._request.metadata_provenance:
                mode = ProvenanceOptions(
                    maximum=self._request.metadata_provenance == "max",
                    builder_id="" if self._options is None else self._options.builder_id,
                )
                metadata[each.platform] = self._provenance(inputs, each, target, mode).predicate({})
        return Attested(tuple(own) if any(own) else (), metadata_keys(metadata))

    def _provenance(
        self, inputs: Inputs, lowered: LoweredImage, target: Step, options: ProvenanceOptions
    ) -> Attestation:
        def invocation() -> Invocation:
            return Invocation(
                id=self._ref,
                platform=self._machine,
                started=self._started,
                finished=self._clock(),
                environment=self._environment,
            )

        return provenance(inputs, lowered, target, options=options, invocation=invocation)


def metadata_keys(documents: Mapping[Platform, Any]) -> dict[str, Any]:  # Any: the JSON edge
    """``buildx.build.provenance``, one key per platform when there are several."""
    if len(documents) == 1:
        return {"buildx.build.provenance": next(iter(documents.values()))}
    return {f"buildx.build.provenance/{platform}": document for platform, document in documents.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a build's provenance is made of, besides its graph. ``source``: the Dockerfile, None for a graph that was made without one;
    ``layouts``: names of contexts by the location of the OCI layout; ``scanner``: the SBOM scanner's image."""

    frontend: FrontendRequest
    capture: Capture
    source: SourceFile | None
    layouts: Mapping[str, str] = field(default_factory=dict)
    scanner: ResolvedImage | None = None


def inputs_of_dockerfile(request: BuildRequest, opened: OpenedContext, contexts: Mapping[str, NamedContext]) -> Inputs:
    """What the client asked for, and what the contexts are, for a build of a Dockerfile."""
    frontend = FrontendRequest(args=frontend_args(request), path=opened.dockerfile_name, vcs=request.vcs)
    capture = Capture()
    match opened.kind:
        case ContextKind.GIT:
            assert opened.git is not None  # a git context always says where it came from
            url = opened.git.remote + (f"#{opened.git.ref}" if opened.git.ref else "")
            uri = url if not opened.git.subdir else f"{url}{'' if opened.git.ref else '#'}:{opened.git.subdir}"
            frontend = replace(frontend, uri=uri, digest=commit_digest(opened.git.commit))
            capture = Capture(
                git=(GitMaterial(url, opened.git.commit),), secrets=_git_secrets(url), ssh=_git_ssh(opened.git.remote)
            )
        case ContextKind.HTTP_ARCHIVE | ContextKind.HTTP_DOCKERFILE:
            assert opened.digest is not None  # what came over HTTP was hashed
            digest = {opened.digest.algorithm: opened.digest.hex}
            frontend = replace(frontend, uri=request.context, digest=digest)
            capture = Capture(http=(HttpMaterial(request.context, opened.digest),))
        case _:
            capture = Capture(locals=("context", "dockerfile"))
    layouts = {
        context.location: key
        for key, context in contexts.items()
        if isinstance(context, ImageContextRef) and context.layout is not None
    }
    source = SourceFile(opened.dockerfile_name, opened.dockerfile)
    return Inputs(frontend=frontend, capture=capture, source=source, layouts=layouts)


def inputs_of_graph(request: BuildRequest) -> Inputs:
    """The same for a graph that was made without a Dockerfile: no frontend, and so no options of one."""
    return Inputs(frontend=FrontendRequest(frontend="", vcs=request.vcs), capture=Capture(), source=None)


def frontend_args(request: BuildRequest) -> dict[str, str]:
    """The client's options under the names that BuildKit's frontends know them by. What only concerns the machine is left out."""
    args = {f"build-arg:{name}": value for name, value in request.build_args.items()}
    if request.source_date_epoch is not None:
        args.setdefault("build-arg:SOURCE_DATE_EPOCH", request.source_date_epoch)
    args |= {f"label:{name}": value for name, value in request.labels.items()}
    for name, value in request.named_contexts.items():
        remote = "://" in value or value.startswith(("target:", "git@"))
        args[f"context:{name}"] = mask_credentials(value) if remote else f"local:{name}"
    if request.target:
        args["target"] = request.target
    if request.no_cache:
        args["no-cache"] = ""
    elif request.no_cache_filter:
        args["no-cache"] = ",".join(sorted(request.no_cache_filter))
    if request.extra_hosts:
        args["add-hosts"] = ",".join(f"{name}={address}" for name, address in request.extra_hosts)
    if request.network != "default":
        args["force-network-mode"] = request.network
    if request.shm_size:
        args["shm-size"] = str(request.shm_size)
    if request.ulimits:
        args["ulimit"] = ",".join(f"{name}={soft}:{hard}" for name, soft, hard in request.ulimits)
    return args


def provenance(
    inputs: Inputs,
    lowered: LoweredImage,
    target: Step,
    *,
    options: ProvenanceOptions,
    invocation: Callable[[], Invocation],
) -> Attestation:
    """The provenance of one result. ``invocation``: asked when the predicate is written. Raises IncompleteMaterials."""
    captured = capture(inputs, lowered, target)
    known = {
        diff_id: blob
        for image in lowered.images
        for diff_id, blob in zip(image.config.diff_ids, image.layers, strict=False)
    }

    def document(blobs: Blobs) -> Any:  # Any: a JSON value
        more = details(target, source=inputs.source, blobs={**known, **blobs}) if options.maximum else None
        return predicate(captured, inputs.frontend, invocation=invocation(), options=options, details=more)

    return Attestation(
        path=options.filename,
        predicate_type=options.predicate_type,
        predicate=document,
        inline_only=options.inline_only,
    )


def capture(inputs: Inputs, lowered: LoweredImage, target: Step) -> Capture:
    """What went into one result: the contexts of the build, and everything that a step of its graph takes from outside."""
    images = [_image(image, inputs.layouts) for image in lowered.images]
    if inputs.scanner is not None:
        images.append(_image(inputs.scanner, inputs.layouts))
    given = inputs.capture
    git, http, locals_ = list(given.git), list(given.http), list(given.locals)
    secrets, ssh = dict(given.secrets), dict(given.ssh)
    network = False
    for step in steps_of(target):
        match step.op:
            case GitSource(remote=remote, ref=ref, commit=commit):
                url = remote + (f"#{ref}" if ref else "")
                git.append(GitMaterial(url, commit))
                _add(secrets, _git_secrets(remote).items())
                _add(ssh, _git_ssh(remote).items())
            case HttpSource(url=url, checksum=checksum) if checksum is not None:
                http.append(HttpMaterial(url, checksum))
            case Exec(mounts=mounts):
                network = network or step.op.network is not Network.NONE
                _add(secrets, ((m.id, not m.required) for m in mounts if isinstance(m, SecretMount)))
                _add(ssh, ((m.id or "default", not m.required) for m in mounts if isinstance(m, SshMount)))
            case ContextSource(name=name) if not (name == "context" and (given.git or given.http)):
                locals_.append(name)
            case _:
                pass
    return Capture(
        images=tuple(images),
        git=tuple(git),
        http=tuple(http),
        locals=tuple(dict.fromkeys(locals_)),
        secrets=secrets,
        ssh=ssh,
        network=network,
    )


def _add(known: dict[str, bool], found: Iterable[tuple[str, bool]]) -> None:
    """Note ids; what one use requires is not optional."""
    for id, optional in found:
        known[id] = optional and known.get(id, True)


def _image(image: ResolvedImage, layouts: Mapping[str, str]) -> ImageMaterial:
    platform = image.asked_for or image.config.platform
    if image.reference.startswith(_LAYOUT):
        name = layouts.get(image.reference, "layout").partition("::")[0].partition("@")[0].partition(":")[0]
        return ImageMaterial(f"{name}@{image.index}", image.index, platform, local=True)
    return ImageMaterial(image.reference, image.index, platform)


def _git_secrets(url: str) -> dict[str, bool]:
    """The secrets that are offered to a remote over HTTP, all of them optional."""
    return dict.fromkeys(("GIT_AUTH_HEADER", "GIT_AUTH_TOKEN"), True) if url.startswith(("http://", "https://")) else {}


def _git_ssh(remote: str) -> dict[str, bool]:
    over_ssh = remote.startswith("ssh://") or ("://" not in remote and "@" in remote)
    return {"default": True} if over_ssh else {}


def platform_name(platform: Platform) -> str:
    """A platform as results are named by: ``linux/arm64``."""
    return format_platform(normalize_platform(platform))


def layers_of_files(
    paths: Sequence[str],
    stack: Sequence[Digest],
    blobs: Mapping[Digest, Descriptor],
    *,
    view_of: Callable[[Sequence[Digest]], AbstractContextManager[FileView]],
) -> dict[str, Digest]:
    """The blob of the topmost layer that has each of ``paths`` (absolute); those that no layer has are left out."""
    found: dict[str, Digest] = {}
    wanted = set(paths)
    for diff_id in reversed(stack):
        if not wanted:
            break
        blob = blobs.get(diff_id)
        if blob is None:
            continue
        with view_of((diff_id,)) as view:
            here = {path for path in wanted if _has(view, path)}
        found.update(dict.fromkeys(here, blob.digest))
        wanted -= here
    return found


def _has(view: FileView, path: str) -> bool:
    return path != "/" and view.lookup(path.lstrip("/")) is not None
