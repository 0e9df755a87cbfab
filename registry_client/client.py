"""The distribution API, one method per operation (distribution specification, "Endpoints").

Owns what a single request or one list means: status codes, headers, verification of what came back, fall-back from mirrors to
the registry. Never decides what to pull or push; ``pull``, ``push`` and ``copy`` do.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar
from urllib.parse import quote, urlsplit

from pybuild.layers.descriptor import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    DOCKER_MANIFEST_V1,
    DOCKER_MANIFEST_V1_SIGNED,
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
)
from pybuild.layers.digest import Digest, InvalidDigest
from pybuild.layers.image import Index, InvalidImage
from pybuild.layers.references import DEFAULT_HOST, Reference

from .auth import Authenticator, LoginFailed
from .credentials import Credentials, DockerConfig, NoCredentials
from .endpoints import Endpoint, Place, places
from .links import next_link, resolved
from .manifests import (
    MANIFEST_BYTES,
    ContentMismatch,
    ImageNotFound,
    ManifestContent,
    UnsupportedManifest,
    checked_media_type,
    referrers_tag,
    verified,
)
from .transport import (
    BytesBody,
    ConnectionFailed,
    Denied,
    NotFound,
    RegistryError,
    Request,
    Response,
    Transport,
    Unauthorized,
    UnexpectedStatus,
    origin,
)

_PAGE_BYTES: Final = 16 << 20
_MAX_PAGES: Final = 1000
_PAGE_ITEMS: Final = 1000
_ACCEPT: Final = ", ".join(
    (OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST, DOCKER_MANIFEST_V1_SIGNED, DOCKER_MANIFEST_V1, "*/*")
)
T = TypeVar("T")


class RegistryClient:
    """Access to all registries with one set of settings and credentials. Thread-safe; closes nothing but its transport."""

    def __init__(
        self,
        transport: Transport,
        credentials: Credentials | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.transport = transport
        self.credentials = credentials or NoCredentials()
        self.auth = Authenticator(transport, self.credentials, clock=clock)
        self._lock = threading.Lock()
        self._endpoints: dict[Place, Endpoint] = {}

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.transport.close()

    def repository(self, reference: Reference, *, mirrors: bool = True) -> Repository:
        """The repository that ``reference`` names; reads ask its mirrors first if ``mirrors``."""
        found = places(self.transport.settings, reference.host, mirrors=mirrors)
        return Repository(self, reference, endpoints=tuple(self.endpoint(place) for place in found))

    def endpoint(self, place: Place) -> Endpoint:
        """The endpoint of ``place``, one per client."""
        with self._lock:
            endpoint = self._endpoints.get(place)
            if endpoint is None:
                endpoint = self._endpoints[place] = Endpoint(place, transport=self.transport, auth=self.auth)
            return endpoint

    def ping(self, host: str) -> None:
        """Ask whether ``host`` speaks the API and lets us in. Raises RegistryError."""
        endpoint = self.endpoint(Place(host))
        with endpoint.send("GET", "") as response:
            if response.status != 200:
                raise self.refused(response, host)

    def catalog(self, host: str) -> Iterator[str]:
        """The names of the repositories at ``host``, page by page. Raises RegistryError."""
        endpoint = self.endpoint(Place(host))
        scopes = frozenset({"registry:catalog:*"})
        return _pages(
            self, endpoint, "_catalog", key="repositories", scopes=scopes, repository="", page_items=_PAGE_ITEMS
        )

    def refused(self, response: Response, host: str) -> UnexpectedStatus:
        """The error of an answer, with the hint that fits it."""
        hint = None
        if response.status in (401, 403):
            failures = self.credentials.helper_failures if isinstance(self.credentials, DockerConfig) else {}
            failure = failures.get(host)
            hint = failure or f"log in with pybuild login {host}"
            if host == DEFAULT_HOST and not failure:
                # Docker Hub says the same of repositories that are private and of those that don't exist.
                hint = "the repository doesn't exist, or needs pybuild login"
        return response.error(hint=hint)


class Repository:
    """One repository of a registry. Reads go to mirrors first; writes only to the registry itself."""

    def __init__(self, client: RegistryClient, reference: Reference, *, endpoints: tuple[Endpoint, ...]) -> None:
        self.client = client
        self.reference = reference
        self.name = reference.repository
        self.endpoints = endpoints
        self.registry = endpoints[-1]

    @property
    def pull_scopes(self) -> frozenset[str]:
        return frozenset({f"repository:{self.name}:pull"})

    @property
    def push_scopes(self) -> frozenset[str]:
        return frozenset({f"repository:{self.name}:pull,push"})

    # --- manifests ---

    def head_manifest(self, target: str, *, scopes: frozenset[str] | None = None) -> Descriptor | None:
        """The descriptor of a tag or digest without its content, None if there is none. Falls back to GET where HEAD is refused."""

        def ask(endpoint: Endpoint) -> Descriptor:
            if not endpoint.head_refused:
                with self._manifest_request(endpoint, "HEAD", target, scopes=scopes) as response:
                    if response.status == 404:
                        raise response.error()
                    found = _described(response, target)
                    if found is not None:
                        return found
                    if response.status in (405, 501):
                        endpoint.head_refused = True
                    elif response.status in (401, 403):
                        raise self._refused(endpoint, response)
            return self._get_manifest(endpoint, target, scopes=scopes).descriptor

        try:
            return self._first(ask)
        except NotFound:
            return None

    def get_manifest(self, target: str, *, expected: Descriptor | None = None) -> ManifestContent:
        """A manifest or index by tag or digest, verified. ``expected``: what its parent said of it.

        Raises ImageNotFound, ContentMismatch, UnsupportedManifest, RegistryError.
        """
        try:
            found = self._first(lambda endpoint: self._get_manifest(endpoint, target, expected=expected))
        except NotFound as error:
            hint = None if error.status == 404 else error.hint
            raise ImageNotFound(self._named(target), hint=hint) from error
        return found

    def put_manifest(self, target: str, data: bytes, *, media_type: str) -> bool:
        """Store a manifest under a tag or its digest. Returns True if the registry keeps its ``subject`` in a referrers list.

        Raises RegistryError with the registry's own message.
        """
        response = self.registry.send(
            "PUT",
            f"{self.name}/manifests/{target}",
            scopes=self.push_scopes,
            repository=self.name,
            headers={"Content-Type": media_type},
            body=BytesBody(data),
            answer_timeout_seconds=self.client.transport.network.answer_timeout_seconds,
        )
        with response:
            if response.status not in (200, 201, 202):
                raise self._refused(self.registry, response)
            stored = _digest_header(response)
            if stored is not None and stored != Digest.of(data, stored.algorithm):
                raise ContentMismatch(
                    f"{self.registry} stored the manifest under another digest ({stored}) than it has"
                )
            return "OCI-Subject" in response.headers

    def delete_manifest(self, target: str) -> None:
        """Delete a manifest by digest. Raises ImageNotFound, RegistryError."""
        with self._delete(target) as response:
            if response.status == 404:
                raise ImageNotFound(self._named(target))
            if response.status not in (200, 202, 204):
                raise self._refused(self.registry, response)

    def delete_tag(self, tag: str) -> bool:
        """Delete a tag and nothing else. False if the registry can't do that. Raises ImageNotFound, RegistryError."""
        with self._delete(tag) as response:
            if response.status in (200, 202, 204):
                return True
            if response.status == 404:
                raise ImageNotFound(self._named(tag))
            error = self._refused(self.registry, response)
        if error.status in (400, 405, 501):
            return False
        raise error

    # --- blobs ---

    def head_blob(self, digest: Digest, *, scopes: frozenset[str] | None = None) -> int | None:
        """The size of a blob in the registry itself, None if it isn't there. -1 if it is there and its size isn't said."""
        endpoint = self.registry
        method = "GET" if endpoint.head_refused else "HEAD"
        while True:
            headers = {"Range": "bytes=0-0"} if method == "GET" else {}
            with endpoint.send(
                method,
                f"{self.name}/blobs/{digest}",
                scopes=scopes or self.pull_scopes,
                repository=self.name,
                headers=headers,
            ) as response:
                if response.status == 200:
                    return -1 if response.length is None else response.length
                if response.status == 206:
                    return _range_total(response)
                if response.status == 404:
                    return None
                if method == "HEAD" and response.status in (405, 501):
                    endpoint.head_refused = True
                    method = "GET"
                    continue
                raise self._refused(endpoint, response)

    def open_blob(self, endpoint: Endpoint, digest: Digest, *, offset: int = 0) -> Response:
        """Start reading a blob at ``offset``. Any status may come back. Used by ``download``."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        return endpoint.send(
            "GET", f"{self.name}/blobs/{digest}", scopes=self.pull_scopes, repository=self.name, headers=headers
        )

    def open_url(self, url: str, *, offset: int = 0) -> Response:
        """Start reading a foreign layer at ``offset`` from one of its URLs, without any credentials."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        return self.client.transport.send(Request("GET", url, headers=headers))

    # --- lists ---

    def tags(self, *, page_items: int = _PAGE_ITEMS) -> Iterator[str]:
        """The repository's tags, page by page. Raises ImageNotFound, RegistryError (also for lists without an end)."""
        try:
            yield from _pages(
                self.client,
                self.registry,
                f"{self.name}/tags/list",
                key="tags",
                scopes=self.pull_scopes,
                repository=self.name,
                page_items=page_items,
            )
        except NotFound as error:
            raise ImageNotFound(Reference(self.reference.host, self.name)) from error

    def referrers(self, digest: Digest, *, artifact_type: str = "") -> tuple[Descriptor, ...]:
        """What refers to ``digest`` as its subject: by the referrers API, else by the tag that stands in for it."""
        query = [("artifactType", artifact_type)] if artifact_type else []
        found: list[Descriptor] = []
        path: str | None = f"{self.name}/referrers/{digest}"
        url: str | None = None
        seen: set[str] = set()
        while True:
            if url is None:
                response = self.registry.send(
                    "GET",
                    path or "",
                    scopes=self.pull_scopes,
                    repository=self.name,
                    query=query,
                    headers={"Accept": OCI_INDEX},
                )
            else:
                response = self.registry.send_request(
                    Request("GET", url), scopes=self.pull_scopes, repository=self.name
                )
            with response:
                if response.status != 200:
                    # Registries without the API answer 404, some 400 or 405, docker's own with a page for people.
                    if response.status in (400, 404, 405, 501):
                        break
                    raise self._refused(self.registry, response)
                data = response.read(MANIFEST_BYTES)
                try:
                    found += Index.from_bytes(data).manifests
                except InvalidImage:
                    break
                url = _next_page(response, seen)
            if url is None:
                return _of_type(found, artifact_type)
        fallback = self.referrers_tag(digest)
        return () if fallback is None else _of_type(list(Index.from_bytes(fallback.data).manifests), artifact_type)

    def referrers_tag(self, digest: Digest) -> ManifestContent | None:
        """The index that stands in for the referrers API ("Referrers Tag Schema"), None if there is none."""
        try:
            found = self._get_manifest(self.registry, referrers_tag(digest))
        except NotFound:
            return None
        return found if found.descriptor.media_type in INDEX_TYPES else None

    # --- inside ---

    def _named(self, target: str) -> Reference:
        try:
            return self.reference.with_digest(Digest.parse(target))
        except InvalidDigest:
            return self.reference.with_tag(target)

    def _first(self, ask: Callable[[Endpoint], T]) -> T:
        # Mirrors may lack anything or be broken; only the registry's own failure counts.
        for endpoint in self.endpoints[:-1]:
            if endpoint.down:
                continue
            try:
                return ask(endpoint)
            except ConnectionFailed:
                endpoint.down = True
            except RegistryError:
                continue
        return ask(self.registry)

    def _refused(self, endpoint: Endpoint, response: Response) -> UnexpectedStatus:
        return self.client.refused(response, endpoint.credentials_host)

    def _delete(self, target: str) -> Response:
        scopes = frozenset({f"repository:{self.name}:delete,pull,push"})
        return self.registry.send("DELETE", f"{self.name}/manifests/{target}", scopes=scopes, repository=self.name)

    def _manifest_request(
        self, endpoint: Endpoint, method: str, target: str, *, scopes: frozenset[str] | None = None
    ) -> Response:
        return endpoint.send(
            method,
            f"{self.name}/manifests/{quote(target, safe=':')}",
            scopes=scopes or self.pull_scopes,
            repository=self.name,
            headers={"Accept": _ACCEPT},
        )

    def _get_manifest(
        self,
        endpoint: Endpoint,
        target: str,
        *,
        expected: Descriptor | None = None,
        scopes: frozenset[str] | None = None,
    ) -> ManifestContent:
        with self._manifest_request(endpoint, "GET", target, scopes=scopes) as response:
            if response.status != 200:
                raise self._refused(endpoint, response)
            data = response.read(MANIFEST_BYTES)
            declared = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            announced = _digest_header(response)
        return verified(self._named(target), data, declared=declared, announced=announced, expected=expected)


