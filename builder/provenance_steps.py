"""The steps of a build as provenance tells them in mode=max: BuildKit's LLB in JSON, places in the Dockerfile, layers.

Owns the JSON of each operation (the field names are those of BuildKit's ``solver/pb/ops.proto``) and the numbering of steps. Values of
secrets and proxy settings don't appear; credentials in URLs are masked.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final, assert_never

from pybuild.layers.descriptor import Descriptor, Platform
from pybuild.layers.digest import Digest
from pybuild.layers.image import json_bytes
from pybuild.values import dataclass

from .copy_modes import InvalidMode, parse_mode
from .graph import (
    BindMount,
    CacheMount,
    CacheSharing,
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
    Network,
    Scratch,
    SecretMount,
    Security,
    SshMount,
    TmpfsMount,
    Unpack,
)
from .provenance import Details
from .redaction import mask_credentials
from .solver_steps import Step, source_input

Object = dict[str, Any]  # Any: the JSON edge

_NETWORKS: Final = {Network.HOST: 1, Network.NONE: 2}
_SHARING: Final = {CacheSharing.SHARED: 0, CacheSharing.PRIVATE: 1, CacheSharing.LOCKED: 2}
_SECRET, _SSH, _CACHE, _TMPFS = 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class SourceFile:
    """The Dockerfile: its name and its bytes."""

    filename: str
    data: bytes


def steps_of(target: Step) -> list[Step]:
    """What ``target`` needs, itself included, inputs first; nothing (``FROM scratch``) is no step."""
    order: list[Step] = []
    seen: set[Step] = set()
    stack: list[tuple[Step, int]] = [(target, 0)]
    while stack:
        step, position = stack.pop()
        if not position:
            if step in seen:
                continue
            seen.add(step)
        if position < len(step.inputs):
            stack.append((step, position + 1))
            if step.inputs[position] not in seen:
                stack.append((step.inputs[position], 0))
        elif not isinstance(step.op, Scratch):
            order.append(step)
    return order


def details(target: Step, *, source: SourceFile | None, blobs: Mapping[Digest, Descriptor]) -> Details:
    """Everything that mode=max adds. ``blobs``: the known blobs of layers, by diff ID."""
    steps = steps_of(target)
    numbers = {step: number for number, step in enumerate(steps)}
    definition: list[Object] = []
    mapping: dict[str, str] = {}
    for number, step in enumerate(steps):
        op = operation(step)
        inputs = [f"step{numbers[other]}:0" for other in step.inputs if other in numbers]
        mapping[str(Digest.of(json_bytes({"op": op, "inputs": inputs})))] = f"step{number}"
        definition.append(_step(number, op, inputs))
    last: Sequence[str] = [f"step{numbers[target]}:0"] if target in numbers else []
    definition.append(_step(len(steps), {"Op": {}}, last))
    mapping[str(Digest.of(json_bytes({"op": {"Op": {}}, "inputs": list(last)})))] = f"step{len(steps)}"
    return Details(
        build_config={"llbDefinition": definition, "digestMapping": mapping},
        source=None if source is None else _source(source, steps),
        layers=_layers(steps, blobs),
    )


def _step(number: int, op: Object, inputs: Sequence[str]) -> Object:
    out: Object = {"id": f"step{number}", "op": op}
    if inputs:
        out["inputs"] = list(inputs)
    return out


def _source(source: SourceFile, steps: Sequence[Step]) -> Object:
    locations: Object = {}
    for number, step in enumerate(steps):
        lines = step.vertex.note.lines
        if lines is not None:
            place = {"start": {"line": lines[0]}, "end": {"line": lines[1]}}
            locations[f"step{number}"] = {"locations": [{"ranges": [place]}]}
        elif isinstance(step.op, ContextSource):
            locations[f"step{number}"] = {}
    load: Object = {"Op": {"source": {"identifier": "local://dockerfile"}}, "constraints": {}}
    load_steps = [_step(0, load, ()), _step(1, {"Op": {}}, ["step0:0"])]
    info = {
        "filename": source.filename,
        "language": "Dockerfile",
        "data": base64.b64encode(source.data).decode("ascii"),
        "llbDefinition": load_steps,
        "digestMapping": {str(Digest.of(json_bytes(step))): step["id"] for step in load_steps},
    }
    return {"locations": locations, "infos": [info]}


def _layers(steps: Sequence[Step], blobs: Mapping[Digest, Descriptor]) -> Object:
    out: Object = {}
    for number, step in enumerate(steps):
        if isinstance(step.op, ImageSource):
            stack = step.op.chain
        elif step.result is not None and not step.is_view:
            stack = step.result.stack
        else:
            continue
        found = [blobs[diff_id] for diff_id in stack if diff_id in blobs]
        if stack and len(found) == len(stack):
            out[f"step{number}:0"] = [[blob.to_json() for blob in found]]
    return out


# --- operations ------------------------------------------------------------------------------------------------------


def operation(step: Step) -> Object:
    """A step's operation as JSON of BuildKit's ``pb.Op``."""
    # Inputs that are nothing have no number: -1 stands for them, as in BuildKit.
    numbers: dict[int, int] = {}
    for position, source in enumerate(step.inputs):
        numbers[position] = -1 if isinstance(source.op, Scratch) else sum(1 for n in numbers.values() if n >= 0)
    body, platform = _body(step, numbers)
    out: Object = {"Op": body}
    if platform is not None:
        out["platform"] = _platform(platform)
    out["constraints"] = {}
    return out


def _body(step: Step, numbers: Mapping[int, int]) -> tuple[Object, Platform | None]:
    op = step.op
    match op:
        case ImageSource():
            return {"source": {"identifier": _image_identifier(op)}}, op.platform
        case ContextSource(name):
            return {"source": {"identifier": f"local://{name}", "attrs": {"local.sharedkeyhint": name}}}, None
        case GitSource():
            return {"source": _git(op)}, None
        case HttpSource():
            attrs = {"http.filename": op.filename}
            if op.checksum is not None:
                attrs["http.checksum"] = str(op.checksum)
            return {"source": {"identifier": mask_credentials(op.url), "attrs": attrs}}, None
        case Exec():
            return {"exec": _exec(op, numbers)}, op.platform
        case FileCopy():
            remote = any(isinstance(source.op, GitSource | HttpSource) for source in step.inputs)
            return {"file": {"actions": _copy_actions(op, numbers, remote=remote)}}, None
        case FileMake():
            directory: Object = {"path": op.directory, "mode": op.mode, "makeParents": True, "timestamp": -1}
            if op.epoch is not None:
                directory["timestamp"] = op.epoch * 1_000_000_000
            if op.user:
                directory["owner"] = _owner(op.user)
            return {"file": {"actions": [_action({"mkdir": directory}, numbers.get(0, -1), -1, 0)]}}, None
        case Merge():
            return {"merge": {"inputs": [{"input": number} if number else {} for number in numbers.values()]}}, None
        case Scratch():
            return {}, None
        case _:
            assert_never(op)


def _image_identifier(op: ImageSource) -> str:
    return op.reference if "://" in op.reference else f"docker-image://{op.reference}"


def _git(op: GitSource) -> Object:
    remote = mask_credentials(op.remote)
    fragment = op.ref + (f":{op.subdir}" if op.subdir else "")
    attrs = {"git.fullurl": remote}
    if op.commit:
        attrs["git.commit"] = op.commit
    if op.keep_git_dir:
        attrs["git.keepgitdir"] = "true"
    identifier = "git://" + remote.partition("://")[2] if "://" in remote else f"git://{remote}"
    return {"identifier": identifier + (f"#{fragment}" if fragment else ""), "attrs": attrs}


def _exec(op: Exec, numbers: Mapping[int, int]) -> Object:
    meta: Object = {"args": list(op.args), "env": [f"{name}={value}" for name, value in op.env], "cwd": op.cwd}
    if op.user:
        meta["user"] = op.user
    if op.extra_hosts:
        meta["extraHosts"] = [{"Host": name, "IP": address} for name, address in op.extra_hosts]
    if op.hostname != "buildkitsandbox":
        meta["hostname"] = op.hostname
    if op.ulimits:
        meta["ulimit"] = [{"Name": name, "Soft": soft, "Hard": hard} for name, soft, hard in op.ulimits]
    if op.cgroup_parent:
        meta["cgroupParent"] = op.cgroup_parent
    meta["removeMountStubsRecursive"] = True
    root: Object = {"dest": "/"}
    if numbers.get(0, -1):
        root["input"] = numbers.get(0, -1)
    mounts = [_script(script) for script in op.scripts]
    mounts += [mount for each in op.mounts if (mount := _mount(each, numbers)) is not None]
    mounts = [root, *sorted(mounts, key=lambda mount: str(mount["dest"]))]
    out: Object = {"meta": meta, "mounts": mounts}
    if op.network in _NETWORKS:
        out["network"] = _NETWORKS[op.network]
    if op.security is Security.INSECURE:
        out["security"] = 1
    variables = [
        {"ID": mount.id, "name": mount.env, **({} if mount.required else {"optional": True})}
        for mount in op.mounts
        if isinstance(mount, SecretMount) and mount.env is not None
    ]
    if variables:
        out["secretenv"] = variables
    return out


def _script(script: InlineFile) -> Object:
    return {"input": -1, "dest": f"/dev/pipes/{script.name}", "output": -1, "readonly": True}


def _mount(mount: Mount, numbers: Mapping[int, int]) -> Object | None:
    match mount:
        case BindMount():
            out: Object = {"input": numbers.get(mount.input, -1), "dest": mount.target, "output": -1}
            if mount.source.strip("/"):
                out["selector"] = mount.source
            if mount.readonly:
                out["readonly"] = True
            return out
        case CacheMount():
            source = -1 if mount.input is None else numbers.get(mount.input, -1)
            option: Object = {"ID": mount.id}
            if _SHARING[mount.sharing]:
                option["sharing"] = _SHARING[mount.sharing]
            return {"input": source, "dest": mount.target, "output": -1, "mountType": _CACHE, "cacheOpt": option}
        case TmpfsMount():
            return {
                "input": -1,
                "dest": mount.target,
                "output": -1,
                "mountType": _TMPFS,
                "TmpfsOpt": {"size": mount.size} if mount.size else {},
            }
        case SecretMount():
            if mount.target is None:
                return None
            option = _access(mount.id, mount.uid, mount.gid, mount.mode, required=mount.required)
            return {"input": -1, "dest": mount.target, "output": -1, "mountType": _SECRET, "secretOpt": option}
        case SshMount():
            option = _access(mount.id, mount.uid, mount.gid, mount.mode, required=mount.required)
            return {"input": -1, "dest": mount.target, "output": -1, "mountType": _SSH, "SSHOpt": option}
        case _:
            assert_never(mount)


def _access(id: str, uid: int, gid: int, mode: int, *, required: bool) -> Object:
    out: Object = {"ID": id, "uid": uid, "gid": gid, "mode": mode, "optional": not required}
    return {key: value for key, value in out.items() if value}


def _copy_actions(op: FileCopy, numbers: Mapping[int, int], *, remote: bool) -> list[Object]:
    """One action per source and here-document; each continues on what the one before gave. ``remote``: the source is a repository or a
    download, whose names are no patterns."""
    position = source_input(op)
    base = -1 if op.link else numbers.get(0, -1)
    inputs = sum(1 for number in numbers.values() if number >= 0)
    bodies: list[tuple[Object, int]] = [
        ({"copy": _copy(op, each, remote=remote)}, numbers.get(position, -1)) for each in op.sources
    ]
    for file in op.inline:
        name = op.destination + file.name if op.destination.endswith("/") else op.destination
        data = base64.b64encode(file.data).decode("ascii")
        made: Object = {"path": name, "mode": _mode(op) or file.mode, "data": data, "timestamp": -1}
        if op.owner:
            made["owner"] = _owner(op.owner)
        bodies.append(({"mkfile": made}, -1))
    actions = []
    for index, (body, secondary) in enumerate(bodies):
        first = base if index == 0 else inputs + index - 1
        actions.append(_action(body, first, secondary, 0 if index == len(bodies) - 1 else -1))
    return actions


def _action(body: Object, first: int, second: int, output: int) -> Object:
    return {"input": first, "secondaryInput": second, "output": output, "Action": body}


def _copy(op: FileCopy, source: str, *, remote: bool) -> Object:
    out: Object = {"src": source, "dest": op.destination}
    if op.owner:
        out["owner"] = _owner(op.owner)
    mode = _mode(op)
    out["mode"] = -1 if mode is None else mode
    if op.mode and mode is None:
        out["modeStr"] = op.mode
    if not remote:
        out |= {"followSymlink": True, "dirCopyContents": True}
    if op.unpack is Unpack.LOCAL:
        out["attemptUnpackDockerCompatibility"] = True
    out["createDestPath"] = True
    if not remote:
        out |= {"allowWildcard": True, "allowEmptyWildcard": True}
    out["timestamp"] = -1
    if op.exclude:
        out["exclude_patterns"] = list(op.exclude)
    return out


def _mode(op: FileCopy) -> int | None:
    """The mode where it is a plain number."""
    if not op.mode or not op.mode.isdecimal():
        return None
    try:
        parse_mode(op.mode)
    except InvalidMode:
        return None
    return int(op.mode, 8)


def _owner(text: str) -> Object:
    user, colon, group = text.partition(":")
    out: Object = {"user": _account(user)}
    if colon:
        out["group"] = _account(group)
    return out


def _account(text: str) -> Object:
    return {
        "User": {"byId": int(text)}
        if text.isdecimal() and int(text)
        else {"byName": {"name": text}}
        if not text.isdecimal()
        else {}
    }


def _platform(platform: Platform) -> Object:
    out: Object = {"Architecture": platform.architecture, "OS": platform.os}
    if platform.variant:
        out["Variant"] = platform.variant
    if platform.os_version:
        out["OSVersion"] = platform.os_version
    return out
