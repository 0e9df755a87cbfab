"""COPY, seen from the command line: where things land, with what owner, mode and kind, and what is refused."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, build_files, build_image, refused, write_files

pytestmark = pytest.mark.integration

ADD_USERS = (
    "RUN echo user:x:1000:1000::/home:/bin/sh >>/etc/passwd; echo user:x:1000: >>/etc/group; "
    "echo user01:x:1001:1001::/home:/bin/sh >>/etc/passwd; echo user01:x:1001: >>/etc/group\n"
)


def test_a_variable_in_from_is_refused_with_the_remedy(pybuild: Command, tmp_path: Path):
    error = refused(pybuild, "\nFROM scratch\nCOPY --from=$FOO . .\n", tmp_path / "c")
    assert (
        "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround"
        in error
    )


def test_destinations_may_be_empty_or_end_in_a_slash_also_with_link(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"testfile": "contents0"})
    pybuild.build(
        """
FROM busybox
ENV empty=""
COPY testfile $empty
RUN [ "$(cat /testfile)" == "contents0" ]
COPY testfile /sample/
RUN [ "$(cat /sample/testfile)" == "contents0" ]
WORKDIR /var/www
COPY --link testfile .
RUN [ "$(cat testfile)" == "contents0" ]
WORKDIR /var/w2
COPY --link testfile $empty
RUN [ "$(cat /var/w2/testfile)" == "contents0" ]
COPY --link testfile /slash/
RUN [ "$(cat /slash/testfile)" == "contents0" ]
""",
        context,
    )


def test_chown_leaves_existing_folders_alone_and_owns_what_it_creates(pybuild: Command, tmp_path: Path):
    checks = """
RUN set -e; check() { a=$(stat -c %u:%g $1); [ $a = $2 ] || { echo $1: $a, not $2; exit 1; }; }; \\
  check /file FILE; check /dir DIR; check /dir/subdir SUB; check /dir/subdir/nestedfile NESTED; \\
  check /existingdir 500:600; check /existingdir/existingsubdir 501:601; check /existingdir/existingfile 501:601; \\
  check /existingdir/subdir SUB; check /existingdir/subdir/nestedfile NESTED
"""

    def expect(owners: dict[str, str]) -> str:
        text = checks
        for name, value in owners.items():
            text = text.replace(name, value)
        return text

    context = tmp_path / "c"
    context.mkdir()
    (context / "Dockerfile.web").write_text(
        """
FROM busybox AS source
RUN touch /file && chown 100:200 /file && mkdir -p /dir/subdir && touch /dir/subdir/nestedfile \\
 && chown 100:200 /dir && chown 101:201 /dir/subdir && chown 102:202 /dir/subdir/nestedfile
FROM busybox AS test_base
RUN mkdir -p /existingdir/existingsubdir && touch /existingdir/existingfile && chown 500:600 /existingdir \\
 && chown 501:601 /existingdir/existingsubdir /existingdir/existingfile
FROM test_base AS copy_from
COPY --from=source /file .
COPY --from=source /dir /dir
COPY --from=source /dir/. /existingdir
"""
        + expect({"FILE": "100:200", "DIR": "0:0", "SUB": "101:201", "NESTED": "102:202"})
        + """
FROM test_base AS copy_from_chowned
COPY --from=source --chown=300:400 /file .
COPY --from=source --chown=300:400 /dir /dir
COPY --from=source --chown=300:400 /dir/. /existingdir
"""
        + expect({"FILE": "300:400", "DIR": "300:400", "SUB": "300:400", "NESTED": "300:400"})
    )
    (context / "Dockerfile").symlink_to("Dockerfile.web")
    pybuild.run("build", "--progress=plain", str(context))
    pybuild.run("build", "--progress=plain", "--target=copy_from", str(context))


def test_chown_by_name_creates_the_destination_for_that_owner(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"foo": "foo-contents", "bar/sub": ""})
    pybuild.build(
        "FROM busybox\n"
        + ADD_USERS
        + """
