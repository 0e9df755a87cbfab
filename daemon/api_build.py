"""``POST /build`` and its relatives: reads every parameter of the classic protocol into a BuildRequest, streams the build as the classic
builder did, and ends it when the client goes away. Builds nothing itself.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from aiohttp import web

from pybuild.builder.execute import ProcessFailed
from pybuild.builder.failure import BuildFailed
from pybuild.builder.outputs import Output, OutputType, parse_output
from pybuild.builder.request import BuildRequest
from pybuild.builder.solver_steps import StepFailed
from pybuild.errors import Cancelled, PybuildError
from pybuild.layers.digest import Digest
from pybuild.layers.references import Reference

from .api_build_session import SessionBuilds
from .api_classic import ClassicTranscript
from .api_errors import ApiError, BadParameter, message_of, stream_error
from .api_request import Parameters, parse_time, registry_credentials
from .api_server import json_answer, parameters_of
from .api_work import Job
from .machine import host_platform

if TYPE_CHECKING:
    from pybuild.builder.build import BuildResult
    from pybuild.layers.descriptor import Platform
    from pybuild.registry_client.credentials import Credentials

    from .api_server import Daemon, Router

_PRUNE_FILTERS: Final = ("until", "unused-for", "id", "parent", "type", "description", "inuse", "shared", "private")
_RESOURCES: Final = ("memory", "memswap", "cpushares", "cpusetcpus", "cpusetmems", "cpuperiod", "cpuquota")
_NETWORKS: Final = {"": "default", "default": "default", "bridge": "default", "none": "none", "host": "host"}
_REMOTES: Final = ("http://", "https://", "git://", "ssh://", "git@", "github.com/")
_LONGEST_DOCKERFILE_PATH: Final = 4096


class BuildRoutes:
    """The endpoints of one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._sessions = SessionBuilds(daemon)

    def register(self, router: Router) -> None:
        router.add("POST", "/build", self.build)
        router.add("POST", "/build/prune", self.prune)
        router.add("POST", "/build/cancel", self.cancel)

    async def build(self, request: web.Request) -> web.StreamResponse:
        parameters = parameters_of(request)
        if parameters.text("version") == "2" and (parameters.text("session") or parameters.text("buildid")):
            return await self._sessions.build(request, parameters)
        wanted = build_request(parameters)
        credentials = registry_credentials(request)
        cancel = threading.Event()
        identifier = parameters.text("buildid")
        if identifier:
            self._daemon.builds[identifier] = cancel

        def work(job: Job) -> None:
            _Build(self._daemon, parameters, wanted, job).run(credentials)

        try:
            return await self._daemon.work.stream(
                request, work, content_type="application/json", tell=_tell, cancel=cancel
            )
        finally:
            if identifier and self._daemon.builds.get(identifier) is cancel:
                del self._daemon.builds[identifier]

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """End the build that was started with this ``buildid``."""
        identifier = parameters_of(request).text("id")
        if not identifier:
            raise BadParameter("build ID not provided")
        found = self._daemon.builds.get(identifier)
        if found is not None:
            found.set()
        return web.Response(status=200)

    async def prune(self, request: web.Request) -> web.StreamResponse:
        parameters = parameters_of(request)
        policy = _prune_policy(parameters)
        from pybuild.layers.gc import Collector

        report = await self._daemon.work.call_long(lambda: Collector(self._daemon.engine.store).prune(policy))
        self._daemon.events.report("builder", "prune", "", reclaimed=str(report.freed_bytes))
        return json_answer({"CachesDeleted": [row.id for row in report.removed], "SpaceReclaimed": report.freed_bytes})


