"""Cache mounts that travel from one machine to another, by a registry or a directory."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

FILL = (
    "FROM busybox\nARG N=1\nRUN --mount=type=cache,target=/cache,id=tools "
    "ls /cache | wc -l; mkdir -p /cache/sub && echo $N > /cache/n$N && echo x > /cache/sub/x && ln -sf x /cache/sub/l"
    " && chmod 640 /cache/n$N && chown 5:6 /cache/sub && touch -d '2020-01-01 00:00:00' /cache/sub/x\n"
)
LOOK = (
    "FROM busybox\nARG NOW\nRUN --mount=type=cache,target=/cache,id=tools "
    "ls -lnR /cache; cat /cache/n1; echo found $(find /cache -type f | wc -l) files\n"
)


@pytest.fixture
def machine(pybuild, tmp_path: Path):  # type: ignore[no-untyped-def]  # conftest's class can't be imported here
    pristine = tmp_path / "pristine"
    shutil.copytree(pybuild.root, pristine, symlinks=True)
    count = 0

    def make():  # type: ignore[no-untyped-def]
        nonlocal count
        count += 1
        root = tmp_path / f"machine{count}"
        shutil.copytree(pristine, root, symlinks=True)
        return type(pybuild)(root, pybuild.variables)

    return make


@pytest.mark.parametrize("kind", ["registry", "directory"])
def test_a_mount_is_on_the_next_machine_as_it_was(kind, registry, machine, tmp_path) -> None:  # type: ignore[no-untyped-def]
    place = f"{registry}/mounts:ci" if kind == "registry" else str(tmp_path / "mounts")
    done = machine().build(FILL, tmp_path / "c", f"--cache-mounts-to={place}")
    assert "exporting cache mounts to" in done.stderr
    assert "warning" not in done.stderr
    output = machine().build(LOOK, tmp_path / "d", f"--cache-mounts-from={place}").stderr
    assert "restoring cache mount tools" in output
    assert "found 2 files" in output
    assert "-rw-r-----    1 0        0                2" in output
    assert "5        6" in output
    assert "Jan  1  2020 x" in output
    assert "l -> x" in output


def test_only_what_changed_is_sent(machine, tmp_path) -> None:  # type: ignore[no-untyped-def]
    place = tmp_path / "mounts"
    big = (
        "FROM busybox\nARG N=1\nRUN --mount=type=cache,target=/cache,id=tools for d in a b c d e f g h; do mkdir -p /cache/$d;"
        " [ -e /cache/$d/big ] || head -c 6000000 /dev/urandom > /cache/$d/big; done; echo $N > /cache/a/n\n"
    )
    here = machine()
    here.build(big, tmp_path / "c", f"--cache-mounts-to={place}")
    before = _blobs(place)
    here.build(big, tmp_path / "c", f"--cache-mounts-to={place}", "--build-arg", "N=2")
    after = _blobs(place)
    kept = sum(size for name, size in after.items() if name in before)
    fresh = sum(size for name, size in after.items() if name not in before)
    assert kept > 2 * fresh
    output = machine().build(LOOK, tmp_path / "d", f"--cache-mounts-from={place}").stderr
    assert "found 9 files" in output


def test_a_cap_keeps_what_was_used_last(machine, tmp_path) -> None:  # type: ignore[no-untyped-def]
    text = (
        "FROM busybox\nRUN --mount=type=cache,target=/cache,id=tools head -c 100000 /dev/zero > /cache/n0;"
        " head -c 100000 /dev/zero > /cache/n1; touch -d '2001-01-01 00:00:00' /cache/n0\n"
    )
    output = machine().build(text, tmp_path / "c", f"--cache-mounts-to={tmp_path}/m,max-size=150k").stderr
    assert "1 files used least lately stay behind" in output
    output = machine().build(LOOK, tmp_path / "d", f"--cache-mounts-from={tmp_path}/m").stderr
    assert "found 1 files" in output
    assert "n0" not in output


def test_only_chosen_mounts_travel_and_others_there_stay(machine, tmp_path) -> None:  # type: ignore[no-untyped-def]
    text = (
        "FROM busybox\nARG N\nRUN --mount=type=cache,target=/a,id=one --mount=type=cache,target=/b,id=two"
        " echo $N > /a/n; echo $N > /b/n\n"
    )
    place = tmp_path / "mounts"
    here = machine()
    here.build(text, tmp_path / "c", f"--cache-mounts-to={place},id=one", "--build-arg", "N=1")
    assert _mounts(place) == ["one"]
    here.build(text, tmp_path / "c", f"--cache-mounts-to={place},id=two", "--build-arg", "N=2")
    assert _mounts(place) == ["one", "two"]


def test_a_mount_that_has_something_is_left_alone(machine, tmp_path) -> None:  # type: ignore[no-untyped-def]
    place = tmp_path / "mounts"
    machine().build(FILL, tmp_path / "c", f"--cache-mounts-to={place}")
    here = machine()
    here.build(FILL, tmp_path / "c", "--build-arg", "N=7")
    output = here.build(LOOK, tmp_path / "d", f"--cache-mounts-from={place}").stderr
    assert "restoring" not in output
    assert "n7" in output


def test_nothing_is_fetched_or_sent_when_no_step_runs(machine, tmp_path) -> None:  # type: ignore[no-untyped-def]
    here = machine()
    here.build(FILL, tmp_path / "c")
    output = here.build(
        FILL, tmp_path / "c", f"--cache-mounts-from={tmp_path}/m", f"--cache-mounts-to={tmp_path}/m"
    ).stderr
    assert "cache mount" not in output
    assert not (tmp_path / "m").exists()


def test_a_damaged_place_is_told_once_and_fails_nothing(machine, tmp_path) -> None:  # type: ignore[no-untyped-def]
    place = tmp_path / "mounts"
    machine().build(FILL, tmp_path / "c", f"--cache-mounts-to={place}")
    for path in (place / "blobs/sha256").iterdir():
        if path.stat().st_size and path.read_bytes()[:4] == b"\x28\xb5\x2f\xfd":
            path.chmod(0o644)
            path.write_bytes(b"rubbish")
    output = machine().build(LOOK, tmp_path / "d", f"--cache-mounts-from={place}", check=False)
    assert output.returncode == 0 or "can't open '/cache/n1'" in output.stderr
    assert output.stderr.count(f" - cache {place}: ") == 1
    assert "found 0 files" in output.stderr, "nothing or everything"


def _blobs(place: Path) -> dict[str, int]:
    return {name: (place / "blobs/sha256" / name).stat().st_size for name in os.listdir(place / "blobs/sha256")}


def _mounts(place: Path) -> list[str]:
    entry = json.loads((place / "index.json").read_text())["manifests"][0]
    manifest = json.loads((place / "blobs/sha256" / entry["digest"].partition(":")[2]).read_text())
    document = json.loads((place / "blobs/sha256" / manifest["config"]["digest"].partition(":")[2]).read_text())
    return [mount["id"] for mount in document["mounts"]]
