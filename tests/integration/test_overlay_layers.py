"""Layers made of real overlay mounts: whatever a step does, its layer on top of the stack below shows what the step left behind."""

from __future__ import annotations

import io
import os
import random
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybuild.layers.digest import Digest
from pybuild.layers.entries import Kind, Layer, RootOverlay
from pybuild.layers.snapshots import SnapshotStore
from pybuild.layers.store import Store
from pybuild.layers.tree_views import DirectoryView, StackView
from pybuild.layers.trees import merge_layers, remove_tree
from pybuild.layers.views import FileView

pytestmark = pytest.mark.integration

UNSHARE = ["unshare", "--mount"]
IN_USER_NAMESPACE = Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]
EXTRA = ",userxattr" if IN_USER_NAMESPACE else ""


def can_mount() -> bool:
    script = f"cd $(mktemp -d) && mkdir l u w m && mount -t overlay -o lowerdir=l,upperdir=u,workdir=w{EXTRA} overlay m"
    return os.geteuid() == 0 and subprocess.run([*UNSHARE, "sh", "-ec", script], capture_output=True).returncode == 0


def can_unshare() -> bool:
    return (
        subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "true"], capture_output=True).returncode == 0
    )


needs_overlay = pytest.mark.skipif(not can_mount(), reason="needs root (or its own user namespace) and overlayfs")


def run(root: RootOverlay, script: str) -> None:
    """Run a shell script in the root file system, and take its overlay away again."""
    mount = ":"
    if root.lower:
        # mount(2) takes one page of options: short names for the layers.
        links = Path(root.upper).parent / "lower"
        links.mkdir()
        for number, directory in enumerate(root.lower):
            (links / str(number)).symlink_to(directory)
        lower = ":".join(map(str, reversed(range(len(root.lower)))))
        options = f"lowerdir={lower},upperdir={root.upper},workdir={root.work},index=off,redirect_dir=nofollow,metacopy=off{EXTRA}"
        mount = f"cd '{links}'; mount -t overlay overlay -o '{options}' '{root.upper}'"
    subprocess.run([*UNSHARE, "sh", "-ec", f"{mount}; cd '{root.upper}'; umask 022\n{script}"], check=True)


