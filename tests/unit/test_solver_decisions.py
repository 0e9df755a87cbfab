"""The solver: what comes from the cache, what runs, in which order, and what is said about it."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "fakes"))

from solver_fakes import (  # found by the line above
    AMD64,
    Events,
    FunctionExecutor,
    MemoryCache,
    MemoryImages,
    MemorySnapshots,
    Tree,
)

from pybuild.builder.execute import ExecSettings
from pybuild.builder.failure import BuildFailed
from pybuild.builder.graph import (
    BindMount,
    ContextSource,
    Exec,
    FileCopy,
    FileMake,
    ImageSource,
    Merge,
    Network,
    Note,
    Op,
    Scratch,
    SecretMount,
    Vertex,
)
from pybuild.builder.protocols import ProcessSpec, ResolvedImage
from pybuild.builder.solver import CacheRequired, Solver, StepFailed
from pybuild.builder.why import Explainer, PreviousStep
from pybuild.errors import Cancelled

Program = Callable[[Tree, ProcessSpec, Callable[[int, bytes], None]], int]


def shell(tree: Tree, spec: ProcessSpec, on_output: Callable[[int, bytes], None]) -> int:
    """``write PATH TEXT``, ``print TEXT``, ``cat FROM TO``, ``fail CODE``: as much of a shell as these tests need."""
    command, *words = spec.args[-1].split(" ")
    match command:
        case "write":
            tree.file(words[0], words[1], mtime=int(time.monotonic() * 1000) % 10**6)
        case "cat":
            tree.file(words[1], tree.read(words[0]) if tree.lookup(words[0]) else "")
        case "print":
            on_output(1, words[0].encode() + b"\n")
        case "fail":
            on_output(2, b"it went wrong\n")
            return int(words[0])
    return 0


@dataclass
class World:
    """A machine's memory over several builds."""

    program: Program = shell
    snapshots: MemorySnapshots = field(default_factory=MemorySnapshots)

    def __post_init__(self) -> None:
        self.cache = MemoryCache(self.snapshots)
        self.images = MemoryImages(self.snapshots)
        self.executor = FunctionExecutor(self.snapshots, self.program)
        self.base = self.images.add("base", Tree().file("etc/passwd", "root:x:0:0::/root:\n"))
        self.steps: list[PreviousStep] = []

    def build(
        self, *targets: Vertex, context: Tree | None = None, resolved: tuple[ResolvedImage, ...] = (), **options: object
    ) -> Build:
        events = Events()
        self.executor.ran.clear()
        solver = Solver(
            executor=self.executor,
            snapshots=self.snapshots,
            cache=self.cache,
            images=self.images,
            contexts={"context": context} if context is not None else {},
            progress=events,
            clock=time.time,
            cancel=options.pop("cancel", None) or threading.Event(),  # type: ignore[arg-type]  # an Event
            resolved=resolved or (self.base,),
            **options,  # type: ignore[arg-type]  # by name
        )
        with solver:
            results = solver.solve(targets)
        self.steps = [
            PreviousStep("", r.vertex.note.instruction, r.vertex.note.title, r.key, r.recipe) for r in solver.reports
        ]
        trees = [self.snapshots.tree(results[target].stack) for target in targets]
        return Build(self.executor.commands, events, trees, [len(results[target].stack) for target in targets])


@dataclass
class Build:
    ran: list[str]
    events: Events
    trees: list[Tree]
    layers: list[int]


def source(world: World) -> Vertex:
    image = world.base
    return Vertex(ImageSource("base", None, image.config.diff_ids, AMD64), (), Note("[1/9] FROM base"))


def run(command: str, on: Vertex, *others: Vertex, stage: str = "", **options: object) -> Vertex:
    op = Exec(("/bin/sh", "-c", command), (), "/", "", AMD64)
    return vertex(replace(op, **options), f"RUN {command}", on, *others, stage=stage)  # type: ignore[arg-type]  # by name


def copy(source: str, destination: str, on: Vertex, tree: Vertex, **options: object) -> Vertex:
    op = replace(FileCopy((source,), destination), **options)  # type: ignore[arg-type]  # by name
    return vertex(op, f"COPY {source} {destination}", on, tree)


def vertex(op: Op, title: str, *inputs: Vertex, stage: str = "") -> Vertex:
    return Vertex(op, inputs, Note(title, lines=(3, 3), stage=stage, instruction=title))


CONTEXT = Vertex(ContextSource("context"), (), Note("[internal] load build context"))


