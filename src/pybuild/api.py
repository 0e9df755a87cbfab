"""Building from Python: ``pybuild.build(…)``, with a Dockerfile or with an image that is described in Python.

Owns turning Python values into the request that the command line makes from its options; both go through ``Engine.build``. Prints nothing
unless asked for progress.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from pybuild.errors import PybuildError, UsageError

if TYPE_CHECKING:
    from pybuild.builder.build import BuildResult
    from pybuild.builder.outputs import Output
    from pybuild.builder.progress import Event, Progress
    from pybuild.builder.request import BuildRequest, GraphDefinition, SecretSource
    from pybuild.daemon.engine import Engine

    PathLike: TypeAlias = str | os.PathLike[str]


@contextmanager
def engine(*, root: PathLike | None = None, config: PathLike | None = None) -> Iterator[Engine]:
    """The engine on ``root`` (the state directory; by default as for the command), for several builds in a row. ``config``: the configuration
    file. The environment counts as for the command (``PYBUILD_ROOT``, ``PYBUILD_CONFIG``, ``DOCKER_CONFIG``).

    An ordinary user's process becomes root of a user namespace here, which must happen before it starts threads. Raises PybuildError.
    """
    from pybuild.cli.environment import Environment, docker_config_directory
    from pybuild.daemon import userns
    from pybuild.daemon.engine import Engine

    if userns.needs_user_namespace():
        if threading.active_count() > 1:
            raise PybuildError(
                "an ordinary user's process must become root of a user namespace before it starts threads",
                hint="open pybuild.engine() first of all, or build as root",
            )
        userns.enter()
    options = {"root": os.fspath(root)} if root is not None else {}
    if config is not None:
        options["config"] = os.fspath(config)
    environment = Environment.from_process(options)
    with Engine.open(
        environment.root,
        settings=environment.settings(),
        docker_config=docker_config_directory(environment.variables),
        variables=environment.variables,
    ) as opened:
        yield opened


def build(
    source: PathLike | GraphDefinition = ".",
    *,
    dockerfile: PathLike | None = None,
    dockerfile_text: str | bytes | None = None,
    directory: PathLike | None = None,
    tags: str | Sequence[str] = (),
    target: str | None = None,
    build_args: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    annotations: Sequence[str] = (),
    platforms: str | Sequence[str] = (),
    outputs: str | Output | Sequence[str | Output] = (),
    push: bool = False,
    contexts: Mapping[str, PathLike] | None = None,
    secrets: Mapping[str, str | bytes | Path] | None = None,
    ssh: Sequence[str] = (),
    extra_hosts: Mapping[str, str] | None = None,
    network: str = "default",
    allow: Sequence[str] = (),
    shm_size: int = 0,
    ulimits: Sequence[str] = (),
    no_cache: bool = False,
    no_cache_stages: Sequence[str] = (),
    pull: bool = False,
    require_cache: bool = False,
    squash: bool = False,
    cache_from: Sequence[str] = (),
    cache_to: Sequence[str] = (),
    provenance: bool | str | Mapping[str, str] | None = None,
    sbom: bool | str | Mapping[str, str] | None = None,
    source_date_epoch: int | str | None = None,
    max_parallelism: int = 0,
    root: PathLike | None = None,
    config: PathLike | None = None,
    using: Engine | None = None,
    progress: Progress | Callable[[Event], None] | str = "quiet",
    cancel: threading.Event | None = None,
    stdout: BinaryIO | None = None,
) -> BuildResult:
    """Build an image and export it; by default it goes into the local store.

    What is built: ``source`` is a build context (a directory, a git or HTTP URL) with a Dockerfile, or an image described in Python
    (``pybuild.image(…)``). ``dockerfile``: its path, by default ``Dockerfile`` in the context; ``dockerfile_text``: its text instead;
    ``directory``: what relative paths are relative to, by default the process's directory; for a described image also where ``copy`` reads.

    What comes of it: ``tags``; ``outputs`` as ``--output`` has them (``"type=oci,dest=image.tar"``, a directory's path) or as values;
    ``push`` to the registries that the tags name; ``platforms`` such as ``"linux/arm64"``; ``provenance`` and ``sbom``: True, attributes
    as text or as a mapping; ``annotations``: ``[LEVEL:]KEY=VALUE``.

    How: ``secrets``: text or bytes are values, a Path is a file; ``ssh``: as ``--ssh``; ``contexts``: named build contexts;
    ``allow``: entitlements; ``source_date_epoch``: seconds or ``context``; the rest as the options of ``pybuild build``.

    Where: in the store at ``root``, or ``using`` an open ``engine()``. ``progress``: ``quiet``, or a mode that prints to stderr
    (``auto``, ``plain``, ``tty``, ``rawjson``), a function that gets every event, or a Progress. ``cancel``: set it from another thread to stop the
    build. ``stdout`` takes what an output with ``dest=-`` writes.

    Returns the result: image ID, metadata, warnings. Raises BuildFailed when a step or the Dockerfile is wrong, Cancelled, and other
    PybuildErrors (UsageError for arguments that can't be).
    """
    request = _request(
        source,
        dockerfile=dockerfile,
        dockerfile_text=dockerfile_text,
        directory=directory,
        tags=(tags,) if isinstance(tags, str) else tags,
        target=target,
        build_args=build_args or {},
        labels=labels or {},
        annotations=annotations,
        platforms=(platforms,) if isinstance(platforms, str) else platforms,
        outputs=outputs,
        push=push,
        contexts=contexts or {},
        secrets=secrets or {},
        ssh=ssh,
        extra_hosts=extra_hosts or {},
        network=network,
        allow=allow,
        shm_size=shm_size,
        ulimits=ulimits,
        no_cache=no_cache,
        no_cache_stages=no_cache_stages,
        pull=pull,
        require_cache=require_cache,
        squash=squash,
        cache_from=cache_from,
        cache_to=cache_to,
        provenance=_attributes(provenance),
        sbom=_attributes(sbom),
        source_date_epoch=None if source_date_epoch is None else str(source_date_epoch),
        max_parallelism=max_parallelism,
    )
    with _showing(progress) as shown:
        stop = cancel or threading.Event()
        if using is not None:
            return using.build(request, progress=shown, cancel=stop, stdout=stdout)
        with engine(root=root, config=config) as opened:
            return opened.build(request, progress=shown, cancel=stop, stdout=stdout)


def _request(
    source: PathLike | GraphDefinition,
    *,
    dockerfile: PathLike | None,
    dockerfile_text: str | bytes | None,
    directory: PathLike | None,
    tags: Sequence[str],
    target: str | None,
    build_args: Mapping[str, str],
    labels: Mapping[str, str],
    annotations: Sequence[str],
    platforms: Sequence[str],
    outputs: str | Output | Sequence[str | Output],
    push: bool,
    contexts: Mapping[str, PathLike],
    secrets: Mapping[str, str | bytes | Path],
    ssh: Sequence[str],
    extra_hosts: Mapping[str, str],
    network: str,
    allow: Sequence[str],
    shm_size: int,
    ulimits: Sequence[str],
    no_cache: bool,
    no_cache_stages: Sequence[str],
    pull: bool,
    require_cache: bool,
    squash: bool,
    cache_from: Sequence[str],
    cache_to: Sequence[str],
    provenance: Mapping[str, str] | None,
    sbom: Mapping[str, str] | None,
    source_date_epoch: str | None,
    max_parallelism: int,
) -> BuildRequest:
    from pybuild.builder.annotations import annotations_from
    from pybuild.builder.outputs import check_outputs
    from pybuild.builder.platforms import parse_platform
    from pybuild.builder.request import BuildRequest
    from pybuild.cli.build_values import parse_ssh, parse_ulimits
    from pybuild.daemon.machine import host_platform

    described = None if isinstance(source, (str, os.PathLike)) else source
    if described is not None and (dockerfile is not None or dockerfile_text is not None or target is not None):
        raise UsageError("an image described in Python has no Dockerfile and no target")
    if dockerfile is not None and dockerfile_text is not None:
        raise UsageError("give a Dockerfile's path or its text, not both")
    if network not in ("default", "none", "host"):
        raise UsageError(f"unknown network {network!r}", hint="use default, none or host")
    text = dockerfile_text.encode("utf-8", "surrogateescape") if isinstance(dockerfile_text, str) else dockerfile_text
    machine = host_platform()
    exports = _outputs(outputs, push=push)
    check_outputs(exports)
    return BuildRequest(
        context="." if described is not None else os.fspath(source),  # type: ignore[arg-type]  # str or PathLike, by the line above
        directory=os.path.abspath(os.fspath(directory)) if directory is not None else os.getcwd(),
        dockerfile="-" if text is not None else None if dockerfile is None else os.fspath(dockerfile),
        stdin=None if text is None else io.BytesIO(text),
        tags=tuple(tags),
        target=target,
        build_args=dict(build_args),
        labels=dict(labels),
        annotations=annotations_from(annotations, default=machine),
        platforms=tuple(dict.fromkeys(parse_platform(name, default=machine) for name in platforms)),
        no_cache=no_cache,
        no_cache_filter=frozenset(no_cache_stages),
        pull=pull,
        outputs=exports,
        named_contexts={name.lower(): os.fspath(value) for name, value in contexts.items()},
        secrets=tuple(_secret(id, value) for id, value in secrets.items()),
        ssh=parse_ssh(ssh, _variables()),
        extra_hosts=tuple(extra_hosts.items()),
        network=network,
        entitlements=frozenset(allow),
        shm_size=shm_size,
        ulimits=parse_ulimits(ulimits),
        source_date_epoch=source_date_epoch,
        cache_from=tuple(cache_from),
        cache_to=tuple(cache_to),
        provenance=provenance,
        sbom=sbom,
        require_cache=require_cache,
        squash=squash,
        max_parallelism=max_parallelism,
        definition=described,
    )


def _variables() -> Mapping[str, str]:
    from pybuild.cli.environment import Environment

    return Environment.from_process({}).variables


def _outputs(given: str | Output | Sequence[str | Output], *, push: bool) -> tuple[Output, ...]:
    from pybuild.builder.outputs import Output, OutputType, parse_output
    from pybuild.values import replace

    each = (given,) if isinstance(given, (str, Output)) else tuple(given)
    outputs = [parse_output(output) if isinstance(output, str) else output for output in each]
    if not push:
        return tuple(outputs)
    images = (OutputType.IMAGE, OutputType.REGISTRY)
    if not outputs:
        return (Output(type=OutputType.REGISTRY, push=True),)
    if not any(output.type in images for output in outputs):
        raise UsageError("push needs an image among the outputs")
    return tuple(replace(output, push=True) if output.type in images else output for output in outputs)


def _secret(id: str, value: str | bytes | Path) -> SecretSource:
    from pybuild.builder.request import SecretSource

    if isinstance(value, Path):
        return SecretSource(id, path=os.path.abspath(value))
    return SecretSource(id, value=value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value)


def _attributes(value: bool | str | Mapping[str, str] | None) -> dict[str, str] | None:
    """``provenance`` and ``sbom``: True means the defaults."""
    if value is None or value is False:
        return None
    if value is True:
        return {}
    if isinstance(value, str):
        from pybuild.cli.attestation_options import attestations

        return attestations((), provenance=value, sbom=None, build_args={})[0]
    return dict(value)


class _Function:
    """A function as a Progress."""

    def __init__(self, function: Callable[[Event], None]) -> None:
        self._function = function
        self._lock = threading.Lock()

    def emit(self, event: Event) -> None:
        with self._lock:
            self._function(event)


@contextmanager
def _showing(progress: Progress | Callable[[Event], None] | str) -> Iterator[Progress]:
    if isinstance(progress, str):
        from pybuild.cli.progress import renderer_for

        renderer = renderer_for(progress, variables=_variables())
        try:
            yield renderer
        finally:
            renderer.close()
    elif callable(progress):
        yield _Function(progress)
    else:
        yield progress