class Builder:
    """A store and the stack made in it so far."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root, clock=time.time)
        self.snapshots = SnapshotStore(
            root,
            blobs=self.store.blobs,
            layers=self.store.layers,
            leases=self.store.leases,
            cache_mounts=self.store.cache_mounts,
            active=self.store.active,
        )
        self.stack: list[Digest] = []

    def step(self, script: str, *, ignore: tuple[str, ...] = ()) -> Layer:
        with self.snapshots.prepare(self.stack) as active:
            run(active.root, script)
            layer = active.commit(ignore=ignore)
        self.stack.append(layer.diff_id)
        return layer

    def names(self, layer: Layer) -> list[str]:
        with tarfile.open(self.store.blobs.path(layer.diff_id)) as tar:
            return [member.name + ("/" if member.isdir() else "") for member in tar.getmembers()]

    def tree(self) -> dict[str, object]:
        with self.snapshots.view(self.stack) as view:
            return tree(view)


def tree(view: FileView, path: str = "", *, times: bool = True) -> dict[str, object]:
    """Everything that two equal file systems have in common."""
    out: dict[str, object] = {}
    for name, node in view.children(path):
        where = f"{path}/{name}" if path else name
        content = b""
        if node.kind is Kind.FILE:
            with view.open(where) as file:
                content = file.read()
        mtime = node.mtime_ns // 10**9 if times and node.kind is not Kind.DIRECTORY else 0
        out[where] = (
            node.kind,
            node.mode,
            node.uid,
            node.gid,
            node.target,
            node.device,
            content,
            mtime,
            dict(view.xattrs(where)),
        )
        if node.kind is Kind.DIRECTORY:
            out |= tree(view, where, times=times)
    return out


@pytest.fixture
def builder(tmp_path: Path) -> Iterator[Builder]:
    made = Builder(tmp_path / "store")
    with made.store, made.store.lease():
        yield made
    remove_tree(os.fspath(tmp_path / "store"))


BASE = """
mkdir -p etc usr/bin var/lib/deep tmp; chmod 1777 tmp
echo root > etc/passwd; echo x > var/lib/deep/file; echo y > var/lib/deep/other; echo z > var/lib/file
ln -s ../var lnk; ln usr/bin hard 2>/dev/null || :; echo b > usr/bin/tool; chmod 4755 usr/bin/tool; ln usr/bin/tool usr/bin/alias
"""


@needs_overlay
def test_each_kind_of_change_gives_the_entries_that_buildkit_gives(builder: Builder) -> None:
    builder.step(BASE)
    cases = {
        "true": [],
        "touch etc/x && rm etc/x": [],
        "echo more >> etc/passwd": ["etc/", "etc/passwd"],
        "rm var/lib/deep/file": ["var/", "var/lib/", "var/lib/deep/", "var/lib/deep/.wh.file"],
        "rm -rf var/lib/deep && mkdir var/lib/deep": ["var/", "var/lib/", "var/lib/deep/", "var/lib/deep/.wh.other"],
        "rm -rf var/lib && echo f > var/lib": ["var/", "var/lib"],
        "rm lnk && mkdir lnk": ["lnk/"],
        "ln etc/passwd etc/copy": ["etc/", "etc/copy"],
        "chmod 700 etc": ["etc/"],
        "mkfifo p": ["p"],
        "mv usr/bin/tool usr/bin/t2 && mv usr/bin/t2 usr/bin/tool": [],
        "mkdir -p a/b/c && touch a/b/c/d": ["a/", "a/b/", "a/b/c/", "a/b/c/d"],
        "mv a z": [".wh.a", "z/", "z/b/", "z/b/c/", "z/b/c/d"],
    }  # fmt: skip
    if not IN_USER_NAMESPACE:  # where nobody can make devices
        cases["mknod null c 1 3"] = ["null"]
    for script, names in cases.items():
        assert builder.names(builder.step(script)) == names, script


@needs_overlay
def test_capabilities_and_special_modes_reach_the_layer(builder: Builder) -> None:
    builder.step(BASE)
    value = bytes.fromhex("0100000200200000000000000000000000000000")
    with builder.snapshots.prepare(builder.stack) as active:
        run(active.root, "echo cap > etc/cap; chmod 2755 etc/cap")
        os.setxattr(f"{active.root.upper}/etc/cap", "security.capability", value)
        layer = active.commit()
    with tarfile.open(builder.store.blobs.path(layer.diff_id)) as tar:
        member = tar.getmember("etc/cap")
    assert member.mode == 0o2755
    assert member.pax_headers["SCHILY.xattr.security.capability"].encode("utf-8", "surrogateescape") == value


def random_script(chance: random.Random) -> str:
    names = [
        "etc",
        "usr",
        "var",
        "tmp",
        "etc/a",
        "usr/b",
        "var/lib",
        "var/lib/c",
        "usr/b/d",
        "var/lib/deep",
        "tmp/e",
        "lnk",
        "x y",
    ]
    pick = lambda: chance.choice(names)  # noqa: E731  shorter than a function for one word
    lines: list[str] = []
    for _ in range(chance.randint(1, 8)):
        a, b = pick(), pick()
        lines.append(
            chance.choice(
                [
                    f"rm -rf '{a}'", f"mkdir -p '{a}'", f"test -p '{a}' || echo {chance.random()} > '{a}'", f"test -p '{a}' || echo more >> '{a}'", f"ln -f '{a}' '{b}'",
                    f"mv -T '{a}' '{b}'", f"ln -sfn '{b}' '{a}'", f"chmod {chance.choice(['700', '4755', '1777'])} '{a}'",
                    f"chown {chance.randint(0, 3)}:{chance.randint(0, 3)} '{a}'", f"mkfifo '{a}'", f"cp -a '{a}' '{b}'",
                    f"rm -rf '{a}' && mkdir '{a}' && touch '{a}/n{chance.randint(0, 3)}'", f"touch '{a}'", f"mknod '{a}' c 1 5",
                    f"mv -T '{a}' moved && mv -T moved '{a}'", f"touch -d @{chance.randint(0, 99)} '{a}'",
                ]
            )
            + " 2>/dev/null || :"
        )  # fmt: skip
    return "\n".join(lines)


def mounted_tree(lower: tuple[str, ...], scratch: Path) -> dict[str, object]:
    """What the kernel shows of a stack, copied out with tar."""
    scratch.mkdir()
    (scratch / "empty").mkdir()
    (scratch / "out").mkdir()
    stacked = ":".join([*reversed(lower), os.fspath(scratch / "empty")])
    script = f"mount -t overlay overlay -o 'lowerdir={stacked}{EXTRA}' '{scratch}/empty' && cp -a '{scratch}/empty/.' '{scratch}/out/'"
    subprocess.run([*UNSHARE, "sh", "-ec", script], check=True)
    return tree(DirectoryView(os.fspath(scratch / "out")))


@needs_overlay
@pytest.mark.parametrize("seed", range(12))
def test_views_mounts_and_unpacked_tars_of_random_steps_agree(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    made, other = Builder(tmp_path / "made"), Builder(tmp_path / "other")
    with made.store, made.store.lease(), other.store, other.store.lease():
        made.step(BASE)
        for _ in range(6):
            made.step(random_script(chance))
        with made.snapshots.directories(made.stack) as directories:
            expected = mounted_tree(directories, tmp_path / "mounted")
        assert expected
        assert made.tree() == expected
        # The same layers in another store, where only their tars are known: looked at, unpacked, merged.
        for position, diff_id in enumerate(made.stack):
            with made.store.blobs.open(diff_id) as tar, other.store.blobs.ingest(expected=diff_id) as ingest:
                ingest.write(tar.read())
                ingest.commit()
            layer = made.store.layers.get(diff_id)
            assert layer is not None
            other.store.layers.register(layer)
            other.stack = made.stack[: position + 1]
            other.tree()
        assert other.tree() == expected
        with other.snapshots.directories(other.stack) as directories:
            assert mounted_tree(directories, tmp_path / "unpacked") == expected
            assert tree(StackView(directories)) == expected
            merged = tmp_path / "merged"
            merged.mkdir()
            merge_layers(directories[1:], os.fspath(merged), opaque=other.snapshots.unpacked.ownership.opaque)
            assert mounted_tree((directories[0], os.fspath(merged)), tmp_path / "merged-mounted") == expected
            assert tree(StackView([directories[0], os.fspath(merged)])) == expected


@needs_overlay
def test_a_stack_deeper_than_overlayfs_takes_is_merged_and_stays_fast(builder: Builder) -> None:
    builder.step("mkdir d; echo base > d/base; mkdir gone; touch gone/x")
    for number in range(1, 320):
        with builder.snapshots.prepare(builder.stack) as active:
            assert len(active.root.lower) < 110
            upper = Path(active.root.upper)
            (upper / f"f{number}").write_text(str(number))
            if number == 30:
                os.mknod(upper / "gone", stat.S_IFCHR, 0)
            builder.stack.append(active.commit().diff_id)
    started = time.perf_counter()
    builder.step("test -f f1 && test -f f318 && test ! -e gone && echo end > d/end")
    assert time.perf_counter() - started < 2
    assert {"d/base", "d/end", "f1", "f200", "f319"} <= builder.tree().keys()
    assert "gone" not in builder.tree()


@needs_overlay
def test_our_unpacking_equals_gnu_tars(tmp_path: Path, builder: Builder) -> None:
    layer = builder.step(
        BASE + "mknod null c 1 3 || :; chown 7:8 etc/passwd; touch -d @5 var; mkdir -m 1700 odd; echo é > 'ü n'"
    )
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    subprocess.run(["tar", "-xpf", builder.store.blobs.path(layer.diff_id), "-C", theirs, "--same-owner"], check=True)
    source = tree(DirectoryView(os.fspath(theirs)))
    remove_tree(os.fspath(builder.store.root / "layers" / layer.diff_id.hex))
    with builder.snapshots.directories(builder.stack) as (directory,):
        assert tree(DirectoryView(directory)) == source
        for path in ("var", "odd", "etc"):
            assert (Path(directory) / path).stat().st_mtime == (theirs / path).stat().st_mtime


@needs_overlay
def test_a_pull_can_unpack_while_it_downloads_and_notices_wrong_content(builder: Builder) -> None:
    layer = builder.step(BASE)
    tar = builder.store.blobs.path(layer.diff_id).read_bytes()
    remove_tree(os.fspath(builder.store.root / "layers" / layer.diff_id.hex))
    unpacked = builder.store.root / "layers" / layer.diff_id.hex
    assert not unpacked.exists()
    assert builder.snapshots.unpack_stream(builder.stack, io.BytesIO(tar)) == layer
    assert unpacked.is_dir()


@pytest.mark.skipif(
    IN_USER_NAMESPACE or not can_unshare(), reason="needs unprivileged user namespaces, and not to be in one"
)
def test_all_of_this_holds_in_a_user_namespace_with_a_single_id(tmp_path: Path) -> None:
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    chosen = ["-k", "random or kind or capabilities or deeper or downloads", "-p", "no:cacheprovider", "-q", "-rA"]
    command = [*namespace, sys.executable, "-m", "pytest", *chosen, f"--basetemp={tmp_path}/inside", __file__]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
    if can_mount():
        assert "skipped" not in result.stdout.splitlines()[-1]