def app() -> Tree:
    return Tree().file("requirements", "flask").file("src/app.py", "print(1)")


def dockerfile(world: World) -> Vertex:
    """FROM base, COPY requirements, RUN install, COPY src, RUN compile."""
    first = copy("/requirements", "/app/", source(world), CONTEXT)
    second = run("cat app/requirements installed", first)
    return run("cat app/src/app.py compiled", copy("/src", "/app/src", second, CONTEXT))


# --- caching ------------------------------------------------------------------------------------------------------------


def test_a_second_build_runs_nothing_and_says_cached_for_every_step() -> None:
    world = World()
    first = world.build(dockerfile(world), context=app())
    assert first.ran == ["cat app/requirements installed", "cat app/src/app.py compiled"]
    second = world.build(dockerfile(world), context=app())
    assert second.ran == []
    assert second.events.titles(cached=True) == [
        "[1/9] FROM base",
        "COPY /requirements /app/",
        "RUN cat app/requirements installed",
        "COPY /src /app/src",
        "RUN cat app/src/app.py compiled",
    ]
    assert second.trees[0].read("compiled") == "print(1)"


def test_a_warm_build_marks_every_step_as_used() -> None:
    world = World()
    world.build(dockerfile(world), context=app())
    world.cache.gets.clear()
    world.build(dockerfile(world), context=app())
    assert len(world.cache.gets) == len(set(world.cache.gets)) == 4


def test_a_changed_file_runs_just_what_depends_on_it() -> None:
    world = World()
    world.build(dockerfile(world), context=app())
    again = world.build(dockerfile(world), context=app().file("src/app.py", "print(2)"))
    assert again.ran == ["cat app/src/app.py compiled"]
    assert again.trees[0].read("compiled") == "print(2)"


def test_touching_a_file_runs_nothing() -> None:
    world = World()
    world.build(dockerfile(world), context=app())
    assert world.build(dockerfile(world), context=app().file("src/app.py", "print(1)", mtime=77)).ran == []


def test_files_that_no_step_selects_change_nothing() -> None:
    world = World()
    world.build(dockerfile(world), context=app())
    assert world.build(dockerfile(world), context=app().file("README", "new")).ran == []


def test_a_rebuilt_stage_with_equal_output_invalidates_nothing() -> None:
    world = World()

    def graph(comment: str) -> Vertex:
        made = run(f"write out same {comment}", source(world))
        return run("cat got used", copy("/out", "/got", source(world), made, keep_owner=True))

    world.build(graph("one"))
    again = world.build(graph("two"))
    assert again.ran == ["write out same two"]
    assert "RUN cat got used" in again.events.titles(cached=True)
    assert world.build(graph("two")).ran == []


def test_the_same_content_under_another_name_is_the_same_base() -> None:
    world = World()
    world.build(run("write a b", source(world)))
    renamed = Vertex(ImageSource("other:tag", None, world.base.config.diff_ids, AMD64), (), Note("FROM other"))
    assert world.build(run("write a b", renamed)).ran == []


def test_no_cache_runs_the_step_and_what_depends_on_its_changed_result() -> None:
    world = World()
    counter = iter(range(100))

    def counting(tree: Tree, spec: ProcessSpec, on_output: Callable[[int, bytes], None]) -> int:
        if spec.args[-1] == "count":
            tree.file("count", str(next(counter)))
            return 0
        return shell(tree, spec, on_output)

    world.executor.program = counting

    def graph(nonce: str) -> Vertex:
        return run("cat count copy", run("count", source(world), nonce=nonce))

    assert world.build(graph("")).trees[0].read("copy") == "0"
    assert world.build(graph("n1")).trees[0].read("copy") == "1"


def test_a_build_after_no_cache_uses_its_results() -> None:
    world = World()
    counter = iter(range(100))

    def counting(tree: Tree, spec: ProcessSpec, on_output: Callable[[int, bytes], None]) -> int:
        tree.file("count", str(next(counter)))
        return 0

    world.executor.program = counting
    world.build(run("count", source(world)))
    world.build(run("count", source(world), nonce="n1"))
    last = world.build(run("count", source(world)))
    assert (last.ran, last.trees[0].read("count")) == ([], "1")


def test_equal_steps_of_one_build_run_once() -> None:
    world = World()
    twice = world.build(run("write a b", source(world)), run("write a b", source(world)))
    assert twice.ran == ["write a b"]


