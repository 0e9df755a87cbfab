"""Platforms of builds, stages and base images, seen from the command line."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, build_files, build_image, read_images, refused, write_files

pytestmark = pytest.mark.integration


def test_the_platforms_arguments_are_there_without_being_declared_for_from(pybuild: Command, tmp_path: Path) -> None:
    context = write_files(tmp_path / "c", {"foo": "d0", "foo2": "d1"})
    dockerfile = "FROM scratch AS build-linux\nCOPY foo bar\nFROM build-${TARGETOS}\nCOPY foo2 bar2\n"
    out = build_files(pybuild, dockerfile, context)
    assert ((out / "bar").read_text(), (out / "bar2").read_text()) == ("d0", "d1")


def test_a_native_stage_builds_for_another_platform(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = """
FROM --platform=$BUILDPLATFORM busybox AS build
ARG TARGETPLATFORM
ARG TARGETOS
RUN mkdir /out && echo -n $TARGETPLATFORM > /out/platform && echo -n $TARGETOS > /out/os
FROM scratch
COPY --from=build out .
"""
    arguments = ("--platform=darwin/ppc64le", "--build-arg=TARGETOS=freebsd")
    out = build_files(pybuild, dockerfile, tmp_path / "c", *arguments)
    assert ((out / "platform").read_text(), (out / "os").read_text()) == ("darwin/ppc64le", "freebsd")


def test_a_platform_is_told_by_its_canonical_name(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = (
        "FROM scratch\nARG TARGETPLATFORM\nARG TARGETVARIANT\nLABEL is=$TARGETPLATFORM variant=$TARGETVARIANT\n"
    )
    out = tmp_path / "o"
    pybuild.build(
        dockerfile, tmp_path / "c", "--platform=linux/arm,linux/arm64/v8,linux/arm/v7", f"--output=type=oci,dest={out}"
    )
    labels = [image.config["Labels"] for image in read_images(out)]
    assert labels == [{"is": "linux/arm/v7", "variant": "v7"}, {"is": "linux/arm64", "variant": ""}]


def test_the_operating_systems_version_chooses_the_base(pybuild: Command, tmp_path: Path, registry: str) -> None:
    target = f"{registry}/conformance/osversion:latest"
    first, second = "windows(1.2.3)/bar", "windows(1.1.0)/bar"
    dockerfile = f"""
FROM {target} AS reg

FROM scratch AS base
ARG TARGETOSVERSION
COPY <<EOF /osversion
${{TARGETOSVERSION}}
EOF
ARG TARGETPLATFORM
COPY <<EOF /targetplatform
${{TARGETPLATFORM}}
EOF
"""
    out = tmp_path / "o"
    pybuild.build(
        dockerfile, tmp_path / "c", f"--platform={first},{second}", "--target=base", f"--output=type=local,dest={out}",
        f"--output=type=oci,dest={tmp_path / 'o.tar'}", f"--output=type=image,name={target},push=true",
    )  # fmt: skip
    assert [image.document["os.version"] for image in read_images(tmp_path / "o.tar")] == ["1.2.3", "1.1.0"]
    for platform, version in ((first, "1.2.3"), (second, "1.1.0")):
        folder = out / platform.replace("/", "_")
        assert (folder / "osversion").read_text() == version + "\n"
        assert (folder / "targetplatform").read_text() == platform + "\n"
        chosen = build_files(pybuild, dockerfile, tmp_path / "c", f"--platform={platform}", "--target=reg")
        assert (chosen / "osversion").read_text() == version + "\n"


def test_the_bases_version_of_the_operating_system_is_kept(pybuild: Command, tmp_path: Path, registry: str) -> None:
    target = f"{registry}/conformance/osversion-kept:latest"
    pybuild.build(
        "FROM scratch\nARG TARGETPLATFORM\nCOPY <<EOF /platform\n${TARGETPLATFORM}\nEOF\n", tmp_path / "c",
        "--platform=windows(10.0.20348.1006)/amd64", f"--output=type=image,name={target},push=true",
    )  # fmt: skip
    dockerfile = f"FROM {target}\nCOPY <<EOF /other\nhello\nEOF\n"
    image = build_image(pybuild, dockerfile, tmp_path / "c", "--platform=windows/amd64")
    assert image.document["os.version"] == "10.0.20348.1006"


def test_a_foreign_program_without_emulation_is_named(pybuild: Command, tmp_path: Path) -> None:
    machine = 0xF00D  # no processor has this number, so that nothing can emulate it
    header = (
        b"\x7fELF\x02\x01\x01"
        + bytes(9)
        + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0x400000, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    )
    program = header + struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, 120, 120, 4096)
    context = write_files(tmp_path / "c", {"sh": program}, mode=0o755)
    dockerfile = "FROM scratch\nCOPY sh /bin/sh\nRUN echo foreign\n"
    message = refused(pybuild, dockerfile, context, "--platform=linux/s390x")
    for text in (">>> RUN echo foreign", "exec format error", "linux/s390x", "emulation"):
        assert text in message
    # Nothing of it has to run: then the platform doesn't matter.
    image = build_image(pybuild, "FROM scratch\nCOPY sh /bin/sh\nWORKDIR /x\n", context, "--platform=linux/s390x")
    assert image.document["architecture"] == "s390x"


def test_several_platforms_become_an_index_in_the_store_and_the_registry(
    pybuild: Command, tmp_path: Path, registry: str
) -> None:
    target = f"{registry}/conformance/several:1"
    dockerfile = "FROM --platform=$BUILDPLATFORM busybox AS b\nARG TARGETARCH\nRUN echo $TARGETARCH > /a\nFROM scratch\nCOPY --from=b /a /\n"
    pybuild.build(dockerfile, tmp_path / "c", "--platform=linux/amd64,linux/arm64", "-t", target, "--push")
    for arch in ("amd64", "arm64"):
        out = build_files(pybuild, f"FROM {target}\n", tmp_path / "d", f"--platform=linux/{arch}", "--pull")
        assert (out / "a").read_text() == arch + "\n"
    message = refused(pybuild, f"FROM {target}\n", tmp_path / "d", "--platform=linux/riscv64", "--pull")
    assert "linux/riscv64" in message
