"""The attributes of BuildKit's Dockerfile frontend, as clients send them, as a BuildRequest of ours.

Owns their names and forms (BuildKit's ``frontend/dockerui``). Opens nothing: where contexts come from is told as ``Sources``, for whoever talks
to the client. Attributes that nobody knows mean nothing, as in BuildKit.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from pybuild.builder.outputs import Output, OutputType, parse_output, split_fields
from pybuild.builder.request import BuildRequest
from pybuild.errors import PybuildError
from pybuild.values import dataclass, field

if TYPE_CHECKING:
    from pybuild.layers.descriptor import Platform

DOCKERFILE_FRONTEND: Final = "dockerfile.v0"
GATEWAY_FRONTEND: Final = "gateway.v0"

_BUILD_ARG: Final = "build-arg:"
_LABEL: Final = "label:"
_CONTEXT: Final = "context:"
_LOCAL: Final = "local:"
_INPUT: Final = "input:"
_LAYOUT: Final = "oci-layout://"
_IMAGE: Final = "docker-image://"
_REMOTES: Final = ("http://", "https://", "git://", "ssh://", "git@", "github.com/")
_UPLOAD: Final = "http://buildkit-session/"
_NETWORKS: Final = {"": "default", "sandbox": "default", "none": "none", "host": "host"}
_RESOURCES: Final = {
    "memory": "memory",
    "memswap": "memory-swap",
    "cpushares": "cpu-shares",
    "cpuperiod": "cpu-period",
    "cpuquota": "cpu-quota",
    "cpusetcpus": "cpuset-cpus",
    "cpusetmems": "cpuset-mems",
}
_ENTITLEMENTS: Final = ("network.host", "security.insecure")
_PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
_EXPORTERS: Final = {
    "image": OutputType.IMAGE,
    "moby": OutputType.IMAGE,
    "oci": OutputType.OCI,
    "docker": OutputType.DOCKER,
    "local": OutputType.LOCAL,
    "tar": OutputType.TAR,
}
_FORWARD: Final = "+forward"
FRONTEND_CAPABILITIES: Final = frozenset(
    {
        "moby.buildkit.frontend.inputs",
        "moby.buildkit.frontend.subrequests",
        "moby.buildkit.frontend.contexts",
        "moby.buildkit.frontend.gitquerystring",
    }
)
"""What ``frontend.caps`` may ask for."""


@dataclass(frozen=True, slots=True)
class LayoutSource:
    """An OCI layout of the client's: a content store by its identifier, and the digest of what is meant in it."""

    store: str
    digest: str


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the files of a build come from.

    ``remote``: a repository or URL, "" if the context is the client's; ``upload``: the identifier of an archive that the client sends, or "";
    ``context``: the name of the client's directory; ``dockerfile``: that of the one with the Dockerfile, "" if it lies in the context;
    ``filename``: of the Dockerfile in there, "" when not given; ``directories``: the client's directories for named contexts, by context;
    ``layouts``: its OCI layouts; ``inputs``: contexts that are results of other builds, by context, with the name of the input; ``subdirectory``: of
    the context; ``sessions``: identifiers of sessions by directory where it is not the build's own;
    ``shared_keys``: names for directories that stay the same from build to build.
    """

    remote: str = ""
    upload: str = ""
    context: str = "context"
    dockerfile: str = "dockerfile"
    filename: str = ""
    directories: Mapping[str, str] = field(default_factory=dict)
    layouts: Mapping[str, LayoutSource] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    subdirectory: str = ""
    sessions: Mapping[str, str] = field(default_factory=dict)
    shared_keys: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Subrequest:
    """A question about the Dockerfile instead of a build. ``name``: ``frontend.lint`` and the like."""

    name: str


def subrequest_of(attributes: Mapping[str, str]) -> Subrequest | None:
    """The question that is asked, None for a build."""
    name = attributes.get("requestid", "")
    return Subrequest(name) if name else None


def require_frontend(frontend: str, attributes: Mapping[str, str]) -> None:
    """See to it that the frontend asked for is the one implemented. Raises PybuildError."""
    if frontend == DOCKERFILE_FRONTEND:
        return
    if frontend == GATEWAY_FRONTEND:
        from pybuild.parser.frontends import is_own_frontend

        source = attributes.get("source", "")
        if is_own_frontend(source):
            return
        raise PybuildError(
            f"the frontend {source} is not built in, and other frontends can't be run",
            hint="ask for docker/dockerfile:1",
        )
    if not frontend:
        raise PybuildError("graphs of low-level operations (LLB) can't be built", hint="build a Dockerfile")
    raise PybuildError(f"the frontend {frontend} is not built in, and other frontends can't be run")


def missing_capabilities(attributes: Mapping[str, str]) -> tuple[str, ...]:
    """What ``frontend.caps`` asks for and this frontend has not."""
    asked = [name.strip().removesuffix(_FORWARD) for name in attributes.get("frontend.caps", "").split(",")]
    return tuple(name for name in asked if name and name not in FRONTEND_CAPABILITIES)


def sources_of(attributes: Mapping[str, str], *, inputs: Iterable[str] = (), archive: bool = False) -> Sources:
    """Where the files come from; ``inputs``: names of results of other builds that came with the request; ``archive``: the context is one that is here
    already. Raises PybuildError."""
    given_inputs = frozenset(inputs)
    key = attributes.get("contextkey", "context")
    remote = attributes.get(key, "")
    upload = ""
    if remote.startswith(_UPLOAD):
        remote, upload = "", remote.removeprefix(_UPLOAD)
    if not remote and "context" in given_inputs and "input:context" in attributes:
        # Clients that can't be sure of the query form of repositories send the graph of one; its text says the same.
        remote = attributes["input:context"]
    if remote:
        remote_context(remote)
    elsewhere = bool(remote or upload or archive)
    directories: dict[str, str] = {}
    layouts: dict[str, LayoutSource] = {}
    named_inputs: dict[str, str] = {}
    for name, value in _contexts(attributes):
        if value.startswith(_LOCAL):
            directories[name] = value.removeprefix(_LOCAL)
        elif value.startswith(_LAYOUT):
            layouts[name] = _layout(name, value)
        elif value.startswith(_INPUT):
            named_inputs[name] = value.removeprefix(_INPUT)
    return Sources(
        remote=remote,
        upload=upload,
        context="context",
        dockerfile=attributes.get("dockerfilekey", "" if elsewhere else "dockerfile"),
        filename=attributes.get("filename", ""),
        directories=directories,
        layouts=layouts,
        inputs=named_inputs,
        subdirectory=attributes.get("contextsubdir", ""),
        sessions=_prefixed(attributes, "local-sessionid:"),
        shared_keys=_prefixed(attributes, "sharedkey:localdir:"),
    )


def remote_context(text: str) -> str:
    """``text``, if it names a repository or a URL: anything else would name a directory of the daemon's machine. Raises PybuildError."""
    if not text.startswith(_REMOTES):
        raise PybuildError(f"the build context {text!r} is neither a git repository nor an HTTP URL")
    return text


