"""A stage while it is being lowered: its latest vertex, configuration, environment, arguments and history.

Owns the state that instructions read and change, and the numbering of its steps. Mutable and private to lowering; the results
that leave are immutable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pybuild.layers.descriptor import Platform
from pybuild.layers.image import History, ImageConfig
from pybuild.parser.ast import Instruction, Span, Word
from pybuild.parser.expand import expand
from pybuild.values import dataclass, field

from .findings import Findings
from .graph import ContextSource, FileCopy, GitSource, HttpSource, Network, Note, Op, Scratch, Vertex
from .history import config_entry, context_entry, layer_entry
from .image_config import to_slashes
from .protocols import ResolvedImage
from .stages import StageNode
from .titles import display_text, step_prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSettings:
    """What the client set for every step of the build."""

    network: Network = Network.DEFAULT
    hostname: str = "buildkitsandbox"
    extra_hosts: tuple[tuple[str, str], ...] = ()
    shm_size: int = 0
    ulimits: tuple[tuple[str, int, int], ...] = ()
    cgroup_parent: str = ""
    resources: tuple[tuple[str, str], ...] = ()
    cache_namespace: str = ""
    proxies: tuple[tuple[str, str], ...] = ()
    several_platforms: bool = False
    escape: str = "\\"
    epoch: int | None = None


@dataclass(slots=True, eq=False)
class StageState:
    """``arguments``: the ARGs in effect, in the order declared; ``env``: what RUN gets, ARG and ENV together in their order."""

    node: StageNode
    label: str
    platform: Platform
    vertex: Vertex
    config: ImageConfig
    settings: StepSettings
    findings: Findings
    nonce: Callable[[], str]
    history: list[History] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    arguments: list[tuple[str, str | None]] = field(default_factory=list)
    base: ResolvedImage | None = None
    base_history: int = 0
    steps: int = 0
    step: int = 0
    trigger: bool = False
    command_set: bool = False
    workdir_set: bool = False

    @property
    def is_tree(self) -> bool:
        """True for a tree from a client or the network, which is no root file system: its files become root's when copied."""
        return isinstance(self.vertex.op, ContextSource | GitSource | HttpSource)

    @property
    def windows(self) -> bool:
        """True where paths are written with backslashes."""
        return self.platform.os == "windows"

    @property
    def directory(self) -> str:
        """The working directory, with slashes."""
        return to_slashes(self.config.working_dir) if self.windows else self.config.working_dir

    def start(self) -> None:
        """Take the environment from the configuration: ENV wins over the ARGs inherited from a base stage."""
        for item in self.config.env:
            name, _, value = item.partition("=")
            self.set_env(name, value)

    def set_env(self, name: str, value: str) -> None:
        """Set a variable; it moves to the end, as BuildKit orders a process's environment."""
        self.env.pop(name, None)
        self.env[name] = value

    def expand(self, word: Word, instruction: Instruction) -> str:
        """``word`` with the stage's variables, quotes removed. Raises DockerfileError."""
        expansion = expand(word, self.env)
        if expansion.unset:
            self.findings.undefined(expansion.unset, self.env, self.arguments, instruction)
        return expansion.text

    def commit_config(self, text: str) -> None:
        """Note an instruction that makes no layer."""
        self.history.append(config_entry(text))

    def commit_layer(self, vertex: Vertex, text: str, *, buildkit: bool = True) -> None:
        """Take ``vertex`` as the stage's latest, with its history entry."""
        self.vertex = vertex
        self.history.append(layer_entry(text, buildkit=buildkit))

    def root(self) -> Vertex:
        """The stage's latest vertex as a root file system. A context's tree in the place of an image becomes a layer here, when
        something is to be put on it."""
        if not self.is_tree:
            return self.vertex
        text = self.vertex.note.title
        nothing = Vertex(Scratch(), (), Note("FROM scratch"))
        copied = FileCopy(sources=("/",), destination="/")
        self.vertex = Vertex(copied, (nothing, self.vertex), self.note(text, text, None))
        self.history.append(context_entry(text))
        return self.vertex

    def next_title(self, text: str, *, env: Mapping[str, str] | None = None) -> str:
        """The title of the next step."""
        self.step += 1
        return self.title(text, env=env)

    def title(self, text: str, *, env: Mapping[str, str] | None = None) -> str:
        """The title of the current step."""
        prefix = step_prefix(
            stage=self.label,
            index=self.step,
            total=self.steps,
            platform=self.platform if self.settings.several_platforms else None,
            env=self.env if env is None else env,
        )
        mark = "ONBUILD " if self.trigger and prefix else ""
        return prefix + mark + text

    def shown(self, instruction: Instruction) -> str:
        """The instruction's line for titles."""
        return display_text(instruction.text, self.env, escape=self.settings.escape)

    def note(self, title: str, text: str, span: Span | None) -> Note:
        """What is shown of a vertex of this stage."""
        return Note(
            title=title,
            lines=None if span is None else span.lines,
            stage=self.node.name,
            instruction=text,
            platform=self.platform,
            arguments=tuple(name for name, _ in self.arguments),
        )

    def make(self, op: Op, inputs: tuple[Vertex, ...], *, title: str, text: str, span: Span | None) -> Vertex:
        """A vertex of this stage."""
        return Vertex(op, inputs, self.note(title, text, span))
