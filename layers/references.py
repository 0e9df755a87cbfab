"""Image references: the text after ``FROM``, ``pull`` and ``push``, in every form that docker accepts.

Owns parsing, defaults and the two ways of writing a reference back. Never asks a registry and never looks at the store.

    [host[:port]/]path[/path…][:tag][@algorithm:hex]
    alpine                          docker.io   library/alpine
    alpine:3@sha256:…               docker.io   library/alpine   tag and digest
    localhost/app                   localhost   app
    [::1]:5000/team/app             [::1]:5000  team/app

The grammar is the one of the distribution project's ``reference`` package, which the distribution specification's
``<name>`` and ``<reference>`` patterns ("Pull", "Pulling manifests") narrow for the path and the tag.
"""

from __future__ import annotations

from typing import Final

from pybuild.errors import PybuildError
from pybuild.values import dataclass, pattern, replace

from .digest import Digest, InvalidDigest

DEFAULT_HOST: Final = "docker.io"
DEFAULT_NAMESPACE: Final = "library"
DEFAULT_TAG: Final = "latest"

_COMPONENT: Final = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_LABEL: Final = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = pattern(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]{{1,5}})?\Z")
_PATH = pattern(rf"{_COMPONENT}(?:/{_COMPONENT})*\Z")
_TAG = pattern(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_IMAGE_ID = pattern(r"[a-f0-9]{64}\Z")
_NAME_LIMIT: Final = 255
_INPUT_LIMIT: Final = 1024


class InvalidReference(PybuildError):
    """The text names no image: wrong characters, an upper-case repository, an empty part."""

    exit_code = 2

    def __init__(self, text: str, reason: str, *, hint: str | None = None) -> None:
        # The first words are those of the distribution project's package, which clients and scripts look for.
        super().__init__(f"invalid reference format: {reason}", hint=hint)
        self.text = text


@dataclass(frozen=True, slots=True)
class Reference:
    """Where an image is: a registry's host, a repository there, and a tag, a digest, both or neither.

    ``host`` may carry a port and is ``docker.io`` when the text named none. ``tag`` is None when the text had none: use
    ``with_default_tag`` where docker would take ``latest``.
    """

    host: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference as a user types it. Raises InvalidReference."""
        if not text:
            raise InvalidReference(text, "the name is empty")
        if len(text) > _INPUT_LIMIT:
            raise InvalidReference(text, f"the name is longer than {_INPUT_LIMIT} characters")
        if _IMAGE_ID.match(text):
            raise InvalidReference(
                text,
                f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings",
                hint=f"to name it by digest, write sha256:{text}",
            )
        name, at, digest_text = text.partition("@")
        digest = None
        if at:
            try:
                digest = Digest.parse(digest_text)
            except InvalidDigest as error:
                raise InvalidReference(text, f"{digest_text[:140]!r} is not a digest", hint=error.hint) from error
        name, tag = _split_tag(name)
        if tag is not None and not _TAG.match(tag):
            raise InvalidReference(
                text,
                f"{tag[:140]!r} is not a tag",
                hint="a tag has letters, digits, '_', '.' and '-', doesn't start with '.' or '-' and is at most 128 long",
            )
        host, repository = _split_host(name)
        if not repository:
            raise InvalidReference(text, f"the repository is missing in {text!r}")
        if not _HOST.match(host):
            raise InvalidReference(text, f"{host!r} is not a host name")
        if repository != repository.lower() and _PATH.match(repository.lower()):
            raise InvalidReference(
                text, f"repository name ({repository}) must be lowercase", hint=f"write {name.lower()!r}"
            )
        if not _PATH.match(repository):
            hint = "remove the scheme: a reference is not a URL" if "://" in text else None
            raise InvalidReference(text, f"{repository!r} is not a repository name", hint=hint)
        if len(repository) > _NAME_LIMIT:
            raise InvalidReference(text, f"the repository name is longer than {_NAME_LIMIT} characters")
        return cls(host, repository, tag, digest)

    @property
    def name(self) -> str:
        """Host and repository, complete: ``docker.io/library/alpine``."""
        return f"{self.host}/{self.repository}"

    @property
    def familiar_name(self) -> str:
        """Host and repository as docker shows them: ``alpine``."""
        if self.host != DEFAULT_HOST:
            return self.name
        namespace, slash, rest = self.repository.partition("/")
        return rest if slash and namespace == DEFAULT_NAMESPACE and "/" not in rest else self.repository

    @property
    def familiar(self) -> str:
        """Docker's short form, with just the tag and digest that the reference has: ``alpine:3``."""
        return self.familiar_name + self._suffix()

    @property
    def canonical(self) -> str:
        """The complete form, with ``latest`` where there is neither tag nor digest: ``docker.io/library/alpine:latest``."""
        return self.name + self.with_default_tag()._suffix()

    @property
    def target(self) -> str:
        """What to ask the registry for: the digest if there is one, else the tag, else ``latest``."""
        return str(self.digest) if self.digest is not None else self.tag or DEFAULT_TAG

    def with_default_tag(self) -> Reference:
        """The same, tagged ``latest`` if it had neither tag nor digest."""
        return self if self.tag is not None or self.digest is not None else replace(self, tag=DEFAULT_TAG)

    def with_tag(self, tag: str) -> Reference:
        """The repository with this tag and no digest. Raises InvalidReference if it is not a tag."""
        if not _TAG.match(tag):
            raise InvalidReference(f"{self.familiar_name}:{tag}", f"{tag[:140]!r} is not a tag")
        return replace(self, tag=tag, digest=None)

    def with_digest(self, digest: Digest) -> Reference:
        """The repository with this digest and no tag."""
        return replace(self, tag=None, digest=digest)

    def pinned(self, digest: Digest) -> Reference:
        """With ``digest``; a tag is kept."""
        return replace(self, digest=digest)

    def __str__(self) -> str:
        return self.familiar

    def _suffix(self) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        return tag if self.digest is None else f"{tag}@{self.digest}"


def _split_tag(name: str) -> tuple[str, str | None]:
    # A colon after the last slash separates a tag; one before it, or within an IPv6 host, belongs to the host.
    head, slash, last = name.rpartition("/")
    if not slash and last.startswith("["):
        return name, None
    last, colon, tag = last.partition(":")
    return (head + slash + last, tag) if colon else (name, None)


def _split_host(name: str) -> tuple[str, str]:
    # The first component is a host if it looks like one: a dot, a colon, "localhost", or an upper-case letter (which
    # a repository can't have). Everything else lives on docker.io.
    first, slash, rest = name.partition("/")
    if not slash or not (set(".:[") & set(first) or first == "localhost" or first != first.lower()):
        host, repository = DEFAULT_HOST, name
    else:
        host, repository = first, rest
    if host in ("index.docker.io", "registry-1.docker.io"):
        host = DEFAULT_HOST
    if host == DEFAULT_HOST and repository and "/" not in repository:
        repository = f"{DEFAULT_NAMESPACE}/{repository}"
    return host, repository