def build_request(
    attributes: Mapping[str, str],
    *,
    machine: Platform,
    entitlements: Sequence[str] = (),
    outputs: Sequence[Output] = (),
    tags: Sequence[str] = (),
    cache_from: Sequence[str] = (),
    cache_to: Sequence[str] = (),
) -> BuildRequest:
    """What the attributes ask for. ``machine``: this machine's platform, whose variant a platform without one gets. Contexts that are the
    client's are left to whoever brings them. Raises PybuildError."""
    build_args = _prefixed(attributes, _BUILD_ARG)
    if attributes.get("hostname") and "BUILDKIT_SANDBOX_HOSTNAME" not in build_args:
        build_args["BUILDKIT_SANDBOX_HOSTNAME"] = attributes["hostname"]
    if attributes.get("multi-platform") and "BUILDKIT_MULTI_PLATFORM" not in build_args:
        build_args["BUILDKIT_MULTI_PLATFORM"] = attributes["multi-platform"]
    no_cache = attributes.get("no-cache")
    provenance, sbom = _attestations(attributes, build_args)
    return BuildRequest(
        context="",
        directory="/",
        tags=tuple(tags),
        target=attributes.get("target") or None,
        build_args=build_args,
        labels=_prefixed(attributes, _LABEL),
        platforms=_platforms(attributes.get("platform", ""), machine),
        no_cache=no_cache == "",
        no_cache_filter=frozenset(name for name in (no_cache or "").split(",") if name),
        pull=_pull(attributes.get("image-resolve-mode", "")),
        outputs=tuple(outputs),
        named_contexts=_named(attributes),
        extra_hosts=_hosts(attributes.get("add-hosts", "")),
        network=_network(attributes.get("force-network-mode", "")),
        entitlements=_entitlements(entitlements),
        shm_size=_number("shm-size", attributes.get("shm-size", "")),
        ulimits=_ulimits(attributes.get("ulimit", "")),
        cgroup_parent=attributes.get("cgroup-parent", ""),
        resources=_resources(attributes),
        source_date_epoch=build_args.get("SOURCE_DATE_EPOCH"),
        proxies={
            name: build_args[name] for name in (*_PROXIES, *(name.lower() for name in _PROXIES)) if name in build_args
        },
        cache_from=tuple(cache_from),
        cache_to=tuple(cache_to),
        provenance=provenance,
        sbom=sbom,
        vcs=_prefixed(attributes, "vcs:"),
    )


