"""The HTTP application: routes with and without a version in front, request ids, logs, figures, and errors as JSON.

Owns what every answer has in common. What an endpoint does is its own module's; listening is ``api_listeners.py``'s.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from pybuild import __version__
from pybuild.errors import PybuildError

from .api_buildkit import Buildkit, BuildkitRoutes
from .api_errors import ApiError, message_of, status_of
from .api_events import Events
from .api_metrics import Metrics
from .api_request import Parameters
from .api_versions import NEWEST, OLDEST, ApiVersion, UnsupportedVersion
from .api_work import Work

if TYPE_CHECKING:
    from .engine import Engine

LOG: Final = logging.getLogger("pybuild.daemon")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
BODY_LIMIT_BYTES: Final = 4 << 20
"""Of bodies that are read whole (JSON). Archives are streamed and have no such limit."""

_READ_BUFFER_BYTES: Final = 1 << 20
_VERSION: Final = r"/{version:v\d+\.\d+}"
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")


class Daemon:
    """One running daemon: the engine, and what its endpoints share. ``id``: the same for one root through all restarts."""

    def __init__(self, engine: Engine, *, debug: bool = False) -> None:
        self.engine = engine
        self.debug = debug
        self.work = Work()
        self.events = Events(clock_ns=time.time_ns)
        self.metrics = Metrics(started=time.time())
        self.id = _lasting_id(engine.store.root)
        self.builds: dict[str, threading.Event] = {}
        self.stopping = asyncio.Event()
        self.buildkit = Buildkit(self)


def _lasting_id(root: Path) -> str:
    """An identifier of this store, made once."""
    # Beside the version file: the store's other directories hold content.
    file = root / "version.daemon-id"
    try:
        text = file.read_text(encoding="ascii").strip()
        return str(uuid.UUID(text))
    except (OSError, ValueError):
        made = str(uuid.uuid4())
        draft = file.with_name(f"{file.name}.{os.getpid()}")
        draft.write_text(made + "\n", encoding="ascii")
        draft.replace(file)
        return made


def parameters_of(request: web.Request) -> Parameters:
    """The query of a request with its version: the newest if the path has none. Raises UnsupportedVersion."""
    text = request.match_info.get("version")
    version = NEWEST if text is None else ApiVersion.parse(text)
    return Parameters(request.query.items(), version=version)


def json_answer(value: Any, *, status: int = 200) -> web.Response:  # Any: the JSON edge
    """An answer in JSON."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"
    return web.Response(body=text.encode("utf-8", "replace"), status=status, content_type="application/json")


async def json_body(request: web.Request) -> dict[str, Any]:  # Any: the JSON edge
    """A JSON object from the body; an empty body is an empty object. Raises ApiError."""
    try:
        data = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise ApiError(f"the body is larger than {BODY_LIMIT_BYTES >> 20} MiB", status=413) from None
    try:
        value = json.loads(data) if data.strip() else {}
    except (ValueError, RecursionError):
        raise ApiError("the body is not valid JSON", status=400) from None
    if not isinstance(value, dict):
        raise ApiError("the body must be a JSON object", status=400)
    return value


class Router:
    """Collects the endpoints, each with and without a version in front."""

    def __init__(self, application: web.Application) -> None:
        self._application = application

    def add(self, method: str, path: str, handler: Handler) -> None:
        """``path`` in aiohttp's form."""
        for prefix in (_VERSION, ""):
            self._application.router.add_route(method, prefix + path, handler)


def make_application(daemon: Daemon) -> web.Application:
    """The whole API of ``daemon``."""
    from .api_absent import AbsentRoutes
    from .api_build import BuildRoutes
    from .api_images import ImageRoutes
    from .api_own import OwnRoutes
    from .api_system import SystemRoutes
    from .api_transfers import TransferRoutes

    front = _Front(daemon)

    @web.middleware
    async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await front.handle(request, handler)

    application = web.Application(middlewares=[around], client_max_size=BODY_LIMIT_BYTES)
    router = Router(application)
    # The order counts where a name in the path may be anything.
    for routes in (SystemRoutes, OwnRoutes, BuildRoutes, BuildkitRoutes, TransferRoutes, ImageRoutes, AbsentRoutes):
        routes(daemon).register(router)
    application.on_response_prepare.append(_common_headers)
    return application


def make_runner(daemon: Daemon) -> web.AppRunner:
    """An aiohttp runner for the application. A handler is cancelled when its client goes away."""
    return web.AppRunner(
        make_application(daemon),
        handle_signals=False,
        access_log=None,
        handler_cancellation=True,
        read_bufsize=_READ_BUFFER_BYTES,
        keepalive_timeout=75,
        shutdown_timeout=10,
    )


async def _common_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Api-Version"] = str(NEWEST)
    response.headers["Docker-Experimental"] = "false"
    response.headers["Ostype"] = "linux"
    response.headers["Server"] = f"pybuild/{__version__} (linux)"
    if "id" in request:
        response.headers["X-Request-Id"] = str(request["id"])


class _Front:
    """What happens around every request."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("X-Request-Id", "")
        request["id"] = given if _REQUEST_ID.match(given) else uuid.uuid4().hex[:16]
        started = time.monotonic()
        metrics = self._daemon.metrics
        metrics.add("pybuild_requests_in_flight", 1, help="requests being answered", kind="gauge")
        status, problem = 499, ""
        try:
            response, problem = await self._answer(request, handler)
            status = response.status
            return response
        finally:
            metrics.add("pybuild_requests_in_flight", -1, help="requests being answered", kind="gauge")
            self._told(request, status, time.monotonic() - started, problem)

    async def _answer(self, request: web.Request, handler: Handler) -> tuple[web.StreamResponse, str]:
        try:
            parameters_of(request)
            return await handler(request), ""
        except PybuildError as error:
            text = message_of(error)
            return json_answer({"message": text}, status=status_of(error)), text
        except web.HTTPRequestEntityTooLarge:
            return json_answer({"message": "the body is too large"}, status=413), "the body is too large"
        except web.HTTPException as error:
            # An unknown path, or a known one with another method: both are unknown endpoints to docker.
            if error.status in (404, 405):
                return json_answer({"message": "page not found"}, status=404), "page not found"
            return json_answer({"message": error.reason}, status=error.status), error.reason
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            LOG.exception("internal error", extra={"request": request["id"]})
            text = f"internal error: {type(error).__name__}: {error}"
            return json_answer({"message": text}, status=500), text

    def _told(self, request: web.Request, status: int, seconds: float, problem: str) -> None:
        resource = request.match_info.route.resource
        route = "unknown" if resource is None else resource.canonical.removeprefix("/{version}")
        self._daemon.metrics.add(
            "pybuild_requests_total",
            help="requests answered",
            method=request.method,
            route=route,
            status=str(status),
        )
        self._daemon.metrics.observe(
            "pybuild_request_seconds", seconds, help="time from a request to the end of its answer", route=route
        )
        quiet = route in ("/_ping", "/metrics", "/health")
        LOG.log(
            logging.ERROR if status >= 500 and status != 501 else logging.DEBUG if quiet else logging.INFO,
            "request",
            extra={
                "request": request["id"],
                "method": request.method,
                "path": request.path,
                "status": status,
                "seconds": round(seconds, 3),
                **({"error": problem} if problem else {}),
                "client": request.headers.get("User-Agent", ""),
            },
        )


__all__ = [
    "BODY_LIMIT_BYTES",
    "Daemon",
    "Router",
    "UnsupportedVersion",
    "json_answer",
    "json_body",
    "make_application",
    "make_runner",
    "OLDEST",
    "parameters_of",
]