class _Build:
    """One request's build."""

    def __init__(self, daemon: Daemon, parameters: Parameters, wanted: BuildRequest, job: Job) -> None:
        self._daemon = daemon
        self._parameters = parameters
        self._wanted = wanted
        self._job = job

    def run(self, credentials: Credentials) -> None:
        from pybuild.values import replace

        job, quiet = self._job, self._parameters.flag("q")
        transcript = ClassicTranscript(
            job.output.message, build_args=self._wanted.build_args, target=self._wanted.target, quiet=quiet
        )
        started, outcome = time.monotonic(), "failed"
        try:
            with self._daemon.engine.acting_for(credentials) as engine:
                result = engine.build(
                    replace(self._wanted, stdin=self._archive()),
                    progress=transcript,
                    cancel=job.cancel,
                    on_dockerfile=transcript.dockerfile,
                )
            outcome = "done"
        except Cancelled:
            outcome = "cancelled"
            transcript.fail()
            raise
        except PybuildError:
            transcript.fail()
            raise
        finally:
            metrics = self._daemon.metrics
            metrics.add("pybuild_builds_total", help="builds by outcome", outcome=outcome)
            metrics.observe(
                "pybuild_build_seconds", time.monotonic() - started, help="how long builds took", outcome=outcome
            )
        self._report(result)
        transcript.finish(Digest.parse(result.image_id) if result.image_id else None)
        self._conclude(result, quiet=quiet)

    def _archive(self) -> BinaryIO:
        """The request's body, if it begins like an archive. Raises BadContextArchive."""
        from pybuild.builder.contexts_archive import HEADER_BYTES, BadContextArchive, Joined, is_archive, read_up_to

        if self._wanted.context != "-":
            return self._job.body
        header = read_up_to(self._job.body, HEADER_BYTES)
        if not is_archive(header):
            raise BadContextArchive(
                "the body is no tar archive, plain or compressed" if header else "the body is empty"
            )
        return cast(BinaryIO, Joined(header, self._job.body))

    def _report(self, result: BuildResult) -> None:
        if not result.image_id:
            return
        events = self._daemon.events
        events.report("image", "create", result.image_id, name=result.image_id)
        for tag in self._wanted.tags:
            events.report("image", "tag", result.image_id, name=Reference.parse(tag).with_default_tag().familiar)

    def _conclude(self, result: BuildResult, *, quiet: bool) -> None:
        send, image_id = self._job.output.message, result.image_id
        for name in _RESOURCES:
            if not quiet and self._parameters.text(name) not in ("", "0"):
                send(
                    {
                        "stream": f"[Warning] {name} has no effect: steps are limited by their control group's parent only\n"
                    }
                )
        if not image_id:
            return
        send({"aux": {"ID": image_id}})
        if quiet:
            send({"stream": f"{image_id}\n"})
            return
        send({"stream": f"Successfully built {Digest.parse(image_id).hex[:12]}\n"})
        for tag in self._wanted.tags:
            send({"stream": f"Successfully tagged {Reference.parse(tag).with_default_tag().familiar}\n"})


