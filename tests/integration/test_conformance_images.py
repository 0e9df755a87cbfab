"""Images, indexes and times against BuildKit's results, and what is printed on the way."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tarfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, build_files, build_image, read_blobs, read_images, refused, write_files

pytestmark = pytest.mark.integration

EPOCH = 1_600_000_000


def titles(output: str) -> list[str]:
    """The first line of each step."""
    seen: dict[str, str] = {}
    for number, text in re.findall(r"^#(\d+) (.*)$", output, re.M):
        seen.setdefault(number, text)
    return list(seen.values())


def test_one_platform_is_an_index_where_several_were_asked_for(empty_pybuild: Command, tmp_path: Path) -> None:
    context = write_files(tmp_path / "c", {"f": "x"})
    out = tmp_path / "o.tar"
    built = empty_pybuild.build(
        "FROM scratch\nCOPY f /\n", context, "--build-arg=BUILDKIT_MULTI_PLATFORM=1", f"--output=type=oci,dest={out}"
    )
    files = read_blobs(out)
    (top,) = json.loads(files["index.json"])["manifests"]
    assert top["mediaType"] == "application/vnd.oci.image.index.v1+json"
    (manifest,) = json.loads(files["blobs/" + top["digest"].replace(":", "/")])["manifests"]
    assert manifest["platform"]["os"] == "linux"
    assert any(title.endswith(" 1/1] COPY f /") and title.startswith("[linux/") for title in titles(built.stderr))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--platform=linux/amd64,linux/arm64", "--build-arg=BUILDKIT_MULTI_PLATFORM=0"],
            "conflicting config: returning multiple target platforms is not allowed",
        ),
        (["--build-arg=BUILDKIT_MULTI_PLATFORM=x"], "invalid boolean value for multi-platform: x"),
    ],
)
def test_contradictions_about_platforms_are_refused(
    empty_pybuild: Command, tmp_path: Path, flags: list[str], message: str
) -> None:
    result = empty_pybuild.build("FROM scratch\nENV a=b\n", tmp_path / "c", *flags, check=False)
    assert result.returncode != 0
    assert message in result.stderr


def test_an_index_annotation_needs_an_index(empty_pybuild: Command, tmp_path: Path) -> None:
    out = f"--output=type=oci,dest={tmp_path / 'o.tar'},annotation-index.a=b"
    error = refused(empty_pybuild, "FROM scratch\nENV a=b\n", tmp_path / "c", out, "--provenance=false")
    assert "index annotations not supported for single platform export" in error


def test_times_that_nothing_gives_are_the_epoch_when_times_are_rewritten(
    empty_pybuild: Command, tmp_path: Path
) -> None:
    context = write_files(tmp_path / "c", {"f": "x", "late": "y"})
    os.utime(context / "f", (1_500_000_000, 1_500_000_000))
    os.utime(context / "late", (1_700_000_000, 1_700_000_000))
    dockerfile = "FROM scratch\nCOPY f late /a/b/\nCOPY <<E /h/i\nx\nE\nWORKDIR /w/x\n"
    argument = f"--build-arg=SOURCE_DATE_EPOCH={EPOCH}"
    out = f"--output=type=oci,dest={tmp_path / 'o.tar'},rewrite-timestamp=true"
    empty_pybuild.build(dockerfile, context, argument, out)
    (image,) = read_images(tmp_path / "o.tar")
    times = {entry.name: entry.mtime for layer in image.layers for entry in layer}
    assert times.pop("a/b/f") == 1_500_000_000
    assert set(times) == {"a/", "a/b/", "a/b/late", "h/", "h/i", "w/", "w/x/"}
    assert set(times.values()) == {EPOCH}


def test_workdir_has_the_epochs_time_without_rewriting(empty_pybuild: Command, tmp_path: Path) -> None:
    image = build_image(
        empty_pybuild, "FROM scratch\nWORKDIR /w/x\n", tmp_path / "c", f"--build-arg=SOURCE_DATE_EPOCH={EPOCH}"
    )
    assert image.entry(-1, "w/x/").mtime == EPOCH


def test_everything_in_an_exported_folder_has_the_epochs_time(empty_pybuild: Command, tmp_path: Path) -> None:
    context = write_files(tmp_path / "c", {"d/f": "x"})
    os.utime(context / "d/f", (1_000_000_000, 1_000_000_000))
    out = build_files(empty_pybuild, "FROM scratch\nCOPY d /a/d\n", context, f"--build-arg=SOURCE_DATE_EPOCH={EPOCH}")
    assert {name: (out / name).stat().st_mtime for name in ("a", "a/d", "a/d/f")} == dict.fromkeys(
        ("a", "a/d", "a/d/f"), EPOCH
    )


def test_a_configuration_is_valid_json_whatever_bytes_the_dockerfile_has(
    empty_pybuild: Command, tmp_path: Path
) -> None:
    context = write_files(tmp_path / "c", {"Dockerfile": b"FROM scratch\nENV A=\xfc B=\xc3\xbc\n"})
    out = tmp_path / "o.tar"
    empty_pybuild.run("build", f"--output=type=oci,dest={out}", str(context))
    (image,) = read_images(out)
    assert image.config["Env"][1:] == ["A=\ufffd", "B=ü"]


def test_names_in_an_archive_stay_below_the_destination(empty_pybuild: Command, tmp_path: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name in ("../../out", "/abs/one", "a/../two", "./three"):
            tar.addfile(tarfile.TarInfo(name))
    context = write_files(tmp_path / "c", {"a.tar": data.getvalue()})
    image = build_image(empty_pybuild, "FROM scratch\nADD a.tar /x/\n", context)
    assert image.names(-1) == ["x/", "x/abs/", "x/abs/one", "x/out", "x/three", "x/two"]


def test_a_linked_copy_is_one_step(empty_pybuild: Command, tmp_path: Path) -> None:
    context = write_files(tmp_path / "c", {"f": "x"})
    for _ in range(2):
        built = empty_pybuild.build("FROM scratch\nENV a=b\nCOPY --link f /\n", context)
        assert [title for title in titles(built.stderr) if "COPY" in title] == ["[1/1] COPY --link f /"]


def test_a_missing_file_fails_the_step_that_names_it(empty_pybuild: Command, tmp_path: Path) -> None:
    error = refused(empty_pybuild, "FROM scratch\nCOPY nosuch /\n", tmp_path / "c")
    assert re.search(
        r'^#(\d+) \[1/1\] COPY nosuch /\n#\1 ERROR: failed to calculate checksum of ref .*"/nosuch": not found',
        error,
        re.M,
    )
    assert not re.search(r"load build context\n(#.*\n)*#\d+ ERROR", error)


def test_somebody_who_is_not_there_cannot_run_anything(pybuild: Command, tmp_path: Path) -> None:
    for user, reason in (
        ("nosuch", "unable to find user nosuch: no matching entries in passwd file"),
        ("0:nosuch", "unable to find group nosuch: no matching entries in group file"),
    ):
        error = refused(pybuild, f"FROM busybox\nUSER {user}\nRUN id\n", tmp_path / "c")
        assert f'process "/bin/sh -c id" did not complete successfully: {reason}' in error


def test_steps_are_counted_with_triggers_and_named_where_mounts_read_something(
    pybuild: Command, tmp_path: Path
) -> None:
    context = write_files(tmp_path / "c", {"f": "x"})
    built = pybuild.build(
        'FROM busybox AS base\nONBUILD RUN echo a > /a\nONBUILD ENV X=1\nONBUILD CMD ["x"]\nFROM base\nRUN echo b > /b\n',
        context,
    )
    assert [title for title in titles(built.stderr) if "RUN" in title] == [
        "[stage-1 1/4] ONBUILD RUN echo a > /a",
        "[stage-1 2/4] RUN echo b > /b",
    ]
    built = pybuild.build("FROM busybox\nRUN --mount=target=/m cat /m/f\n", context)
    assert "[stage-0 2/2] RUN --mount=target=/m cat /m/f" in titles(built.stderr)


def test_a_linked_copy_that_another_instruction_made_already_is_shown_where_it_stands(
    pybuild: Command, tmp_path: Path
) -> None:
    context = write_files(tmp_path / "c", {"f": "x"})
    built = pybuild.build("FROM busybox\nCOPY --link f /a\nRUN rm /a\nCOPY --link f /a\n", context)
    assert [title for title in titles(built.stderr) if "COPY" in title] == [
        "[2/4] COPY --link f /a",
        "[4/4] COPY --link f /a",
    ]


def test_directories_made_below_a_set_group_id_directory_are_like_it(pybuild: Command, tmp_path: Path) -> None:
    context = write_files(tmp_path / "c", {"f": "x", "d/x": "y"})
    dockerfile = (
        "FROM busybox\nRUN mkdir /s && chown 3:7 /s && chmod 2775 /s\nCOPY d /s/n\nCOPY f /s/p/q/\nCOPY --chown=1:2 f /s/c/\n"
        "COPY --chmod=700 f /s/m/\nWORKDIR /s/w\nUSER 5:6\nWORKDIR /s/u\nCOPY f y/\n"
    )
    image = build_image(pybuild, dockerfile, context)
    made = {
        entry.name: (oct(entry.mode), *entry.owner)
        for layer in image.layers[2:]
        for entry in layer
        if entry.name.startswith("s/") and entry.name != "s/"
    }
    assert made == {
        "s/n/": ("0o2755", 0, 7),
        "s/n/x": ("0o600", 0, 0),
        "s/p/": ("0o2755", 0, 7),
        "s/p/q/": ("0o2755", 0, 7),
        "s/p/q/f": ("0o600", 0, 0),
        "s/c/": ("0o2755", 1, 2),
        "s/c/f": ("0o600", 1, 2),
        "s/m/": ("0o2700", 0, 7),
        "s/m/f": ("0o700", 0, 0),
        "s/w/": ("0o2755", 0, 7),
        "s/u/": ("0o2755", 5, 6),
        "s/u/y/": ("0o2755", 0, 6),
        "s/u/y/f": ("0o600", 0, 0),
    }
