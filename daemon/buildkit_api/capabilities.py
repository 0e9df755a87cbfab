"""What this builder says of itself to clients of BuildKit's API: versions, workers, capabilities. Names are BuildKit's."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from pybuild import __version__
from pybuild.daemon.machine import host_platform

from .messages import common_pb2

if TYPE_CHECKING:
    from pybuild.daemon.api_server import Daemon
    from pybuild.layers.descriptor import Platform

_LIKE: Final = "v0.26.0"
"""The release of BuildKit whose API this is: clients compare versions."""

_PREFIX: Final = "org.mobyproject.buildkit.worker."

FRONTEND_CAPS: Final = (
    *("solve.base", "resolveimage", "resolveimage.resolvemode", "readfile", "return", "returnmap", "statfile"),
    *("importcaches", "proto.refarray", "reference.output", "frontend.inputs", "gateway.solve.metadata"),
    *("frontend.caps", "gateway.solve.evaluate", "gateway.evaluate", "gateway.warnings", "source.metaresolver"),
)
LLB_CAPS: Final = (
    *("source.image", "source.image.resolvemode", "source.image.checksum", "source.local", "source.local.unique"),
    *("source.local.sessionid", "source.local.includepatterns", "source.local.followpaths"),
    *("source.local.excludepatterns", "source.local.sharedkeyhint", "source.local.differ"),
    *("source.local.metadatatransfer", "source.git", "source.git.keepgitdir", "source.git.fullurl"),
    *("source.git.httpauth", "source.git.knownsshhosts", "source.git.mountsshsock", "source.git.subdir"),
    *("source.git.checksum", "source.git.skipsubmodules", "source.http", "source.http.auth", "source.http.checksum"),
    *("source.http.perm", "soruce.http.uidgid", "source.http.header", "source.ocilayout"),
    *("exec.meta.base", "exec.meta.cgroup.parent", "exec.meta.network", "exec.meta.proxyenv", "exec.meta.security"),
    *("exec.meta.setsdefaultpath", "exec.meta.ulimit", "exec.mount.bind", "exec.mount.cache"),
    *("exec.mount.cache.sharing", "exec.mount.selector", "exec.mount.tmpfs", "exec.mount.tmpfs.size"),
    *("exec.mount.secret", "exec.mount.ssh", "exec.secretenv", "file.base", "constraints", "platform"),
    *("meta.ignorecache", "meta.description", "meta.exportcache", "cache.s3"),
    *("exporter.image.annotations", "exporter.image.attestations", "exporter.sourcedateepoch", "exporter.multiple"),
)
"""Clients ask for some of these before they send what a Dockerfile build needs; graphs are refused all the same."""


def capabilities(names: Iterable[str]) -> list[common_pb2.ApiCap]:
    """Capabilities that are there."""
    return [common_pb2.ApiCap(id=name, enabled=True) for name in names]


def version() -> common_pb2.BuildkitVersion:
    """Which builder this is."""
    from pybuild.parser.frontends import LANGUAGE_VERSION

    return common_pb2.BuildkitVersion(
        package="pybuild",
        version=_LIKE,
        revision=f"pybuild-{__version__}",
        dockerfile_version=".".join(map(str, (*LANGUAGE_VERSION, 0))),
    )


def worker(daemon: Daemon) -> common_pb2.WorkerRecord:
    """The one worker there is. The label of a snapshotter tells docker's own driver that this daemon can do everything: indexes, attestations, caches."""
    return common_pb2.WorkerRecord(
        id=daemon.id,
        labels={
            f"{_PREFIX}executor": "pybuild",
            f"{_PREFIX}snapshotter": "overlayfs",
            f"{_PREFIX}hostname": socket.gethostname(),
            f"{_PREFIX}network": "host",
            f"{_PREFIX}moby.host-gateway-ip": "127.0.0.1",
        },
        platforms=[platform_message(host_platform())],
        buildkit_version=version(),
    )


def platform_message(platform: Platform) -> common_pb2.Platform:
    """A platform as a message."""
    return common_pb2.Platform(os=platform.os, architecture=platform.architecture, variant=platform.variant or "")
