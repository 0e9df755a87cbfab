"""One instruction at a time: what each does to the stage that is being lowered.

Owns the dispatch by instruction, and those that only change the configuration. RUN, COPY and ADD have modules of their own.
"""

from __future__ import annotations

from collections.abc import Mapping

from pybuild.errors import PybuildError
from pybuild.parser.ast import (
    Add,
    Arg,
    Cmd,
    Copy,
    Entrypoint,
    Env,
    Expose,
    Healthcheck,
    Instruction,
    KeyValue,
    Label,
    Maintainer,
    Onbuild,
    Run,
    Shell,
    Stopsignal,
    User,
    Volume,
    Workdir,
)
from pybuild.parser.errors import DockerfileError
from pybuild.parser.expand import expand_words
from pybuild.parser.values import check_signal

from .arguments import NOT_IN_ENVIRONMENT
from .graph import FileMake, Vertex
from .history import arg_text, healthcheck_text, list_text, pairs_text, quoted_text
from .image_config import (
    add_ports,
    add_volumes,
    clean_path,
    command_args,
    exposed_ports,
    healthcheck_of,
    resolve_directory,
    set_command,
    set_entrypoint,
    set_env,
    set_healthcheck,
    set_labels,
    with_default_path,
)
from .lower_copy import Origin, lower_copy
from .lower_run import lower_run
from .stage_roots import Scope, context_tree
from .stage_state import StageState
from .stages import Command, StageNode
from .value_checks import checked


def makes_vertex(instruction: Instruction) -> bool:
    """True for the instructions that a stage's steps are counted by."""
    return isinstance(instruction, Run | Copy | Add | Workdir)