def build_request(parameters: Parameters) -> BuildRequest:
    """What the query asks for; the context is the request's body, or ``remote``. Raises BadParameter, ApiError."""
    if parameters.text("session") or parameters.text("remote") == "client-session":
        raise ApiError(
            "the classic builder takes no files from a session",
            status=501,
            hint="ask for version=2, the BuildKit builder",
        )
    if parameters.text("version") not in ("", "1", "2"):
        raise BadParameter(f"invalid builder version {parameters.text('version')!r}")
    remote = parameters.text("remote")
    if remote and not remote.startswith(_REMOTES):
        # Anything else would name a directory of the daemon's machine.
        raise BadParameter(f"remote {remote!r} is neither a git repository nor an HTTP URL")
    tags = parameters.texts("t")
    for tag in tags:
        reference = Reference.parse(tag)
        if reference.digest is not None:
            raise BadParameter(f"invalid reference {tag!r}: a digest can't be a tag")
    platform = parameters.text("platform") if parameters.version >= (1, 32) else ""
    return BuildRequest(
        context=remote or "-",
        directory="/",
        dockerfile=_dockerfile(parameters.text("dockerfile"), remote),
        tags=tags,
        target=parameters.text("target") or None,
        build_args={key: value for key, value in parameters.string_map("buildargs").items() if value is not None},
        labels={key: value or "" for key, value in parameters.string_map("labels").items()},
        platforms=tuple(_platform(text) for text in platform.split(",") if text),
        no_cache=parameters.flag("nocache"),
        pull=parameters.flag("pull"),
        outputs=_outputs(parameters),
        extra_hosts=tuple(_host(text) for text in _extra_hosts(parameters)),
        network=_network(parameters.text("networkmode")),
        entitlements=frozenset({"network.host"} if parameters.text("networkmode") == "host" else ()),
        shm_size=max(0, parameters.number("shmsize")),
        ulimits=_ulimits(parameters.json("ulimits")),
        cgroup_parent=parameters.text("cgroupparent"),
        resources=_resources(parameters),
        source_date_epoch=parameters.string_map("buildargs").get("SOURCE_DATE_EPOCH"),
        squash=parameters.flag("squash"),
        cache_from=tuple(f"type=registry,ref={name}" for name in parameters.string_list("cachefrom")),
        hide_ignored_definition=True,
    )


def _resources(parameters: Parameters) -> tuple[tuple[str, str], ...]:
    """The limits that clients of the classic builder send; 0 stands for none."""
    from pybuild.builder.resources import parse_resources

    names = {
        "memory": "memory",
        "memswap": "memory-swap",
        "cpushares": "cpu-shares",
        "cpuperiod": "cpu-period",
        "cpuquota": "cpu-quota",
    }
    given = [f"{name}={value}" for key, name in names.items() if (value := parameters.number(key))]
    given += [f"cpuset-{part}={text}" for part in ("cpus", "mems") if (text := parameters.text(f"cpuset{part}"))]
    try:
        return parse_resources(given)
    except PybuildError as error:
        raise BadParameter(error.message) from None


def _platform(text: str) -> Platform:
    from pybuild.builder.platforms import parse_platform

    try:
        return parse_platform(text, default=host_platform())
    except PybuildError as error:
        raise BadParameter(error.message) from None


def _dockerfile(text: str, remote: str) -> str | None:
    """A path inside the context, wherever it seems to lead: it must not name a file of the daemon's machine."""
    if not text or (remote and text.startswith(("http://", "https://"))):
        return text or None
    if len(text) > _LONGEST_DOCKERFILE_PATH or "\0" in text:
        raise BadParameter(
            "the path of the Dockerfile is too long" if "\0" not in text else "the path of the Dockerfile is invalid"
        )
    import posixpath

    inside = posixpath.normpath("/" + text).lstrip("/")
    if text.startswith(("http://", "https://")) or inside in ("", "."):
        raise BadParameter(f"{text!r} is no path of a Dockerfile in the build context")
    if posixpath.normpath(text).startswith("../"):
        raise BadParameter(f"Forbidden path outside the build context: {text}")
    return inside if inside != "-" else "./-"


def _outputs(parameters: Parameters) -> tuple[Output, ...]:
    """``outputs`` of the newer builder, as far as they need no session: images."""
    given = parameters.json("outputs")
    if given is None:
        return ()
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        raise BadParameter("error reading outputs: an array of objects is needed")
    found: list[Output] = []
    for item in given:
        attributes = item.get("Attrs") or {}
        kind = "image" if item.get("Type") in ("moby", "image", "") else str(item.get("Type"))
        if not isinstance(attributes, dict) or kind not in ("image", "registry"):
            raise BadParameter(f"the output type {kind!r} needs a session", hint="use pybuild -H")
        fields = ",".join(f"{key}={value}" for key, value in attributes.items() if key != "type")
        found.append(parse_output(f"type={kind},{fields}" if fields else f"type={kind}"))
    return tuple(found) or (Output(type=OutputType.IMAGE),)


