"""What a caller asks of a build: ``BuildRequest``, the typed form of ``pybuild build``'s options. Does nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO, Protocol

from pybuild.errors import UsageError
from pybuild.layers.descriptor import Platform
from pybuild.parser.go_text import parse_bool
from pybuild.values import dataclass, field

from .assemble import Annotations
from .outputs import Output

if TYPE_CHECKING:
    from pybuild.layers.views import FileView

    from .lower import LoweredImage, LowerOptions
    from .protocols import Secrets
    from .source_policy import SourcePolicy


@dataclass(frozen=True, slots=True)
class SecretSource:
    """Where a secret's value comes from: a file, or bytes read from the caller's environment already."""

    id: str
    path: str | None = None
    value: bytes | None = None


@dataclass(frozen=True, slots=True)
class SshSource:
    """``--ssh ID[=SOCKET|KEY,…]``: an agent's socket, or private keys to be served by an agent of our own. ``raw``: whatever speaks on the
    socket, everything is passed on."""

    id: str
    paths: tuple[str, ...] = ()
    raw: bool = False


class GraphDefinition(Protocol):
    """An image that is described as a graph, without a Dockerfile."""

    def lower(self, options: LowerOptions) -> LoweredImage:
        """The graph for one platform. Raises PybuildError for what can't be resolved."""

    def open_contexts(self, directory: str) -> Mapping[str, FileView]:
        """The local trees that the graph reads, by name; relative paths are relative to ``directory``. Raises PybuildError."""


@dataclass(frozen=True, slots=True)
class LateContext:
    """Files of a directory that come when the build knows which of them it reads. ``ignore_directory``: where its ignore file is meanwhile;
    ``bring``: gets absolute paths and globs (``/`` is everything) before any of them is looked at; it returns when they are there."""

    ignore_directory: str
    bring: Callable[[Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """One build.

    ``context``: a path, ``-``, or a URL as typed; ``dockerfile``: ``-f`` as typed, None for the default; ``stdin``: what ``-``
    reads; ``directory``: what relative paths are relative to; ``build_args``: values complete; ``no_cache_filter``: stage names;
    ``tags``: names as typed; ``source_date_epoch``: seconds, None when not given, or ``context``; ``proxies``: proxy variables for RUN;
    ``annotations``: ``--annotation`` parsed by level; ``provenance``/``sbom``: attribute maps, None when off;
    ``definition``: what to build instead of a Dockerfile (then ``context`` only names it); ``vcs``: what the client knows of the context's version control (``source``, ``revision``, …); ``metadata_provenance``: ``min`` or ``max``
    puts the provenance into the result's metadata, ``""`` doesn't; ``hide_ignored_definition``: as docker's daemon does with an archive, the Dockerfile and the ignore file are not part of the context if
    the ignore file excludes them; ``secret_values``, ``agents``: more secrets, and sockets of ssh agents, that are only known one
    by one, when a step asks for them; ``late_context``: brings the files of the main context, a directory; ``call``: ``build``, ``check``, ``outline`` or ``targets``.
    """

    context: str
    directory: str
    dockerfile: str | None = None
    stdin: BinaryIO | None = None
    tags: tuple[str, ...] = ()
    target: str | None = None
    build_args: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Annotations = Annotations()
    platforms: tuple[Platform, ...] = ()
    no_cache: bool = False
    no_cache_filter: frozenset[str] = frozenset()
    pull: bool = False
    outputs: tuple[Output, ...] = ()
    named_contexts: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[SecretSource, ...] = ()
    ssh: tuple[SshSource, ...] = ()
    extra_hosts: tuple[tuple[str, str], ...] = ()
    network: str = "default"
    entitlements: frozenset[str] = frozenset()
    shm_size: int = 0
    ulimits: tuple[tuple[str, int, int], ...] = ()
    cgroup_parent: str = ""
    resources: tuple[tuple[str, str], ...] = ()
    source_policy: SourcePolicy | None = None
    source_date_epoch: str | None = None
    proxies: Mapping[str, str] = field(default_factory=dict)
    cache_from: tuple[str, ...] = ()
    cache_to: tuple[str, ...] = ()
    cache_repo: tuple[str, ...] = ()
    cache_mounts_from: tuple[str, ...] = ()
    cache_mounts_to: tuple[str, ...] = ()
    provenance: Mapping[str, str] | None = None
    sbom: Mapping[str, str] | None = None
    require_cache: bool = False
    squash: bool = False
    on_error: str | None = None
    max_parallelism: int = 0
    hide_ignored_definition: bool = False
    vcs: Mapping[str, str] = field(default_factory=dict)
    metadata_provenance: str = ""
    definition: GraphDefinition | None = None
    secret_values: Secrets | None = None
    agents: Mapping[str, str] | None = None
    late_context: LateContext | None = None

    def several_platforms(self) -> bool:
        """Whether the result is one image for each of several platforms: an index, even of one with the build argument
        ``BUILDKIT_MULTI_PLATFORM``. Raises UsageError for a value of it that isn't one or that contradicts the platforms."""
        several = len(self.platforms) > 1
        value = self.build_args.get("BUILDKIT_MULTI_PLATFORM", "")
        if not value:
            return several
        try:
            wanted = parse_bool(value)
        except ValueError:
            raise UsageError(
                f"invalid boolean value for multi-platform: {value}", hint="BUILDKIT_MULTI_PLATFORM is true or false"
            ) from None
        if several and not wanted:
            raise UsageError("conflicting config: returning multiple target platforms is not allowed")
        return wanted
