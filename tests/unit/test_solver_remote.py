"""The solver and caches elsewhere: when they are asked, what is brought, and what happens when a promise isn't kept."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "fakes"))

from solver_fakes import (
    Events,
    FunctionExecutor,
    MemoryCache,
    MemoryImages,
    MemorySnapshots,
    Tree,
)  # found by the line above

from pybuild.builder.cache_format import CachedStep
from pybuild.builder.graph import ContextSource, Exec, FileCopy, ImageSource, Merge, Note, Op, Vertex
from pybuild.builder.protocols import ProcessSpec
from pybuild.builder.solver import Solver
from pybuild.layers.descriptor import Platform
from pybuild.layers.digest import Digest

AMD64 = Platform("linux", "amd64")
CONTEXT = Vertex(ContextSource("context"), (), Note("[internal] load build context"))


class Shelf:
    """A RemoteCache in memory: other machines' steps and layers. ``lost``: layers that it only promises."""

    def __init__(self) -> None:
        self.steps: dict[str, CachedStep] = {}
        self.layers: dict[Digest, tuple[object, ...]] = {}
        self.lost: set[Digest] = set()
        self.asked: list[tuple[str, ...]] = []
        self.brought: list[Digest] = []
        self.lazy = True
        self.here: MemorySnapshots | None = None

    keeps = True

    def lookup(self, keys: Sequence[str]) -> Mapping[str, CachedStep]:
        self.asked.append(tuple(keys))
        return {key: self.steps[key] for key in keys if key in self.steps}

    def know(self, layers: Sequence[Digest]) -> frozenset[Digest]:
        return frozenset(layers) if self.lazy is False else frozenset()

    def bring(self, layers: Mapping[Digest, tuple[Digest, ...]], *, unpack: bool) -> frozenset[Digest]:
        assert self.here is not None
        for diff_id in layers:
            if diff_id in self.layers and diff_id not in self.lost:
                self.here.layers[diff_id] = self.layers[diff_id]  # type: ignore[assignment]  # entries of another machine
                self.brought.append(diff_id)
        return frozenset(diff_id for diff_id in layers if diff_id not in self.here.layers)

    def keep(self, step: CachedStep, *, base: int) -> None:
        self.steps[step.record.key] = step
        assert base == 1


class Machine:
    """One store, and the shelf that it shares with others."""

    def __init__(self, shelf: Shelf, *, base_here: bool = True) -> None:
        self.shelf = shelf
        self.snapshots = MemorySnapshots()
        self.cache = MemoryCache(self.snapshots)
        self.images = MemoryImages(self.snapshots)
        self.base = self.images.add("base", Tree().file("etc/passwd", "root:x:0:0::/root:\n"), pulled=base_here)
        self.executor = FunctionExecutor(self.snapshots, _write)

    def build(self, *targets: Vertex, context: Tree, files: bool = True) -> list[str]:
        """The commands that ran."""
        self.executor.ran.clear()
        self.shelf.here = self.snapshots
        self.events = Events()
        with Solver(
            executor=self.executor,
            snapshots=self.snapshots,
            cache=self.cache,
            images=self.images,
            contexts={"context": context},
            progress=self.events,
            clock=time.time,
            cancel=threading.Event(),
            resolved=(self.base,),
            remote_cache=self.shelf,
        ) as solver:
            results = solver.solve(targets, files=targets if files else ())
        if files:
            assert all(self.snapshots.has(result.stack) for result in results.values())
        self.shelf.layers.update(self.snapshots.layers)
        return self.executor.commands

    def dockerfile(self, *, last: str = "end") -> Vertex:
        base = Vertex(ImageSource("base", None, self.base.config.diff_ids, AMD64), (), Note("[1/5] FROM base"))
        first = vertex(FileCopy(("/requirements",), "/app/"), "COPY requirements", base, CONTEXT)
        second = run("install", first)
        return run(last, vertex(FileCopy(("/src",), "/app/src"), "COPY src", second, CONTEXT))


def _write(tree: Tree, spec: ProcessSpec, say: object) -> int:
    tree.file(f"made/{spec.args[-1]}", spec.args[-1])
    return 0


def vertex(op: Op, title: str, *inputs: Vertex) -> Vertex:
    return Vertex(op, inputs, Note(title, instruction=title))


def run(command: str, on: Vertex) -> Vertex:
    return vertex(Exec(("/bin/sh", "-c", command), (), "/", "", AMD64), f"RUN {command}", on)


def app(text: str = "print(1)") -> Tree:
    return Tree().file("requirements", "flask").file("src/app.py", text)


def test_another_machine_runs_nothing() -> None:
    shelf = Shelf()
    one, two = Machine(shelf), Machine(shelf)
    assert one.build(one.dockerfile(), context=app()) == ["install", "end"]
    assert two.build(two.dockerfile(), context=app()) == []