def test_a_record_whose_layers_are_gone_is_made_again() -> None:
    world = World()
    first = run("write a b", source(world))
    world.build(first)
    (record,) = {r.key: r for r in world.cache.records.values()}.values()
    del world.snapshots.layers[record.layers[-1]]
    assert world.build(run("write a b", source(world))).ran == ["write a b"]


# --- what is needed -----------------------------------------------------------------------------------------------------


def test_a_base_is_pulled_only_when_a_step_needs_its_files() -> None:
    world = World()
    lazy = world.images.add("lazy", Tree().file("big"), pulled=False)
    base = Vertex(ImageSource("lazy", None, lazy.config.diff_ids, AMD64), (), Note("FROM lazy"))
    linked = Vertex(FileCopy(("/src",), "/src", link=True), (CONTEXT,), Note("COPY --link"))
    merged = Vertex(Merge(), (base, linked), Note("LINK"))
    events = Events()
    with Solver(
        executor=world.executor,
        snapshots=world.snapshots,
        cache=world.cache,
        images=world.images,
        contexts={"context": app()},
        progress=events,
        clock=time.time,
        cancel=threading.Event(),
        resolved=(lazy,),
    ) as solver:
        result = solver.solve([merged])[merged]
    assert (len(result.stack), result.own, world.images.pulled) == (2, 1, [])
    world.build(run("write a b", base), resolved=(lazy,))
    assert world.images.pulled == ["lazy"]


def test_nothing_is_needed_of_a_step_that_no_target_depends_on() -> None:
    world = World()
    run("fail 1", source(world))
    assert world.build(run("write a b", source(world))).ran == ["write a b"]


def test_a_stage_is_run_for_a_copy_from_it() -> None:
    world = World()
    made = run("write out data", source(world))
    scratch = Vertex(Scratch(), (), Note("FROM scratch"))
    build = world.build(copy("/out", "/in/", scratch, made, keep_owner=True))
    assert (build.trees[0].read("in/out"), build.layers) == ("data", [1])


def test_a_linked_copy_is_independent_of_what_is_below() -> None:
    world = World()

    def graph(text: str) -> Vertex:
        linked = Vertex(FileCopy(("/src",), "/src", link=True), (CONTEXT,), Note("COPY --link"))
        return Vertex(Merge(), (run(f"write below {text}", source(world)), linked), Note("LINK COPY"))

    world.build(graph("one"), context=app())
    again = world.build(graph("two"), context=app())
    assert again.ran == ["write below two"]
    assert "COPY --link" in again.events.titles(cached=True)
    assert again.trees[0].read("src/app.py") == "print(1)"


def test_workdir_makes_a_layer_each_time_it_is_not_cached() -> None:
    world = World()
    made = vertex(FileMake("/srv/app"), "WORKDIR /srv/app", source(world))
    again = vertex(FileMake("/srv/app"), "WORKDIR /srv/app again", made)
    build = world.build(again)
    assert build.layers == [3]
    assert build.trees[0].lookup("srv/app") is not None


# --- mounts, secrets, entitlements --------------------------------------------------------------------------------------


def test_a_changed_file_in_a_bind_mount_runs_the_step() -> None:
    world = World()

    def graph() -> Vertex:
        mount = BindMount("/src", 1, "/src")
        return run("print hello", source(world), CONTEXT, mounts=(mount,))

    tree = app()
    for path, (node, data) in list(tree.nodes.items()):
        tree.nodes[path] = (replace(node, host_path=f"/context/{path}"), data)
    world.build(run("print x", source(world)), context=tree)
    keys = []
    for text in ("print(1)", "print(1)", "print(2)"):
        _, by_vertex = solver_steps(world, graph(), tree.file("src/app.py", text))
        keys.append(by_vertex)
    assert keys[0] == keys[1] != keys[2]


def solver_steps(world: World, target: Vertex, context: Tree) -> tuple[int, str]:
    """The number of steps and the target's definition key."""
    solver = Solver(
        executor=world.executor,
        snapshots=world.snapshots,
        cache=world.cache,
        images=world.images,
        contexts={"context": context},
        progress=Events(),
        clock=time.time,
        cancel=threading.Event(),
    )
    steps, by_vertex = solver._maker.make([target])
    return len(steps), by_vertex[target].recipe.key