def _described(response: Response, target: str) -> Descriptor | None:
    # What HEAD tells, if it is enough: many registries leave out one header or another.
    digest = _digest_header(response)
    if digest is None and ":" in target:
        digest = Digest.parse(target)
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if response.status != 200 or digest is None or response.length is None:
        return None
    if media_type not in INDEX_TYPES | MANIFEST_TYPES:
        return None
    return Descriptor(media_type, digest, response.length)


def _digest_header(response: Response) -> Digest | None:
    try:
        return Digest.parse(response.headers.get("Docker-Content-Digest", "").strip())
    except InvalidDigest:
        return None


def _range_total(response: Response) -> int:
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isascii() and total.isdigit() and len(total) < 19 else -1


def _of_type(found: list[Descriptor], artifact_type: str) -> tuple[Descriptor, ...]:
    return tuple(item for item in found if not artifact_type or item.artifact_type == artifact_type)


def _next_page(response: Response, seen: set[str]) -> str | None:
    link = next_link(response.headers.get("Link", ""))
    if link is None:
        return None
    url = resolved(response.url, link)
    if url is None or origin(url) != origin(response.url):
        raise RegistryError(f"{urlsplit(response.url).netloc} continues its list at another host")
    if url in seen or len(seen) >= _MAX_PAGES:
        raise RegistryError(f"{urlsplit(response.url).netloc} gave a list that doesn't end")
    seen.add(url)
    return url


