"""Several builds in one root, prune beside them, kills, caps: each step runs once, nothing is lost that is needed, nothing leaks."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

SKELETON = {"version", "pybuild.db", "pybuild.db-shm", "pybuild.db-wal", "locks/gc", "locks/database"}


def start(machine, *arguments: str) -> subprocess.Popen[str]:  # type: ignore[no-untyped-def]  # conftest's class
    return subprocess.Popen(
        [sys.executable, "-m", "pybuild", "--root", str(machine.root), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **machine.variables},
    )


def project(path: Path, dockerfile: str) -> str:
    path.mkdir(exist_ok=True)
    (path / "Dockerfile").write_text(dockerfile)
    (path / "file").write_text("content")
    return str(path)


@pytest.fixture
def counter() -> Iterator[tuple[str, list[str]]]:
    """A server that steps call: its address, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = b"ok"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()


def test_eight_builds_at_once_run_each_step_once(pybuild, counter, tmp_path) -> None:  # type: ignore[no-untyped-def]
    address, asked = counter
    context = project(
        tmp_path / "c",
        "FROM busybox AS a\n"
        f"RUN wget -q -O /one {address}/one && sleep 0.3\n"
        "FROM busybox\nCOPY file /file\n"
        f"RUN wget -q -O /two {address}/two && date +%N > /now\n"
        "COPY --from=a /one /one\n"
        f"RUN wget -q -O /three {address}/three\n",
    )
    builds = [
        start(
            pybuild, "build", "--progress=plain", "--network=host", "--allow=network.host", "--iidfile", f"{tmp_path}/id{n}", context
        )
        for n in range(8)
    ]  # fmt: skip
    for build in builds:
        _, errors = build.communicate(timeout=120)
        assert build.returncode == 0, errors
    assert sorted(asked) == ["/one", "/three", "/two"]
    assert len({(tmp_path / f"id{n}").read_text() for n in range(8)}) == 1


def test_prune_beside_builds_takes_nothing_that_they_need(pybuild, tmp_path) -> None:  # type: ignore[no-untyped-def]
    stop = threading.Event()
    failures: list[str] = []

    def prune() -> None:
        while not stop.is_set():
            done = pybuild.run("prune", "--all", "--force", check=False)
            if done.returncode:
                failures.append(done.stderr)

    pruning = threading.Thread(target=prune)
    pruning.start()
    try:
        for number in range(4):
            context = project(
                tmp_path / f"c{number}",
                f"FROM busybox\nCOPY file /f\nRUN echo {number} > /a && sleep 0.2\nRUN cat /a /f > /b\nRUN sleep 0.2; cat /b\n",
            )
            done = pybuild.run(
                "build", "--progress=plain", "-o", f"type=oci,dest={tmp_path}/o.tar", context, check=False
            )
            assert done.returncode == 0, done.stderr
    finally:
        stop.set()
        pruning.join()
    assert failures == []


def test_a_killed_build_keeps_its_finished_steps(pybuild, tmp_path) -> None:  # type: ignore[no-untyped-def]
    dockerfile = "FROM busybox\nRUN date +%N > /one\nCOPY file /file\nRUN date +%N > /two\nRUN sleep {seconds}\n"
    context = project(tmp_path / "c", dockerfile.format(seconds=60))
    for _ in range(2):
        build = start(pybuild, "build", "--progress=plain", context)
        assert build.stderr is not None
        for line in build.stderr:
            if "RUN sleep" in line:
                break
        time.sleep(0.3)
        build.send_signal(signal.SIGKILL)
        build.communicate()
    project(tmp_path / "c", dockerfile.format(seconds=0))
    output = pybuild.run("build", "--progress=plain", context).stderr
    assert output.count("CACHED") == 4, output
    assert os.listdir(pybuild.root / "active") == []
    assert os.listdir(pybuild.root / "ingest") == []


