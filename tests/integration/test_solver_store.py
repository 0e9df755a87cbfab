"""The solver with the real store and real namespaces: what steps see, what layers hold, what a second build finds."""

from __future__ import annotations

import os
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from pybuild.builder.contexts_local import LocalContext
from pybuild.builder.execute import ExecSettings
from pybuild.builder.graph import (
    BindMount,
    CacheMount,
    CacheSharing,
    ContextSource,
    Exec,
    FileCopy,
    FileMake,
    ImageSource,
    InlineFile,
    Note,
    Op,
    Scratch,
    SecretMount,
    TmpfsMount,
    Unpack,
    Vertex,
)
from pybuild.builder.progress import Event, StepDone, StepLog, StepStarted
from pybuild.builder.protocols import ResolvedImage
from pybuild.builder.solver import Solver, StepFailed
from pybuild.daemon.executor import NamespaceExecutor
from pybuild.layers.descriptor import Descriptor, Platform
from pybuild.layers.digest import Digest
from pybuild.layers.entries import Kind, Layer
from pybuild.layers.image import ImageConfig
from pybuild.layers.snapshots import SnapshotStore
from pybuild.layers.store import Store
from pybuild.layers.tar_read import TarReader
from pybuild.parser.dockerignore import IgnoreMatcher

pytestmark = pytest.mark.integration

AMD64 = Platform("linux", "amd64")


@dataclass
class Log:
    events: list[Event] = field(default_factory=list)

    def emit(self, event: Event) -> None:
        self.events.append(event)

    @property
    def output(self) -> str:
        return b"".join(e.data for e in self.events if isinstance(e, StepLog)).decode()

    def cached(self) -> list[bool]:
        titles = {e.step: e.title for e in self.events if isinstance(e, StepStarted)}
        return [e.cached for e in self.events if isinstance(e, StepDone) and not titles[e.step].startswith("[")]


class Machine:
    """A store with a busybox base in it, an executor, and one context."""

    def __init__(self, root: Path, base: Path, context: Path) -> None:
        self.store = Store(root, clock=time.time)
        store = self.store
        self.snapshots = SnapshotStore(
            root,
            blobs=store.blobs,
            layers=store.layers,
            leases=store.leases,
            cache_mounts=store.cache_mounts,
            active=store.active,
        )
        self.executor = NamespaceExecutor()
        self.context = context
        with store.lease(), store.blobs.ingest() as ingest:
            ingest.write(base.read_bytes())
            diff_id, size = ingest.commit()
            layer = Layer(diff_id, size)
            store.layers.register(layer)
        config = ImageConfig(AMD64, diff_ids=(layer.diff_id,))
        descriptor = Descriptor("", layer.diff_id, layer.size)
        self.image = ResolvedImage("busybox", descriptor, layer.diff_id, config, (descriptor,))
        self.log = Log()

    @property
    def base(self) -> Vertex:
        return Vertex(ImageSource("busybox", None, self.image.config.diff_ids, AMD64), (), Note("[base]"))

    def resolve(self, reference: str, *, platform: Platform, pull: bool) -> ResolvedImage:
        return self.image

    def ensure_layers(self, image: ResolvedImage, *, on_progress: Callable[[str, int, int], None]) -> None:
        return None

    def know_layers(self, image: ResolvedImage) -> None:
        return None

    def solve(
        self, *targets: Vertex, ignore: Sequence[str] = (), cancel: threading.Event | None = None, **options: object
    ) -> list[tuple[Digest, ...]]:
        self.log = Log()
        cache = self.store.open_cache()
        with (
            self.store.lease(),
            Solver(
                executor=self.executor,
                snapshots=self.snapshots,
                cache=cache,
                images=self,
                contexts={"context": LocalContext(self.context, ignore=IgnoreMatcher(ignore))},
                progress=self.log,
                clock=time.time,
                cancel=cancel or threading.Event(),
                resolved=(self.image,),
                **options,  # type: ignore[arg-type]  # by name
            ) as solver,
        ):
            results = solver.solve(targets)
            cache.flush()
        return [results[target].stack for target in targets]

    def run(self, command: str, **options: object) -> str:
        """The output of a command on the base."""
        self.solve(run(command, self.base), **options)  # type: ignore[arg-type]  # by name
        return self.log.output

    def names(self, diff_id: Digest) -> list[str]:
        with self.store.blobs.open(diff_id) as file:
            return [entry.name for entry in TarReader(file)]

    def read(self, stack: tuple[Digest, ...], path: str) -> bytes:
        with self.snapshots.view(stack) as view, view.open(path) as file:
            return file.read()


