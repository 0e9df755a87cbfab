"""What builds export is read by the tools that others use: skopeo, podman, GNU tar."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pytest

if TYPE_CHECKING:
    from conftest import Pybuild

pytestmark = pytest.mark.peer

DOCKERFILE = """\
FROM busybox
COPY data /data
RUN ln /data/a /data/hard && ln -s a /data/soft && chmod 4755 /data/a && rm /etc/group && mkfifo /data/pipe
ENV GREETING=hello
CMD ["sh", "-c", "echo $GREETING from $(ls /data | tr '\\n' ' ')"]
"""


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"the program {name} is not installed")
    return path


@pytest.fixture
def context(tmp_path: Path) -> Path:
    directory = tmp_path / "context"
    (directory / "data").mkdir(parents=True)
    (directory / "data/a").write_text("a" * 5000)
    (directory / "Dockerfile").write_text(DOCKERFILE)
    return directory


def export(pybuild: Pybuild, context: Path, spec: str) -> dict[str, object]:
    """Build with one output; gives the metadata file's content."""
    metadata = context.parent / "metadata.json"
    pybuild.run("build", "-t", "example/app:1", "--metadata-file", str(metadata), "-o", spec, str(context))
    value = json.loads(metadata.read_text())
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize(
    ("spec", "reference"),
    [
        ("type=oci,dest={}/out.tar", "oci-archive:{}/out.tar"),
        ("type=oci,dest={}/out.tar,compression=zstd", "oci-archive:{}/out.tar"),
        ("type=oci,dest={}/out.tar,compression=uncompressed", "oci-archive:{}/out.tar"),
        ("type=oci,tar=false,dest={}/layout", "oci:{}/layout"),
        ("type=docker,dest={}/out.tar", "docker-archive:{}/out.tar"),
    ],
    ids=["oci", "oci-zstd", "oci-uncompressed", "oci-directory", "docker"],
)
def test_skopeo_inspects_and_copies_it(
    pybuild: Pybuild, context: Path, tmp_path: Path, spec: str, reference: str
) -> None:
    skopeo = program("skopeo")
    metadata = export(pybuild, context, spec.format(tmp_path))
    where = reference.format(tmp_path)
    config = json.loads(subprocess.run([skopeo, "inspect", "--config", where], capture_output=True, check=True).stdout)
    assert config["config"]["Env"][-1] == "GREETING=hello"
    assert len(config["rootfs"]["diff_ids"]) == 3
    if "oci" in spec:
        digest = json.loads(subprocess.run([skopeo, "inspect", where], capture_output=True, check=True).stdout)[
            "Digest"
        ]
        assert digest == metadata["containerimage.digest"]
    subprocess.run([skopeo, "copy", "-q", where, f"dir:{tmp_path}/copied"], check=True)