def test_a_cap_holds_while_a_build_runs(pybuild, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """What earlier builds left makes room for the running one before that has ended."""
    config = tmp_path / "pybuild.toml"
    config.write_text('[gc]\nmax-used-space = "60MB"\n')
    for number in range(3):
        context = project(tmp_path / "old", f"FROM busybox\nRUN head -c 18000000 /dev/urandom > /old{number}\n")
        pybuild.run("build", "-o", "type=cacheonly", context)
    # Leases count what was used within the minute before them as in use: let it be longer ago.
    then = time.time() - 600
    for directory, _, names in os.walk(pybuild.root):
        for name in names if "blobs" in directory else ():
            os.utime(os.path.join(directory, name), (then, then))
    for name in os.listdir(pybuild.root / "layers"):
        os.utime(pybuild.root / "layers" / name, (then, then))
    before = _stored(pybuild.root)
    context = project(
        tmp_path / "new",
        "FROM busybox\nRUN head -c 18000000 /dev/urandom > /new1\nRUN head -c 18000000 /dev/urandom > /new2; sleep 6\nRUN ls -l /new1 /new2\n",
    )
    build = start(pybuild, "--config", str(config), "build", "--progress=plain", context)
    lowest = before
    while build.poll() is None:
        lowest = min(lowest, _stored(pybuild.root))
        time.sleep(0.1)
    _, errors = build.communicate()
    assert build.returncode == 0, errors
    assert lowest < before - 15_000_000, "old layers went while the build ran"


def _stored(root: Path) -> int:
    total = 0
    for directory, _, names in os.walk(root):
        for name in names:
            try:
                total += os.stat(os.path.join(directory, name), follow_symlinks=False).st_size
            except FileNotFoundError:
                continue
    return total


def test_after_prune_nothing_is_left_but_the_skeleton(pybuild, counter, registry, tmp_path) -> None:  # type: ignore[no-untyped-def]
    address, _ = counter
    context = project(
        tmp_path / "c",
        f"FROM busybox\nADD {address}/file /f\nRUN --mount=type=cache,target=/c echo > /c/x\nRUN date > /d\nRUN sleep 60\n",
    )
    build = start(pybuild, "build", "--progress=plain", context)
    assert build.stderr is not None
    for line in build.stderr:
        if "RUN sleep" in line:
            break
    build.send_signal(signal.SIGKILL)
    build.communicate()
    context = project(tmp_path / "d", f"FROM busybox\nADD {address}/file /f\nRUN date > /d\n")
    caches = (f"--cache-to=type=registry,ref={registry}/skeleton:1,mode=max", f"--cache-repo={registry}/skeletonsteps")
    pybuild.run("build", "--push", "-t", f"{registry}/skeleton:app", *caches, context)
    assert pybuild.run("du", "--format=json").stdout
    pybuild.run("prune", "--all", "--images", "--force")
    assert pybuild.run("du", "--format=json").stdout == ""
    left = []
    for directory, names, files in os.walk(pybuild.root):
        left += [os.path.relpath(os.path.join(directory, name), pybuild.root) for name in files]
        if os.path.basename(directory) in ("layers", "active", "cache-mounts", "remotes"):
            left += [os.path.join(os.path.basename(directory), name) for name in names]
    assert set(left) <= SKELETON


def test_an_identical_rebuild_makes_du_no_longer(pybuild, tmp_path) -> None:  # type: ignore[no-untyped-def]
    context = project(tmp_path / "c", "FROM busybox\nCOPY file /f\nRUN date > /d\n")
    pybuild.run("build", context)
    before = [json.loads(line) for line in pybuild.run("du", "--format=json").stdout.splitlines()]
    pybuild.run("build", context)
    after = [json.loads(line) for line in pybuild.run("du", "--format=json").stdout.splitlines()]
    assert sorted(row["ID"] for row in before) == sorted(row["ID"] for row in after)
    assert not any(row["InUse"] for row in after)
    table = pybuild.run("du", "--builds").stdout.splitlines()
    assert len(table) == 3, "a heading and both builds"
