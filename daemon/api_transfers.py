"""The endpoints that move images: create (pull and import), push, save, load. Streams both ways; holds no archive in memory.

Owns parameters, credentials of the request, and docker's streams.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

from aiohttp import web

from pybuild.errors import PybuildError
from pybuild.layers.descriptor import MANIFEST_TYPES, Descriptor, Platform
from pybuild.layers.image import Manifest
from pybuild.layers.images import MANIFEST_LIMIT_BYTES
from pybuild.layers.references import Reference
from pybuild.registry_client.failures import Denied, NotFound, Unauthorized
from pybuild.registry_client.manifests import ImageNotFound as NotInRegistry
from pybuild.registry_client.transfers import Transfer, TransferState

from .api_errors import ApiError, BadParameter, message_of, stream_error
from .api_images import joined_name
from .api_progress import end_of_pull, end_of_push, pull_messages, push_messages
from .api_request import OneCredential, Parameters, credential_for
from .api_server import parameters_of
from .api_versions import ApiVersion
from .api_work import Job
from .machine import host_platform
from .registry_commands import list_registry

if TYPE_CHECKING:
    from .api_server import Daemon, Router
    from .engine import Engine

_WRITE_BYTES: Final = 1 << 18
_V148: Final = ApiVersion(1, 48)


class TransferRoutes:
    """The endpoints of one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def register(self, router: Router) -> None:
        router.add("POST", "/images/create", self.create)
        router.add("POST", "/images/load", self.load)
        router.add("GET", "/images/get", self.save)
        router.add("GET", "/images/{name:.+}/get", self.save)
        router.add("POST", "/images/{name:.+}/push", self.push)

    async def create(self, request: web.Request) -> web.StreamResponse:
        parameters = parameters_of(request)
        if parameters.text("fromImage"):
            return await self._pull(request, parameters)
        if parameters.text("fromSrc"):
            return await self._import(request, parameters)
        raise BadParameter("either fromImage or fromSrc must be given")

    # --- pull --------------------------------------------------------------------------------------------------------

    async def _pull(self, request: web.Request, parameters: Parameters) -> web.StreamResponse:
        name = joined_name(parameters.text("fromImage").removesuffix(":"), parameters.text("tag"))
        assert name is not None
        reference = Reference.parse(name)
        platform = _platform_text(parameters)
        credentials = OneCredential(reference.host, credential_for(request))

        def work(job: Job) -> None:
            with self._daemon.engine.acting_for(credentials) as engine:
                if reference.tag is None and reference.digest is None:
                    for tag in self._tags(engine, reference):
                        self._pull_one(engine, reference.with_tag(tag), platform, job)
                else:
                    self._pull_one(engine, reference, platform, job)

        return await self._daemon.work.stream(request, work, content_type="application/json", tell=_tell)

    def _tags(self, engine: Engine, reference: Reference) -> list[str]:
        try:
            return list(list_registry(engine.registries, reference.name))
        except (NotFound, NotInRegistry, Unauthorized, Denied) as error:
            raise _no_access(reference, error) from error

    def _pull_one(self, engine: Engine, reference: Reference, platform: Platform | None, job: Job) -> None:
        messages = pull_messages(job.output.message, reference, is_here=engine.store.blobs.has)
        before = engine.store.images.find(reference.canonical)
        try:
            pulled = engine.pull(reference.canonical, platform=platform, on_transfer=messages, cancel=job.cancel)
        except (NotFound, NotInRegistry, Unauthorized, Denied) as error:
            raise _no_access(reference, error) from error
        changed = before is None or before.descriptor.digest != pulled.descriptor.digest
        self._daemon.events.report("image", "pull", reference.familiar, name=reference.familiar_name)
        self._daemon.metrics.add(
            "pybuild_pulled_bytes_total", pulled.bytes_received, help="bytes received from registries"
        )
        end_of_pull(job.output.message, messages, reference, digest=pulled.descriptor.digest, changed=changed)

    # --- import ------------------------------------------------------------------------------------------------------

    async def _import(self, request: web.Request, parameters: Parameters) -> web.StreamResponse:
        source = parameters.text("fromSrc")
        name = joined_name(parameters.text("repo"), parameters.text("tag"))
        if name is not None:
            Reference.parse(name)
        if source != "-" and "://" not in source:
            source = f"http://{source}"
        platform = _platform_text(parameters)

        def work(job: Job) -> None:
            if source != "-":
                job.output.message({"status": f"Downloading from {source}"})
            identifier = self._daemon.engine.import_image(
                source,
                stdin=job.body,
                name=name,
                changes=parameters.texts("changes"),
                message=parameters.text("message"),
                platform=None if platform is None else str(platform),
            )
            shown = str(identifier) if name is None else Reference.parse(name).with_default_tag().familiar
            self._daemon.events.report("image", "import", str(identifier), name=shown)
            job.output.message({"status": str(identifier)})

        return await self._daemon.work.stream(request, work, content_type="application/json", tell=_tell)

    # --- push --------------------------------------------------------------------------------------------------------

    async def push(self, request: web.Request) -> web.StreamResponse:
        parameters = parameters_of(request)
        name = joined_name(request.match_info["name"], parameters.text("tag"))
        assert name is not None
        reference = Reference.parse(name)
        platform = parameters.platform(since=ApiVersion(1, 46))
        credentials = OneCredential(reference.host, credential_for(request))

        def work(job: Job) -> None:
            messages = push_messages(job.output.message, reference)
            messages.begin()
            with self._daemon.engine.acting_for(credentials) as engine:
                if reference.tag is None and reference.digest is None:
                    names = [
                        known for known in engine.store.images.names() if Reference.parse(known).name == reference.name
                    ]
                    if not names:
                        raise ApiError(
                            f"An image does not exist locally with the tag: {reference.familiar_name}", status=404
                        )
                else:
                    names = [reference.canonical]
                for each in names:
                    target = Reference.parse(each)
                    if target.tag is None or engine.store.images.find(each) is None:
                        if len(names) > 1:
                            continue
                        raise ApiError(
                            f"An image does not exist locally with the tag: {reference.familiar_name}", status=404
                        )
                    report = engine.push(each, platform=platform, on_transfer=messages, cancel=job.cancel)
                    if report.unchanged:
                        for layer in _layers(engine, report.descriptor):
                            messages(Transfer(layer.digest, "layer", TransferState.EXISTS, layer.size, layer.size))
                    self._daemon.events.report("image", "push", target.familiar, name=target.familiar_name)
                    self._daemon.metrics.add(
                        "pybuild_pushed_bytes_total", report.bytes_sent, help="bytes sent to registries"
                    )
                    end_of_push(
                        job.output.message,
                        tag=target.target,
                        digest=report.descriptor.digest,
                        size=report.descriptor.size,
                    )

        return await self._daemon.work.stream(request, work, content_type="application/json", tell=_tell)

    # --- archives ----------------------------------------------------------------------------------------------------

    async def save(self, request: web.Request) -> web.StreamResponse:
        parameters = parameters_of(request)
        name = request.match_info.get("name")
        names = (
            (name,)
            if name is not None
            else tuple(text for texts in parameters.texts("names") for text in texts.split(","))
        )
        if not names:
            raise BadParameter("no image names given")
        platforms = _platforms(parameters)

        def work(job: Job) -> None:
            engine = self._daemon.engine
            out = io.BufferedWriter(job.output, _WRITE_BYTES)
            try:
                engine.save_images(names, dest=None, stdout=out, docker=True, platforms=platforms, cancel=job.cancel)
                out.flush()
            except BaseException:
                # What the buffer still holds is of no use to anybody, and its destructor must not try.
                job.output.abandon()
                raise
            for each in names:
                identifier = str(engine.find_image(each).id(host_platform()))
                self._daemon.events.report("image", "save", identifier, name=identifier)

        return await self._daemon.work.stream(request, work, content_type="application/x-tar")

    async def load(self, request: web.Request) -> web.StreamResponse:
        parameters = parameters_of(request)
        platforms = _platforms(parameters)

        def work(job: Job) -> None:
            for image in self._daemon.engine.load_images(job.body, platforms=platforms):
                self._daemon.events.report("image", "load", str(image.id), name=image.name or str(image.id))
                text = f"Loaded image: {image.name}\n" if image.name else f"Loaded image ID: {image.id}\n"
                job.output.message({"stream": text})

        return await self._daemon.work.stream(request, work, content_type="application/json", tell=_tell)