def _pages(
    client: RegistryClient,
    endpoint: Endpoint,
    path: str,
    *,
    key: str,
    scopes: frozenset[str],
    repository: str,
    page_items: int,
) -> Iterator[str]:
    seen: set[str] = set()
    names: set[str] = set()
    response = endpoint.send("GET", path, scopes=scopes, repository=repository, query=[("n", str(page_items))])
    while True:
        with response:
            if response.status != 200:
                raise client.refused(response, endpoint.credentials_host)
            items = _names(response.read(_PAGE_BYTES), key, where=str(endpoint))
            url = _next_page(response, seen)
        fresh = [item for item in items if item not in names]
        names.update(fresh)
        yield from fresh
        if url is None:
            return
        if not fresh:
            raise RegistryError(f"{endpoint} gave a list that doesn't end")
        response = endpoint.send_request(Request("GET", url), scopes=scopes, repository=repository)


def _names(data: bytes, key: str, *, where: str) -> Sequence[str]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    items = value.get(key) if isinstance(value, dict) else ()
    if items is None:
        return ()
    if not isinstance(value, dict) or not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise RegistryError(f"{where} gave a list that can't be read")
    return items


__all__ = [
    "MANIFEST_BYTES",
    "ContentMismatch",
    "Denied",
    "ImageNotFound",
    "LoginFailed",
    "ManifestContent",
    "RegistryClient",
    "Repository",
    "Unauthorized",
    "UnsupportedManifest",
    "checked_media_type",
    "referrers_tag",
]
