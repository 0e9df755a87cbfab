"""SOURCE_DATE_EPOCH and rewrite-timestamp, seen from the command line."""

from __future__ import annotations

import io
import shutil
import sys
import tarfile
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import BuiltImage, Command, read_images, refused, write_files
from conformance.loopback import git, serve_directory, serve_files

pytestmark = pytest.mark.integration

MARK = "buildkit/rewritten-timestamp"


def created(image: BuiltImage) -> list[str]:
    return [image.document["created"], *(item["created"] for item in image.document["history"])]


def marks(image: BuiltImage) -> list[str | None]:
    return [layer.get("annotations", {}).get(MARK) for layer in image.manifest["layers"]]


def exported(
    pybuild: Command,
    dockerfile: str | None,
    context: Path | str,
    *arguments: str,
    attributes: str = ",rewrite-timestamp=true",
) -> BuiltImage:
    """Build into an OCI archive with these attributes and read its only image."""
    root = pybuild.root.parent
    number = len(list(root.glob("exported*")))
    out = root / f"exported{number}.tar"
    output = f"--output=type=oci,dest={out}{attributes}"
    if dockerfile is None:
        pybuild.run("build", "--progress=plain", output, *arguments, str(context))
    else:
        assert isinstance(context, Path)
        pybuild.build(dockerfile, context, output, *arguments)
    (image,) = read_images(out)
    return image


def archive(**times: int) -> bytes:
    """A tar of files that say ``bar``, by name with their time; a name that is ``Dockerfile`` says what SOURCE_DATE_EPOCH is."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, seconds in times.items():
            dockerfile = b'FROM busybox\nARG SOURCE_DATE_EPOCH\nRUN echo -n "$SOURCE_DATE_EPOCH" >/epoch\n'
            data = dockerfile if name == "Dockerfile" else b"bar"
            header = tarfile.TarInfo(name)
            header.size, header.mtime = len(data), seconds
            tar.addfile(header, io.BytesIO(data))
    return out.getvalue()


def test_times_are_the_epoch_without_the_exporters_help(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = "FROM scratch\nENTRYPOINT foo bar\nCOPY Dockerfile .\n"
    arguments = "--build-arg=SOURCE_DATE_EPOCH=1700000001"
    image = exported(pybuild, dockerfile, tmp_path / "c", arguments, attributes=",source-date-epoch=")
    assert set(created(image)) == {"2023-11-14T22:13:21Z"}
    image = exported(pybuild, dockerfile, tmp_path / "c", arguments, attributes="")
    assert set(created(image)) == {"2023-11-14T22:13:21Z"}
    assert marks(image) == [None]


def test_the_dockerfiles_default_holds_unless_it_is_overridden_or_reset(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = "ARG SOURCE_DATE_EPOCH=1445412480\nFROM scratch\nCOPY Dockerfile .\n"
    context = tmp_path / "c"
    assert marks(exported(pybuild, dockerfile, context)) == ["1445412480"]
    override = "--build-arg=SOURCE_DATE_EPOCH=1700000002"
    assert marks(exported(pybuild, dockerfile, context, override)) == ["1700000002"]
    reset = ",source-date-epoch=,rewrite-timestamp=true"
    assert marks(exported(pybuild, dockerfile, context, attributes=reset)) == [None]
    own = ",source-date-epoch=1500000000,rewrite-timestamp=true"
    assert marks(exported(pybuild, dockerfile, context, attributes=own)) == ["1500000000"]


@pytest.mark.parametrize(
    ("dockerfile", "text"),
    [
        ("ARG SOURCE_DATE_EPOCH=not-a-timestamp\nFROM scratch\nCOPY Dockerfile .\n", "invalid SOURCE_DATE_EPOCH: not-a-timestamp"),
        (
            "ARG SOURCE_DATE_EPOCH=mysource\nFROM scratch AS mysource\nCOPY Dockerfile /Dockerfile\nFROM scratch\n",
            "SOURCE_DATE_EPOCH stage does not meet source-only requirements",
        ),
    ],
)  # fmt: skip
def test_what_is_no_time_is_refused(pybuild: Command, tmp_path: Path, dockerfile: str, text: str) -> None:
    assert text in refused(pybuild, dockerfile, tmp_path / "c")


@pytest.mark.skipif(shutil.which("git") is None, reason="the program git is not installed")
def test_the_context_of_a_repository_has_its_commits_time(pybuild: Command, tmp_path: Path) -> None:
    directory = tmp_path / "r"
    write_files(directory, {"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
    git(directory, "init", "-q")
    git(directory, "add", "Dockerfile")
    git(directory, "commit", "-q", "-m", "msg", time=1700000101)
    git(directory, "update-server-info")
    with serve_directory(directory) as url:
        image = exported(pybuild, None, f"{url}/.git", "--build-arg=SOURCE_DATE_EPOCH=context")
    assert image.document["created"] == "2023-11-14T22:15:01Z"


def test_a_context_from_http_has_its_last_modification(pybuild: Command, tmp_path: Path) -> None:
    data = archive(Dockerfile=1700000000, foo=1700000302)
    files: dict[str, Any] = {
        "/dated.tar": (data, {"Last-Modified": formatdate(1700000201, usegmt=True)}),
        "/context.tar": (data, {"ETag": '"1"'}),
    }
    with serve_files(files) as url:
        dated = exported(pybuild, None, f"{url}/dated.tar", "--build-arg=SOURCE_DATE_EPOCH=context")
        newest = exported(pybuild, None, f"{url}/context.tar", "--build-arg=SOURCE_DATE_EPOCH=context")
    assert dated.document["created"] == "2023-11-14T22:16:41Z"
    assert newest.document["created"] == "2023-11-14T22:18:22Z"
    assert marks(newest) == [None, "1700000302"]
    assert newest.entry(-1, "epoch").content == b"1700000302"
    assert {entry.mtime for entry in newest.layers[-1]} == {1700000302}


def test_a_local_context_has_no_time(pybuild: Command, tmp_path: Path) -> None:
    image = exported(
        pybuild, "FROM scratch\nCOPY Dockerfile /\n", tmp_path / "c", "--build-arg=SOURCE_DATE_EPOCH=context"
    )
    assert marks(image) == [None]


def test_a_stage_or_a_named_context_may_tell_the_time(pybuild: Command, tmp_path: Path) -> None:
    files: dict[str, Any] = {
        "/src.tar": (archive(foo=1700000402), {"ETag": '"1"'}),
        "/dated.tar": (archive(foo=1700004202), {"Last-Modified": formatdate(1700000601, usegmt=True)}),
    }
    context = tmp_path / "c"
    ask = 'FROM busybox\nARG SOURCE_DATE_EPOCH\nRUN echo -n "$SOURCE_DATE_EPOCH" >/epoch\n'
    with serve_files(files) as url:
        stage = f"ARG SOURCE_DATE_EPOCH=mysource\nFROM scratch AS mysource\nADD {url}/src.tar /\n"
        image = exported(pybuild, stage + ask, context)
        assert marks(image) == [None, "1700000402"]
        assert image.entry(-1, "epoch").content == b"1700000402"
        assert image.document["created"] == "2023-11-14T22:20:02Z"
        override = "--build-arg=SOURCE_DATE_EPOCH=1700000502"
        image = exported(pybuild, f"{stage}FROM scratch\nCOPY Dockerfile .\n", context, override)
        assert marks(image) == ["1700000502"]
        named = "ARG SOURCE_DATE_EPOCH=mysource\n"
        dockerfile = f"{named}FROM scratch\nCOPY Dockerfile .\n"
        image = exported(pybuild, dockerfile, context, f"--build-context=mysource={url}/dated.tar")
        assert marks(image) == ["1700000601"]
        assert image.document["created"] == "2023-11-14T22:23:21Z"
        image = exported(pybuild, named + ask, context, f"--build-context=mysource={url}/src.tar")
        assert image.entry(-1, "epoch").content == b"1700000402"


def test_rewritten_images_are_the_same_whenever_they_are_built(pybuild: Command, tmp_path: Path, registry: str) -> None:
    context = write_files(tmp_path / "c", {"foo": "foo"})
    dockerfile = """