@pytest.fixture
def machine(tmp_path: Path, busybox_tar: Path) -> Iterator[Machine]:
    context = tmp_path / "context"
    context.mkdir()
    made = Machine(tmp_path / "root", busybox_tar, context)
    yield made
    made.executor.close()
    made.store.close()


CONTEXT = Vertex(ContextSource("context"), (), Note("[context]"))


def vertex(op: Op, title: str, *inputs: Vertex) -> Vertex:
    return Vertex(op, inputs, Note(title, instruction=title))


def run(command: str, on: Vertex, *others: Vertex, **options: object) -> Vertex:
    op = replace(Exec(("/bin/sh", "-c", command), (), "/", "", AMD64), **options)  # type: ignore[arg-type]  # by name
    return vertex(op, f"RUN {command}", on, *others)


def copy(source: str, destination: str, on: Vertex, tree: Vertex = CONTEXT, **options: object) -> Vertex:
    op = replace(FileCopy((source,), destination), **options)  # type: ignore[arg-type]  # by name
    return vertex(op, f"COPY {source} {destination}", on, tree)


def test_a_build_and_a_second_one_from_the_cache(machine: Machine) -> None:
    (machine.context / "app.sh").write_text("echo hello from $1\n")

    def graph() -> Vertex:
        made = vertex(FileMake("/srv/app"), "WORKDIR /srv/app", machine.base)
        copied = copy("/app.sh", "/srv/app/", made)
        return run("sh app.sh here | tee out", copied, cwd="/srv/app")

    (stack,) = machine.solve(graph())
    assert machine.log.output == "hello from here\n"
    assert machine.read(stack, "srv/app/out") == b"hello from here\n"
    (again,) = machine.solve(graph())
    assert (again, machine.log.output, machine.log.cached()) == (stack, "", [True] * 3)


def test_two_stores_give_the_same_layers(machine: Machine, tmp_path: Path, busybox_tar: Path) -> None:
    (machine.context / "a").mkdir()
    (machine.context / "a/f").write_text("x")
    target = copy("/", "/new/place/", vertex(FileMake("/w"), "WORKDIR /w", machine.base))
    (first,) = machine.solve(target)
    other = Machine(tmp_path / "other-root", busybox_tar, machine.context)
    (second,) = other.solve(target)
    other.executor.close()
    assert first == second


def test_the_layer_of_a_run_holds_what_changed(machine: Machine) -> None:
    (stack,) = machine.solve(run("echo x > /new && rm /bin/vi && mkdir -p /etc/d", machine.base))
    names = machine.names(stack[-1])
    assert {"new", "bin/.wh.vi", "etc/d/"} <= set(names)
    assert "etc/resolv.conf" not in names


def test_mount_points_leave_no_trace(machine: Machine) -> None:
    (machine.context / "f").write_text("from the context")
    mounts = (
        BindMount("/mnt/deep/ctx", 1),
        TmpfsMount("/scratch"),
        CacheMount("/root/cache", "c"),
        SecretMount("s", "/run/secrets/s"),
    )
    target = run("cat /mnt/deep/ctx/f && echo x > /scratch/x", machine.base, CONTEXT, mounts=mounts)
    (stack,) = machine.solve(target, settings=ExecSettings({"s": b"secret"}, {}))
    assert machine.log.output == "from the context"
    assert not [n for n in machine.names(stack[-1]) if n.split("/")[0] not in ("dev", "proc", "sys")]


def test_a_bind_mount_of_a_context_hides_what_is_ignored_and_belongs_to_root(machine: Machine) -> None:
    for name in ("shown", "hidden"):
        (machine.context / name).write_text(name)
        os.chown(machine.context / name, 1234, 1234)
    target = run("cd /c && ls && stat -c %u:%g shown", machine.base, CONTEXT, mounts=(BindMount("/c", 1),))
    machine.solve(target, ignore=("hidden",))
    assert machine.log.output == "shown\n0:0\n"


