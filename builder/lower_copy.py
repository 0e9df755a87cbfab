"""COPY and ADD: from the instruction to the vertexes that copy.

Owns classifying the sources (paths, here-documents, URLs, git), resolving the destination, and the checks of flags that need
expanded values. One instruction always ends in exactly one layer: sources of several origins are first gathered in a tree of
their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from urllib.parse import unquote, urlsplit

from pybuild.errors import PybuildError
from pybuild.layers.digest import Digest
from pybuild.parser.ast import Add, Copy, Heredoc, Word
from pybuild.parser.errors import DockerfileError
from pybuild.parser.expand import expand_heredoc
from pybuild.values import dataclass, pattern, replace

from .git_reference import GitReference, InvalidGitReference, parse_git_reference
from .graph import FileCopy, GitSource, HttpSource, InlineFile, Merge, Note, Scratch, Unpack, Vertex
from .image_config import clean_path, resolve_destination, to_slashes
from .stage_state import StageState
from .value_checks import check_mode

_GLOB: Final = pattern(r"([*?\[\\])")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the plain paths of an instruction come from."""

    vertex: Vertex
    keep_owner: bool


@dataclass(frozen=True, slots=True)
class _Part:
    """Sources that share one tree."""

    vertex: Vertex
    sources: tuple[str, ...]
    unpack: Unpack = Unpack.NEVER
    keep_owner: bool = False
    parents: bool = False
    keep_mode: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Flags:
    owner: str
    mode: str
    checksum: str
    link: bool


def lower_copy(
    state: StageState,
    instruction: Copy | Add,
    *,
    origin: Callable[[], Origin],
    commit_of: Callable[[GitReference], str],
) -> None:
    """Lower one COPY or ADD. ``origin``: called if a source is a path; ``commit_of``: the commit of a git reference, "" while unknown.
    Raises DockerfileError."""
    flags = _flags(state, instruction)
    paths = [state.expand(source, instruction) for source in instruction.sources if isinstance(source, Word)]
    destination_text = state.expand(instruction.destination, instruction)
    path = to_slashes(destination_text) if state.windows else destination_text
    destination = resolve_destination(state.directory, path)
    heredocs = [source for source in instruction.sources if isinstance(source, Heredoc)]
    inline = tuple(_inline(state, heredoc, instruction) for heredoc in heredocs)
    if flags.checksum:
        check_checksum(instruction, paths)
    shown = state.shown(instruction)
    title = state.next_title(shown)
    note = state.note(title, shown, instruction.span)
    parts = _parts(instruction, paths, flags, note=note, origin=origin, commit_of=commit_of)
    nonce = state.nonce()
    part = _gather(parts, note, flags.mode, nonce) if len(parts) > 1 else (parts[0] if parts else None)
    link = flags.link and not flags.mode  # BuildKit's rule: --chmod needs the file's own layer below
    operation = FileCopy(
        sources=part.sources if part else (),
        destination=destination,
        inline=inline,
        owner=flags.owner,
        keep_owner=part.keep_owner if part else False,
        mode=flags.mode or None,
        keep_mode=part.keep_mode if part else (),
        exclude=part.exclude if part else (),
        parents=part.parents if part else False,
        unpack=part.unpack if part else Unpack.NEVER,
        link=link,
        nonce=nonce,
    )
    trees = (part.vertex,) if part else ()
    if link:
        copied = Vertex(operation, trees, note)
        merged = replace(note, title=state.title(f"LINK {shown}"), grouped=True)
        vertex = Vertex(Merge(), (state.root(), copied), merged)
    else:
        vertex = Vertex(operation, (state.root(), *trees), note)
    state.commit_layer(vertex, _history_text(instruction, flags, paths, heredocs, destination_text))


def _flags(state: StageState, instruction: Copy | Add) -> _Flags:
    def value(word: Word | None) -> str:
        return "" if word is None else state.expand(word, instruction)

    owner, mode = value(instruction.chown), value(instruction.chmod)
    checksum = value(instruction.checksum) if isinstance(instruction, Add) else ""
    if instruction.chmod is not None:
        check_mode(instruction.chmod, mode)
    return _Flags(owner, mode, checksum, instruction.link)


def _inline(state: StageState, heredoc: Heredoc, instruction: Copy | Add) -> InlineFile:
    content = heredoc.content
    if heredoc.expand:
        expansion = expand_heredoc(content, state.env, escape="\\")
        if expansion.unset:
            state.findings.undefined(expansion.unset, state.env, state.arguments, instruction)
        content = expansion.text
    return InlineFile(heredoc.name, content.encode("utf-8", "surrogateescape"))


def check_checksum(instruction: Copy | Add, paths: list[str]) -> None:
    """Raises DockerfileError unless there is one source, and it is remote. ``paths``: the sources that are no here-documents."""
    culprit = instruction.checksum.span if isinstance(instruction, Add) and instruction.checksum else None
    if len(paths) != 1:
        raise DockerfileError(
            "checksum can't be specified for multiple sources",
            span=instruction.span,
            culprit=culprit,
            hint="use one ADD for each source",
        )
    if not (_is_url(paths[0]) or _git(paths[0], instruction) is not None):
        raise DockerfileError("checksum requires HTTP(S) or Git sources", span=instruction.span, culprit=culprit)


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _git(source: str, instruction: Copy | Add) -> GitReference | None:
    try:
        return parse_git_reference(source)
    except InvalidGitReference as error:
        raise DockerfileError(str(error), span=instruction.span, hint=error.hint) from error


