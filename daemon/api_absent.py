"""Endpoints of the Engine API that this daemon does not have yet: each answers 501 with a sentence. Does nothing.

Unknown paths are not here: they are 404, as in docker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiohttp import web

from .api_errors import ApiError, NotSupportedYet

if TYPE_CHECKING:
    from .api_server import Daemon, Handler, Router

_GROUPS: Final = {
    "containers": "containers",
    "exec": "processes in containers",
    "volumes": "volumes",
    "networks": "networks",
    "plugins": "plugins",
    "swarm": "swarms",
    "nodes": "swarm nodes",
    "services": "swarm services",
    "tasks": "swarm tasks",
    "secrets": "swarm secrets",
    "configs": "swarm configs",
}


class AbsentRoutes:
    """Registers them."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def register(self, router: Router) -> None:
        # Clients such as compose look for a network before they build, and go on if there is none: there is none.
        router.add("GET", "/networks/{name}", self._no_network)
        for group, words in _GROUPS.items():
            handler = _refusing(NotSupportedYet(words))
            router.add("*", f"/{group}", handler)
            router.add("*", f"/{group}/{{rest:.*}}", handler)
        router.add("POST", "/commit", _refusing(NotSupportedYet("containers")))

    async def _no_network(self, request: web.Request) -> web.StreamResponse:
        raise ApiError(
            f"network {request.match_info['name']} not found: networks are not supported by this daemon yet", status=404
        )


def _refusing(error: ApiError) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        raise error

    return handler
