"""``--call=outline`` and ``--call=targets``: what a Dockerfile's target takes, and which targets there are.

Owns both values with BuildKit's JSON (``frontend.outline``, ``frontend.targets``, version 1.0.0) and buildx's text. Runs and resolves nothing
but what it is given: base images aren't asked for unless the caller knows them.
"""

from __future__ import annotations

import base64
import json
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from pybuild.layers.descriptor import Platform
from pybuild.layers.image import ImageConfig
from pybuild.parser.ast import Arg, KeyValue, Mount, Run
from pybuild.parser.dockerfile import Dockerfile
from pybuild.parser.expand import expand

from .check_report import location_json
from .stage_facts import BaseConfig, StageFacts, StageWalk
from .stages import StageNode

Json = dict[str, object]
_Item = TypeVar("_Item", "OutlineArgument", "OutlineMount")
Lines = tuple[int, int]


@dataclass(frozen=True, slots=True)
class OutlineArgument:
    """A build argument: its value as things stand, and what the comment above it says."""

    name: str
    value: str
    description: str
    lines: Lines


@dataclass(frozen=True, slots=True)
class OutlineMount:
    """A secret or an ssh socket, by id."""

    name: str
    required: bool
    lines: Lines


@dataclass(frozen=True, slots=True)
class Outline:
    """What a target takes. ``name`` "" for a stage without a name."""

    name: str
    description: str
    arguments: tuple[OutlineArgument, ...]
    secrets: tuple[OutlineMount, ...]
    ssh: tuple[OutlineMount, ...]
    source: str

    def to_json(self) -> str:
        """The JSON document, indented by two."""
        value: Json = {"name": self.name, "description": self.description}
        value["args"] = [
            _without_empty(
                name=item.name, description=item.description, value=item.value, location=location_json(item.lines)
            )
            for item in self.arguments
        ]
        for key, mounts in (("secrets", self.secrets), ("ssh", self.ssh)):
            value[key] = [
                _without_empty(name=item.name, required=item.required, location=location_json(item.lines))
                for item in mounts
            ]
        value["sources"] = [_encoded(self.source)]
        return json.dumps(_without_empty(**value), indent=2, ensure_ascii=False)

    def to_text(self) -> str:
        """What buildx prints."""
        out = []
        if self.name or self.description:
            rows = [("TARGET:", self.name or "(default)")]
            if self.description:
                rows.append(("DESCRIPTION:", self.description))
            out.append(_table(rows, padding=1))
        if self.arguments:
            arguments = [(item.name, item.value, item.description) for item in self.arguments]
            out.append(_table([("BUILD ARG", "VALUE", "DESCRIPTION"), *arguments], padding=3))
        for title, mounts in (("SECRET", self.secrets), ("SSH", self.ssh)):
            if mounts:
                shown = [(item.name, "true" if item.required else "") for item in mounts]
                out.append(_table([(title, "REQUIRED"), *shown], padding=3))
        return "".join(f"{table}\n" for table in out)


@dataclass(frozen=True, slots=True)
class Target:
    """A stage that can be built. ``base`` and ``platform`` as written."""

    name: str
    default: bool
    description: str
    base: str
    platform: str
    lines: Lines


@dataclass(frozen=True, slots=True)
class Targets:
    """All stages, in order."""

    targets: tuple[Target, ...]
    source: str

    def to_json(self) -> str:
        """The JSON document, indented by two."""
        value: Json = {
            "targets": [
                _without_empty(
                    name=item.name,
                    default=item.default,
                    description=item.description,
                    base=item.base,
                    platform=item.platform,
                    location=location_json(item.lines),
                )
                for item in self.targets
            ],
            "sources": [_encoded(self.source)],
        }
        return json.dumps(value, indent=2, ensure_ascii=False)

    def to_text(self) -> str:
        """What buildx prints."""
        rows = []
        for item in self.targets:
            default = "(default)" if item.default else ""
            rows.append((" ".join(part for part in (item.name, default) if part), item.description))
        return _table([("TARGET", "DESCRIPTION"), *rows], padding=1)


def targets(dockerfile: Dockerfile) -> Targets:
    """The targets of ``dockerfile``."""
    out = []
    for stage in dockerfile.stages:
        from_ = stage.from_
        out.append(
            Target(
                name=stage.name or "",
                default=stage.index == len(dockerfile.stages) - 1,
                description=described(from_.comments, stage.name or ""),
                base=from_.image.text,
                platform="" if from_.platform is None else from_.platform.text,
                lines=from_.span.lines,
            )
        )
    return Targets(tuple(out), dockerfile.text)


def outline(
    dockerfile: Dockerfile,
    *,
    platform: Platform,
    build_platform: Platform | None = None,
    target: str | None = None,
    build_args: Mapping[str, str] | None = None,
    base_config: BaseConfig | None = None,
) -> Outline:
    """What ``target`` (the last stage without one), and the stages it needs, take. Raises DockerfileError."""
    walk = StageWalk(
        dockerfile,
        build_args=build_args or {},
        platform=platform,
        build_platform=build_platform or platform,
        target=target,
        base_config=base_config or _unknown,
    )
    node = walk.plan.find_target(target)
    collector = _Collector(dockerfile, walk)
    collector.collect(node)
    stage = node.stage
    assert stage is not None  # a target is a stage
    return Outline(
        name=stage.name or "",
        description=described(stage.from_.comments, stage.name or ""),
        arguments=_sorted(collector.arguments.values()),
        secrets=_sorted(collector.secrets.values()),
        ssh=_sorted(collector.ssh.values()),
        source=dockerfile.text,
    )


