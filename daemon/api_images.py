"""The endpoints about local images: list, inspect, history, tag, delete, prune, and what registries know of a name.

Owns parameters and answers; the rules are the engine's. Transfers are ``api_transfers.py``'s.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from pybuild.layers.images import StoredImage
from pybuild.layers.references import InvalidReference, Reference

from .api_errors import ApiError, BadParameter
from .api_request import OneCredential, Parameters, credential_for, parse_time
from .api_server import json_answer, parameters_of
from .api_shapes import attestation_answer, history_answer, inspect_answer, list_entry, manifest_summaries, merged_by_id
from .api_versions import ApiVersion
from .image_list import ImageFilter, familiar, listed_images, made_at
from .machine import host_platform

if TYPE_CHECKING:
    from pybuild.layers.images import Removal

    from .api_server import Daemon, Router

_V148: Final = ApiVersion(1, 48)
_V149: Final = ApiVersion(1, 49)
_LIST_FILTERS: Final = ("before", "dangling", "label", "reference", "since", "until", "containers")
_PRUNE_FILTERS: Final = ("dangling", "until", "label", "label!")


class ImageRoutes:
    """The endpoints of one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def register(self, router: Router) -> None:
        router.add("GET", "/images/json", self.listing)
        router.add("GET", "/images/search", self.search)
        router.add("POST", "/images/prune", self.prune)
        router.add("GET", "/images/{name:.+}/json", self.inspect)
        router.add("GET", "/images/{name:.+}/history", self.history)
        router.add("GET", "/images/{name:.+}/attestations", self.attestations)
        router.add("POST", "/images/{name:.+}/tag", self.tag)
        router.add("DELETE", "/images/{name:.+}", self.delete)
        router.add("GET", "/distribution/{name:.+}/json", self.distribution)

    # --- looking -----------------------------------------------------------------------------------------------------

    async def listing(self, request: web.Request) -> web.StreamResponse:
        parameters = parameters_of(request)
        return json_answer(await self._daemon.work.call(self._list, parameters))

    def _list(self, parameters: Parameters) -> list[dict[str, Any]]:  # Any: the JSON edge
        version = parameters.version
        filters = parameters.filters(_LIST_FILTERS)
        references = filters.get("reference")
        if version < (1, 25) and not references and parameters.text("filter"):
            references = (parameters.text("filter"),)
        until = filters.one("until")
        wanted = ImageFilter(
            dangling=filters.flag("dangling"),
            labels=tuple(_label(text) for text in filters.get("label")),
            references=references,
            before=filters.one("before"),
            since=filters.one("since"),
            until=parse_time(until, now=time.time()) if until else None,
        )
        with_manifests = version >= (1, 47) and parameters.flag("manifests")
        if version >= (1, 54) and parameters.flag("identity") and not with_manifests:
            raise BadParameter("conflicting options: identity requires manifests=1")
        store = self._daemon.engine.store
        shared: dict[str, int] = {}
        if version >= (1, 42) and parameters.flag("shared-size"):
            from pybuild.layers.gc import Collector

            shared = {str(row.image.descriptor.digest): row.shared for row in Collector(store).usage().images}
        return merged_by_id(
            list_entry(
                listed,
                version=version,
                shared=shared.get(str(listed.image.descriptor.digest), -1),
                manifests=manifest_summaries(store, listed.image) if with_manifests else None,
            )
            for listed in listed_images(store.images, wanted)
        )

    async def inspect(self, request: web.Request) -> web.StreamResponse:
        parameters = parameters_of(request)
        platform = parameters.platform(since=_V149)
        manifests = parameters.version >= (1, 48) and parameters.flag("manifests")
        if manifests and platform is not None:
            raise BadParameter("conflicting options: manifests and platform options cannot both be set")

        def find() -> dict[str, Any]:  # Any: the JSON edge
            engine = self._daemon.engine
            image = engine.find_image(request.match_info["name"])
            if platform is not None and image.choose(platform) is None:
                raise _nothing_for(request.match_info["name"], str(platform))
            return inspect_answer(
                engine.store,
                image,
                version=parameters.version,
                platform=None if platform is None else str(platform),
                manifests=manifests,
            )

        return json_answer(await self._daemon.work.call(find))

    async def history(self, request: web.Request) -> web.StreamResponse:
        parameters = parameters_of(request)
        platform = parameters.platform(since=_V148)

        def find() -> list[dict[str, Any]]:  # Any: the JSON edge
            engine = self._daemon.engine
            image = engine.find_image(request.match_info["name"])
            if platform is not None and image.choose(platform) is None:
                raise _nothing_for(request.match_info["name"], str(platform))
            return history_answer(engine.store.images, image, platform=platform)

        return json_answer(await self._daemon.work.call(find))

    async def attestations(self, request: web.Request) -> web.StreamResponse:
        parameters = parameters_of(request)
        if len(parameters.texts("platform")) > 1:
            raise BadParameter("only one platform can be given")
        platform = parameters.platform() or host_platform()

        def find() -> list[dict[str, Any]]:  # Any: the JSON edge
            engine = self._daemon.engine
            image = engine.find_image(request.match_info["name"])
            part = image.choose(platform)
            if part is None:
                raise _nothing_for(request.match_info["name"], str(platform))
            return attestation_answer(
                engine.store,
                image,
                part,
                types=frozenset(parameters.texts("type")),
                statements=parameters.flag("statement"),
            )

        return json_answer(await self._daemon.work.call(find))

    async def search(self, request: web.Request) -> web.StreamResponse:
        raise ApiError(
            "searching a registry is not possible: the registries' own protocol has no search", status=501,
            hint="`pybuild ls HOST` lists what a registry has",
        )  # fmt: skip

    async def distribution(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        reference = Reference.parse(name).with_default_tag()
        credentials = OneCredential(reference.host, credential_for(request))

        def ask() -> dict[str, Any]:  # Any: the JSON edge
            from .distribution import offered_platforms

            with self._daemon.engine.acting_for(credentials) as engine:
                descriptor, platforms = offered_platforms(engine, reference)
                return {
                    "Descriptor": descriptor.to_json(),
                    "Platforms": [platform.to_json() for platform in platforms],
                }

        return json_answer(await self._daemon.work.call_long(ask))

    # --- changing ----------------------------------------------------------------------------------------------------

    async def tag(self, request: web.Request) -> web.StreamResponse:
        parameters = parameters_of(request)
        target = joined_name(parameters.text("repo"), parameters.text("tag"))
        if target is None:
            raise BadParameter("repository name must be given")
        if Reference.parse(target).familiar_name == "sha256":
            raise BadParameter("refusing to create an ambiguous tag using digest algorithm as name")

        def work() -> StoredImage:
            self._daemon.engine.tag(request.match_info["name"], target)
            return self._daemon.engine.find_image(target)

        image = await self._daemon.work.call(work)
        self._daemon.events.report(
            "image", "tag", str(image.id(host_platform())), **{**_labels(image), "name": Reference.parse(target).with_default_tag().familiar}
        )  # fmt: skip
        return web.Response(status=201)

    async def delete(self, request: web.Request) -> web.StreamResponse:
        parameters = parameters_of(request)
        name = request.match_info["name"]
        if not name.strip():
            raise BadParameter("image name cannot be blank")
        if parameters.version >= (1, 50) and parameters.texts("platforms"):
            raise ApiError("removing single platforms of an image is not supported", status=501)

        def work() -> tuple[StoredImage, Removal]:
            engine = self._daemon.engine
            image = engine.find_image(name)
            removal = engine.remove_image(name, force=parameters.flag("force"), keep_layers=parameters.flag("noprune"))
            return image, removal

        image, removal = await self._daemon.work.call_long(work)
        identifier = str(image.id(host_platform()))
        for untagged in removal.untagged:
            self._daemon.events.report("image", "untag", identifier, **{**_labels(image), "name": _shown(untagged)})
        for _ in removal.deleted:
            self._daemon.events.report("image", "delete", identifier, **{**_labels(image), "name": identifier})
        return json_answer(
            [
                *({"Untagged": _shown(untagged)} for untagged in removal.untagged),
                *({"Deleted": str(deleted)} for deleted in removal.deleted),
            ]
        )

    async def prune(self, request: web.Request) -> web.StreamResponse:
        parameters = parameters_of(request)
        filters = parameters.filters(_PRUNE_FILTERS)
        dangling = filters.flag("dangling")
        until = filters.one("until")
        before = parse_time(until, now=time.time()) if until else None
        wanted = [_label(text) for text in filters.get("label")]
        unwanted = [_label(text) for text in filters.get("label!")]

        def matches(image: StoredImage) -> bool:
            labels = _labels(image)
            made = made_at(image.choose(host_platform()) or image.choose()) or image.stored
            return (
                (before is None or made < before)
                and all(key in labels and value in (None, labels[key]) for key, value in wanted)
                and not any(key in labels and value in (None, labels[key]) for key, value in unwanted)
            )

        from pybuild.layers.gc import Collector

        report = await self._daemon.work.call_long(
            lambda: Collector(self._daemon.engine.store).prune_images(all=dangling is False, match=matches)
        )
        for deleted in report.deleted:
            self._daemon.events.report("image", "delete", str(deleted), name=str(deleted))
        self._daemon.events.report("image", "prune", "", reclaimed=str(report.freed_bytes))
        return json_answer(
            {
                "ImagesDeleted": [
                    *({"Untagged": _shown(untagged)} for untagged in report.untagged),
                    *({"Deleted": str(deleted)} for deleted in report.deleted),
                ],
                "SpaceReclaimed": report.freed_bytes,
            }
        )


def joined_name(repository: str, tag: str) -> str | None:
    """A name from docker's two parameters, None without a repository; ``tag`` may be a digest. Raises InvalidReference."""
    if not repository:
        return None
    if not tag:
        return repository
    reference = Reference.parse(repository)
    if ":" in tag:
        return f"{reference.name}@{tag}"
    return reference.with_tag(tag).canonical


def _label(text: str) -> tuple[str, str | None]:
    key, equals, value = text.partition("=")
    return key, value if equals else None


def _labels(image: StoredImage) -> dict[str, str]:
    part = image.choose(host_platform()) or image.choose()
    return dict(part.labels) if part is not None else {}


def _shown(name: str) -> str:
    try:
        return Reference.parse(name).familiar
    except InvalidReference:
        return ":".join(familiar(name))


def _nothing_for(name: str, platform: str) -> ApiError:
    return ApiError(f"image with reference {name} was found but does not provide the platform ({platform})", status=404)