ARG group
ENV owner=user01 number=1000
COPY --chown=user:user . /dest
COPY --chown=${owner}:${group} . /dest01
RUN [ "$(stat -c "%U %G" /dest)" == "user user" ] && [ "$(stat -c "%U %G" /dest01)" == "user01 user" ]
COPY --chown=daemon foo /
COPY --chown=1000:nogroup bar /baz
COPY --chown=${number}:${group} foo /a/b/foobis
COPY --chown=1001 foo /onlynumber
RUN [ "$(stat -c "%U %G" /foo)" == "daemon daemon" ] && [ "$(stat -c "%u %G" /baz/sub)" == "1000 nogroup" ] \\
 && [ "$(stat -c "%u %G" /a/b/foobis)" == "1000 user" ] && [ "$(stat -c "%u %G" /a)" == "1000 user" ] \\
 && [ "$(stat -c "%u:%g" /onlynumber)" == "1001:1001" ]
ADD --chown=${number}:${group} foo /added
RUN [ "$(stat -c "%u %G" /added)" == "1000 user" ]
""",
        context,
        "--build-arg=group=user",
    )


def test_an_unknown_owner_counts_as_root_with_a_warning(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"foo": "x"})
    text = 'FROM busybox\nCOPY --chown=nosuch:nosuch foo /\nRUN [ "$(stat -c %u:%g /foo)" = 0:0 ]\n'
    assert "no entry for 'nosuch'" in pybuild.build(text, context).stderr


def test_a_wildcard_copy_runs_again_for_the_files_that_it_selects_only(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"foo1": "foo1-data", "foo2": "foo2-data", "bar": "bar-data"})
    text = """
FROM busybox AS base
COPY foo* files/
RUN cat /dev/urandom | head -c 100 | sha256sum > unique
COPY bar files/
FROM scratch
COPY --from=base unique /
"""
    first = (build_files(pybuild, text, context) / "unique").read_text()
    (context / "bar").write_text("bar-data-mod")
    assert (build_files(pybuild, text, context) / "unique").read_text() == first
    (context / "foo2").write_text("foo2-data-mod")
    assert (build_files(pybuild, text, context) / "unique").read_text() != first


def test_an_unmatched_wildcard_copies_nothing_and_a_missing_file_is_named(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"foo": "contents0"})
    out = build_files(pybuild, "\nFROM scratch\nCOPY foo nomatch* /\n", context)
    assert (out / "foo").read_text() == "contents0"
    image = build_image(pybuild, "\nFROM busybox\nCOPY nomatch* /some/where/\n", context)
    assert image.layers[1:] == ((),)
    error = refused(pybuild, "\nFROM scratch\nCOPY foo notexist /foo/\n", context)
    assert '"/notexist": not found' in error
    assert "Dockerfile:3" in error
    assert ">>> COPY foo notexist /foo/" in error


def test_an_unset_variable_as_source_is_the_whole_context(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"foo": "x", "deep/bar": "y"})
    image = build_image(pybuild, "FROM busybox\nCOPY $unset /all/\n", context)
    assert image.names(1) == ["all/", "all/Dockerfile", "all/deep/", "all/deep/bar", "all/foo"]
    assert image.history[-1] == "COPY  /all/ # buildkit"


def test_sources_behind_symlinks_are_found_inside_the_context_and_inside_stages(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"sub/foo": "contents", "bar": "bar-contents", "foo/": ""})
    (context / "link").symlink_to("sub")
    (context / "foo/sub").symlink_to("../bar")
    out = build_files(
        pybuild,
        """