def test_podman_loads_it_and_sees_the_same_files(
    pybuild: Pybuild, context: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    podman = program("podman")
    export(pybuild, context, f"type=docker,dest={tmp_path}/out.tar")
    # podman refuses a run root of more than 50 characters.
    short = tempfile.mkdtemp(prefix="podman-")
    request.addfinalizer(lambda: shutil.rmtree(short, ignore_errors=True))
    store = ["--root", f"{tmp_path}/podman", "--runroot", short, "--storage-driver", "vfs"]
    options = ["--cgroup-manager", "cgroupfs", "--events-backend", "none"]
    load = [podman, *store, *options, "load", "-q", "-i", f"{tmp_path}/out.tar"]
    loaded = subprocess.run(load, capture_output=True, text=True, check=False)
    assert loaded.returncode == 0, loaded.stderr
    created = subprocess.run(
        [podman, *store, *options, "create", "docker.io/example/app:1"], capture_output=True, text=True, check=True
    )
    exported = subprocess.run(
        [podman, *store, *options, "export", created.stdout.strip()], capture_output=True, check=True
    ).stdout
    pybuild.run("build", "-o", f"type=tar,dest={tmp_path}/ours.tar", str(context))
    assert listing(io.BytesIO(exported)) == listing((tmp_path / "ours.tar").open("rb"))


def listing(stream: BinaryIO) -> dict[str, tuple[object, ...]]:
    """What a tar holds, without times."""
    found: dict[str, tuple[object, ...]] = {}
    with stream, tarfile.open(fileobj=stream) as archive:
        for member in archive:
            name = member.name.rstrip("/").removeprefix("./")
            if name in ("", ".") or name.split("/")[0] in ("dev", "proc", "sys", "run") or name.startswith("etc/m"):
                continue
            content = hashlib.sha256(archive.extractfile(member).read()).hexdigest() if member.isreg() else ""  # type: ignore[union-attr]  # a regular file
            kind = b"0" if member.type == b"1" else member.type
            if member.type == b"1":
                content = str(found[member.linkname.removeprefix("./")][-1])
            link = member.linkname if member.issym() else ""
            found[name] = (kind, member.mode & 0o7777, member.uid, member.gid, link, content)
    return found


def test_crun_runs_it(pybuild: Pybuild, context: Path, tmp_path: Path) -> None:
    crun = program("crun")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    pybuild.run("build", "-o", f"{bundle}/rootfs", str(context))
    subprocess.run([crun, "spec"], cwd=bundle, check=True)
    spec = json.loads((bundle / "config.json").read_text())
    pybuild.run("build", "-t", "app", str(context))
    config = json.loads(pybuild.run("inspect", "app").stdout)[0]["Config"]
    spec["process"].update(
        args=config["Cmd"], env=config["Env"], cwd=config["WorkingDir"] or "/", terminal=False, rlimits=[]
    )
    spec["linux"].pop("resources", None)
    spec["linux"]["namespaces"] = [
        one for one in spec["linux"]["namespaces"] if one["type"] not in ("network", "cgroup")
    ]
    spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] in ("proc", "tmpfs")]
    (bundle / "config.json").write_text(json.dumps(spec))
    # crun refuses a host with both versions of control groups: it gets a view of one, in a mount namespace of its own.
    command = f"mount -t cgroup2 none /sys/fs/cgroup; exec {crun} --root {tmp_path}/crun --cgroup-manager=disabled run exported"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command], cwd=bundle, capture_output=True, text=True, check=False
    )
    assert done.stdout == "hello from a hard pipe soft\n", done.stderr


def test_saved_images_load_elsewhere(pybuild: Pybuild, empty_pybuild: Pybuild, context: Path, tmp_path: Path) -> None:
    pybuild.run("build", "-t", "example/app:1", str(context))
    pybuild.run("save", "-o", f"{tmp_path}/saved.tar", "example/app:1", "busybox")
    loaded = empty_pybuild.run("load", "-i", f"{tmp_path}/saved.tar")
    assert "Loaded image: example/app:1" in loaded.stdout
    one, other = (json.loads(tool.run("inspect", "example/app:1").stdout)[0] for tool in (pybuild, empty_pybuild))
    assert one["Id"] == other["Id"]
    assert one["RootFS"] == other["RootFS"]
    assert empty_pybuild.run("run", "example/app:1").stdout == "hello from a hard pipe soft\n"


def test_a_local_export_and_a_tar_hold_the_same_files(pybuild: Pybuild, context: Path, tmp_path: Path) -> None:
    pybuild.run("build", "-o", f"{tmp_path}/tree", str(context))
    pybuild.run("build", "-o", f"type=tar,dest={tmp_path}/tree.tar", str(context))
    assert (tmp_path / "tree/data/soft").readlink() == Path("a")
    assert (tmp_path / "tree/data/a").stat().st_mode & 0o7777 == 0o4755
    assert not (tmp_path / "tree/etc/group").exists()
    (tmp_path / "unpacked").mkdir()
    subprocess.run(["tar", "-xf", f"{tmp_path}/tree.tar", "-C", f"{tmp_path}/unpacked"], check=True)
    compared = subprocess.run(
        ["diff", "-r", "--no-dereference", f"{tmp_path}/tree", f"{tmp_path}/unpacked"], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert "differ" not in compared.stdout
    assert "Only in" not in compared.stdout


def test_a_tar_on_stdout_is_the_only_output_there(pybuild: Pybuild, context: Path, tmp_path: Path) -> None:
    import os
    import sys

    command = [sys.executable, "-m", "pybuild", "--root", str(pybuild.root), "build", "-q", "-o", "-", str(context)]
    done = subprocess.run(command, capture_output=True, check=True, env={**os.environ, **pybuild.variables})
    (tmp_path / "out.tar").write_bytes(done.stdout)
    with tarfile.open(tmp_path / "out.tar") as archive:
        assert "data/a" in archive.getnames()