def test_secrets_reach_the_process_and_nothing_else() -> None:
    world = World()
    mounts = (SecretMount("token", "/run/secrets/token"), SecretMount("token", None, env="TOKEN"))
    target = run("print x", source(world), mounts=mounts)
    build = world.build(target, settings=ExecSettings({"token": b"s3cret"}, {}))
    (spec,) = world.executor.ran
    assert ("TOKEN", "s3cret") in spec.env
    assert "s3cret" not in repr(world.cache.records) + repr(build.events.events)


def test_a_missing_required_secret_fails_by_name() -> None:
    world = World()
    target = run("print x", source(world), mounts=(SecretMount("token", "/t", required=True),))
    with pytest.raises(StepFailed, match="secret token: not found"):
        world.build(target)


def test_a_missing_optional_secret_is_left_out() -> None:
    world = World()
    world.build(run("print x", source(world), mounts=(SecretMount("token", "/t"),)))
    assert world.executor.ran[0].mounts == ()


def test_privileges_need_an_entitlement() -> None:
    world = World()
    target = run("print x", source(world), network=Network.HOST)
    with pytest.raises(StepFailed, match=r"entitlement network\.host is not allowed"):
        world.build(target)
    assert world.build(target, entitlements=frozenset({"network.host"})).ran == ["print x"]


def test_a_process_gets_home_and_path() -> None:
    world = World()
    world.build(run("print x", source(world), env=(("A", "1"), ("A", "2"))))
    env = dict(world.executor.ran[0].env)
    assert (env["HOME"], env["A"], "/usr/bin" in env["PATH"]) == ("/root", "2", True)


def test_an_unknown_user_is_an_error_that_names_it() -> None:
    world = World()
    with pytest.raises(StepFailed, match="unable to find user nobody: no matching entries in passwd file"):
        world.build(run("print x", source(world), user="nobody"))


# --- failures -----------------------------------------------------------------------------------------------------------


def test_a_failed_process_says_its_command_exit_code_and_last_output() -> None:
    world = World()
    target = run("fail 3", source(world))
    with pytest.raises(StepFailed) as caught:
        world.build(target)
    assert caught.value.message == 'process "/bin/sh -c fail 3" did not complete successfully: exit code: 3'
    assert (caught.value.vertex, caught.value.output) == (target, (b"it went wrong",))
    (seconds,) = caught.value.times
    assert re.fullmatch(r"\d+\.\d{3}", seconds)
    assert BuildFailed.of_step(caught.value, None).listing().splitlines()[2] == f"{seconds} it went wrong"


def test_steps_that_finished_before_a_failure_stay_in_the_cache() -> None:
    world = World()
    first = run("write a b", source(world))
    with pytest.raises(StepFailed):
        world.build(run("fail 1", first))
    assert world.build(run("cat a c", run("write a b", source(world)))).ran == ["cat a c"]


def test_a_missing_file_fails_before_anything_runs() -> None:
    world = World()
    target = copy("/nothing", "/x", run("write a b", source(world)), CONTEXT)
    with pytest.raises(StepFailed, match='"/nothing": not found'):
        world.build(target, context=app())
    assert world.executor.commands == []


def test_a_failure_stops_what_runs_beside_it() -> None:
    started = threading.Event()

    def program(tree: Tree, spec: ProcessSpec, on_output: Callable[[int, bytes], None]) -> int:
        if spec.args[-1] == "slow":
            started.set()
            assert world.stop is not None
            if not world.stop.wait(10):
                raise AssertionError("nobody stopped this step")
            raise Cancelled
        started.wait(10)
        return 1

    class StoppableWorld(World):
        stop: threading.Event | None = None

    world = StoppableWorld(program)
    original = world.executor.run

    def run_with_stop(spec: ProcessSpec, *, on_output: object, cancel: threading.Event) -> object:
        world.stop = cancel
        return original(spec, on_output=on_output, cancel=cancel)  # type: ignore[arg-type]  # passed on

    world.executor.run = run_with_stop  # type: ignore[method-assign,assignment]  # to get hold of the event
    with pytest.raises(StepFailed, match="exit code: 1"):
        world.build(run("slow", source(world)), run("bad", source(world)))


def test_cancelling_ends_the_build() -> None:
    cancel = threading.Event()

    def program(tree: Tree, spec: ProcessSpec, on_output: Callable[[int, bytes], None]) -> int:
        cancel.set()
        raise Cancelled

    world = World(program)
    with pytest.raises(Cancelled):
        world.build(run("x", source(world)), cancel=cancel)


# --- running side by side -----------------------------------------------------------------------------------------------


