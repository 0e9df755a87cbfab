"""Exports to folders, tars and layouts; contexts that are tars; --squash: seen from the command line."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, build_files, build_image, read_images, read_tar, write_files

pytestmark = pytest.mark.integration


def archive(**files: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            header = tarfile.TarInfo(name.replace("__", "/"))
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content.encode()))
    return out.getvalue()


def stdout_of(pybuild: Command, *arguments: str, stdin: bytes | None = None) -> bytes:
    """What a command writes to stdout, as bytes."""
    finished = subprocess.run(
        [sys.executable, "-m", "pybuild", "--root", str(pybuild.root), *arguments], input=stdin, capture_output=True
    )
    assert finished.returncode == 0, finished.stderr.decode()
    return finished.stdout


def test_a_tar_goes_to_a_file_or_to_stdout(pybuild: Command, tmp_path: Path) -> None:
    context = write_files(tmp_path / "c", {"foo": "data", "Dockerfile": "FROM scratch\nCOPY foo foo\n"})
    pybuild.run("build", f"--output=type=tar,dest={tmp_path / 'o.tar'}", str(context))
    (entry,) = read_tar((tmp_path / "o.tar").read_bytes())
    assert (entry.name, entry.content, entry.mode) == ("foo", b"data", 0o600)
    for output in ("-", "type=tar,dest=-", "type=tar"):
        assert [e.content for e in read_tar(stdout_of(pybuild, "build", "-o", output, str(context)))] == [b"data"]


def test_several_platforms_have_a_folder_each(pybuild: Command, tmp_path: Path) -> None:
    context = write_files(
        tmp_path / "c",
        {
            "foo": "data",
            "bar": "data2",
            "Dockerfile": "FROM scratch AS stage-linux\nCOPY foo forlinux\nFROM scratch AS stage-darwin\nCOPY bar fordarwin\nFROM stage-$TARGETOS\n",
        },
    )
    assert [e.name for e in read_tar(stdout_of(pybuild, "build", "-o", "-", str(context)))] == ["forlinux"]
    several = read_tar(stdout_of(pybuild, "build", "-o", "-", "--platform=linux/amd64,darwin/amd64", str(context)))
    files = {e.name: e.content for e in several if e.kind == "file"}
    assert files == {"linux_amd64/forlinux": b"data", "darwin_amd64/fordarwin": b"data2"}
    split = read_tar(
        stdout_of(pybuild, "build", "-o", "type=tar,platform-split=true", "--platform=linux/amd64", str(context))
    )
    assert "linux_amd64/forlinux" in [e.name for e in split]


def test_an_index_has_the_platforms_in_their_order(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = """
FROM scratch
ARG TARGETARCH
ARG TARGETPLATFORM
LABEL target=$TARGETPLATFORM
COPY arch-$TARGETARCH whoami
"""
    context = write_files(
        tmp_path / "c", {f"arch-{arch}": f"i am {arch}" for arch in ("arm", "amd64", "s390x", "ppc64le")}
    )
    out = build_files(pybuild, dockerfile, context, "--platform=windows/amd64,linux/arm,linux/s390x")
    assert {str(path.relative_to(out)): path.read_text() for path in out.rglob("*") if path.is_file()} == {
        "windows_amd64/whoami": "i am amd64",
        "linux_arm_v7/whoami": "i am arm",
        "linux_s390x/whoami": "i am s390x",
    }
    layout = tmp_path / "out.tar"
    pybuild.build(
        dockerfile, context, "--platform=windows/amd64,linux/arm/v6,linux/ppc64le", f"--output=type=oci,dest={layout}"
    )
    files = {entry.name: entry.content for entry in read_tar(layout.read_bytes())}
    (top,) = json.loads(files["index.json"])["manifests"]
    index = json.loads(files["blobs/" + top["digest"].replace(":", "/")])
    assert [manifest["platform"] for manifest in index["manifests"]] == [
        {"os": "windows", "architecture": "amd64"},
        {"os": "linux", "architecture": "arm", "variant": "v6"},
        {"os": "linux", "architecture": "ppc64le"},
    ]
    images = read_images(layout)
    assert [image.config["Labels"]["target"] for image in images] == ["windows/amd64", "linux/arm/v6", "linux/ppc64le"]
    assert [image.document["architecture"] for image in images] == ["amd64", "arm", "ppc64le"]
    assert [image.layers[0][-1].content for image in images] == [b"i am amd64", b"i am arm", b"i am ppc64le"]


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_tar_on_stdin_is_a_context(pybuild: Command, tmp_path: Path, compress: type[bytes]) -> None:
    data = compress(archive(Dockerfile="FROM scratch\nCOPY foo /", foo="contents"))
    assert [e.content for e in read_tar(stdout_of(pybuild, "build", "-o", "-", "-", stdin=data))] == [b"contents"]


def test_a_tar_on_stdin_with_a_dockerfile_of_another_name(pybuild: Command, tmp_path: Path) -> None:
    data = archive(sub__Other="FROM scratch\nCOPY sub/foo bar\n", sub__foo="contents")
    entries = read_tar(stdout_of(pybuild, "build", "-f", "sub/Other", "-o", "-", "-", stdin=data))
    assert {e.name: e.content for e in entries} == {"bar": b"contents"}


def test_a_dockerfile_on_stdin_has_an_empty_context_or_the_given_one(pybuild: Command, tmp_path: Path) -> None:
    context = write_files(tmp_path / "c", {"foo": "contents"})
    alone = stdout_of(pybuild, "build", "-o", "-", "-", stdin=b"FROM scratch\nCOPY <<x /y\nz\nx\n")
    assert [e.name for e in read_tar(alone)] == ["y"]
    given = stdout_of(pybuild, "build", "-f", "-", "-o", "-", str(context), stdin=b"FROM scratch\nCOPY foo /\n")
    assert [e.content for e in read_tar(given)] == [b"contents"]


def test_nothing_at_all_can_be_exported(pybuild: Command, tmp_path: Path) -> None:
    image = build_image(pybuild, "FROM scratch\n", tmp_path / "c")
    assert (image.layers, image.document["rootfs"]) == ((), {"type": "layers", "diff_ids": []})
    assert list(build_files(pybuild, "FROM scratch\n", tmp_path / "c").iterdir()) == []
    assert read_tar(stdout_of(pybuild, "build", "-o", "-", str(tmp_path / "c"))) == []


def test_several_outputs_of_one_build(pybuild: Command, tmp_path: Path) -> None:
    context = write_files(tmp_path / "c", {"Dockerfile": "FROM busybox\nCOPY Dockerfile /\n"})
    pybuild.run(
        "build", "-t", "one:1", "-t", "two:2", "-o", f"type=oci,dest={tmp_path / 'o'},tar=false", "-o", f"{tmp_path / 'd'}",
        "-o", f"type=docker,dest={tmp_path / 'k.tar'}", "-o", "type=image", f"--metadata-file={tmp_path / 'm'}",
        f"--iidfile={tmp_path / 'i'}", str(context),
    )  # fmt: skip
    assert (tmp_path / "d/Dockerfile").exists()
    names = [
        m["annotations"]["org.opencontainers.image.ref.name"]
        for m in json.loads((tmp_path / "o/index.json").read_text())["manifests"]
    ]
    assert names == ["1", "2"]
    metadata = json.loads((tmp_path / "m").read_text())
    assert metadata["image.name"] == "docker.io/library/one:1,docker.io/library/two:2"
    assert metadata["containerimage.descriptor"]["digest"] == metadata["containerimage.digest"]
    assert metadata["containerimage.config.digest"] == (tmp_path / "i").read_text()
    (manifest,) = json.loads(
        next(e.content for e in read_tar((tmp_path / "k.tar").read_bytes()) if e.name == "manifest.json")
    )
    assert manifest["RepoTags"] == ["one:1", "two:2"]
    assert {"one", "two"} <= {line.split()[0] for line in pybuild.run("images").stdout.splitlines()}


def test_squashing_leaves_one_layer_and_the_history(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = """
FROM busybox
RUN echo a > /a && mkdir /d && echo 1 > /d/1
COPY Dockerfile /d/
RUN rm /a /bin/awk && chmod 700 /d && ln /d/1 /d/2
ENV x=y
"""
    plain = build_image(pybuild, dockerfile, tmp_path / "c")
    image = build_image(pybuild, dockerfile, tmp_path / "c", "--squash")
    assert (len(plain.layers), len(image.layers)) == (4, 2)
    assert plain.layers[0] == image.layers[0]
    assert {entry.name for entry in image.layers[1]} - {"dev/", "proc/", "sys/"} == {
        "bin/",
        "bin/.wh.awk",
        "d/",
        "d/1",
        "d/2",
        "d/Dockerfile",
    }
    assert image.entry(1, "d/").mode == 0o700
    assert image.entry(1, "d/2").link == "d/1"
    assert image.history[: len(plain.history)] == plain.history
    assert [empty for empty in image.empty_layers if not empty] == [False, False]
    assert image.config == plain.config
    assert (
        len(
            build_image(
                pybuild,
                dockerfile.replace("busybox", "scratch").split("RUN")[0] + "COPY . /\nCOPY . /x/\n",
                tmp_path / "c",
                "--squash",
            ).layers
        )
        == 1
    )