def test_all_keys_are_asked_for_at_once_and_only_on_a_miss() -> None:
    shelf = Shelf()
    one, two = Machine(shelf), Machine(shelf)
    one.build(one.dockerfile(), context=app())
    shelf.asked.clear()
    two.build(two.dockerfile(), context=app())
    assert [len(keys) for keys in shelf.asked] == [4]
    two.build(two.dockerfile(), context=app())
    assert len(shelf.asked) == 1, "what is here by now is here"


def test_only_needed_layers_are_brought() -> None:
    shelf = Shelf()
    one, two, three = Machine(shelf), Machine(shelf), Machine(shelf)
    one.build(one.dockerfile(), context=app())
    two.build(two.dockerfile(), context=app(), files=False)
    assert shelf.brought == [], "nobody wants the result's files"
    three.build(three.dockerfile(), context=app("print(2)"))
    assert len(shelf.brought) == 2, "the layers below the step that runs"


def test_layers_that_only_this_build_can_have_are_brought() -> None:
    shelf = Shelf()
    one, two = Machine(shelf), Machine(shelf)
    one.build(one.dockerfile(), context=app())
    shelf.lazy = False
    assert two.build(two.dockerfile(), context=app(), files=False) == []
    assert len(shelf.brought) == 4, "a later process could not fetch them"


def test_a_layer_that_only_this_build_could_have_had_is_made_again() -> None:
    shelf = Shelf()
    one, two = Machine(shelf), Machine(shelf)
    one.build(one.dockerfile(), context=app())
    shelf.lazy = False
    last = max(shelf.steps.values(), key=lambda step: len(step.record.layers))
    shelf.lost = {last.record.layers[-1]}
    assert two.build(two.dockerfile(), context=app(), files=False) == ["end"]


def test_a_base_that_is_only_pushed_on_is_known_and_not_pulled() -> None:
    machine = Machine(Shelf(), base_here=False)
    base = Vertex(ImageSource("base", None, machine.base.config.diff_ids, AMD64), (), Note("[1/1] FROM base"))
    machine.build(base, context=app(), files=False)
    assert (machine.images.known, machine.images.pulled) == (["base"], [])
    machine.build(base, context=app())
    assert machine.images.pulled == ["base"]


def test_layers_that_are_lost_are_made_again() -> None:
    shelf = Shelf()
    one, two = Machine(shelf), Machine(shelf)
    one.build(one.dockerfile(), context=app())
    shelf.lost = set(shelf.layers)
    assert two.build(two.dockerfile(), context=app()) == ["install", "end"]


def test_only_what_needs_a_lost_layer_runs() -> None:
    shelf = Shelf()
    one, two = Machine(shelf), Machine(shelf)
    one.build(one.dockerfile(), context=app())
    last = max(shelf.steps.values(), key=lambda step: len(step.record.layers))
    shelf.lost = {last.record.layers[-1]}
    assert two.build(two.dockerfile(), context=app()) == ["end"]


def test_a_step_is_found_by_what_its_inputs_contain() -> None:
    shelf = Shelf()
    one, two = Machine(shelf), Machine(shelf)
    one.build(one.dockerfile(), context=app())
    for step in list(shelf.steps.values()):
        known = [key for key, record in one.cache.records.items() if record.key == step.record.key]
        shelf.steps.update(dict.fromkeys(known, step))
    # The definition keys of the last steps are unknown: as if something above them was written differently.
    for step in list(shelf.steps.values()):
        if step.instruction in ("COPY src", "RUN end"):
            shelf.steps.pop(step.record.key, None)
    assert two.build(two.dockerfile(), context=app()) == []


def test_a_base_is_pulled_when_a_step_needs_it() -> None:
    shelf = Shelf()
    one, two, three = Machine(shelf), Machine(shelf, base_here=False), Machine(shelf, base_here=False)
    one.build(one.dockerfile(), context=app())
    two.shelf.layers = {key: value for key, value in shelf.layers.items() if key not in one.base.config.diff_ids}
    two.build(two.dockerfile(), context=app(), files=False)
    assert two.images.pulled == []
    three.build(three.dockerfile(), context=app("print(2)"))
    assert three.images.pulled == ["base"]


def test_linked_copies_travel_too() -> None:
    shelf = Shelf()
    one, two = Machine(shelf), Machine(shelf)

    def graph(machine: Machine) -> Vertex:
        base = Vertex(ImageSource("base", None, machine.base.config.diff_ids, AMD64), (), Note("[1/5] FROM base"))
        below = run("below", base)
        link = vertex(FileCopy(("/src",), "/linked", link=True), "COPY --link src", CONTEXT)
        return run("above", vertex(Merge(), "COPY --link src (link)", below, link))

    shelf.keep = lambda step, *, base: shelf.steps.__setitem__(step.record.key, step)  # type: ignore[method-assign]  # a linked copy has no base
    assert one.build(graph(one), context=app()) == ["below", "above"]
    assert two.build(graph(two), context=app()) == []