FROM busybox
RUN touch /foo /foo.1
RUN touch -d '2010-01-01 12:34:56' /foo-2010
RUN touch -d '2030-01-01 12:34:56' /foo-2030 /foo-2030.1
RUN rm -f /foo.1 /foo-2030.1 && ln /foo /foo-link && ln -s foo /foo-symlink
COPY --link foo linked
"""
    epoch, target = "1673354096", f"{registry}/conformance/repro:1"
    digests = set()
    for _ in range(2):
        pybuild.build(
            dockerfile, context, "--platform=linux/amd64", f"--build-arg=SOURCE_DATE_EPOCH={epoch}", "--no-cache",
            f"--output=type=image,name={target},push=true,oci-mediatypes=true,rewrite-timestamp=true",
        )  # fmt: skip
        image = exported(pybuild, f"FROM {target}\n", tmp_path / "d", "--pull", attributes="")
        digests.add(str(image.manifest["layers"]) + str(image.document["history"]))
        assert {entry.name: entry.mtime for layer in image.layers[1:] for entry in layer} == {
            "foo": 1673354096, "foo.1": 1673354096, "foo-2010": 1262349296, "foo-2030": 1673354096, "foo-2030.1": 1673354096,
            ".wh.foo.1": 1673354096, ".wh.foo-2030.1": 1673354096, "foo-link": 1673354096, "foo-symlink": 1673354096,
            "linked": 1673354096,
        } | {name: image.entry(1, name).mtime for name in ("dev/", "proc/", "sys/") if name in image.names(1)} | {
            entry.name: entry.mtime for layer in image.layers[1:] for entry in layer if entry.name.startswith(".wh.")
        }  # fmt: skip
        assert all(entry.mtime <= 1673354096 for layer in image.layers[1:] for entry in layer)
    assert len(digests) == 1
    plain = exported(pybuild, dockerfile, context, f"--build-arg=SOURCE_DATE_EPOCH={epoch}", attributes="")
    assert set(marks(plain)) == {None}
    unchanged = exported(pybuild, "FROM busybox\n", context, f"--build-arg=SOURCE_DATE_EPOCH={epoch}")
    assert marks(unchanged) == [None]


def test_local_exports_have_the_epochs_time(pybuild: Command, tmp_path: Path) -> None:
    pybuild.build(
        "FROM scratch\nCOPY Dockerfile .\n", tmp_path / "c", "--build-arg=SOURCE_DATE_EPOCH=1700000000", "-o", str(tmp_path / "o")
    )  # fmt: skip
    assert (tmp_path / "o/Dockerfile").stat().st_mtime == 1700000000
