"""What is known in a stage at each instruction without lowering it: variables, arguments, a working directory set, a shell.

Owns following ARG, ENV and what stages inherit, for the build checks and for the outline. Resolves nothing: what a base image brings
is asked of a function, and where that doesn't know, the variables count as unknown rather than as unset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pybuild.errors import PybuildError
from pybuild.layers.descriptor import Platform
from pybuild.layers.image import DEFAULT_PATH, ImageConfig
from pybuild.parser.ast import Arg, Env, Instruction, Onbuild, Shell, Word, Workdir
from pybuild.parser.dockerfile import Dockerfile
from pybuild.parser.expand import Expansion, expand
from pybuild.values import dataclass, field

from .arguments import NOT_IN_ENVIRONMENT, global_arguments
from .onbuild import parse_triggers
from .platforms import platform_arguments
from .stages import StageNode, StagePlan

BaseConfig = Callable[[str, Platform], ImageConfig | None]
"""Gives the configuration of a base image (as named in FROM, expanded) for a platform, or None if it isn't known."""


@dataclass(slots=True)
class StageFacts:
    """Mutable. ``env``: variables with their values; ``arguments``: ARGs declared, None without a value; ``complete``: False if the base
    image's variables aren't known; ``shell``: whether SHELL is set, as far as is known; ``base``: the base image's
    configuration."""

    env: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str | None] = field(default_factory=dict)
    complete: bool = True
    shell: bool = False
    workdir_set: bool = False
    base: ImageConfig | None = None

    def inherited(self) -> StageFacts:
        """What a stage built on this one begins with."""
        return StageFacts(dict(self.env), dict(self.arguments), self.complete, self.shell, self.workdir_set, self.base)

    def expand(self, word: Word) -> Expansion:
        """``word`` with the variables known here. Raises DockerfileError."""
        return expand(word, self.env)

    def undefined(self, expansion: Expansion) -> list[str]:
        """Variables of an expansion that nothing defines, sorted; none where the base image might."""
        if not self.complete:
            return []
        return sorted(name for name in expansion.unset if name not in self.arguments and name not in NOT_IN_ENVIRONMENT)


class StageWalk:
    """A Dockerfile's stages and what is known in them. Raises DockerfileError for what can't be planned.

    ``globals``: what FROM sees; ``plan``: the stages and their needs.
    """

    def __init__(
        self,
        dockerfile: Dockerfile,
        *,
        build_args: Mapping[str, str],
        platform: Platform,
        build_platform: Platform,
        target: str | None,
        base_config: BaseConfig,
    ) -> None:
        self.given = build_args
        self.platform = platform
        stage = target or dockerfile.stages[-1].name or ""
        self.predefined = platform_arguments(platform, build_platform, stage=stage)
        self.globals = global_arguments(dockerfile.global_args, predefined=self.predefined, given=build_args)
        self.plan = StagePlan(dockerfile.stages, arguments=self.globals, contexts={}, target=platform)
        self._base_config = base_config
        self._finished: dict[StageNode, StageFacts] = {}

    def begin(self, node: StageNode) -> StageFacts:
        """What is known after FROM and the ONBUILD triggers of what the stage is built on."""
        base = node.base
        if base is not None:
            facts = self.finish(base).inherited()
            triggers = [command.instruction for command in base.commands if isinstance(command.instruction, Onbuild)]
            for onbuild in triggers:
                self.apply(facts, onbuild.trigger)
            return facts
        if node.is_scratch:
            return StageFacts({"PATH": DEFAULT_PATH})
        return self._from_image(node)

    def finish(self, node: StageNode) -> StageFacts:
        """What is known at the end of a stage, worked out once."""
        known = self._finished.get(node)
        if known is None:
            known = self.begin(node)
            for command in node.commands:
                self.apply(known, command.instruction)
            self._finished[node] = known
        return known

    def apply(self, facts: StageFacts, instruction: Instruction) -> None:
        """Let an instruction change what is known. Raises DockerfileError from expansion."""
        match instruction:
            case Arg():
                for argument in instruction.args:
                    value = self.argument_value(facts, argument.key.text, argument.value)
                    if value is not None and argument.key.text not in NOT_IN_ENVIRONMENT:
                        facts.env[argument.key.text] = value
                    facts.arguments[argument.key.text] = value
            case Env():
                # All values are those from before the instruction.
                pairs = [
                    (facts.expand(pair.key).text, "" if pair.value is None else facts.expand(pair.value).text)
                    for pair in instruction.pairs
                ]
                facts.env.update(pairs)
            case Shell():
                facts.shell = True
            case Workdir():
                facts.workdir_set = True

    def argument_value(self, facts: StageFacts, name: str, default: Word | None) -> str | None:
        """The value that ``ARG name[=default]`` gives here, None for none."""
        if name in self.given:
            return self.given[name]
        if default is not None:
            return facts.expand(default).text
        return self.globals.get(name)

    def _from_image(self, node: StageNode) -> StageFacts:
        config = self._base_config(node.base_name, node.platform or self.platform)
        if config is None:
            return StageFacts({"PATH": DEFAULT_PATH}, complete=False)
        env = dict(text.partition("=")[::2] for text in config.env)
        env.setdefault("PATH", DEFAULT_PATH)
        facts = StageFacts(env, shell=bool(config.shell), base=config)
        try:
            triggers = parse_triggers(config.on_build, span=node.span)
        except PybuildError:
            return facts  # the build will say so
        for trigger in triggers:
            self.apply(facts, trigger)
        return facts
