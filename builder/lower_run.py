"""RUN: from the instruction to an Exec vertex.

Owns the argument vector (shell, here-documents), the environment, network, security and the inputs that mounts read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from pybuild.parser.ast import ExecForm, Heredoc, Run, ShellForm
from pybuild.parser.errors import DockerfileError
from pybuild.values import pattern

from .graph import Exec, InlineFile, Mount, Network, SecretMount, Security, SshMount, Vertex
from .history import run_text
from .image_config import clean_path, shell_of
from .run_mounts import lower_mounts
from .stage_state import StageState
from .titles import SECRET_MASK, display_text, summarize_heredoc

_HEREDOC_WORD: Final = pattern(r"\d*<<-?\s*(.*)\Z", re.DOTALL)
_SCRIPTS: Final = "/dev/pipes/"


def lower_run(state: StageState, instruction: Run, *, tree_of: Callable[[int, bool], Vertex]) -> None:
    """Lower one RUN. ``tree_of(position, from_context)``: the vertex that mount number ``position`` reads. Raises DockerfileError."""
    if instruction.devices:
        raise DockerfileError(
            f"RUN --device is not supported: {instruction.devices[0]}",
            span=instruction.span,
            hint="devices need the Container Device Interface, which this builder doesn't have",
        )
    inputs: list[Vertex] = [state.root()]

    def input_of(position: int, from_context: bool) -> int:
        vertex = tree_of(position, from_context)
        for index, known in enumerate(inputs[1:], 1):
            if known is vertex:
                return index
        inputs.append(vertex)
        return len(inputs) - 1

    mounts = lower_mounts(
        instruction.mounts,
        expand=lambda word: state.expand(word, instruction),
        input_of=input_of,
        working_dir=state.directory,
        cache_namespace=state.settings.cache_namespace,
    )
    args, scripts = _arguments(state, instruction)
    env = dict(state.env)
    ssh = next((mount for mount in mounts if isinstance(mount, SshMount)), None)
    if ssh is not None:
        env.setdefault("SSH_AUTH_SOCK", ssh.target)
    network = Network(instruction.network)
    settings = state.settings
    operation = Exec(
        args=args,
        env=tuple(env.items()),
        cwd=clean_path(state.directory),
        user=state.config.user,
        platform=state.platform,
        mounts=mounts,
        scripts=scripts,
        network=settings.network if network is Network.DEFAULT else network,
        security=Security(instruction.security),
        hostname=settings.hostname,
        hidden_env=settings.proxies,
        extra_hosts=settings.extra_hosts,
        shm_size=settings.shm_size,
        ulimits=settings.ulimits,
        cgroup_parent=settings.cgroup_parent,
        resources=settings.resources,
        nonce=state.nonce(),
    )
    shown = _shown(state, instruction, mounts)
    text = run_text(args, arguments=state.arguments, env=state.env)
    vertex = state.make(operation, tuple(inputs), title=state.next_title(shown), text=shown, span=instruction.span)
    state.commit_layer(vertex, text)


def _arguments(state: StageState, instruction: Run) -> tuple[tuple[str, ...], tuple[InlineFile, ...]]:
    match instruction.command:
        case ExecForm(args):
            return args, ()
        case ShellForm(text, heredocs):
            shell = shell_of(state.config)
            if not heredocs:
                return (*shell, text), ()
            if not is_heredoc_only(text, heredocs):
                bodies = "".join(f"\n{heredoc.body}{heredoc.name}" for heredoc in heredocs)
                return (*shell, text + bodies), ()
            (heredoc,) = heredocs
            if not heredoc.content.startswith("#!"):
                return (*shell, heredoc.content), ()
            script = InlineFile(heredoc.name, heredoc.content.encode("utf-8", "surrogateescape"), 0o755)
            return (*shell, _SCRIPTS + heredoc.name), (script,)


def is_heredoc_only(text: str, heredocs: tuple[Heredoc, ...]) -> bool:
    """True if the command line is nothing but one here-document: then its body is the command."""
    match = _HEREDOC_WORD.match(text.strip())
    if match is None or len(heredocs) != 1:
        return False
    return match[1].strip().replace("'", "").replace('"', "") == heredocs[0].name


def _shown(state: StageState, instruction: Run, mounts: tuple[Mount, ...]) -> str:
    text = instruction.text.strip()
    if isinstance(instruction.command, ShellForm) and is_heredoc_only(
        instruction.command.text, instruction.command.heredocs
    ):
        text += f" ({summarize_heredoc(instruction.command.heredocs[0].body)})"
    env = dict(state.env)
    for mount in mounts:
        if isinstance(mount, SecretMount) and mount.env is not None:
            env[mount.env] = SECRET_MASK
    return display_text(text, env, escape=state.settings.escape, run=True)
