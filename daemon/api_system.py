"""The endpoints about the daemon itself: ``/_ping``, ``/version``, ``/info``, ``/auth``, ``/events``, ``/system/df``, ``/metrics``.

Owns their shapes in every API version. Reads the machine and the engine; changes nothing.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from pybuild import __version__
from pybuild.builder.assemble import rfc3339

from .api_errors import ApiError, BadParameter
from .api_events import FILTERS, DaemonEvent
from .api_request import Parameters, parse_time
from .api_server import json_answer, json_body, parameters_of
from .api_shapes import image_summaries
from .api_versions import NEWEST, OLDEST, ApiVersion

if TYPE_CHECKING:
    from pybuild.layers.usage import CacheUsage

    from .api_server import Daemon, Router

_NO_CACHE: Final = {"Cache-Control": "no-cache, no-store, must-revalidate", "Pragma": "no-cache"}
_JSON_SEQUENCE: Final = "application/json-seq"
_DF_TYPES: Final = frozenset({"container", "image", "volume", "build-cache"})
_GO_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


class SystemRoutes:
    """The endpoints of one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def register(self, router: Router) -> None:
        router.add("GET", "/_ping", self.ping)
        router.add("HEAD", "/_ping", self.ping)
        router.add("GET", "/version", self.version)
        router.add("GET", "/info", self.info)
        router.add("POST", "/auth", self.auth)
        router.add("GET", "/events", self.events)
        router.add("GET", "/system/df", self.disk_usage)
        router.add("GET", "/metrics", self.metrics)
        router.add("GET", "/health", self.health)

    async def ping(self, request: web.Request) -> web.StreamResponse:
        headers = {**_NO_CACHE, "Builder-Version": "2", "Swarm": "inactive"}
        if request.method == "HEAD":
            return web.Response(headers={**headers, "Content-Length": "0"}, content_type="text/plain", charset="utf-8")
        return web.Response(text="OK", headers=headers)

    async def health(self, request: web.Request) -> web.StreamResponse:
        """Whether the store answers."""
        images = await self._daemon.work.call(lambda: len(self._daemon.engine.store.images.names()))
        return json_answer({"status": "ok", "names": images, "running": self._daemon.work.running})

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        text = self._daemon.metrics.render()
        return web.Response(body=text.encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def version(self, request: web.Request) -> web.StreamResponse:
        machine = os.uname()
        details = {
            "ApiVersion": str(NEWEST),
            "Arch": _go_machine(machine.machine),
            "BuildTime": "",
            "Experimental": "false",
            "GitCommit": "",
            "GoVersion": f"python{platform.python_version()}",
            "KernelVersion": machine.release,
            "MinAPIVersion": str(OLDEST),
            "Os": "linux",
        }
        return json_answer(
            {
                "Platform": {"Name": "pybuild"},
                "Components": [{"Name": "Engine", "Version": __version__, "Details": details}],
                "Version": __version__,
                "ApiVersion": str(NEWEST),
                "MinAPIVersion": str(OLDEST),
                "GitCommit": "",
                "GoVersion": details["GoVersion"],
                "Os": "linux",
                "Arch": details["Arch"],
                "KernelVersion": machine.release,
                "BuildTime": "",
            }
        )

    async def info(self, request: web.Request) -> web.StreamResponse:
        parameters = parameters_of(request)
        images = await self._daemon.work.call(lambda: len(self._daemon.engine.store.images.list()))
        return json_answer(self._info(parameters.version, images))

    def _info(self, version: ApiVersion, images: int) -> dict[str, Any]:  # Any: the JSON edge
        daemon, machine = self._daemon, os.uname()
        variables = daemon.engine.registries.variables
        rootless = not _is_initial_namespace()
        out: dict[str, Any] = {
            "ID": daemon.id,
            "Containers": 0,
            "ContainersRunning": 0,
            "ContainersPaused": 0,
            "ContainersStopped": 0,
            "Images": images,
            "Driver": "overlayfs",
            "DriverStatus": [["driver-type", "pybuild"]],
            "Plugins": {"Volume": [], "Network": [], "Authorization": [], "Log": []},
            "MemoryLimit": True,
            "SwapLimit": True,
            "CpuCfsPeriod": True,
            "CpuCfsQuota": True,
            "CPUShares": True,
            "CPUSet": True,
            "PidsLimit": True,
            "IPv4Forwarding": _reads_one("/proc/sys/net/ipv4/ip_forward"),
            "Debug": daemon.debug,
            "NFd": len(os.listdir("/proc/self/fd")),
            "OomKillDisable": False,
            "NGoroutines": daemon.work.running,
            "SystemTime": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "LoggingDriver": "",
            "CgroupDriver": "cgroupfs",
            "CgroupVersion": "2" if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else "1",
            "NEventsListener": daemon.events.listeners,
            "KernelVersion": machine.release,
            "OperatingSystem": _os_name(),
            "OSVersion": _os_release().get("VERSION_ID", ""),
            "OSType": "linux",
            "Architecture": machine.machine,
            "IndexServerAddress": "https://index.docker.io/v1/",
            "RegistryConfig": self._registry_config(version),
            "NCPU": len(os.sched_getaffinity(0)),
            "MemTotal": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            "GenericResources": [],
            "DockerRootDir": str(daemon.engine.store.root),
            "HttpProxy": _masked(variables.get("HTTP_PROXY", "")),
            "HttpsProxy": _masked(variables.get("HTTPS_PROXY", "")),
            "NoProxy": variables.get("NO_PROXY", ""),
            "Name": socket.gethostname(),
            "Labels": [],
            "ExperimentalBuild": False,
            "ServerVersion": __version__,
            "Runtimes": {"pybuild": {"path": sys.executable}},
            "DefaultRuntime": "pybuild",
            "Swarm": _no_swarm(),
            "LiveRestoreEnabled": False,
            "Isolation": "",
            "InitBinary": "",
            "ContainerdCommit": {"ID": ""},
            "RuncCommit": {"ID": ""},
            "InitCommit": {"ID": ""},
            "SecurityOptions": ["name=seccomp,profile=builtin", *(["name=rootless"] if rootless else [])],
            "CDISpecDirs": [],
            "Warnings": ["this daemon builds and distributes images; it runs no containers yet"],
        }
        if version < (1, 49):
            for name in ("ContainerdCommit", "RuncCommit", "InitCommit"):
                out[name]["Expected"] = ""
        if version < (1, 50):
            out |= {"BridgeNfIptables": False, "BridgeNfIp6tables": False}
        if version < (1, 42):
            out |= {"ClusterStore": "", "ClusterAdvertise": "", "KernelMemory": False}
        return out

    def _registry_config(self, version: ApiVersion) -> dict[str, Any]:  # Any: the JSON edge
        tables = self._daemon.engine.settings.registry
        out: dict[str, Any] = {
            "InsecureRegistryCIDRs": ["::1/128", "127.0.0.0/8"],
            "IndexConfigs": {
                host: {
                    "Name": host,
                    "Mirrors": [f"https://{mirror}/" for mirror in table.get("mirrors", ())],
                    "Secure": not (table.get("insecure") or table.get("http")),
                    "Official": host == "docker.io",
                }
                for host, table in {"docker.io": {}, **tables}.items()
            },
            "Mirrors": [f"https://{mirror}/" for mirror in tables.get("docker.io", {}).get("mirrors", ())],
        }
        if version < (1, 49):
            out |= {"AllowNondistributableArtifactsCIDRs": [], "AllowNondistributableArtifactsHostnames": []}
        return out

    async def auth(self, request: web.Request) -> web.StreamResponse:
        body = await json_body(request)
        texts = {key: value for key, value in body.items() if isinstance(value, str)}
        if not texts.get("identitytoken") and not (texts.get("username") and texts.get("password")):
            raise ApiError("a user name and a password are needed", status=400)
        await self._daemon.work.call_long(_check_login, self._daemon.engine, texts)
        return json_answer({"Status": "Login Succeeded", "IdentityToken": ""})

    # --- events ------------------------------------------------------------------------------------------------------

    async def events(self, request: web.Request) -> web.StreamResponse:
        parameters = parameters_of(request)
        filters = parameters.filters(FILTERS)
        now = time.time()
        since, until = (
            parse_time(text, now=now) if (text := parameters.text(name)) else None for name in ("since", "until")
        )
        if since is not None and until is not None and until < since:
            raise BadParameter(f"`since` time ({since:g}) cannot be after `until` time ({until:g})")
        media_type = _event_type(request, parameters)
        response = web.StreamResponse(headers={"Content-Type": media_type})
        await response.prepare(request)

        async def send(event: DaemonEvent) -> None:
            text = json.dumps(event.to_json(parameters.version), ensure_ascii=False) + "\n"
            mark = b"\x1e" if media_type == _JSON_SEQUENCE else b""
            await response.write(mark + text.encode("utf-8", "replace"))

        async with self._daemon.events.listen() as listener:
            for event in listener.past if since is not None else ():
                seconds = event.time_ns / 1e9
                if (
                    since is not None
                    and seconds >= since
                    and (until is None or seconds <= until)
                    and event.passes(filters)
                ):
                    await send(event)
            while True:
                left = None if until is None else until - time.time()
                if left is not None and left <= 0:
                    break
                following = await listener.next(timeout_seconds=left)
                if following is None:
                    break
                if following.passes(filters):
                    await send(following)
        await response.write_eof()
        return response

    # --- disk usage --------------------------------------------------------------------------------------------------

    async def disk_usage(self, request: web.Request) -> web.StreamResponse:
        parameters = parameters_of(request)
        wanted = set(parameters.texts("type")) if parameters.version >= (1, 42) else set()
        if unknown := wanted - _DF_TYPES:
            raise BadParameter(f"unknown object type: {min(unknown)}")
        return json_answer(await self._daemon.work.call_long(self._disk_usage, parameters, wanted or set(_DF_TYPES)))

    def _disk_usage(self, parameters: Parameters, wanted: set[str]) -> dict[str, Any]:  # Any: the JSON edge
        from pybuild.layers.gc import Collector

        version = parameters.version
        verbose = version >= (1, 52) and parameters.flag("verbose")
        usage = Collector(self._daemon.engine.store).usage()
        images = image_summaries(usage, version=version) if "image" in wanted else []
        cache = [_cache_json(row, version) for row in usage.cache] if "build-cache" in wanted else []
        out: dict[str, Any] = {}
        if not verbose:
            out["LayersSize"] = usage.layers_size if "image" in wanted else 0
            kinds: tuple[tuple[str, str, list[dict[str, Any]]], ...]
            kinds = (("image", "Images", images), ("container", "Containers", []), ("volume", "Volumes", []))
            out |= {name: rows for kind, name, rows in kinds if kind in wanted}
            if "build-cache" in wanted:
                out["BuildCache"] = cache
                if version < (1, 44):
                    out["BuilderSize"] = usage.cache_size
        if version < (1, 52):
            return out
        shared = sum(image.shared for image in usage.images)
        if "image" in wanted:
            active = sum(1 for image in usage.images if image.image.names)
            size = sum(image.size for image in usage.images) - shared
            out["ImageUsage"] = _summary(active, len(usage.images), size, size, images if verbose else None)
        for kind, name in (("container", "ContainerUsage"), ("volume", "VolumeUsage")):
            if kind in wanted:
                out[name] = _summary(0, 0, 0, 0, [] if verbose else None)
        if "build-cache" in wanted:
            active = sum(1 for row in usage.cache if row.in_use)
            out["BuildCacheUsage"] = _summary(
                active, len(usage.cache), usage.cache_reclaimable, usage.cache_size, cache if verbose else None
            )
        return out


def _summary(
    active: int, total: int, reclaimable: int, size: int, items: list[dict[str, Any]] | None
) -> dict[str, Any]:  # Any: the JSON edge
    out: dict[str, Any] = {"ActiveCount": active, "TotalCount": total, "Reclaimable": reclaimable, "TotalSize": size}
    if items is not None:
        out["Items"] = items
    return out


def _cache_json(row: CacheUsage, version: ApiVersion) -> dict[str, Any]:  # Any: the JSON edge
    out: dict[str, Any] = {
        "ID": row.id,
        "Type": row.type.value,
        "Description": row.description,
        "InUse": row.in_use,
        "Shared": row.shared,
        "Size": row.size,
        "CreatedAt": rfc3339(row.created),
        "LastUsedAt": None if row.last_used is None else rfc3339(row.last_used),
        "UsageCount": row.usage_count,
    }
    if row.parents and version >= (1, 42):
        out["Parents"] = list(row.parents)
    if version < (1, 42):
        out["Parent"] = row.parents[0] if row.parents else ""
    return out


def _event_type(request: web.Request, parameters: Parameters) -> str:
    """The form of the stream that the client prefers: what it asks for, where its version knows it."""
    accepted = request.headers.get("Accept", "")
    if parameters.version < (1, 52):
        return "application/json"
    for text in accepted.split(","):
        name = text.partition(";")[0].strip()
        if name in ("application/jsonl", "application/x-ndjson", _JSON_SEQUENCE):
            return name
    return "application/json"


def _check_login(engine: Any, texts: dict[str, str]) -> None:  # Any: Engine, which is imported for its type only
    from pybuild.registry_client.credentials import Credential, FixedCredentials, normal_host

    host = normal_host(texts.get("serveraddress") or "docker.io")
    credential = Credential(
        texts.get("username", ""), texts.get("password", ""), identity_token=texts.get("identitytoken", "")
    )
    with engine.registries.with_credentials(FixedCredentials({host: credential})) as client:
        client.ping(host)


def _go_machine(machine: str) -> str:
    return _GO_MACHINES.get(machine, machine)


def _reads_one(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(1) == b"1"
    except OSError:
        return False


def _is_initial_namespace() -> bool:
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return file.read().split() == ["0", "0", "4294967295"]


def _os_release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def _os_name() -> str:
    return _os_release().get("PRETTY_NAME", "Linux")


def _masked(url: str) -> str:
    from pybuild.registry_client.redaction import redact_url

    return redact_url(url) if url else ""


def _no_swarm() -> dict[str, Any]:  # Any: the JSON edge
    return {
        "NodeID": "",
        "NodeAddr": "",
        "LocalNodeState": "inactive",
        "ControlAvailable": False,
        "Error": "",
        "RemoteManagers": None,
    }