def test_writes_to_a_writable_bind_mount_are_thrown_away(machine: Machine) -> None:
    (machine.context / "f").write_text("old")
    mounts = (BindMount("/c", 1, readonly=False),)
    machine.solve(run("echo new > /c/f && echo more > /c/g && cat /c/f", machine.base, CONTEXT, mounts=mounts))
    assert machine.log.output == "new\n"
    assert (machine.context / "f").read_text() == "old"
    assert not (machine.context / "g").exists()


def test_a_bind_mount_from_a_stage(machine: Machine) -> None:
    stage = run("mkdir -p /out/sub && echo data > /out/sub/f && ln -s sub /out/link", machine.base)
    mounts = (BindMount("/m", 1, "/out/link"),)
    machine.solve(run("cat /m/f; (echo x > /m/f) 2>/dev/null || echo read-only", machine.base, stage, mounts=mounts))
    assert machine.log.output == "data\nread-only\n"


def test_a_cache_mount_keeps_its_content_between_builds(machine: Machine) -> None:
    for number in ("1", "2"):
        mounts = (CacheMount("/cache", "id", mode=0o700, uid=7, gid=8),)
        machine.solve(
            run(f"echo {number} >> /cache/n && cat /cache/n && stat -c %a:%u:%g /cache", machine.base, mounts=mounts)
        )
    assert machine.log.output == "1\n2\n700:7:8\n"


def test_a_cache_mount_may_start_with_the_content_of_a_stage(machine: Machine) -> None:
    stage = run("mkdir /seed && echo seeded > /seed/f", machine.base)
    mounts = (CacheMount("/cache", "id", input=1, source="/seed"),)
    machine.solve(run("cat /cache/f", machine.base, stage, mounts=mounts))
    assert machine.log.output == "seeded\n"


def test_a_cache_mount_is_fresh_in_a_build_without_cache(machine: Machine) -> None:
    mounts = (CacheMount("/cache", "id"),)
    machine.solve(run("echo old > /cache/f", machine.base, mounts=mounts))
    machine.solve(run("ls /cache; echo new > /cache/f", machine.base, mounts=mounts, nonce="n"))
    assert machine.log.output == ""
    machine.solve(run("cat /cache/f", machine.base, mounts=mounts))
    assert machine.log.output == "new\n"


def test_locked_cache_mounts_are_used_one_after_the_other(machine: Machine) -> None:
    mounts = (CacheMount("/cache", "id", CacheSharing.LOCKED),)
    command = "for i in 1 2 3; do test ! -e /cache/busy || exit 9; touch /cache/busy; sleep 0.05; rm /cache/busy; done"
    machine.solve(
        *(run(f"{command}; true {number}", machine.base, mounts=mounts) for number in range(3)), max_parallelism=3
    )


def test_private_cache_mounts_are_not_shared_at_the_same_time(machine: Machine) -> None:
    mounts = (CacheMount("/cache", "id", CacheSharing.PRIVATE),)
    command = "echo x >> /cache/f; sleep 0.3; wc -l < /cache/f"
    machine.solve(
        *(run(f"{command}; true {number}", machine.base, mounts=mounts) for number in range(2)), max_parallelism=2
    )
    assert sorted(machine.log.output.split()) == ["1", "1"]


def test_secrets_are_files_and_variables(machine: Machine) -> None:
    mounts = (SecretMount("s", "/run/secrets/s", mode=0o440, uid=5, gid=6), SecretMount("s", None, env="S"))
    target = run("cat /run/secrets/s; echo; echo $S; stat -c %a:%u:%g /run/secrets/s", machine.base, mounts=mounts)
    machine.solve(target, settings=ExecSettings({"s": b"value"}, {}))
    assert machine.log.output == "value\nvalue\n440:5:6\n"


def test_scripts_are_run_by_their_interpreter(machine: Machine) -> None:
    script = InlineFile("EOF", b"#!/bin/sh\necho from a script\n", 0o755)
    op = Exec(("/bin/sh", "-c", "/dev/pipes/EOF"), (), "/", "", AMD64, scripts=(script,))
    machine.solve(vertex(op, "RUN <<EOF", machine.base))
    assert machine.log.output == "from a script\n"