def test_independent_stages_run_at_the_same_time() -> None:
    meeting = threading.Barrier(3, timeout=10)

    def program(tree: Tree, spec: ProcessSpec, on_output: Callable[[int, bytes], None]) -> int:
        meeting.wait()
        return 0

    world = World(program)
    world.build(*(run(f"stage {number}", source(world)) for number in range(3)), max_parallelism=3)


def test_no_more_steps_run_at_once_than_allowed() -> None:
    running, most = 0, 0
    guard = threading.Lock()

    def program(tree: Tree, spec: ProcessSpec, on_output: Callable[[int, bytes], None]) -> int:
        nonlocal running, most
        with guard:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with guard:
            running -= 1
        return 0

    world = World(program)
    world.build(*(run(f"stage {number}", source(world)) for number in range(6)), max_parallelism=2)
    assert most == 2


def test_two_builds_at_once_run_each_step_once() -> None:
    world = World()

    def program(tree: Tree, spec: ProcessSpec, on_output: Callable[[int, bytes], None]) -> int:
        time.sleep(0.05)
        ran.append(spec.args[-1])
        return shell(tree, spec, on_output)

    ran: list[str] = []
    world.executor.program = program
    threads = [
        threading.Thread(target=world.build, args=(dockerfile(world),), kwargs={"context": app()}) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ran) == ["cat app/requirements installed", "cat app/src/app.py compiled"]


def test_a_thousand_steps_in_a_row_are_no_problem() -> None:
    world = World()

    def graph() -> Vertex:
        last = source(world)
        for number in range(1000):
            last = vertex(FileMake(f"/d{number % 7}"), f"WORKDIR {number}", last)
        return last

    steps, _ = solver_steps(world, graph(), app())
    assert steps == 1001


# --- reasons ------------------------------------------------------------------------------------------------------------


def explained(world: World, *targets: Vertex, context: Tree | None = None) -> Mapping[str, str]:
    """The reasons of a build, given the recipes that the last one left."""
    explainer = Explainer(lambda: tuple(world.steps))
    return world.build(*targets, context=context, explain=explainer).events.reasons()


def test_the_first_build_says_so() -> None:
    world = World()
    assert set(explained(world, dockerfile(world), context=app()).values()) == {"first build here"}


def test_a_changed_file_is_named() -> None:
    world = World()
    explained(world, dockerfile(world), context=app())
    reasons = explained(world, dockerfile(world), context=app().file("src/app.py", "new"))
    assert reasons == {
        "COPY /src /app/src": "src/app.py changed (content)",
        "RUN cat app/src/app.py compiled": "after COPY /src /app/src: src/app.py changed (content)",
    }


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda tree: tree.file("src/new.py", "x"), "src/new.py was added"),
        (lambda tree: tree.remove("src/app.py") or tree.file("src/b", ""), "src/b was added"),
        (lambda tree: tree.file("src/app.py", "print(1)", mode=0o755), "src/app.py changed (mode 644, is 755)"),
        (lambda tree: tree.remove("src/app.py") or tree.link("src/app.py", "x"), "src/app.py was a file, is a symlink"),
    ],
)
def test_each_kind_of_change_has_its_words(change: Callable[[Tree], object], expected: str) -> None:
    world = World()
    explained(world, dockerfile(world), context=app())
    tree = app()
    change(tree)
    assert explained(world, dockerfile(world), context=tree)["COPY /src /app/src"] == expected


def test_a_changed_variable_is_named_with_both_values() -> None:
    world = World()
    explained(world, run("print x", source(world), env=(("VERSION", "1.2"),)))
    reasons = explained(world, run("print x", source(world), env=(("VERSION", "1.3"),)))
    assert reasons == {"RUN print x": "ENV VERSION was 1.2, is 1.3"}


def test_a_moved_base_is_named() -> None:
    world = World()
    explained(world, run("print x", source(world)))
    moved = world.images.add("base", Tree().file("etc/new"))
    base = Vertex(ImageSource("base", moved.manifest.digest, moved.config.diff_ids, AMD64), (), Note("[1/9] FROM base"))
    reasons = explained(world, run("print x", base))
    assert reasons["RUN print x"].startswith("base base moved from ")


def test_require_cache_stops_at_the_first_miss() -> None:
    world = World()
    with pytest.raises(StepFailed) as caught:
        world.build(dockerfile(world), context=app(), require_cache=True)
    assert isinstance(caught.value.cause, CacheRequired)
    assert world.executor.commands == []
