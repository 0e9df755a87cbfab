"""Software bills of materials: a scanner image runs over the result and leaves in-toto statements.

Owns BuildKit's SBOM protocol (``docs/attestations/sbom-protocol.md``): the scan as a step of the build, and reading what the scanner wrote.
Knows no scanner.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pybuild.errors import PybuildError, UsageError
from pybuild.layers.descriptor import Platform
from pybuild.layers.digest import Digest
from pybuild.layers.entries import Kind
from pybuild.layers.image import ImageConfig
from pybuild.layers.references import InvalidReference, Reference
from pybuild.layers.views import FileView
from pybuild.values import dataclass

from .attestations import SPDX, STATEMENT_TYPE, Attestation, Subject
from .graph import BindMount, Exec, FileMake, ImageSource, Note, Scratch, TmpfsMount, Vertex
from .protocols import ResolvedImage
from .stage_roots import pinned_name

DEFAULT_GENERATOR: Final = "docker/buildkit-syft-scanner:stable-1"
CORE: Final = "sbom"
_SOURCES: Final = "/run/src"
_OUT: Final = "/run/out"
FILE_LIMIT_BYTES: Final = 40 << 20


class InvalidBundle(PybuildError):
    """What the scanner wrote can't be taken."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(
            f"SBOM scanner output {name!r}: {problem}",
            hint="the scanner writes in-toto statements in JSON to $BUILDKIT_SCAN_DESTINATION",
        )
        self.name = name


class NoScannerCommand(PybuildError):
    """The generator image starts nothing."""

    def __init__(self, generator: str) -> None:
        super().__init__(f"scanner {generator} does not have cmd", hint="give a generator image with ENTRYPOINT or CMD")
        self.generator = generator


@dataclass(frozen=True, slots=True)
class ScannerChoice:
    """``--sbom``'s attributes: the ``generator`` image's canonical name, and parameters for it."""

    generator: str
    parameters: Mapping[str, str]

    @classmethod
    def parse(cls, attributes: Mapping[str, str]) -> ScannerChoice:
        """Raises UsageError."""
        generator = attributes.get("generator", DEFAULT_GENERATOR)
        if not generator:
            raise UsageError("sbom scanner cannot be empty", hint="write --sbom generator=IMAGE")
        try:
            name = Reference.parse(generator).canonical
        except InvalidReference as error:
            raise UsageError(f"failed to parse sbom scanner {generator}: {error.message}", hint=error.hint) from error
        return cls(name, {key: value for key, value in attributes.items() if key != "generator"})


def scan_step(
    scanner: ResolvedImage,
    choice: ScannerChoice,
    *,
    core: Vertex,
    extras: Sequence[tuple[str, Vertex]],
    machine: Platform,
    platform: str,
    nonce: str = "",
) -> Vertex:
    """The step that scans ``core``, the result, and ``extras``, further trees by name. ``machine``: where the scanner runs; ``platform``: the
    result's, for the title. Raises NoScannerCommand."""
    config = scanner.config
    args = (*(config.entrypoint or ()), *(config.cmd or ()))
    if not args:
        raise NoScannerCommand(choice.generator)
    title = f"[{platform}] generating sbom using {choice.generator}"
    source = ImageSource(pinned_name(scanner), scanner.manifest.digest, config.diff_ids, machine)
    root = Vertex(source, (), Note(f"FROM {source.reference}")) if config.diff_ids else _nothing()
    ready = Vertex(FileMake(directory=_OUT, nonce=nonce), (root,), Note(f"{title}: make {_OUT}"))
    mounts: list[BindMount | TmpfsMount] = [
        TmpfsMount("/tmp"),
        BindMount(f"{_SOURCES}/core/{CORE}", 1),
        *(BindMount(f"{_SOURCES}/extras/{CORE}-{name}", 2 + number) for number, (name, _) in enumerate(extras)),
    ]
    step = Exec(
        args=args,
        env=_environment(config, choice, extras=bool(extras)),
        cwd=config.working_dir or "/",
        user="",
        platform=machine,
        mounts=tuple(mounts),
        nonce=nonce,
    )
    trees = (_scannable(core), *(_scannable(tree) for _, tree in extras))
    return Vertex(step, (ready, *trees), Note(title, instruction=title, stage="sbom"))


def _nothing() -> Vertex:
    return Vertex(Scratch(), (), Note("FROM scratch"))


def _scannable(tree: Vertex) -> Vertex:
    """A result that is nothing at all has no directory to mount: an empty one stands for it."""
    if not isinstance(tree.op, Scratch):
        return tree
    return Vertex(FileMake(directory="/"), (tree,), Note("empty result"))


