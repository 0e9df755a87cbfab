"""Named contexts of every kind, seen from the command line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, build_files, build_image, refused, write_files
from conformance.loopback import serve_directory

pytestmark = pytest.mark.integration


def other_base(pybuild: Command, tmp_path: Path, name: str) -> None:
    """An image ``name`` that says it is another one, with variables of its own."""
    pybuild.build(
        "FROM busybox\nENV PATH=/foobar:$PATH\nENV FOOBAR=foobar\nRUN echo 3.1 > /etc/other-release\n", tmp_path / "base",
        f"--output=type=image,name={name},push={'true' if ':' in name.split('/')[0] else 'false'}",
    )  # fmt: skip


def test_an_image_takes_the_place_of_a_base(pybuild: Command, tmp_path: Path, registry: str) -> None:
    target = f"{registry}/conformance/namedimage:latest"
    other_base(pybuild, tmp_path, target)
    pybuild.run("tag", target, "other")
    dockerfile = """
FROM busybox AS base
RUN cat /etc/other-release > /out
RUN env | grep PATH > /env_path
RUN env | grep FOOBAR > /env_foobar
FROM scratch
COPY --from=base /out /env_path /env_foobar /
"""
    for value in ("docker-image://other", f"docker-image://{target}"):
        out = build_files(pybuild, dockerfile, tmp_path / "c", f"--build-context=busybox={value}")
        assert (out / "out").read_text() == "3.1\n"
        assert (out / "env_foobar").read_text() == "FOOBAR=foobar\n"
        assert "/foobar:" in (out / "env_path").read_text()
    # A stage that is built on another one can be replaced as well.
    replaced = "FROM busybox AS parent\nFROM parent AS base\nRUN echo base > /out\nFROM base\nRUN [ -f /etc/other-release ]\nRUN [ ! -f /out ]\n"
    pybuild.build(replaced, tmp_path / "c", f"--build-context=base=docker-image://{target}")


def test_the_stages_platform_is_used_for_an_image(pybuild: Command, tmp_path: Path, registry: str) -> None:
    target = f"{registry}/conformance/namedplatform:latest"
    pybuild.build(
        "FROM --platform=$BUILDPLATFORM busybox\n", tmp_path / "c", "--build-arg=BUILDKIT_MULTI_PLATFORM=true",
        f"--output=type=image,name={target},push=true",
    )  # fmt: skip
    pybuild.build(
        "FROM --platform=$BUILDPLATFORM busybox AS target\nRUN echo hello\n", tmp_path / "c",
        f"--build-context=busybox=docker-image://{target}", "--platform=darwin/ppc64le", "--pull",
    )  # fmt: skip


def test_a_contexts_image_keeps_its_times_and_the_result_gets_its_own(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = "FROM busybox\nRUN echo foo >> /test\n"
    first = build_image(pybuild, dockerfile, tmp_path / "c", "-o", "type=image,name=first")
    second = build_image(pybuild, dockerfile, tmp_path / "c", "--build-context=busybox=docker-image://first")
    assert second.document["created"] > first.document["created"]
    assert second.document["history"][: len(first.history)] == first.document["history"]
    assert second.layers[-1][-1].content == b"foo\nfoo\n"


def test_scratch_takes_the_place_of_a_base(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = "FROM busybox AS build\nCOPY <<EOF /out\nhello world!\nEOF\n"
    out = build_files(pybuild, dockerfile, tmp_path / "c", "--build-context=busybox=docker-image://scratch")
    assert {path.name: path.read_text() for path in out.iterdir()} == {"out": "hello world!\n"}


def test_a_directory_takes_the_place_of_a_stage_with_its_own_ignore_file(pybuild: Command, tmp_path: Path) -> None:
    files = write_files(tmp_path / "d", {"out": "dummy-result", "out2": "dummy-result", ".dockerignore": "out2\n"})
    dockerfile = "FROM busybox AS base\nRUN cat /etc/nothing > /out\nFROM scratch\nCOPY --from=base /o* /\n"
    out = build_files(pybuild, dockerfile, tmp_path / "c", f"--build-context=base={files}")
    assert [path.name for path in out.iterdir()] == ["out"]


def test_a_layout_takes_the_place_of_stages(pybuild: Command, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    pybuild.build(
        "FROM busybox:latest\nWORKDIR /test\nRUN echo -n first > out\nRUN echo -n second > out2\nENV foo=bar\n", tmp_path / "b",
        f"--output=type=oci,tar=false,dest={layout}", "-t", "one:latest",
    )  # fmt: skip
    (manifest,) = json.loads((layout / "index.json").read_text())["manifests"]
    dockerfile = """