def _extra_hosts(parameters: Parameters) -> tuple[str, ...]:
    given = parameters.texts("extrahosts")
    if len(given) == 1 and given[0].lstrip().startswith(('["', "{", "[]")):
        # Some clients send JSON instead of repeating the parameter.
        value = parameters.json("extrahosts")
        if isinstance(value, dict):
            return tuple(f"{name}:{address}" for name, address in value.items())
        return parameters.string_list("extrahosts")
    return tuple(text for text in given if text)


def _host(text: str) -> tuple[str, str]:
    import ipaddress

    name, _, address = text.partition("=" if "=" in text else ":")
    address = address.strip("[]")
    if address == "host-gateway":
        return name, "127.0.0.1"
    try:
        ipaddress.ip_address(address)
    except ValueError:
        raise BadParameter(f"bad format for add-host: {text!r}") from None
    return name, address


def _network(mode: str) -> str:
    if mode in _NETWORKS:
        return _NETWORKS[mode]
    if mode.startswith("container:"):
        raise ApiError("there are no containers whose network a build could join", status=501)
    raise BadParameter(f"network {mode} not found")


def _ulimits(value: Any) -> tuple[tuple[str, int, int], ...]:  # Any: the JSON edge
    if value is None:
        return ()
    found: list[tuple[str, int, int]] = []
    for item in value if isinstance(value, list) else [value]:
        try:
            name, soft, hard = item["Name"], item["Soft"], item["Hard"]
        except (TypeError, KeyError):
            raise BadParameter("error reading ulimits: Name, Soft and Hard are needed") from None
        if not isinstance(name, str) or not isinstance(soft, int) or not isinstance(hard, int):
            raise BadParameter("error reading ulimits: a name and two numbers are needed")
        found.append((name, soft, hard))
    return tuple(found)


def _prune_policy(parameters: Parameters) -> Any:  # Any: PrunePolicy, imported when it is needed
    from pybuild.layers.gc import PrunePolicy
    from pybuild.layers.usage import UsageFilter

    filters = parameters.filters(_PRUNE_FILTERS)
    terms: list[str] = []
    keep = 0.0
    now = time.time()
    for name, values in filters.values.items():
        for value in values or ("",):
            if name in ("until", "unused-for"):
                keep = max(keep, now - parse_time(value, now=now))
            elif name in ("inuse", "shared", "private"):
                terms.append(name if value.lower() in ("", "1", "true") else f"{name}!=true")
            else:
                terms.append(f"{'parents' if name == 'parent' else name}=={value}")
    reserved = parameters.number("reserved-space") or parameters.number("keep-storage")
    return PrunePolicy(
        filters=(UsageFilter.parse(",".join(terms)),) if terms else (),
        keep_duration_seconds=max(0.0, keep),
        reserved_bytes=reserved,
        # What docker's keep-storage meant: the cache may stay as large as that.
        max_used_bytes=parameters.number("max-used-space") or (reserved if parameters.version < (1, 48) else 0),
        min_free_bytes=parameters.number("min-free-space"),
        all=parameters.flag("all"),
    )


def _tell(job: Job, error: PybuildError) -> None:
    """The end of a stream that failed: the classic sentence and the exit code where a process failed."""
    step = error.__cause__ if isinstance(error, BuildFailed) else None
    cause = step.cause if isinstance(step, StepFailed) else None
    if isinstance(cause, ProcessFailed):
        command = " ".join(cause.args_of_process)
        code = cause.status.code
        job.output.message(stream_error(f"The command '{command}' returned a non-zero code: {code}", code=code))
        return
    text = message_of(error)
    listing = cast(Any, error).listing() if isinstance(error, BuildFailed) and not error.title else ""
    job.output.message(stream_error(f"{text}\n{listing}" if listing else text))