def output_of(kind: str, attributes: Mapping[str, str], *, dest: str | None) -> Output:
    """An exporter as an output. ``dest``: where files are to be written that then go to the client, None for exporters without files.
    Raises PybuildError."""
    if kind not in _EXPORTERS:
        raise PybuildError(f"exporter {kind!r} could not be found")
    given = {
        name: value
        for name, value in attributes.items()
        if name not in ("type", "dest", "context", "squash", "prefer-image-digest", "buildinfo-attrs")
    }
    # What an output without these attributes does is another matter on the command line.
    if kind in ("image", "moby"):
        given.setdefault("push", "false")
    fields = [f"type={_EXPORTERS[kind].value}", *(f"{name}={value}" for name, value in given.items())]
    if dest is not None:
        fields.append(f"dest={dest}")
    return parse_output(fields_text(fields))


def cache_text(kind: str, attributes: Mapping[str, str]) -> str:
    """A cache as the command line has it."""
    return fields_text([f"type={kind}", *(f"{name}={value}" for name, value in attributes.items() if value != "")])


def fields_text(fields: Iterable[str]) -> str:
    """``fields`` as one row of CSV."""
    return ",".join('"' + text.replace('"', '""') + '"' if set(text) & set(',"\r\n') else text for text in fields)


def _prefixed(attributes: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name[len(prefix) :]: value for name, value in sorted(attributes.items()) if name.startswith(prefix)}


