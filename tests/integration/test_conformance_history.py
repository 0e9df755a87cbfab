"""What configuration and history of an image say, seen in exported OCI layouts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, build_image, read_blobs, read_images, refused, write_files

pytestmark = pytest.mark.integration


def test_history_is_scoped_to_one_stage(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"foo": "contents0"})
    image = build_image(
        pybuild,
        """
FROM busybox AS base
ENV foo=bar
COPY foo /foo2
FROM busybox
LABEL lbl=val
COPY --from=base foo2 foo3
WORKDIR /
RUN echo bar > foo4
RUN ["ls"]
EXPOSE 2375 5000 1234/udp
""",
        context,
    )
    assert image.document["rootfs"]["type"] == "layers"
    assert len(image.document["rootfs"]["diff_ids"]) == len(image.layers) == 4
    assert image.history[1:] == [
        "LABEL lbl=val",
        "COPY foo2 foo3 # buildkit",
        "WORKDIR /",
        "RUN /bin/sh -c echo bar > foo4 # buildkit",
        "RUN ls # buildkit",
        "EXPOSE [1234/udp 2375/tcp 5000/tcp]",
    ]
    assert image.empty_layers[1:] == [True, False, True, False, False, True]
    assert all(item["created"] for item in image.document["history"][1:])
    assert {item["comment"] for item in image.document["history"][1:]} == {"buildkit.dockerfile.v0"}


def test_arguments_of_a_step_are_listed_once_with_their_last_value(pybuild: Command, tmp_path: Path):
    image = build_image(
        pybuild,
        "\nFROM busybox\nARG foo=bar\nARG bar=123\nARG foo=bar2\nRUN ls /etc/\n",
        tmp_path / "c",
    )
    assert image.history[1:] == [
        "ARG foo=bar",
        "ARG bar=123",
        "ARG foo=bar2",
        "RUN |2 foo=bar2 bar=123 /bin/sh -c ls /etc/ # buildkit",
    ]


def test_a_proxy_is_in_the_history_once_it_is_declared(pybuild: Command, tmp_path: Path):
    image = build_image(
        pybuild,
        "FROM busybox\nRUN : one\nARG http_proxy\nRUN : two\n",
        tmp_path / "c",
        "--build-arg=http_proxy=http://127.0.0.1:1",
    )
    assert image.history[1:] == [
        "RUN /bin/sh -c : one # buildkit",
        "ARG http_proxy=http://127.0.0.1:1",
        "RUN |1 http_proxy=http://127.0.0.1:1 /bin/sh -c : two # buildkit",
    ]
    assert "http_proxy" not in str(image.config)


def test_history_texts_of_every_instruction(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"foo": "contents0", "other": "x"})
    image = build_image(
        pybuild,
        """
