"""Sources as a source policy leaves them: images, files and repositories, refused or fetched from elsewhere. Wraps what fetches them."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, Protocol

from pybuild.builder.git_reference import parse_git_reference
from pybuild.builder.graph import GitSource, HttpSource
from pybuild.builder.protocols import HttpFile, ImageSource, ResolvedImage
from pybuild.builder.source_policy import InvalidSourcePolicy, Source, SourcePolicy
from pybuild.layers.descriptor import Platform
from pybuild.layers.digest import Digest
from pybuild.layers.references import Reference
from pybuild.values import replace

_IMAGE: Final = "docker-image://"
_GIT: Final = "git://"


class Remotes(Protocol):
    """What ``RemotesOnDemand`` offers."""

    def http(self, url: str, *, checksum: Digest | None) -> HttpFile: ...

    def http_time(self, source: HttpSource) -> int | None: ...

    def git_commit(self, remote: str, ref: str, *, checksum: str = "") -> str: ...

    def git_tree(
        self, remote: str, *, commit: str, ref: str, subdir: str, keep_git_dir: bool, submodules: bool
    ) -> AbstractContextManager[str]: ...

    def git_commit_time(self, remote: str, commit: str) -> float: ...

    def git_time(self, source: GitSource) -> int | None: ...


class PolicedImages:
    """An ImageSource that asks the policy first. What lies in an OCI layout of this machine is not asked about."""

    def __init__(self, inner: ImageSource, policy: SourcePolicy) -> None:
        self._inner = inner
        self._policy = policy

    def resolve(self, reference: str, *, platform: Platform, pull: bool) -> ResolvedImage:
        """See ImageSource. Raises SourceDenied, InvalidSourcePolicy too."""
        if not reference.startswith("oci-layout://"):
            asked = Source(_IMAGE + reference)
            changed = self._policy.apply(asked).identifier
            if not changed.startswith(_IMAGE):
                raise InvalidSourcePolicy(f"an image can't be replaced by {changed} here")
            if changed != asked.identifier:
                reference = Reference.parse(changed.removeprefix(_IMAGE)).canonical
        return self._inner.resolve(reference, platform=platform, pull=pull)

    def ensure_layers(self, image: ResolvedImage, *, on_progress: Callable[[str, int, int], None]) -> None:
        """See ImageSource."""
        self._inner.ensure_layers(image, on_progress=on_progress)

    def know_layers(self, image: ResolvedImage) -> None:
        """See ImageSource."""
        self._inner.know_layers(image)


class PolicedRemotes:
    """Remote sources that ask the policy first."""

    def __init__(self, inner: Remotes, policy: SourcePolicy) -> None:
        self._inner = inner
        self._policy = policy

    def http(self, url: str, *, checksum: Digest | None) -> HttpFile:
        """See RemoteSources. Raises SourceDenied, InvalidSourcePolicy too."""
        url, checksum = self._http(url, checksum)
        return self._inner.http(url, checksum=checksum)

    def http_time(self, source: HttpSource) -> int | None:
        """See EpochSource."""
        url, checksum = self._http(source.url, source.checksum)
        return self._inner.http_time(replace(source, url=url, checksum=checksum))

    def git_commit(self, remote: str, ref: str, *, checksum: str = "") -> str:
        """See RemoteSources."""
        remote, ref = self._git(remote, ref)
        return self._inner.git_commit(remote, ref, checksum=checksum)

    def git_tree(
        self, remote: str, *, commit: str, ref: str, subdir: str, keep_git_dir: bool, submodules: bool
    ) -> AbstractContextManager[str]:
        """See RemoteSources."""
        remote, ref = self._git(remote, ref)
        return self._inner.git_tree(
            remote, commit=commit, ref=ref, subdir=subdir, keep_git_dir=keep_git_dir, submodules=submodules
        )

    def git_commit_time(self, remote: str, commit: str) -> float:
        """See ContextRemotes."""
        return self._inner.git_commit_time(self._git(remote, "")[0], commit)

    def git_time(self, source: GitSource) -> int | None:
        """See EpochSource."""
        remote, ref = self._git(source.remote, source.ref)
        return self._inner.git_time(replace(source, remote=remote, ref=ref))

    def _http(self, url: str, checksum: Digest | None) -> tuple[str, Digest | None]:
        attributes = {} if checksum is None else {"http.checksum": str(checksum)}
        changed = self._policy.apply(Source(url, attributes))
        if not changed.identifier.startswith(("http://", "https://")):
            raise InvalidSourcePolicy(f"{url} can't be replaced by {changed.identifier}")
        wanted = changed.attributes.get("http.checksum")
        return changed.identifier, Digest.parse(wanted) if wanted else checksum

    def _git(self, remote: str, ref: str) -> tuple[str, str]:
        plain = re.sub(r"\A[a-z]+://|\A(?=[^/]+@)", _GIT, remote)
        plain = re.sub(r"\Agit://([^/:]+):(?!\d)", r"git://\1/", plain)
        asked = Source(plain + (f"#{ref}" if ref else ""), {"git.fullurl": remote})
        changed = self._policy.apply(asked)
        if changed == asked:
            return remote, ref
        identifier, _, new_ref = changed.identifier.partition("#")
        url = changed.attributes["git.fullurl"]
        if url == remote and identifier != plain:
            url = identifier.replace(_GIT, "https://", 1)
        if parse_git_reference(url) is None and not url.startswith(("http://", "https://", "file://")):
            raise InvalidSourcePolicy(f"{remote} can't be replaced by {changed.identifier}")
        return url, new_ref.partition(":")[0] or ref