def _layers(engine: Engine, descriptor: Descriptor) -> tuple[Descriptor, ...]:
    """The layers of what a push found unchanged; of an index none are told."""
    if descriptor.media_type not in MANIFEST_TYPES:
        return ()
    return Manifest.from_bytes(engine.store.blobs.read(descriptor.digest, limit_bytes=MANIFEST_LIMIT_BYTES)).layers


def _tell(job: Job, error: PybuildError) -> None:
    job.output.message(stream_error(message_of(error)))


def _platform_text(parameters: Parameters) -> Platform | None:
    """The ``platform`` of a pull or an import: text such as linux/arm64, since 1.32."""
    from pybuild.builder.platforms import parse_platform

    text = parameters.text("platform")
    if not text or parameters.version < (1, 32):
        return None
    try:
        return parse_platform(text, default=host_platform())
    except PybuildError as error:
        raise BadParameter(error.message) from None


def _platforms(parameters: Parameters) -> tuple[Platform, ...]:
    """The platforms of a save or a load: JSON, one since 1.48 and several since 1.52."""
    import json

    from .api_request import platform_from

    if parameters.version < _V148:
        return ()
    texts = parameters.texts("platform")
    if len(texts) > 1 and parameters.version < (1, 52):
        raise BadParameter(
            "multiple platform parameters are not supported in this API version; use API version 1.52 or later"
        )
    try:
        return tuple(platform_from(json.loads(text)) for text in texts if text)
    except ValueError:
        raise BadParameter("failed to parse platform: it is not JSON") from None


def _no_access(reference: Reference, error: PybuildError) -> PybuildError:
    """Docker's sentences, which clients look for: a repository that may not be seen is not told from one that isn't there."""
    if isinstance(error, NotInRegistry):
        return ApiError(f"manifest for {reference.familiar} not found: manifest unknown: manifest unknown", status=404)
    return ApiError(
        f"pull access denied for {reference.familiar_name}, repository does not exist or may require 'docker login': {error.message}",
        status=404,
    )