def _unknown(name: str, platform: Platform) -> ImageConfig | None:
    return None


@dataclass(slots=True)
class _Definition:
    """Where an argument comes from; ``needs``: the global arguments that its default uses."""

    argument: OutlineArgument
    needs: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Seen:
    """What one stage uses: argument names, and its own definitions over the global ones."""

    used: set[str] = field(default_factory=set)
    own: dict[str, _Definition] = field(default_factory=dict)


class _Collector:
    """Goes from the target to what it needs; what is met first counts."""

    def __init__(self, dockerfile: Dockerfile, walk: StageWalk) -> None:
        self._walk = walk
        self._globals = self._global_definitions(dockerfile)
        self.arguments: dict[str, OutlineArgument] = {}
        self.secrets: dict[str, OutlineMount] = {}
        self.ssh: dict[str, OutlineMount] = {}
        self._visited: set[StageNode] = set()

    def _global_definitions(self, dockerfile: Dockerfile) -> dict[str, _Definition]:
        given = self._walk.given
        scope = {name: given.get(name, value) for name, value in self._walk.predefined.items()}
        out: dict[str, _Definition] = {}
        for instruction in dockerfile.global_args:
            for argument in instruction.args:
                name = argument.key.text
                value = given.get(name)
                needs: frozenset[str] = frozenset()
                if value is None and argument.value is not None:
                    expansion = expand(argument.value, scope)
                    value, needs = expansion.text, expansion.used
                    if name in needs:  # ARG X=${X}y: it needs what its earlier definition needed
                        earlier = out.get(name)
                        needs = (needs - {name}) | (earlier.needs if earlier is not None else frozenset())
                if value is not None:
                    scope[name] = value
                out[name] = _Definition(_argument(instruction, argument, value or ""), needs)
        return out

    def collect(self, node: StageNode) -> None:
        if node in self._visited:
            return
        self._visited.add(node)
        if node.stage is not None:
            self._stage(node)
        if node.base is not None:
            self.collect(node.base)
        for other in node.needs:
            self.collect(other)

    def _stage(self, node: StageNode) -> None:
        assert node.stage is not None  # the caller looked
        from_ = node.stage.from_
        seen = _Seen()
        for word in (from_.image, from_.platform):
            if word is not None:
                seen.used |= expand(word, self._walk.globals).used
        facts = self._walk.begin(node)
        for instruction in node.stage.instructions:
            if isinstance(instruction, Arg):
                for argument in instruction.args:
                    self._declare(facts, seen, instruction, argument)
            if isinstance(instruction, Run):
                for mount in instruction.mounts:
                    self._mount(facts, instruction, mount)
            self._walk.apply(facts, instruction)
        self._mark(seen.used, seen)
        for name in sorted(seen.used):
            definition = seen.own.get(name) or self._globals.get(name)
            if definition is not None:
                self.arguments.setdefault(name, definition.argument)

    def _declare(self, facts: StageFacts, seen: _Seen, instruction: Arg, argument: KeyValue) -> None:
        name = argument.key.text
        seen.used.add(name)
        inherited = argument.value is None and name not in self._walk.given and name in self._walk.globals
        if not inherited:
            value = self._walk.argument_value(facts, name, argument.value)
            seen.own[name] = _Definition(_argument(instruction, argument, value or ""))

    def _mark(self, names: Iterable[str], seen: _Seen) -> None:
        """Add the global arguments that the used ones are made of."""
        waiting = list(names)
        done: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name in done:
                continue
            done.add(name)
            seen.used.add(name)
            definition = seen.own.get(name) or self._globals.get(name)
            if definition is not None:
                waiting += definition.needs

    def _mount(self, facts: StageFacts, instruction: Run, mount: Mount) -> None:
        kind = facts.expand(mount.type).text.lower()
        if kind not in ("secret", "ssh"):
            return
        values = {key: "" if word is None else facts.expand(word).text for key, word in mount.options}
        required = "required" in values and values["required"].lower() not in ("0", "f", "false")
        if kind == "ssh":
            found, id_ = self.ssh, values.get("id") or "default"
        else:
            found = self.secrets
            id_ = values.get("source") or values.get("id") or posixpath.basename(values.get("target", "").rstrip("/"))
        found.setdefault(id_, OutlineMount(id_, required, instruction.span.lines))


def _argument(instruction: Arg, argument: KeyValue, value: str) -> OutlineArgument:
    name = argument.key.text
    return OutlineArgument(name, value, described(instruction.comments, name), instruction.span.lines)


def described(comments: Iterable[str], name: str) -> str:
    """What a comment block says about ``name``: the rest of its first line that begins with the name."""
    if name:
        for line in comments:
            if line.startswith(f"{name} "):
                return line.removeprefix(f"{name} ")
    return ""


def _sorted(items: Iterable[_Item]) -> tuple[_Item, ...]:
    return tuple(sorted(items, key=lambda item: item.lines[0]))


def _without_empty(**fields: object) -> Json:
    """Go's ``omitempty``."""
    return {key: value for key, value in fields.items() if value not in ("", None, False, [], {})}


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode("utf-8", "surrogateescape")).decode()


def _table(rows: Sequence[Sequence[str]], *, padding: int) -> str:
    """Columns as Go's tabwriter aligns them: each as wide as its widest cell and ``padding`` blanks, the last one not filled."""
    widths = [max(len(row[column]) for row in rows) + padding for column in range(len(rows[0]) - 1)]
    lines = ("".join(cell.ljust(width) for cell, width in zip(row, widths)) + row[-1] for row in rows)
    return "".join(f"{line}\n" for line in lines)
