"""The stages of a Dockerfile and what they need from each other, before anything is resolved.

Owns names, indexes, ``--from``, dependencies, cycles and what is reachable from the target. Resolves no image and makes no vertex;
a ``StageNode`` is the planner's own mutable value and never leaves lowering.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from pybuild.errors import PybuildError
from pybuild.layers.descriptor import Platform
from pybuild.parser.ast import Copy, Instruction, Onbuild, Run, Span, Stage, Word
from pybuild.parser.errors import DockerfileError
from pybuild.parser.expand import expand
from pybuild.parser.suggest import did_you_mean
from pybuild.values import dataclass, field

from .named_context import NamedContext, find_named_context
from .platforms import parse_platform

SCRATCH: Final = "scratch"


@dataclass(frozen=True, slots=True)
class Command:
    """An instruction of a stage with what its ``--from`` and ``--mount=from=`` name; ``sources`` has one element per mount of a RUN, None
    for a mount without ``from``. ``trigger``: it comes from an ONBUILD; ``foreign``: of a base image, so that only the instruction's
    own span is a place in this file."""

    instruction: Instruction
    sources: tuple[StageNode | None, ...] = ()
    trigger: bool = False
    foreign: bool = False


@dataclass(slots=True, eq=False)
class StageNode:
    """A stage, or (``stage`` None) an image or context that only a ``--from`` names.

    ``base_name``: the expanded FROM argument; ``base``: the earlier stage it names; ``context``: the named context that replaces this
    stage or its base image, with its key, decided while planning.
    """

    index: int
    base_name: str
    span: Span | None
    stage: Stage | None = None
    platform: Platform | None = None
    base: StageNode | None = None
    replaced: bool = False
    context: tuple[str, NamedContext] | None = None
    commands: list[Command] = field(default_factory=list)
    needs: dict[StageNode, Span] = field(default_factory=dict)
    triggers_added: bool = False

    @property
    def name(self) -> str:
        """The stage's name, ``stage-N`` when it has none; "" for what is no stage."""
        if self.stage is None:
            return ""
        return self.stage.name or f"stage-{self.index}"

    @property
    def is_scratch(self) -> bool:
        return self.base_name == SCRATCH and self.base is None and self.context is None

    @property
    def is_root(self) -> bool:
        """True if it starts from an image or a context rather than from a stage or from nothing."""
        return self.base is None and not self.is_scratch