FROM busybox AS build
RUN mkdir -p /out/sub && ln -s /out/sub /sub && ln -s out/sub /sub2 && echo -n "data" > /sub/foo
FROM scratch
COPY link/foo .
COPY --from=build /sub/foo data
COPY --from=build /sub2/foo bar
COPY foo /kept
COPY foo/sub followed
""",
        context,
    )
    assert (out / "foo").read_text() == "contents"
    assert (out / "data").read_text() == (out / "bar").read_text() == "data"
    assert os.readlink(out / "kept/sub") == "../bar"
    assert (out / "followed").read_text() == "bar-contents"


def test_named_and_globbed_symlinks_are_copied_as_what_they_point_at(pybuild: Command, tmp_path: Path):
    context = write_files(
        tmp_path / "c",
        {"bar": "bar-contents", "sub/lfile": "lfile-contents", "sub/subfile": "subfile-contents", "sub/baz": "baz-contents"},
    )  # fmt: skip
    (context / "foo").symlink_to("bar")
    (context / "sub/l0").symlink_to("subfile")
    (context / "sub/l1").symlink_to("second")
    (context / "sub/second").symlink_to("baz")
    out = build_files(pybuild, "\nFROM scratch\nCOPY foo /\nCOPY sub/l* alllinks/\n", context)
    assert (out / "foo").read_text() == "bar-contents"
    assert {item.name: item.read_text() for item in (out / "alllinks").iterdir()} == {
        "l0": "subfile-contents",
        "l1": "baz-contents",
        "lfile": "lfile-contents",
    }


def test_a_symlink_that_leaves_the_context_stays_inside(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"etc/passwd": "the context's"})
    (context / "out").symlink_to("../../../../../etc")
    (context / "absolute").symlink_to("/etc/passwd")
    out = build_files(
        pybuild, "FROM scratch\nCOPY out/passwd one\nCOPY absolute two\nCOPY ../../etc/passwd three\n", context
    )
    assert {(out / name).read_text() for name in ("one", "two", "three")} == {"the context's"}


def test_a_socket_becomes_an_empty_file(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"other": "x"})
    there = os.getcwd()
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(context)  # the name of a socket may have 108 bytes
        try:
            listener.bind("socket.sock")
        finally:
            os.chdir(there)
        out = build_files(pybuild, "\nFROM scratch\nCOPY . /\n", context)
    assert (out / "socket.sock").is_file()
    assert not (out / "socket.sock").is_socket()


def test_chmod_octal_also_for_folders_that_the_copy_creates(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"foo": "foo-contents", "bar": "bar-contents"})
    out = build_files(
        pybuild,
        """
FROM busybox AS base
RUN mkdir -m 0777 /out
COPY --chmod=0644 foo /
COPY --chmod=777 bar /baz
COPY --chmod=0 foo /foobis
COPY --chmod=777 foo /parent/foo
COPY --chmod=770 foo /parent/sub/foo
ARG mode
COPY --chmod=${mode} foo /footer
RUN for name in foo baz foobis parent parent/sub footer; do stat -c %04a /$name >> /out/modes; done
FROM scratch
COPY --from=base /out /
""",
        context,
        "--build-arg=mode=755",
    )
    assert (out / "modes").read_text().split() == ["0644", "0777", "0000", "0777", "0770", "0755"]


def test_chmod_symbolic_does_what_chmod_does(pybuild: Command, tmp_path: Path):
    files = {"f1": "go-w", "f2": "u=rw,g=r,o=r", "f3": "a+X"}
    folders = {"d1": "go-w", "d2": "u+rw,g+r,o-x,o+w", "d3": "a+X"}
    expected, copies, checks = "", "", ""
    for name, mode in files.items():
        expected += f"  cp -a /input/file /expected/{name} && chmod {mode} /expected/{name}\n"
        copies += f"COPY --from=base --chmod={mode} /input/file /{name}\n"
    for name, mode in folders.items():
        expected += f"  mkdir -p /input/dirs/{name}; cp -a /input/dir /input/dirs/{name}/{name}\n"
        expected += f"  cp -a /input/dirs/{name}/. /expected/ && chmod {mode} /expected/{name}\n"
        copies += f"COPY --from=base --chmod={mode} /input/dirs/{name} /\n"
    for name in (*files, *folders):
        checks += f"  [ $(stat -c %A /actual/{name}) = $(stat -c %A /expected/{name}) ]\n"
    pybuild.build(
        f"""
