"""One place that answers the distribution API: a registry or a mirror of one. Scheme, path prefix and Authorization are settled here.

Never interprets what the API answers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlencode, urlsplit

from pybuild.values import dataclass

from .auth import Authenticator
from .credentials import normal_host
from .links import resolved
from .settings import RegistrySettings, api_host
from .transport import Body, ConnectionFailed, RegistryError, Request, Response, Transport, origin

_AUTH_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Place:
    """Where an endpoint is. ``host``: as in references and in the configuration; ``prefix``: a path below ``/v2/`` that a mirror
    serves another registry under; ``namespace``: the registry that a mirror stands in for, empty for the registry itself."""

    host: str
    prefix: str = ""
    namespace: str = ""
    scheme: str = ""


def places(settings: RegistrySettings, host: str, *, mirrors: bool) -> tuple[Place, ...]:
    """The mirrors of ``host`` in their order (if ``mirrors``), then the registry itself."""
    found: list[Place] = []
    for mirror in settings.host(host).mirrors if mirrors else ():
        parts = urlsplit(mirror if "://" in mirror else f"//{mirror}")
        path = parts.path.strip("/").removeprefix("v2").strip("/")
        found.append(Place(parts.netloc.rpartition("@")[2], path, host, parts.scheme))
    return (*found, Place(host))


class Endpoint:
    """Sends API requests to one place. Thread-safe."""

    def __init__(self, place: Place, *, transport: Transport, auth: Authenticator) -> None:
        self.place = place
        self.transport = transport
        self._auth = auth
        self._schemes = (place.scheme,) if place.scheme in ("http", "https") else transport.settings.schemes(place.host)
        self._scheme = self._schemes[0]
        self._settled = len(self._schemes) == 1
        self._settling = threading.RLock()
        self.head_refused = False
        """The registry answered 405 to a HEAD: use GET."""
        self.down = False
        """No connection could be made: a mirror that is not to be asked again."""

    def __str__(self) -> str:
        return self.place.host

    @property
    def credentials_host(self) -> str:
        return normal_host(self.place.host)

    def url(self, path: str, query: Iterable[tuple[str, str]] = ()) -> str:
        """The URL of an API path such as ``library/alpine/tags/list``."""
        pairs = list(query)
        if self.place.namespace:
            pairs.append(("ns", self.place.namespace))
        prefix = f"{self.place.prefix}/" if self.place.prefix else ""
        tail = f"?{urlencode(pairs, safe=':/')}" if pairs else ""
        return f"{self._scheme}://{api_host(self.place.host)}/v2/{prefix}{path}{tail}"

    def send(
        self,
        method: str,
        path: str,
        *,
        scopes: frozenset[str] = frozenset(),
        repository: str = "",
        query: Iterable[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        retry: bool = True,
        answer_timeout_seconds: float | None = None,
    ) -> Response:
        """Send a request for an API path, with authentication. Raises the transport's errors and LoginFailed."""
        pairs = tuple(query)

        def attempt() -> Response:
            request = Request(
                method,
                self.url(path, pairs),
                headers=headers or {},
                body=body,
                retry=retry,
                answer_timeout_seconds=answer_timeout_seconds,
            )
            return self.send_request(request, scopes=scopes, repository=repository)

        return self._with_scheme(attempt)

    def probe(self) -> Response:
        """Ask for the API's root without any credentials: 200, or 401 with the challenges. Any other status may come as well."""

        def attempt() -> Response:
            return self.transport.send(Request("GET", self.url("")))

        return self._with_scheme(attempt)

    def send_request(self, request: Request, *, scopes: frozenset[str], repository: str = "") -> Response:
        """Send to a URL that the registry gave. The Authorization header goes along only if it is the registry's own origin."""
        if origin(request.url) != origin(self.url("")):
            return self.transport.send(request)
        host = self.credentials_host
        sent = self._auth.header(request.url, host=host, scopes=scopes, repository=repository)
        for round_ in range(_AUTH_ROUNDS + 1):
            headers = dict(request.headers)
            if sent is not None:
                headers["Authorization"] = sent
            response = self.transport.send(
                Request(
                    request.method,
                    request.url,
                    headers=headers,
                    body=request.body,
                    retry=request.retry,
                    follow=request.follow,
                    answer_timeout_seconds=request.answer_timeout_seconds,
                )
            )
            if response.status != 401 or origin(response.url) != origin(request.url) or round_ == _AUTH_ROUNDS:
                return response
            try:
                sent = self._auth.answer(response, host=host, scopes=scopes, sent=sent, repository=repository)
            except BaseException:
                response.close()
                raise
            if sent is None:
                return response
            response.close()
            refused = self._auth.refused(request.url, repository)
            if refused is not None and round_ > 0:
                raise refused
        raise AssertionError("the last round returns")

    def absolute(self, response: Response, location: str) -> str:
        """The URL that a Location header means.

        A registry behind a TLS proxy may name itself with http, not knowing better: its own host without TLS becomes https again.
        Raises RegistryError for anything that isn't HTTP.
        """
        url = resolved(response.url, location)
        if url is None:
            raise RegistryError(f"{self.place.host} gave a Location that is not a URL")
        parts, ours = urlsplit(url), urlsplit(response.url)
        if (
            parts.scheme == "http"
            and ours.scheme == "https"
            and parts.hostname == ours.hostname
            and parts.port in (None, 80, ours.port)
        ):
            url = parts._replace(scheme="https", netloc=ours.netloc).geturl()
        return url

    def _wants_tls(self) -> bool:
        # What Go's and nginx's servers say to plain HTTP on a TLS port. The answer to a HEAD would have no text, so ask with GET.
        with self.transport.send(Request("GET", self.url(""))) as response:
            said = next(response.chunks(4096), b"").lower()
        return response.status == 400 and (b"https" in said or b"tls" in said)

    def _with_scheme(self, attempt: Callable[[], Response]) -> Response:
        # The first request finds out which scheme the place speaks, while others wait.
        if not self._settled:
            with self._settling:
                if not self._settled:
                    response = self._find_scheme(attempt)
                    self._settled = True
                    return response
        return attempt()

    def _find_scheme(self, attempt: Callable[[], Response]) -> Response:
        last: RegistryError | None = None
        for scheme in self._schemes:
            self._scheme = scheme
            try:
                response = attempt()
            except ConnectionFailed as error:
                # Either side of a wrong guess: TLS bytes read as HTTP, or plain text read as TLS.
                if error.kind not in ("protocol", "tls", "reset") or "not trusted" in error.reason:
                    raise
                last = last or error
                continue
            if scheme == "http" and response.status == 400 and scheme != self._schemes[-1] and self._wants_tls():
                response.close()
                continue
            return response
        self._scheme = self._schemes[0]
        raise last or RegistryError(f"{self.place.host} answers neither HTTP nor HTTPS")