class InstructionLowering:
    """Lowers a stage's commands. ``states``: the stages lowered so far; a source that is not among them comes too late."""

    def __init__(
        self,
        scope: Scope,
        *,
        states: Mapping[StageNode, StageState],
        global_arguments: Mapping[str, str],
        build_arguments: Mapping[str, str],
    ) -> None:
        self._scope = scope
        self._states = states
        self._globals = global_arguments
        self._given = build_arguments

    def stage(self, state: StageState, commands: list[Command]) -> None:
        """All commands of one stage. Raises DockerfileError."""
        state.config = with_default_path(state.config)
        if state.config.working_dir:
            directory = resolve_directory("/", state.config.working_dir, windows=state.windows)
            state.config = state.config.with_(working_dir=directory)
        state.start()
        for command in commands:
            state.trigger = command.trigger
            try:
                self._one(state, command)
            except DockerfileError as error:
                if command.foreign:
                    error.span, error.culprit = command.instruction.span, None
                elif error.span is None:
                    error.span = command.instruction.span
                raise
            except PybuildError as error:
                raise DockerfileError(str(error), span=command.instruction.span, hint=error.hint) from error

    def _one(self, state: StageState, command: Command) -> None:
        instruction = command.instruction
        match instruction:
            case Run():
                lower_run(
                    state,
                    instruction,
                    tree_of=lambda index, main: self._mount_tree(command, index, main),
                )
            case Copy() | Add():
                lower_copy(
                    state,
                    instruction,
                    origin=lambda: self._origin(state, command),
                    commit_of=lambda reference: self._scope.commit_of(reference, instruction.span),
                )
            case Workdir():
                self._workdir(state, instruction)
            case Arg():
                self._arg(state, instruction)
            case Env(pairs=pairs):
                expanded = self._pairs(state, instruction, pairs)
                for name, value in expanded:
                    state.set_env(name, value)
                state.config = set_env(state.config, expanded)
                state.commit_config(pairs_text("ENV", expanded))
            case Label(pairs=pairs):
                expanded = self._pairs(state, instruction, pairs)
                state.config = set_labels(state.config, dict(expanded))
                state.commit_config(pairs_text("LABEL", expanded))
            case _:
                self._configure(state, instruction)

    def _configure(self, state: StageState, instruction: Instruction) -> None:
        match instruction:
            case Cmd(command=command):
                args = command_args(command, state.config)
                state.config = set_command(state.config, args)
                state.command_set = True
                state.commit_config(quoted_text("CMD", args))
            case Entrypoint(command=command):
                args = command_args(command, state.config)
                state.config = set_entrypoint(state.config, args, keep_command=state.command_set)
                state.commit_config(quoted_text("ENTRYPOINT", args))
            case Shell(args=args):
                state.config = state.config.with_(shell=args)
                state.commit_config(list_text("SHELL", args))
            case User(user=word):
                user = state.expand(word, instruction)
                state.config = state.config.with_(user=user)
                state.commit_config(f"USER {user}")
            case Volume(paths=words):
                paths = [state.expand(word, instruction) for word in words]
                if "" in paths:
                    raise DockerfileError("VOLUME specified can not be an empty string", span=instruction.span)
                state.config = add_volumes(state.config, paths)
                state.commit_config(list_text("VOLUME", paths))
            case Expose():
                self._expose(state, instruction)
            case Stopsignal(signal=word):
                signal = state.expand(word, instruction)
                checked(word, check_signal, signal)
                state.config = state.config.with_(stop_signal=signal)
                state.commit_config(f"STOPSIGNAL {signal}")
            case Healthcheck():
                check = healthcheck_of(instruction)
                state.config = set_healthcheck(state.config, check)
                state.commit_config(healthcheck_text(check))
            case Onbuild(expression=expression):
                state.config = state.config.with_(on_build=(*state.config.on_build, expression))
            case Maintainer(author=author):
                state.config = state.config.with_(author=author)
                state.commit_config(f"MAINTAINER {author}")
            case _:
                raise DockerfileError(f"{instruction.name} is not allowed in a stage", span=instruction.span)

    def _workdir(self, state: StageState, instruction: Workdir) -> None:
        path = state.expand(instruction.path, instruction)
        value = resolve_directory(state.config.working_dir, path, windows=state.windows)
        state.config = state.config.with_(working_dir=value)
        state.workdir_set = True
        directory = state.directory
        text = f"WORKDIR {directory}"
        if directory == "/":
            state.commit_config(text)
            return
        shown = state.shown(instruction)
        operation = FileMake(
            directory=clean_path(directory), user=state.config.user, nonce=state.nonce(), epoch=state.settings.epoch
        )
        title = state.next_title(shown)
        vertex = state.make(operation, (state.root(),), title=title, text=shown, span=instruction.span)
        state.commit_layer(vertex, text, buildkit=False)

    def _arg(self, state: StageState, instruction: Arg) -> None:
        declared: list[tuple[str, str | None]] = []
        for argument in instruction.args:
            name = argument.key.text
            value: str | None
            if name in self._given:
                value = self._given[name]
            elif argument.value is not None:
                value = state.expand(argument.value, instruction)
            else:
                value = self._globals.get(name)
            if value is not None and name not in NOT_IN_ENVIRONMENT:
                state.set_env(name, value)
            declared.append((name, value))
            state.arguments.append((name, value))
        state.commit_config(arg_text(declared))

    def _expose(self, state: StageState, instruction: Expose) -> None:
        ports: list[str] = []
        for word in sorted(instruction.ports, key=lambda word: word.text):
            ports += checked(word, exposed_ports, expand_words(word, state.env))
        state.config = add_ports(state.config, ports)
        state.commit_config(list_text("EXPOSE", ports))

    @staticmethod
    def _pairs(state: StageState, instruction: Instruction, pairs: tuple[KeyValue, ...]) -> list[tuple[str, str]]:
        return [
            (state.expand(pair.key, instruction), "" if pair.value is None else state.expand(pair.value, instruction))
            for pair in pairs
        ]

    def _origin(self, state: StageState, command: Command) -> Origin:
        if not command.sources or command.sources[0] is None:
            vertex = context_tree("context", self._scope.main_context, self._scope, platform=self._scope.platform)
            return Origin(vertex, keep_owner=False)
        source = self._states.get(command.sources[0])
        if source is None:
            name = command.instruction.from_ if isinstance(command.instruction, Copy) else ""
            raise DockerfileError(
                f'cannot copy from stage "{name}", it needs to be defined before current stage "{state.label}"',
                span=command.instruction.span,
                hint=f'move the stage "{name}" above this one',
            )
        return Origin(source.vertex, keep_owner=not source.is_tree)

    def _mount_tree(self, command: Command, index: int, main: bool) -> Vertex:
        node = command.sources[index] if index < len(command.sources) else None
        if main or node is None:
            return context_tree("context", self._scope.main_context, self._scope, platform=self._scope.platform)
        source = self._states.get(node)
        if source is None:
            raise DockerfileError(
                f'cannot mount from stage "{node.name}" to "{_target(command, index)}", stage needs to be defined before current '
                "command",
                span=command.instruction.span,
                hint=f'move the stage "{node.name}" above this one',
            )
        return source.vertex


def _target(command: Command, index: int) -> str:
    if not isinstance(command.instruction, Run):
        return ""
    options = dict(command.instruction.mounts[index].options)
    word = options.get("target") or options.get("dst") or options.get("destination")
    return "" if word is None else word.text