FROM busybox AS base
RUN <<eot
  set -ex
  mkdir /input /input/dir /expected
  touch /input/file
  chmod 666 /input/file
  chmod 124 /input/dir
{expected}
eot
FROM scratch AS result
{copies}
FROM base
COPY --from=result / /actual/
RUN <<eot
  set -ex
{checks}
eot
""",
        tmp_path / "c",
    )


@pytest.mark.parametrize("instruction", ["COPY", "ADD"])
def test_a_bad_chmod_is_refused(pybuild: Command, tmp_path: Path, instruction: str):
    context = write_files(tmp_path / "c", {"foo": "x"})
    for mode in ("64a", "10000"):
        error = refused(pybuild, f"\nFROM scratch\n{instruction} --chmod={mode} foo /\n", context)
        assert f"invalid chmod parameter: '{mode}'. it should be octal string and between 0 and 07777" in error


def test_copying_again_over_files_and_folders(pybuild: Command, tmp_path: Path):
    context = write_files(
        tmp_path / "c", {"sub/dir1/dir2/foo": "foo-contents", "files/foo.go": "foo.go-contents", "bar": "b"}
    )
    out = build_files(
        pybuild,
        """
FROM scratch AS base
ENV FOO bar
COPY sub sub
COPY sub sub
COPY files/foo.go dest/foo.go
COPY files/foo.go dest/foo.go
COPY files dest
COPY $FOO baz
""",
        context,
    )
    assert (out / "sub/dir1/dir2/foo").read_text() == "foo-contents"
    assert (out / "dest/foo.go").read_text() == "foo.go-contents"
    assert (out / "baz").read_text() == "b"


def test_wildcards_and_the_forms_of_folder_names(pybuild: Command, tmp_path: Path):
    context = write_files(
        tmp_path / "c", {"foo.go": "foo-contents", "bar.go": "bar-contents", "sub/dir1/dir2/foo": "foo-contents"}
    )
    out = build_files(
        pybuild,
        """