FROM busybox AS base
RUN cat /etc/nothing > out
FROM foo AS imported
RUN echo -n $foo > outfoo
FROM scratch
COPY --from=base /test/o* /
COPY --from=imported /test/outfoo /
"""
    for value in (
        f"oci-layout://{layout}@{manifest['digest']}",
        f"oci-layout://{layout}",
        f"oci-layout://{layout}:latest",
    ):
        contexts = (f"--build-context=base={value}", f"--build-context=foo={value}")
        out = build_files(pybuild, dockerfile, tmp_path / "c", *contexts)
        found = {path.name: path.read_text() for path in out.iterdir()}
        assert found == {"out": "first", "out2": "second", "outfoo": "bar"}
    image = build_image(
        pybuild, "FROM nonexistent AS base\n", tmp_path / "c", f"--build-context=nonexistent=oci-layout://{layout}"
    )
    assert (image.config["WorkingDir"], "foo=bar" in image.config["Env"]) == ("/test", True)
    missing = refused(pybuild, dockerfile, tmp_path / "c", f"--build-context=base=oci-layout://{layout}:other")
    assert "other" in missing


def test_a_context_for_one_platform_only(pybuild: Command, tmp_path: Path) -> None:
    one, two = write_files(tmp_path / "1", {"f": "one"}), write_files(tmp_path / "2", {"f": "two"})
    dockerfile = "FROM base AS b\nFROM scratch\nCOPY --from=b /f /\n"
    out = build_files(
        pybuild, dockerfile, tmp_path / "c", "--platform=linux/amd64,linux/arm64",
        f"--build-context=base::linux/amd64={one}", f"--build-context=base::linux/arm64={two}",
    )  # fmt: skip
    assert ((out / "linux_amd64/f").read_text(), (out / "linux_arm64/f").read_text()) == ("one", "two")


@pytest.mark.parametrize("replaced", ["", "FROM scratch AS foo\nCOPY <<EOF /foo\ntest\nEOF\n"])
def test_only_what_is_needed_of_a_context_is_read(pybuild: Command, tmp_path: Path, replaced: str) -> None:
    (tmp_path / "foo").mkdir()
    (tmp_path / "foo/foo").write_text("foo")
    (tmp_path / "foo/bar").write_bytes(bytes(4096 * 1000))
    dockerfile = (
        replaced
        + """