def _environment(config: ImageConfig, choice: ScannerChoice, *, extras: bool) -> tuple[tuple[str, str], ...]:
    env = {name: value for name, _, value in (item.partition("=") for item in config.env)}
    env["BUILDKIT_SCAN_DESTINATION"] = f"{_OUT}/"
    env["BUILDKIT_SCAN_SOURCE"] = f"{_SOURCES}/core/{CORE}"
    if extras:
        env["BUILDKIT_SCAN_SOURCE_EXTRAS"] = f"{_SOURCES}/extras"
    for key, value in sorted(choice.parameters.items()):
        env[f"BUILDKIT_SCAN_{key}"] = value
    return tuple(env.items())


# --- what the scanner wrote ------------------------------------------------------------------------------------------


def read_bundle(view: FileView) -> tuple[Attestation, ...]:
    """The statements in a finished scan's file system, the one about the result itself first. Raises InvalidBundle."""
    found = []
    for name, node in view.children(_OUT.lstrip("/")):
        if node.kind is not Kind.FILE:
            raise InvalidBundle(name, "is not a regular file")
        if node.size > FILE_LIMIT_BYTES:
            raise InvalidBundle(name, f"exceeds {FILE_LIMIT_BYTES} bytes")
        with view.open(f"{_OUT}/{name}".lstrip("/")) as file:
            found.append(_attestation(name, file.read(FILE_LIMIT_BYTES + 1)))
    return tuple(sorted(found, key=lambda each: not each.core))


def _attestation(name: str, data: bytes) -> Attestation:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidBundle(name, f"cannot decode in-toto statement: {error}") from error
    if not isinstance(document, dict):
        raise InvalidBundle(name, "in-toto statement is not a single JSON object")
    kind = document.get("predicateType")
    if kind != SPDX:
        raise InvalidBundle(name, f"bundle entry {kind} does not match required predicate type {SPDX}")
    if "_type" in document and not str(document["_type"]).startswith(STATEMENT_TYPE.rpartition("/")[0]):
        raise InvalidBundle(name, f"is no in-toto statement but {document['_type']!r}")
    predicate: Any = document.get("predicate")  # Any: a JSON value
    return Attestation(
        path=name,
        predicate_type=SPDX,
        predicate=lambda blobs: predicate,
        subjects=_subjects(name, document.get("subject")),
        core=name.partition(".")[0] == CORE,
    )


def _subjects(name: str, value: object) -> tuple[Subject, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InvalidBundle(name, "its subject is not a list")
    out = []
    for item in value:
        digests = item.get("digest") if isinstance(item, dict) else None
        if not isinstance(digests, dict):
            raise InvalidBundle(name, "a subject has no digest")
        pairs = tuple((str(algorithm), str(hex)) for algorithm, hex in digests.items())
        out.append(Subject(str(item.get("name") or "_"), pairs))
    return tuple(out)


def with_layers(document: Any, layer_of: Mapping[str, Digest], *, tool: str) -> Any:  # Any: a JSON value
    """An SPDX document whose files say which layer they are in, unless they have a comment already. ``layer_of``: the digest of a layer's blob by
    absolute path; ``tool``: is added to the creators. What is no SPDX document stays as it is."""
    if not isinstance(document, dict) or not str(document.get("spdxVersion", "")).startswith("SPDX-2."):
        return document
    out = dict(document)
    if isinstance(out.get("files"), list):
        out["files"] = [_with_layer(file, layer_of) for file in out["files"]]
    creation = out.get("creationInfo")
    info = dict(creation) if isinstance(creation, dict) else {}
    creators = info.get("creators")
    info["creators"] = [*(creators if isinstance(creators, list) else ()), f"Tool: {tool}"]
    out["creationInfo"] = info
    return out


def _with_layer(file: Any, layer_of: Mapping[str, Digest]) -> Any:  # Any: a JSON value
    if not isinstance(file, dict) or file.get("comment"):
        return file
    layer = layer_of.get(_absolute(file.get("fileName")))
    return file if layer is None else {**file, "comment": f"layerID: {layer}"}


def files_of(document: Any) -> list[str]:  # Any: a JSON value
    """The absolute paths of the files that an SPDX document lists."""
    files = document.get("files") if isinstance(document, dict) else None
    if not isinstance(files, list):
        return []
    return [_absolute(file.get("fileName")) for file in files if isinstance(file, dict)]


def _absolute(name: object) -> str:
    return "/" + posixpath.normpath(f"/{name or ''}").lstrip("/")