def test_users_and_their_groups_come_from_the_image(machine: Machine) -> None:
    made = run(
        "echo 'app:x:1000:1001::/home/app:/bin/sh' >> /etc/passwd; printf 'app:x:1001:\\nextra:x:77:app\\n' >> /etc/group",
        machine.base,
    )
    machine.solve(run("id -u; id -g; id -G; echo $HOME", made, user="app"))
    assert machine.log.output == "1000\n1001\n1001 77\n/home/app\n"


def test_hard_links_owners_and_times_survive_a_copy_between_stages(machine: Machine) -> None:
    stage = run(
        "mkdir /d && echo x > /d/b && ln /d/b /d/a && chown 5:6 /d/b && chmod 4711 /d/b && touch -d @1234567 /d/b && ln -s b /d/l",
        machine.base,
    )
    (stack,) = machine.solve(copy("/d", "/e", Vertex(Scratch(), (), Note("[scratch]")), stage, keep_owner=True))
    with machine.store.blobs.open(stack[-1]) as file:
        entries = {entry.path: entry for entry in TarReader(file)}
    first = entries["e/a"]
    assert (first.kind, first.uid, first.gid, first.mode, first.mtime_ns) == (Kind.FILE, 5, 6, 0o4711, 1234567 * 10**9)
    assert (entries["e/b"].kind, entries["e/b"].link, entries["e/l"].link) == (Kind.HARDLINK, "e/a", "b")


def test_a_large_archive_is_unpacked(machine: Machine) -> None:
    with tarfile.open(machine.context / "t.tar.gz", "w:gz") as tar:
        for number in range(40):
            path = machine.context.parent / "piece"
            path.write_bytes(bytes([number]) * 100_000)
            tar.add(path, f"d/{number}")
    op = FileCopy(("/t.tar.gz",), "/out/", unpack=Unpack.LOCAL)
    (stack,) = machine.solve(vertex(op, "ADD t.tar.gz /out/", machine.base, CONTEXT))
    assert machine.read(stack, "out/d/39") == bytes([39]) * 100_000


def test_a_file_that_exists_already_gives_an_empty_layer(machine: Machine) -> None:
    (machine.context / "f").write_text("x")
    once = copy("/f", "/dest/f", machine.base)
    (stack,) = machine.solve(vertex(FileCopy(("/f",), "/dest/f"), "COPY again", once, CONTEXT))
    assert machine.names(stack[-1]) == []


def test_what_a_run_prints_and_its_exit_code(machine: Machine) -> None:
    with pytest.raises(StepFailed) as caught:
        machine.run("echo out; echo err >&2; exit 7")
    assert caught.value.message == (
        'process "/bin/sh -c echo out; echo err >&2; exit 7" did not complete successfully: exit code: 7'
    )
    assert sorted(caught.value.output) == [b"err", b"out"]


def test_a_cancelled_build_ends_its_processes(machine: Machine) -> None:
    cancel = threading.Event()
    threading.Timer(0.5, cancel.set).start()
    begun = time.monotonic()
    with pytest.raises(Exception, match="cancelled"):
        machine.run("sleep 4321", cancel=cancel)
    assert time.monotonic() - begun < 5
    assert subprocess.run(["pgrep", "-f", "sleep 4321"], capture_output=True).stdout == b""


def test_processes_of_a_store_run_each_step_once(machine: Machine, tmp_path: Path, busybox_tar: Path) -> None:
    """Two sessions with one store, as two processes would have."""
    other = Machine(tmp_path / "root", busybox_tar, machine.context)
    target = run("cat /proc/sys/kernel/random/uuid > /unique; sleep 0.3", machine.base)
    stacks: list[tuple[Digest, ...]] = []
    threads = [threading.Thread(target=lambda m=m: stacks.extend(m.solve(target))) for m in (machine, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.executor.close()
    assert len(stacks) == 2
    assert stacks[0] == stacks[1]


@contextmanager
def measured() -> Iterator[Callable[[], float]]:
    begun = time.perf_counter()
    yield lambda: time.perf_counter() - begun


def test_two_hundred_cached_steps_cost_less_than_a_millisecond_each(machine: Machine) -> None:
    def graph() -> Vertex:
        last = machine.base
        for number in range(200):
            last = vertex(FileMake(f"/d{number % 5}"), f"WORKDIR {number}", last)
        return last

    machine.solve(graph())
    with measured() as seconds:
        machine.solve(graph())
        took = seconds()
    assert machine.log.cached() == [True] * 200
    assert took < 0.2