class StagePlan:
    """All nodes, stages first in the file's order, then what ``--from`` names besides."""

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        arguments: Mapping[str, str],
        contexts: Mapping[str, NamedContext],
        target: Platform,
    ) -> None:
        self._contexts = contexts
        self._target = target
        self._by_name: dict[str, StageNode] = {}
        self._external: dict[str, StageNode] = {}
        self.nodes: list[StageNode] = []
        for stage in stages:
            self._add_stage(stage, arguments)
        self._stages = tuple(self.nodes)
        for node in self._stages:
            if not node.replaced:
                assert node.stage is not None  # every node made from a Stage has it
                node.commands = [self.command(instruction) for instruction in node.stage.instructions]
                self._note_needs(node, node.commands)
        self._check_cycles()

    @property
    def stages(self) -> tuple[StageNode, ...]:
        return self._stages

    def find_target(self, target: str | None) -> StageNode:
        """The stage to build: the last, or by name (never by index). Raises DockerfileError with a suggestion."""
        if not target:
            return self._stages[-1]
        found = self._by_name.get(target.lower())
        if found is None:
            names = [node.name for node in self._stages]
            raise DockerfileError(
                did_you_mean(f'target stage "{target}" could not be found', target, names),
                hint=f"the stages are: {', '.join(names)}",
            )
        return found

    def command(self, instruction: Instruction, *, trigger: bool = False, foreign: bool = False) -> Command:
        """``instruction`` with its sources looked up. Raises DockerfileError for a ``--from`` that can't name anything."""
        sources: tuple[StageNode | None, ...] = ()
        if isinstance(instruction, Copy) and instruction.from_ is not None and instruction.from_ != "":
            sources = (self._source(_literal_from(instruction), instruction.span),)
        elif isinstance(instruction, Run):
            sources = tuple(
                self._source(name, instruction.span) if (name := _mount_from(mount.options)) else None
                for mount in instruction.mounts
            )
        return Command(instruction, sources, trigger, foreign)

    def add_triggers(self, node: StageNode, triggers: Iterable[Instruction]) -> bool:
        """Put ONBUILD ``triggers`` before the node's own commands; True if they need something that nothing needed before."""
        foreign = node.base is None
        commands = [self.command(trigger, trigger=True, foreign=foreign) for trigger in triggers]
        node.commands = [*commands, *node.commands]
        before = len(node.needs)
        self._note_needs(node, commands)
        self._check_cycles()
        return len(node.needs) > before

    def reachable(self, target: StageNode) -> list[StageNode]:
        """What building ``target`` needs, itself included, in the order of ``nodes``."""
        seen = {target}
        waiting = [target]
        while waiting:
            node = waiting.pop()
            following = list(node.needs)
            if node.base is not None and not node.replaced:
                following.append(node.base)
            for other in following:
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
        return [node for node in self.nodes if node in seen]

    def _add_stage(self, stage: Stage, arguments: Mapping[str, str]) -> None:
        span = stage.from_.span
        expansion = expand(stage.from_.image, arguments)
        name = expansion.text
        if not name:
            variable = next(iter(sorted(expansion.unset | expansion.used)), "NAME")
            raise DockerfileError(
                f"base name ({stage.from_.image.text}) should not be blank",
                span=span,
                culprit=stage.from_.image.span,
                hint=f"add `ARG {variable}=…` before the first FROM, or pass --build-arg {variable}=…",
            )
        node = StageNode(len(self.nodes), name, span, stage)
        if stage.from_.platform is not None:
            node.platform = self._platform(stage.from_.platform, arguments, span)
        if stage.name is not None:
            node.context = self._context(stage.name, node.platform)
            node.replaced = node.context is not None
        if not node.replaced:
            node.base = self._by_name.get(name.lower())
            if node.base is None and name != SCRATCH:
                node.context = self._context(name, node.platform)
        self.nodes.append(node)
        if stage.name is not None:
            self._by_name[stage.name] = node

    def _platform(self, word: Word, arguments: Mapping[str, str], span: Span) -> Platform:
        expansion = expand(word, arguments)
        guess = "".join(did_you_mean("", name, arguments) for name in sorted(expansion.unset)[:1])
        if not expansion.text:
            raise DockerfileError(
                f"empty platform value from expression {word.text}{guess}",
                span=span,
                hint="--platform sees global arguments only",
            )
        try:
            return parse_platform(expansion.text, default=self._target)
        except PybuildError as error:
            raise DockerfileError(
                f"failed to parse platform {word.text}: {error}{guess}", span=span, hint=error.hint
            ) from error

    def _context(self, name: str, platform: Platform | None) -> tuple[str, NamedContext] | None:
        return find_named_context(self._contexts, name, platform=platform or self._target)

    def _source(self, name: str, span: Span) -> StageNode:
        if name.lstrip("+-").isdecimal():
            index = int(name)
            if not 0 <= index < len(self._stages):
                raise DockerfileError(
                    f"invalid stage index {index}", span=span, hint=f"stages count from 0 to {len(self._stages) - 1}"
                )
            return self._stages[index]
        found = self._by_name.get(name.lower())
        if found is None:
            found = self._external.get(name)
        if found is None:
            found = StageNode(len(self.nodes), name, span)
            if name != SCRATCH:
                found.context = self._context(name, None)
            self._external[name] = found
            self.nodes.append(found)
        return found

    @staticmethod
    def _note_needs(node: StageNode, commands: Iterable[Command]) -> None:
        for command in commands:
            for source in command.sources:
                if source is not None:
                    node.needs.setdefault(source, command.instruction.span)

    def _check_cycles(self) -> None:
        finished: set[StageNode] = set()
        for start in self.nodes:
            if start in finished:
                continue
            path = [(start, iter(start.needs.items()))]
            on_path = {start}
            while path:
                node, needs = path[-1]
                following = next(needs, None)
                if following is None:
                    path.pop()
                    on_path.discard(node)
                    finished.add(node)
                    continue
                other, span = following
                if other in on_path:
                    raise DockerfileError(f"circular dependency detected on stage: {start.name}", span=span)
                if other not in finished:
                    on_path.add(other)
                    path.append((other, iter(other.needs.items())))


def _literal_from(instruction: Copy) -> str:
    name = instruction.from_ or ""
    if expand(Word(name, instruction.span), {}).text != name:
        raise DockerfileError(
            "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a "
            "workaround",
            span=instruction.span,
            hint=f"before this stage: FROM {name} AS source, and here: --from=source",
        )
    return name


def _mount_from(options: tuple[tuple[str, Word | None], ...]) -> str:
    return next((word.text for key, word in reversed(options) if key == "from" and word is not None), "")


def onbuild_triggers(node: StageNode) -> tuple[Onbuild, ...]:
    """The ONBUILD instructions of a stage in this file."""
    return tuple(command.instruction for command in node.commands if isinstance(command.instruction, Onbuild))