FROM scratch AS base
COPY *.go /gofiles/
COPY f*.go foo2.go
COPY sub/* /subdest/
COPY sub/*/dir2/foo /subdest2/
COPY sub/*/dir2/foo /subdest3/bar
COPY . all/
COPY sub/dir1/ subdest4
COPY sub/dir1/. subdest5
COPY sub/dir1 subdest6
""",
        context,
    )
    assert (out / "gofiles/bar.go").read_text() == "bar-contents"
    for name in [
        "gofiles/foo.go",
        "foo2.go",
        "subdest/dir2/foo",
        "subdest2/foo",
        "subdest3/bar",
        "all/foo.go",
        "subdest4/dir2/foo",
        "subdest5/dir2/foo",
        "subdest6/dir2/foo",
    ]:
        assert (out / name).read_text() == "foo-contents"


def test_relative_destinations_start_at_the_working_folder(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"foo": "hello"})
    pybuild.build(
        """
FROM busybox
WORKDIR /test1
WORKDIR test2
RUN sh -c "[ "$PWD" = '/test1/test2' ]"
COPY foo ./
ADD foo ./bar/baz
COPY foo ./bar/baz2
RUN for f in foo bar/baz bar/baz2; do [ $(cat /test1/test2/$f) = hello ] || exit 1; done
WORKDIR ..
COPY foo ./
RUN sh -c "[ $(cat /test1/foo) = 'hello' ]"
COPY foo /test3/
WORKDIR /test4
COPY . .
RUN sh -c "[ $(cat /test3/foo /test4/foo) = 'hellohello' ]"
WORKDIR /test5/test6
COPY foo ../
RUN sh -c "[ $(cat /test5/foo) = 'hello' ]"
""",
        context,
    )


def test_names_with_unusual_characters(pybuild: Command, tmp_path: Path):
    context = write_files(
        tmp_path / "c",
        {"test-äöü.txt": "foo", "test-%C3%A4%C3%B6%C3%BC.txt": "bar", "test+aou.txt": "baz", "with space": "s", "arr[0].txt": "a"},
        mode=0o644,
    )  # fmt: skip
    out = build_files(
        pybuild,
        """
FROM busybox
COPY test-äöü.txt /o/
COPY test-%C3%A4%C3%B6%C3%BC.txt /o/
COPY test+aou.txt /o/
COPY ["with space", "/o/with space"]
COPY arr[[]0].txt /o/
""",
        context,
    )
    found = {item.name: item.read_text() for item in (out / "o").iterdir()}
    assert found == {
        "test-äöü.txt": "foo",
        "test-%C3%A4%C3%B6%C3%BC.txt": "bar",
        "test+aou.txt": "baz",
        "with space": "s",
        "arr[0].txt": "a",
    }


def test_a_name_that_was_a_folder_may_be_a_file_in_the_next_build(pybuild: Command, tmp_path: Path):
    text = "\nFROM scratch\nCOPY foo /\n"
    pybuild.build(text, write_files(tmp_path / "one", {"foo/bar": "contents"}))
    out = build_files(pybuild, text, write_files(tmp_path / "two", {"foo": "contents2"}))
    assert (out / "foo").read_text() == "contents2"


def test_files_over_folders_and_the_reverse_are_refused(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"file": "x", "folder/inner": "y"})
    assert "ERROR" in refused(pybuild, "FROM scratch\nCOPY folder /a\nCOPY folder/inner /b\nCOPY folder /b\n", context)
    assert "ERROR" in refused(pybuild, "FROM scratch\nCOPY folder /t/file\nCOPY file /t/\n", context)
    error = refused(pybuild, "FROM scratch\nCOPY file file /somewhere/../x\nCOPY file folder /x\n", context)
    assert "cannot copy to non-directory: /x" in error


def test_a_destination_that_is_a_symlink_is_followed_inside_the_root_even_when_dangling(
    pybuild: Command, tmp_path: Path
):
    context = write_files(tmp_path / "c", {"foo": "foo", "d/inner": "inner"})
    out = build_files(
        pybuild,
        """
FROM busybox AS base
RUN mkdir /real && ln -s /real /link && ln -s ../../tmp/target /dangling && ln -s /../outside /up
COPY foo /link/
COPY d /link
COPY foo /dangling/
COPY foo /up
COPY --link foo /linked/foo
""",
        context,
    )
    assert (out / "real/foo").read_text() == "foo"
    assert (out / "real/inner").read_text() == "inner"
    assert (out / "tmp/target/foo").read_text() == "foo"
    assert (out / "outside").read_text() == "foo"


def test_link_replaces_a_symlink_in_the_destination_instead_of_following_it(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"foo": "foo"})
    image = build_image(pybuild, "FROM busybox\nRUN mkdir /real && ln -s /real /dst\nCOPY --link foo /dst/\n", context)
    assert image.names(2) == ["dst/", "dst/foo"]


def test_parents_keeps_the_folders_of_each_source(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"foo1/foo2/bar": "testing", "foo1/foo2/baz": "testing2"})
    out = build_files(
        pybuild,
        "\nFROM scratch\nCOPY --parents foo1/foo2/bar /\nWORKDIR /test\nCOPY --parents foo1/foo2/ba* .\n",
        context,
    )
    assert (out / "foo1/foo2/bar").read_text() == "testing"
    assert not (out / "foo1/foo2/baz").exists()
    assert (out / "test/foo1/foo2/bar").read_text() == "testing"
    assert (out / "test/foo1/foo2/baz").read_text() == "testing2"


def test_parents_with_a_pivot_and_wildcards(pybuild: Command, tmp_path: Path):
    out = build_files(
        pybuild,
        """
FROM busybox AS base
WORKDIR /test
RUN mkdir -p a/b/c/d/e a/b2/c/d/e a/b/c2/d/e a/b/c2/d/e2 && touch a/b/c/d/foo a/b/c/d/e/bay a/b2/c/d/e/bar a/b/c2/d/e/baz a/b/c2/d/e2/baz
FROM scratch
COPY --from=base --parents /test/a/b/./c/d /middle/
COPY --from=base --parents /test/a/b/c/d/. /end/
COPY --from=base --parents ./test/a/b/c/d /start/
COPY --from=base --parents /test/a/./b/./c /double/
COPY --from=base --parents /test/a/./*/c /wildcard/
COPY --from=base --parents /test/a/b*/./c/**/e /doublewildcard/
COPY --from=base --parents /test/a/b/c*/./d/**/baz /test/a/b*/./c/**/bar /doubleinputs/
COPY --from=base --parents /test/a/b2*/./nothing /unmatched/
COPY --from=base --parents /test/a/b/./c9* /unmatched2/
""",
        tmp_path / "c",
    )

    def found(name: str) -> set[str]:
        return {str(path.relative_to(out / name)) for path in (out / name).rglob("*")}

    assert found("middle") == {"c", "c/d", "c/d/e", "c/d/foo", "c/d/e/bay"}
    whole = {"test", "test/a", "test/a/b", "test/a/b/c", "test/a/b/c/d", "test/a/b/c/d/e", "test/a/b/c/d/foo"}
    assert found("end") == found("start") == whole | {"test/a/b/c/d/e/bay"}
    assert {"b/c/d/e", "b/c/d/foo"} <= found("double")
    assert {"b/c/d/e", "b2/c/d/e/bar"} <= found("wildcard")
    assert {"c/d/e/bay", "c/d/e/bar"} <= found("doublewildcard")
    assert {name for name in found("doubleinputs") if name.endswith(("ba", "baz", "bay", "bar"))} == {
        "d/e/baz",
        "d/e2/baz",
        "c/d/e/bar",
    }
    assert (out / "unmatched").is_dir()
    assert found("unmatched") == set()
    assert found("unmatched2") == set()


def test_parents_names_a_missing_file(pybuild: Command, tmp_path: Path):
    error = refused(
        pybuild,
        "FROM busybox AS base\nRUN mkdir /test\nFROM busybox\nCOPY --from=base --parents /test/nonexistent-file /out/\n",
        tmp_path / "c",
    )
    assert "failed to calculate checksum of ref" in error
    assert '"/test/nonexistent-file": not found' in error


def test_exclude_leaves_matching_files_out_of_copies_and_adds(pybuild: Command, tmp_path: Path):
    context = write_files(
        tmp_path / "c",
        {
            "dir1/file-101.png": "2",
            "dir1/file-102.txt": "3",
            "dir1/file-103.jpeg": "4",
            "dir2/file-201.pdf": "6",
            "dir2/file-202.jpeg": "7",
            "dir2/file-203.png": "8",
            "dir3/file-301.mp3": "9",
            "dir3/file-302.mpeg": "10",
            "dir4/file-401.txt": "11",
        },
    )
    (context / "dir4/file-402.txt").symlink_to("file-401.txt")
    (context / "dir4/file-403.txt").symlink_to("file-404.txt")
    text = """
