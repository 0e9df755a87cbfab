"""What is done in registries without a store: listing, reading, deleting, copying and editing images, logging in.

Puts references and the registry client together for the command line and the Engine API. Speaks no HTTP itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pybuild.errors import UsageError
from pybuild.layers.descriptor import Descriptor, Platform
from pybuild.layers.references import Reference

from .registries import Registries

if TYPE_CHECKING:
    from pybuild.registry_client.client import ManifestContent
    from pybuild.registry_client.push import PushReport
    from pybuild.registry_client.transfers import OnTransfer


def list_registry(registries: Registries, name: str) -> Iterator[str]:
    """The repositories of ``HOST/`` (or of a bare host with a port or a dot), else the tags of a repository. Raises RegistryError."""
    if name.endswith("/"):
        return registries.client.catalog(name.rstrip("/"))
    if "/" not in name and (":" in name or "." in name or name == "localhost"):
        return registries.client.catalog(name)
    return registries.client.repository(Reference.parse(name)).tags()


def registry_manifest(registries: Registries, name: str) -> ManifestContent:
    """A manifest or index as the registry has it. Raises RegistryError."""
    reference = Reference.parse(name).with_default_tag()
    return registries.client.repository(reference).get_manifest(reference.target)


def delete(registries: Registries, name: str) -> str:
    """Delete a tag or a manifest. Returns what was deleted. Raises UsageError without tag and digest, RegistryError."""
    from pybuild.registry_client.compose import delete as delete_reference

    reference = Reference.parse(name)
    if reference.tag is None and reference.digest is None:
        raise UsageError("what is to be deleted? give a tag or a digest", hint=f"for example {name}:TAG")
    delete_reference(registries.client, reference)
    return reference.familiar


def referrers(registries: Registries, name: str, *, artifact_type: str = "") -> tuple[Descriptor, ...]:
    """What refers to an image in its registry. Raises RegistryError."""
    reference = Reference.parse(name).with_default_tag()
    repository = registries.client.repository(reference)
    digest = reference.digest
    if digest is None:
        found = repository.head_manifest(reference.target)
        digest = found.digest if found is not None else repository.get_manifest(reference.target).descriptor.digest
    return repository.referrers(digest, artifact_type=artifact_type)


def login(registries: Registries, server: str, username: str, password: str) -> str:
    """Check credentials and keep them (or the token that the registry gives for them). Returns where. Raises RegistryError, CredentialError."""
    from pybuild.registry_client.credentials import Credential, NoCredentials, normal_host
    from pybuild.registry_client.login import login as check

    host = normal_host(server)
    with registries.with_credentials(NoCredentials()) as client:
        kept = check(client, host, Credential(username, password))
    return registries.config.store(host, kept)


def copy(
    registries: Registries,
    source: str,
    destination: str,
    *,
    platform: Platform | None,
    on_transfer: OnTransfer,
    cancel: threading.Event,
) -> PushReport:
    """Copy between registries, layouts and archives without the store. Raises PybuildError."""
    from pybuild.registry_client.copy import copy as copy_image

    return copy_image(registries.client, source, destination, platform=platform, on_progress=on_transfer, cancel=cancel)


def create_index(
    registries: Registries,
    target: str,
    images: Sequence[str],
    *,
    tags: Sequence[str],
    append: bool,
    annotations: Mapping[str, str],
    on_transfer: OnTransfer,
    cancel: threading.Event,
) -> PushReport:
    """Make an index of images in registries, or add to one. Raises CannotCompose, RegistryError."""
    from pybuild.registry_client.compose import create_index as create

    return create(
        registries.client,
        Reference.parse(target).with_default_tag(),
        [Reference.parse(image).with_default_tag() for image in images],
        tags=tags,
        append=append,
        annotations=annotations,
        on_progress=on_transfer,
        cancel=cancel,
    )


def rebase(
    registries: Registries,
    image: str,
    target: str,
    *,
    old_base: str | None,
    new_base: str | None,
    on_transfer: OnTransfer,
    cancel: threading.Event,
) -> PushReport:
    """Put an image's own layers on another base. Raises CannotRebase, RegistryError."""
    from pybuild.registry_client.compose import rebase as rebase_image

    return rebase_image(
        registries.client,
        Reference.parse(image).with_default_tag(),
        Reference.parse(target).with_default_tag(),
        old_base=None if old_base is None else Reference.parse(old_base).with_default_tag(),
        new_base=None if new_base is None else Reference.parse(new_base).with_default_tag(),
        on_progress=on_transfer,
        cancel=cancel,
    )


def flatten(
    registries: Registries, image: str, target: str, *, on_transfer: OnTransfer, cancel: threading.Event
) -> PushReport:
    """Merge an image's layers into one. Raises CannotFlatten, RegistryError."""
    from pybuild.registry_client.flatten import flatten as flatten_image

    return flatten_image(
        registries.client,
        Reference.parse(image).with_default_tag(),
        Reference.parse(target).with_default_tag(),
        on_progress=on_transfer,
        cancel=cancel,
    )
