"""Cache keys: what identifies a step, in one canonical encoding that is also readable.

Owns the recipe (canonical JSON of everything that went into a step) and the two keys made from it. Never reads a file, never looks
anything up. A key is ``sha256:`` of the epoch and the recipe's text, so a recipe explains its key completely.

    definition key   H(epoch, operation, definition keys of the inputs)      known before anything runs
    content key      H(epoch, operation, what the inputs' results are)       known once the inputs have results

Rules of the encoding: JSON with sorted keys and no spaces; every field is named and present, absent is ``null``; what has no order is
sorted; data is replaced by its digest; the note of a vertex, proxy settings, ids of cache mounts and addresses of extra hosts don't
enter. A nonce enters the keys of this build only (see ``plain``). Any change of this module's output raises ``EPOCH``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias, assert_never

from pybuild.layers.descriptor import Platform
from pybuild.layers.digest import Digest
from pybuild.values import dataclass, replace

from .graph import (
    BindMount,
    CacheMount,
    ContextSource,
    Exec,
    FileCopy,
    FileMake,
    GitSource,
    HttpSource,
    ImageSource,
    InlineFile,
    Merge,
    Mount,
    Op,
    Scratch,
    SecretMount,
    SshMount,
    TmpfsMount,
)

EPOCH: Final = 1

Json: TypeAlias = "str | int | bool | Sequence[Json] | Mapping[str, Json] | None"


@dataclass(frozen=True, slots=True)
class Recipe:
    """A key and the text it was made from. ``paths`` (not part of the key's text) are the selected files with their digests."""

    key: str
    text: str


def canonical_json(value: Json) -> str:
    """The one text of a value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def recipe_of(value: Json) -> Recipe:
    """The recipe of a value."""
    text = canonical_json(value)
    hasher = hashlib.sha256(b"pybuild step %d\n" % EPOCH)
    hasher.update(text.encode("utf-8", "surrogateescape"))
    return Recipe(f"sha256:{hasher.hexdigest()}", text)


def definition_key(op: Op, input_keys: Sequence[str]) -> Recipe:
    """The key by definition. ``input_keys``: one text per input of the vertex: an input's definition key, or, for what is
    read from a local context, the content digest of the selection."""
    return recipe_of({"by": "definition", "op": encode(op, input_keys)})


def content_key(op: Op, input_identities: Sequence[str]) -> Recipe:
    """The key by content. ``input_identities``: one text per input: a stack's identity, or the content digest of a selection."""
    return recipe_of({"by": "content", "op": encode(plain(op), input_identities)})


def likeness(op: Op) -> str:
    """A text that is the same for all steps of this operation, whatever they are made from."""
    return recipe_of({"by": "operation", "op": encode(plain(op), ())}).key


def plain(op: Op) -> Op:
    """The operation without its nonce: what later builds, which may use the cache, will look for."""
    if isinstance(op, (Exec, FileCopy, FileMake)) and op.nonce:
        return replace(op, nonce="")
    return op


def nonce_of(op: Op) -> str:
    """The operation's nonce; empty where it has none."""
    return op.nonce if isinstance(op, (Exec, FileCopy, FileMake)) else ""


def stack_identity(stack: Sequence[Digest]) -> str:
    """One text that names a stack of layers, whatever steps made it."""
    hasher = hashlib.sha256(b"pybuild stack\n")
    hasher.update("\n".join(map(str, stack)).encode())
    return f"stack:{hasher.hexdigest()}"


def encode(op: Op, inputs: Sequence[str]) -> Json:
    """An operation as JSON. Inputs appear where they are used, so that their order in the vertex doesn't matter."""
    match op:
        case ImageSource():
            # Neither reference nor manifest: the same content under another name, or compressed again, is the same base.
            return {
                "type": "image",
                "layers": [str(diff_id) for diff_id in op.chain],
                "platform": _platform(op.platform),
            }
        case Scratch():
            return {"type": "scratch"}
        case ContextSource():
            return {"type": "context", "name": op.name}
        case GitSource():
            return {
                "type": "git",
                "remote": op.remote,
                "commit": op.commit,
                "subdir": op.subdir,
                "keep git dir": op.keep_git_dir,
                "submodules": op.submodules,
                # Both show in what --keep-git-dir leaves behind, and nowhere else.
                "ref": op.ref if op.keep_git_dir else None,
            }
        case HttpSource():
            # The address matters only as long as the content is not known.
            checksum = None if op.checksum is None else str(op.checksum)
            return {
                "type": "http",
                "url": op.url if checksum is None else None,
                "checksum": checksum,
                "filename": op.filename,
            }
        case Exec():
            return _exec(op, inputs)
        case FileCopy():
            return _copy(op, inputs)
        case FileMake():
            return {
                "type": "make directory",
                "directory": op.directory,
                "user": op.user,
                "mode": op.mode,
                "nonce": op.nonce or None,
                **({} if op.epoch is None else {"epoch": op.epoch}),
                "root": _at(inputs, 0),
            }
        case Merge():
            return {"type": "merge", "inputs": list(inputs)}
        case _:
            assert_never(op)


def _exec(op: Exec, inputs: Sequence[str]) -> Json:
    mounts = [_mount(mount, inputs) for mount in op.mounts]
    return {
        "type": "run",
        "args": list(op.args),
        "env": dict(op.env),
        "cwd": op.cwd,
        "user": op.user,
        "platform": _platform(op.platform),
        "mounts": sorted(mounts, key=canonical_json),
        "scripts": [_inline(script) for script in sorted(op.scripts, key=lambda script: script.name)],
        "network": op.network.value,
        "security": op.security.value,
        "hostname": op.hostname,
        # Addresses often differ from run to run and machine to machine; names are what a person means.
        "extra hosts": sorted({name for name, _ in op.extra_hosts}),
        "shm size": op.shm_size,
        "ulimits": [[name, soft, hard] for name, soft, hard in sorted(op.ulimits)],
        "nonce": op.nonce or None,
        "root": _at(inputs, 0),
    }


def _copy(op: FileCopy, inputs: Sequence[str]) -> Json:
    root, source = (None, _at(inputs, 0)) if op.link else (_at(inputs, 0), _at(inputs, 1))
    return {
        "type": "copy",
        "sources": list(op.sources),
        "destination": op.destination,
        "inline": [_inline(file) for file in op.inline],
        "owner": op.owner,
        "keep owner": op.keep_owner,
        "mode": op.mode,
        **({"keep mode": list(op.keep_mode)} if op.keep_mode else {}),
        "exclude": list(op.exclude),
        "parents": op.parents,
        "unpack": op.unpack.value,
        "link": op.link,
        "must exist": op.must_exist,
        "nonce": op.nonce or None,
        "root": root,
        "source": source,
    }


def _mount(mount: Mount, inputs: Sequence[str]) -> Json:
    match mount:
        case BindMount():
            return {
                "type": "bind",
                "target": mount.target,
                "source": mount.source,
                "readonly": mount.readonly,
                "from": _at(inputs, mount.input),
            }
        case CacheMount():
            # A cache must not change the result; which cache it is, and who else may use it meanwhile, doesn't either.
            return {
                "type": "cache",
                "target": mount.target,
                "source": mount.source,
                "readonly": mount.readonly,
                "mode": mount.mode,
                "uid": mount.uid,
                "gid": mount.gid,
                "from": None if mount.input is None else _at(inputs, mount.input),
            }
        case TmpfsMount():
            return {"type": "tmpfs", "target": mount.target, "size": mount.size}
        case SecretMount():
            return {
                "type": "secret",
                "id": mount.id,
                "target": mount.target,
                "env": mount.env,
                "required": mount.required,
                "mode": mount.mode,
                "uid": mount.uid,
                "gid": mount.gid,
            }
        case SshMount():
            return {
                "type": "ssh",
                "id": mount.id,
                "target": mount.target,
                "required": mount.required,
                "mode": mount.mode,
                "uid": mount.uid,
                "gid": mount.gid,
            }
        case _:
            assert_never(mount)


def _inline(file: InlineFile) -> Json:
    return {"name": file.name, "digest": str(Digest.of(file.data)), "mode": file.mode}


def _platform(platform: Platform) -> Json:
    return {
        "os": platform.os,
        "architecture": platform.architecture,
        "variant": platform.variant,
        "os version": platform.os_version,
        "os features": sorted(platform.os_features),
    }


def _at(inputs: Sequence[str], index: int) -> str | None:
    return inputs[index] if index < len(inputs) else None