FROM scratch AS base
COPY . /
FROM scratch AS builder1
{copy} --exclude=*/*.png --exclude=*/*.jpeg . /1
FROM scratch AS builder2
{copy} --exclude=*/*.pdf --exclude=*/*.txt . /2
FROM scratch AS builder3
{add} --exclude=*.mp3 dir3/ /3/
FROM scratch AS builder4
{copy} --exclude=*.mp3 --exclude=*.jpeg --exclude=*.png --exclude=*.pdf --exclude=*.txt dir* /4/
FROM scratch AS builder5
{add} --exclude=*.mp* --exclude=*.jpeg --exclude=*.png --exclude=*.pdf dir* /5
FROM scratch AS builder6
{add} --exclude=* dir* /6
FROM scratch
COPY --from=builder1 / /
COPY --from=builder2 / /
COPY --from=builder3 / /
COPY --from=builder4 / /
COPY --from=builder5 / /
COPY --from=builder6 / /
"""
    for copy, add in (("COPY", "ADD"), ("COPY --from=base", "COPY --from=base")):
        out = build_files(pybuild, text.format(copy=copy, add=add), context)

        def found(name: str, out: Path = out) -> set[str]:
            files = (path for path in (out / name).rglob("*") if path.is_symlink() or not path.is_dir())
            return {path.name for path in files if path.name.startswith("file-")}

        assert found("1") == {
            f"file-{n}" for n in ["102.txt", "201.pdf", "301.mp3", "302.mpeg", "401.txt", "402.txt", "403.txt"]
        }
        assert found("2") == {
            f"file-{n}" for n in ["101.png", "103.jpeg", "202.jpeg", "203.png", "301.mp3", "302.mpeg"]
        }
        assert found("3") == found("4") == {"file-302.mpeg"}
        assert found("5") == {f"file-{n}" for n in ["102.txt", "401.txt", "402.txt", "403.txt"]}
        assert os.readlink(out / "5/file-403.txt") == "file-404.txt"
        assert list((out / "6").iterdir()) == []