FROM scratch AS copy_from
COPY --from=foo /foo /
FROM busybox AS run_mount
RUN --mount=from=foo,src=/foo,target=/in/foo cp /in/foo /foo
FROM foo AS image_source
COPY --from=busybox / /
RUN cat /foo > /bar
FROM scratch AS all
COPY --link --from=copy_from /foo /foo.b
COPY --link --from=run_mount /foo /foo.c
COPY --link --from=image_source /bar /foo.d
"""
    )
    argument = f"--build-context=foo={tmp_path / 'foo'}"
    for target, little in (("run_mount", True), ("copy_from", True), ("image_source", False)):
        stderr = pybuild.build(dockerfile, tmp_path / "c", argument, f"--target={target}").stderr
        number = re.findall(r"^#(\d+) \[context foo\] load from client$", stderr, re.MULTILINE)[0]
        (shown,) = re.findall(rf"^#{number} transferring foo: ([0-9.]+[kMG]?B)", stderr, re.MULTILINE)
        assert ("MB" in shown) is not little, (target, shown)
    out = build_files(pybuild, dockerfile, tmp_path / "c", argument)
    assert {path.name: path.read_text() for path in out.iterdir()} == {"foo.b": "foo", "foo.c": "foo", "foo.d": "foo"}


def test_what_nothing_uses_is_never_looked_up(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = """
FROM broken AS notused
FROM busybox:latest AS base
RUN echo "base" > /foo
FROM other AS otherstage
FROM scratch
COPY --from=base /foo /foo
"""
    out = build_files(
        pybuild, dockerfile, tmp_path / "c", "--build-context=notused=docker-image://127.0.0.1:9/nosuchimage:latest",
        "--build-context=other=docker-image://127.0.0.1:9/dontexist:latest",
    )  # fmt: skip
    assert (out / "foo").read_text() == "base\n"


def test_mistakes_in_contexts_are_named(pybuild: Command, tmp_path: Path) -> None:
    context = write_files(tmp_path / "c", {"Dockerfile": "FROM scratch\nCOPY --from=a x /\n"})
    for value, text in [
        ("a", "invalid"), ("a=", "invalid"), (f"a={tmp_path}/missing", "missing"),
        ("a=docker-image://UPPER", "UPPER"), (f"a=oci-layout://{tmp_path}", "layout"),
    ]:  # fmt: skip
        result = pybuild.run("build", f"--build-context={value}", str(context), check=False)
        assert result.returncode != 0
        assert text in result.stderr.splitlines()[-1]


def test_the_names_of_contexts_are_found_as_images_are(pybuild: Command, tmp_path: Path) -> None:
    files = write_files(tmp_path / "d", {"f": "found"})
    names = {
        "docker.io/library/alpine": "alpine",
        "alpine:latest": "docker.io/library/alpine:latest",
        "ALPINE": "alpine",
        "example.com/a/b:1": "example.com/a/b:1",
    }
    for name, written in names.items():
        out = build_files(
            pybuild,
            f"FROM {written} AS x\nFROM scratch\nCOPY --from=x /f /\n",
            tmp_path / "c",
            f"--build-context={name}={files}",
        )
        assert (out / "f").read_text() == "found"


def test_listing_a_context_explains_what_is_left_out(pybuild: Command, tmp_path: Path) -> None:
    context = write_files(tmp_path / "c", {"a": "1", "b/c": "2", ".dockerignore": "# comment\nb\n"})
    listed = pybuild.run("context", "ls", str(context)).stdout
    assert "b/c" not in listed
    for arguments in (("--explain", "b/c", str(context)), (str(context), "--explain", "b/c")):
        explained = pybuild.run("context", "ls", *arguments, check=False)
        assert (explained.returncode, explained.stdout) == (1, "b/c is excluded: .dockerignore:2 decides with 'b'\n")
    assert pybuild.run("context", "ls", "--explain", "a", str(context)).stdout.startswith("a is ")


def test_a_source_policy_refuses_and_replaces_sources(
    pybuild: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ruled(*rules: tuple[str, str, str]) -> None:
        document = [
            {"action": action, "selector": {"identifier": identifier}, "updates": {"identifier": replacement} if replacement else None}
            for action, identifier, replacement in rules
        ]  # fmt: skip
        (tmp_path / "policy.json").write_text(json.dumps({"rules": document}))
        monkeypatch.setenv("EXPERIMENTAL_BUILDKIT_SOURCE_POLICY", str(tmp_path / "policy.json"))

    files = write_files(tmp_path / "d", {"foo": "foo", "served": "served"})
    replaced = "FROM scratch AS replace\nFROM scratch\nCOPY --from=replace /foo /\n"
    ruled(("CONVERT", "docker-image://docker.io/library/alpine:latest", "local://test"))
    contexts = ("--build-context=replace=docker-image://alpine", f"--build-context=test={files}")
    assert (build_files(pybuild, replaced, tmp_path / "c", *contexts) / "foo").read_text() == "foo"

    ruled(("CONVERT", "docker-image://docker.io/library/nothere:*", "docker-image://busybox:${1}"))
    pybuild.build("FROM nothere\nRUN true\n", tmp_path / "c")
    ruled(("DENY", "docker-image://*", ""))
    message = refused(pybuild, "FROM busybox\nRUN true\n", tmp_path / "c")
    assert "source denied by policy" in message
    assert ">>> FROM busybox" in message
    ruled(("DENY", "local://*", ""))
    assert "source denied by policy" in refused(pybuild, "FROM scratch\nCOPY . /\n", tmp_path / "c")
    with serve_directory(files) as url:
        ruled(("DENY", "http://*", ""), ("CONVERT", "http://files.example/*", url + "/${1}"), ("ALLOW", f"{url}/*", ""))
        out = build_files(pybuild, "FROM scratch\nADD http://files.example/served /\n", tmp_path / "c")
        assert (out / "served").read_text() == "served"
        assert "source denied by policy" in refused(
            pybuild, "FROM scratch\nADD http://other.example/x /\n", tmp_path / "c"
        )