def _parts(
    instruction: Copy | Add,
    paths: list[str],
    flags: _Flags,
    *,
    note: Note,
    origin: Callable[[], Origin],
    commit_of: Callable[[GitReference], str],
) -> list[_Part]:
    exclude = tuple(word.text for word in instruction.exclude)
    parents = isinstance(instruction, Copy) and instruction.parents
    unpack_paths = isinstance(instruction, Add) and instruction.unpack is not False
    parts: list[_Part] = []
    plain: _Part | None = None
    for source in paths:
        reference = _git(source, instruction)
        if reference is None and not _is_url(source):
            path = _rooted(source, parents=parents)
            if plain is not None and parts[-1] is plain:
                plain = parts[-1] = replace(plain, sources=(*plain.sources, path))
                continue
            tree_of = origin()
            plain = _Part(
                tree_of.vertex,
                (path,),
                unpack=Unpack.LOCAL if unpack_paths else Unpack.NEVER,
                keep_owner=tree_of.keep_owner,
                parents=parents,
                exclude=exclude,
            )
            parts.append(plain)
            continue
        if isinstance(instruction, Copy):
            kind = "a URL" if reference is None else "a git ref"
            raise DockerfileError(f"source can't be {kind} for COPY", span=instruction.span, hint="use ADD")
        if reference is not None:
            tree = Vertex(git_source(reference, instruction, flags.checksum, commit_of=commit_of), (), note)
            parts.append(_Part(tree, ("/",), exclude=exclude))
        else:
            file = http_source(source, instruction, flags.checksum)
            unpack = Unpack.LOCAL if instruction.unpack else Unpack.NEVER
            parts.append(_Part(Vertex(file, (), note), (f"/{file.filename}",), unpack=unpack, exclude=exclude))
    return parts


def _rooted(source: str, *, parents: bool) -> str:
    """A source path inside its tree. With ``--parents`` the pivot ``/./`` stays: what is left of it is not repeated at the destination."""
    if parents and "/./" in source:
        before, _, after = source.partition("/./")
        return clean_path(before).rstrip("/") + "/./" + clean_path(after).removeprefix("/")
    return clean_path(source)


def git_source(
    reference: GitReference, instruction: Add, checksum: str, *, commit_of: Callable[[GitReference], str]
) -> GitSource:
    """The operation for a git source of ADD. Raises DockerfileError where flags and query contradict."""
    keep = instruction.keep_git_dir
    if keep is not None and reference.keep_git_dir is not None and keep != reference.keep_git_dir:
        raise DockerfileError("inconsistent keep-git-dir configuration", span=instruction.span)
    if checksum and reference.checksum and checksum != reference.checksum:
        raise DockerfileError(f'checksum mismatch "{checksum}" != "{reference.checksum}"', span=instruction.span)
    checked = replace(reference, checksum=reference.checksum or checksum)
    return GitSource(
        remote=reference.remote,
        ref=reference.ref,
        subdir=reference.subdir,
        commit=commit_of(checked),
        checksum=checked.checksum,
        keep_git_dir=bool(keep if reference.keep_git_dir is None else reference.keep_git_dir),
        submodules=reference.submodules is not False,
    )


def http_source(url: str, instruction: Add, checksum: str) -> HttpSource:
    """The operation for a URL of ADD. Raises DockerfileError for a checksum that is no digest."""
    try:
        name = unquote(urlsplit(url).path).rstrip("/").rpartition("/")[2]
    except ValueError:
        name = ""
    digest = None
    if checksum:
        try:
            digest = Digest.parse(checksum)
        except PybuildError as error:
            known = checksum.partition(":")[0] in {"sha256", "sha384", "sha512"}
            problem = (
                "invalid checksum digest format" if known or ":" not in checksum else "unsupported digest algorithm"
            )
            raise DockerfileError(f"{problem}: {checksum}", span=instruction.span, hint=error.hint) from error
    return HttpSource(url=url, filename=name if name not in {"", ".", ".."} else "__unnamed__", checksum=digest)


def _gather(parts: list[_Part], note: Note, mode: str, nonce: str) -> _Part:
    """Put the sources of several origins side by side in a tree made for it, from which one copy then takes them all.

    Where archives are unpacked, ``mode`` is applied here: it doesn't count for what was in them, and later nobody could tell.
    """
    tree = Vertex(Scratch(), (), note)
    sources: list[str] = []
    keep_mode: list[str] = []
    for number, part in enumerate(parts):
        directory = f"/{number}/"
        moded = bool(mode) and part.unpack is not Unpack.NEVER
        if moded:
            keep_mode.append(directory)
        operation = FileCopy(
            sources=part.sources,
            destination=directory,
            keep_owner=part.keep_owner,
            mode=mode if moded else None,
            exclude=part.exclude,
            parents=part.parents,
            unpack=part.unpack,
            nonce=nonce,
        )
        title = f"{note.title} (source {number + 1} of {len(parts)})"
        tree = Vertex(operation, (tree, part.vertex), replace(note, title=title))
        named = isinstance(part.vertex.op, HttpSource) and part.unpack is Unpack.NEVER
        sources.append(f"/{number}" + _GLOB.sub(r"\\\1", part.sources[0]) if named else directory)
    return _Part(tree, tuple(sources), keep_owner=True, keep_mode=tuple(keep_mode))


def _history_text(
    instruction: Copy | Add, flags: _Flags, paths: list[str], heredocs: list[Heredoc], destination: str
) -> str:
    words = [instruction.name]
    if isinstance(instruction, Copy) and instruction.parents:
        words.append("--parents")
    if flags.owner:
        words.append(f"--chown={flags.owner}")
    if flags.mode:
        words.append(f"--chmod={flags.mode}")
    words += [*paths, *(f"<<{heredoc.name}" for heredoc in heredocs), destination]
    return " ".join(words)
