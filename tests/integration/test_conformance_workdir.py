"""WORKDIR, USER and the environment of steps, seen from the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, build_files, build_image, read_blobs

pytestmark = pytest.mark.integration


def test_workdir_makes_its_folder_even_on_scratch(pybuild: Command, tmp_path: Path):
    out = build_files(pybuild, "\nFROM scratch\nWORKDIR /foo\nWORKDIR /\n", tmp_path / "c")
    assert [item.name for item in out.iterdir()] == ["foo"]
    assert (out / "foo").is_dir()


def test_workdir_belongs_to_the_user_if_it_is_new_and_is_left_alone_if_not(pybuild: Command, tmp_path: Path):
    pybuild.build(
        """
FROM busybox
RUN echo user:x:1000:1001::/home:/bin/sh >>/etc/passwd; echo user:x:1001: >>/etc/group
RUN mkdir /exists && chown user:user /exists
WORKDIR /exists
RUN [ "$(stat -c "%U %G" /exists)" == "user user" ] && [ $PWD = /exists ]
USER user
WORKDIR /mydir/deep
RUN [ "$(stat -c "%U %G %a" /mydir)" == "user user 755" ] && [ "$(stat -c "%U %G" /mydir/deep)" == "user user" ]
USER 7
WORKDIR /seven
RUN [ "$(stat -c "%u:%g" /seven)" == "7:7" ] && [ "$(id -u):$(id -g)" == "7:0" ]
USER 7:daemon
WORKDIR /eight
RUN [ "$(stat -c "%u:%G" /eight)" == "7:daemon" ]
""",
        tmp_path / "c",
    )


def test_names_for_from_are_absolute_wherever_the_stage_works(pybuild: Command, tmp_path: Path):
    pybuild.build(
        """
FROM scratch AS base
WORKDIR /foo
COPY Dockerfile /
FROM scratch
COPY --from=base Dockerfile .
""",
        tmp_path / "c",
    )


def test_workdir_gives_the_same_image_at_any_time_with_a_source_date_epoch(pybuild: Command, tmp_path: Path):
    text = "FROM busybox\nWORKDIR /mydir\nWORKDIR sub/\n"
    indexes = []
    for name in ("one", "two"):
        out = tmp_path / name
        pybuild.build(
            text,
            tmp_path / "c",
            f"--output=type=oci,dest={out},tar=false",
            "--build-arg=SOURCE_DATE_EPOCH=1673364896",
            "--no-cache",
        )
        indexes.append(read_blobs(out)["index.json"])
    assert indexes[0] == indexes[1]


def test_workdir_in_config_and_history(pybuild: Command, tmp_path: Path):
    image = build_image(
        pybuild,
        """
FROM busybox
ENV where=deep
WORKDIR /a/
WORKDIR $where/er/
WORKDIR /a
WORKDIR /
""",
        tmp_path / "c",
    )
    assert image.config["WorkingDir"] == "/"
    assert image.history[-4:] == ["WORKDIR /a/", "WORKDIR /a/deep/er", "WORKDIR /a", "WORKDIR /"]
    assert image.empty_layers[-4:] == [False, False, False, True]
    assert [image.names(n) for n in (1, 2, 3)] == [["a/"], ["a/", "a/deep/", "a/deep/er/"], []]
    assert {(entry.mode, entry.owner) for entry in image.layers[2]} == {(0o755, (0, 0))}


def test_users_groups_and_what_id_says_about_them(pybuild: Command, tmp_path: Path):
    whole = '"$(id -u):$(id -g)/$(id -un):$(id -gn)/$(id -G):$(id -Gn)"'
    text = """
FROM busybox AS base
RUN echo wheel:x:10:root >> /etc/group && mkdir -m 0777 /out && id -un > /out/rootuser
RUN [ "$(id -u):$(id -g)/$(id -un):$(id -gn)" = '0:0/root:root' ]
USER root
RUN [ "$(id -G):$(id -Gn)" = '0 10:root wheel' ]
RUN echo 'dockerio:x:1001:1001::/bin:/bin/false' >> /etc/passwd && echo 'dockerio:x:1001:' >> /etc/group
USER dockerio
RUN [ WHOLE = '1001:1001/dockerio:dockerio/1001:dockerio' ]
USER root
RUN [ WHOLE = '0:0/root:root/0 10:root wheel' ] && echo 'supplementary:x:1002:dockerio' >> /etc/group
"""
    for user, expected in (
        ("dockerio", "1001:1001/dockerio:dockerio/1001 1002:dockerio supplementary"),
        ("1001", "1001:1001/dockerio:dockerio/1001 1002:dockerio supplementary"),
        ("dockerio:dockerio", "1001:1001/dockerio:dockerio/1001:dockerio"),
        ("1001:dockerio", "1001:1001/dockerio:dockerio/1001:dockerio"),
        ("dockerio:1001", "1001:1001/dockerio:dockerio/1001:dockerio"),
        ("1001:1001", "1001:1001/dockerio:dockerio/1001:dockerio"),
        ("dockerio:supplementary", "1001:1002/dockerio:supplementary/1002:supplementary"),
        ("dockerio:1002", "1001:1002/dockerio:supplementary/1002:supplementary"),
        ("1001:supplementary", "1001:1002/dockerio:supplementary/1002:supplementary"),
        ("1001:1002", "1001:1002/dockerio:supplementary/1002:supplementary"),
        ("1042:1043", "1042:1043/1042:1043/1043:1043"),
    ):
        text += f"USER {user}\nRUN [ WHOLE = '{expected}' ]\n"
    text += "USER daemon\nRUN id -un > /out/daemonuser\nFROM scratch\nCOPY --from=base /out /\nUSER nobody\n"
    # busybox's id prints "unknown ID" for a number without a name and fails
    text = text.replace("WHOLE", whole)
    out = build_files(pybuild, text, tmp_path / "c")
    assert (out / "rootuser").read_text() == "root\n"
    assert (out / "daemonuser").read_text() == "daemon\n"
    assert build_image(pybuild, text, tmp_path / "c").config["User"] == "nobody"


def test_the_primary_group_is_among_the_additional_ones(pybuild: Command, tmp_path: Path):
    pybuild.build(
        """
FROM busybox
RUN echo wheel:x:10:root >> /etc/group
SHELL ["/bin/sh", "-euxc"]
RUN [ "$(id)" = "uid=0(root) gid=0(root) groups=0(root),10(wheel)" ]
USER 1234
RUN [ "$(id)" = "uid=1234 gid=0(root) groups=0(root)" ]
USER 1234:1234
RUN [ "$(id)" = "uid=1234 gid=1234 groups=1234" ]
USER daemon
RUN [ "$(id)" = "uid=1(daemon) gid=1(daemon) groups=1(daemon)" ]
""",
        tmp_path / "c",
    )


@pytest.mark.parametrize(
    ("flags", "name"), [([], "buildkitsandbox"), (["--build-arg=BUILDKIT_SANDBOX_HOSTNAME=foo"], "foo")]
)
def test_the_name_of_the_machine_can_be_chosen(pybuild: Command, tmp_path: Path, flags: list[str], name: str):
    text = (
        f"FROM busybox\nRUN grep -w {name} /etc/hosts && hostname | grep -x {name} && echo $HOSTNAME | grep -x {name}\n"
    )
    pybuild.build(text, tmp_path / "c", *flags)