def _contexts(attributes: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The named contexts with their sources. The slashes of images and layouts may be left out, as in ``frontend/dockerui/namedcontext.go``."""
    for name, value in _prefixed(attributes, _CONTEXT).items():
        for scheme in (_IMAGE, _LAYOUT):
            short = scheme.removesuffix("//")
            if value.startswith(short):
                value = scheme + value.removeprefix(short).removeprefix("//")
        yield name, value


def _named(attributes: Mapping[str, str]) -> dict[str, str]:
    """The named contexts that the daemon finds by itself."""
    found = {}
    for name, value in _contexts(attributes):
        if value.startswith((_LOCAL, _LAYOUT, _INPUT)):
            continue
        if not value.startswith((_IMAGE, *_REMOTES)):
            raise PybuildError(f"unsupported context source {value!r} for {name}")
        found[name] = value
    return found


def _layout(name: str, value: str) -> LayoutSource:
    # The client has looked up the tag; a store's identifier stands for the path.
    place, at, digest = value.removeprefix(_LAYOUT).partition("@")
    if not at or not digest:
        raise PybuildError(f"failed to get build context {name}: an OCI layout must be named with a digest")
    store, _, _ = place.partition(":")
    return LayoutSource(store, digest)


def _platforms(text: str, machine: Platform) -> tuple[Platform, ...]:
    from pybuild.builder.platforms import parse_platform

    return tuple(parse_platform(name, default=machine) for name in text.split(",") if name)


def _pull(mode: str) -> bool:
    match mode:
        case "" | "default" | "local":
            return False
        case "pull":
            return True
        case _:
            raise PybuildError(f"invalid image-resolve-mode: {mode}")


def _hosts(text: str) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    for name, address in split_fields(text, option="add-hosts"):
        if address is None:
            raise PybuildError(f"failed to parse additional hosts: invalid key-value pair {name}")
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise PybuildError(f"failed to parse additional hosts: failed to parse IP {address}") from None
        found.append((name, address))
    return tuple(found)


def _network(mode: str) -> str:
    if mode not in _NETWORKS:
        raise PybuildError(f"invalid netmode {mode}")
    return _NETWORKS[mode]


def _entitlements(given: Sequence[str]) -> frozenset[str]:
    for name in given:
        if name not in _ENTITLEMENTS:
            raise PybuildError(
                f"entitlement {name} can't be given", hint="there are network.host and security.insecure"
            )
    return frozenset(given)


def _number(name: str, text: str) -> int:
    if not text:
        return 0
    if not text.isascii() or not text.isdigit():
        raise PybuildError(f"failed to parse {name.replace('-', ' ')}: {text!r} is no number")
    return int(text)


def _ulimits(text: str) -> tuple[tuple[str, int, int], ...]:
    found: list[tuple[str, int, int]] = []
    for name, value in split_fields(text, option="ulimit"):
        soft, colon, hard = (value or "").partition(":")
        try:
            found.append((name, int(soft), int(hard if colon else soft)))
        except ValueError:
            raise PybuildError(f"failed to parse ulimit: invalid ulimit argument: {name}={value or ''}") from None
    return tuple(found)


def _resources(attributes: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    given = [f"{name}={attributes[key]}" for key, name in _RESOURCES.items() if attributes.get(key)]
    if not given:
        return ()
    from pybuild.builder.resources import parse_resources

    return parse_resources(given)


def _attestations(
    attributes: Mapping[str, str], build_args: Mapping[str, str]
) -> tuple[Mapping[str, str] | None, Mapping[str, str] | None]:
    """The attribute maps of provenance and SBOM, None where off."""
    given = {f"build-arg:{name}": value for name, value in build_args.items()} | dict(attributes)
    found: dict[str, Mapping[str, str] | None] = {"provenance": None, "sbom": None}
    for name, value in given.items():
        for prefix in ("attest:", "build-arg:BUILDKIT_ATTEST_"):
            if not name.startswith(prefix):
                continue
            kind = name.removeprefix(prefix).lower()
            if kind not in found:
                raise PybuildError(f"unknown attestation type {kind}")
            if prefix != "attest:" and f"attest:{kind}" in given:
                continue
            fields = {key: text or "" for key, text in _cells(value)}
            disabled = fields.pop("disabled", "false").lower() in ("1", "t", "true") or value in ("false", "0")
            fields.pop("type", None)
            found[kind] = None if disabled else {key: text for key, text in fields.items() if key not in ("true", "1")}
    return found["provenance"], found["sbom"]


def _cells(text: str) -> list[tuple[str, str | None]]:
    # Unlike other lists: the keys of a scanner's parameters keep their case.
    if not text:
        return []
    from csv import Error, reader

    try:
        row = next(iter(reader([text], strict=True)), [])
    except Error as error:
        raise PybuildError(f"the attributes of an attestation can't be understood: {error}") from error
    return [(key, value if sign else None) for key, sign, value in (cell.partition("=") for cell in row)]


def cache_imports(attributes: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
    """The caches that the frontend is to read, kinds with their attributes. Raises PybuildError."""
    found: list[tuple[str, dict[str, str]]] = []
    text = attributes.get("cache-imports", "")
    if text:
        try:
            entries: Any = json.loads(text)  # Any: the JSON edge
            for entry in entries:
                # Go's JSON of the message: its names are those of its fields, and the reader doesn't mind their case.
                lowered = {str(name).lower(): value for name, value in entry.items()}
                found.append((str(lowered["type"]), {str(k): str(v) for k, v in lowered["attrs"].items()}))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise PybuildError(f"failed to unmarshal cache-imports ({text[:200]!r})") from None
    found += [("registry", {"ref": ref}) for ref in attributes.get("cache-from", "").split(",") if ref]
    return found


__all__ = [
    "DOCKERFILE_FRONTEND",
    "FRONTEND_CAPABILITIES",
    "LayoutSource",
    "Sources",
    "Subrequest",
    "build_request",
    "cache_imports",
    "cache_text",
    "fields_text",
    "missing_capabilities",
    "output_of",
    "remote_context",
    "require_frontend",
    "sources_of",
    "subrequest_of",
]