FROM busybox
MAINTAINER me <me@example.com>
ENV a=1 b="two words"
LABEL x=$a y="q \\" z"
ARG arg
COPY --chmod=644 --chown=1:$a --exclude=nothing foo* other /dir/$b/
COPY --link --chown=3:4 foo /linked
ADD --chmod=u=rw foo /added
CMD ["a", "b c"]
CMD echo $a
ENTRYPOINT ["/bin/sh", "-c"]
SHELL ["/bin/sh", "-ec"]
EXPOSE 80 90-91/udp
VOLUME /a /b
VOLUME ["/c"]
USER 5:$a
HEALTHCHECK --interval=5m --timeout=3s --retries=2 CMD curl -f http://localhost/ || exit 1
HEALTHCHECK NONE
STOPSIGNAL SIG${a:+INT}
ONBUILD RUN echo trigger
""",
        context,
        "--build-arg=arg=given",
    )
    assert image.history[1:] == [
        "MAINTAINER me <me@example.com>",
        "ENV a=1 b=two words",
        'LABEL x=1 y=q " z',
        "ARG arg=given",
        "COPY --chown=1:1 --chmod=644 foo* other /dir/two words/ # buildkit",
        "COPY --chown=3:4 foo /linked # buildkit",
        "ADD --chmod=u=rw foo /added # buildkit",
        'CMD ["a" "b c"]',
        'CMD ["/bin/sh" "-c" "echo $a"]',
        'ENTRYPOINT ["/bin/sh" "-c"]',
        "SHELL [/bin/sh -ec]",
        "EXPOSE [80/tcp 90/udp 91/udp]",
        "VOLUME [/a /b]",
        "VOLUME [/c]",
        "USER 5:1",
        "HEALTHCHECK {Test:[CMD-SHELL curl -f http://localhost/ || exit 1] Interval:5m0s Timeout:3s "
        "StartPeriod:0s StartInterval:0s Retries:2}",
        "HEALTHCHECK {Test:[NONE] Interval:0s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}",
        "STOPSIGNAL SIGINT",
    ]
    assert image.document["author"] == "me <me@example.com>"
    assert image.config["OnBuild"] == ["RUN echo trigger"]
    assert image.config["Shell"] == ["/bin/sh", "-ec"]
    assert sorted(image.config["Volumes"]) == ["/a", "/b", "/c"]
    assert image.config["Healthcheck"] == {"Test": ["NONE"]}
    assert image.config["Cmd"] == ["/bin/sh", "-c", "echo $a"]


def test_scratch_starts_with_a_path_and_the_root_as_working_folder(pybuild: Command, tmp_path: Path):
    image = build_image(pybuild, "\nFROM scratch\nENV foo=bar\n", tmp_path / "c")
    assert image.document["os"] == "linux"
    assert image.document["architecture"]
    assert image.config["WorkingDir"] == "/"
    assert image.config["Env"] == ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "foo=bar"]
    assert image.document["rootfs"] == {"type": "layers", "diff_ids": []}
    assert image.history == ["ENV foo=bar"]
    assert image.empty_layers == [True]


def test_an_image_without_layers_is_a_base_like_any_other(pybuild: Command, tmp_path: Path):
    pybuild.build("\nFROM scratch\nLABEL foo=bar\n", tmp_path / "base", "-t", "moby/testpullscratch")
    context = write_files(tmp_path / "c", {"foo": "foo-contents"})
    image = build_image(
        pybuild,
        "\nFROM docker.io/moby/testpullscratch:latest\nLABEL bar=baz\nCOPY foo .\n",
        context,
        "--label=more=yes",
    )
    assert len(image.layers) == 1
    assert image.config["Labels"] == {"foo": "bar", "bar": "baz", "more": "yes"}


def test_an_entrypoint_resets_the_command_that_the_base_had(pybuild: Command, tmp_path: Path):
    pybuild.build('\nFROM scratch\nCMD ["test"]\n', tmp_path / "base", "-t", "moby/cmdoverridetest")
    image = build_image(
        pybuild, '\nFROM moby/cmdoverridetest\nSHELL ["ls"]\nENTRYPOINT my entrypoint\n', tmp_path / "c"
    )
    assert image.config.get("Cmd") is None
    assert image.config["Entrypoint"] == ["ls", "my entrypoint"]


def test_shell_and_path_follow_the_platform(pybuild: Command, tmp_path: Path):
    out = tmp_path / "out.tar"
    pybuild.build(
        "\nFROM scratch\nENTRYPOINT foo bar\nCOPY Dockerfile .\n",
        tmp_path / "c",
        "--platform=windows/amd64,linux/amd64",
        f"--output=type=oci,dest={out}",
    )
    windows, linux = read_images(out)
    assert windows.document["os"] == "windows"
    assert windows.config["Entrypoint"] == ["cmd", "/S", "/C", "foo bar"]
    assert windows.config.get("Env") is None
    assert linux.config["Entrypoint"] == ["/bin/sh", "-c", "foo bar"]
    assert linux.config["Env"] == ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    assert [len(image.layers) for image in (windows, linux)] == [1, 1]


def test_a_scratch_image_for_two_platforms(pybuild: Command, tmp_path: Path):
    out = tmp_path / "out.tar"
    pybuild.build("FROM scratch", tmp_path / "c", "--platform=linux/arm64,linux/amd64", f"--output=type=oci,dest={out}")
    assert [image.document["architecture"] for image in read_images(out)] == ["arm64", "amd64"]
    (top,) = json.loads(read_blobs(out)["index.json"])["manifests"]
    assert top["mediaType"] == "application/vnd.oci.image.index.v1+json"


def test_an_entrypoint_has_no_part_in_run_and_broken_json_is_a_shell_command(pybuild: Command, tmp_path: Path):
    pybuild.build('\nFROM busybox\nENTRYPOINT ["/nosuchcmd"]\nRUN ["ls"]\n', tmp_path / "c")
    assert "this is invalid" in refused(
        pybuild, '\nFROM busybox\nRUN ["echo", "hello"]this is invalid\n', tmp_path / "c"
    )
    image = build_image(pybuild, "\nFROM busybox\nENTRYPOINT []random string\n", tmp_path / "c")
    assert image.config["Entrypoint"] == ["/bin/sh", "-c", "[]random string"]


def test_several_names_are_several_entries_of_the_index(pybuild: Command, tmp_path: Path):
    text = "\nFROM scratch\nCOPY <<EOF /foo\nhello\nEOF\n"
    folder, file = tmp_path / "folder", tmp_path / "file.tar"
    pybuild.build(
        text,
        tmp_path / "c",
        f'--output=type=oci,tar=false,dest={folder},"name=org/repo:tag1,org/repo:tag2"',
        f'--output=type=oci,dest={file},"name=org/repo:tag1,org/repo:tag2"',
    )
    for layout in (folder, file):
        first, second = json.loads(read_blobs(layout)["index.json"])["manifests"]
        assert {key: first[key] for key in ("digest", "size", "mediaType")} == {
            key: second[key] for key in ("digest", "size", "mediaType")
        }
        assert first.get("platform") == second.get("platform")
        names = [entry["annotations"]["io.containerd.image.name"] for entry in (first, second)]
        assert names == ["docker.io/org/repo:tag1", "docker.io/org/repo:tag2"]
        tags = [entry["annotations"]["org.opencontainers.image.ref.name"] for entry in (first, second)]
        assert tags == ["tag1", "tag2"]
