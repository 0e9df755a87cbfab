"""Heredocs of RUN, COPY and ONBUILD, seen from the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, build_files, build_image, refused

pytestmark = pytest.mark.integration


def contents(folder: Path) -> dict[str, str]:
    """Every file below ``folder``, by name."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_copy_writes_one_or_several_heredocs_with_modes_and_owners(pybuild: Command, tmp_path: Path):
    out = build_files(
        pybuild,
        """
FROM busybox AS build
WORKDIR /dest
COPY <<EOF single
single file
EOF
COPY <<EOF <<EOF2 double/
first file
EOF
second file
EOF2
RUN mkdir -p /permfiles
COPY --chmod=777 <<EOF /permfiles/all
dummy content
EOF
COPY --chmod=0644 <<EOF /permfiles/rw
dummy content
EOF
COPY --chown=daemon:www-data <<EOF /permfiles/owned
dummy content
EOF
COPY <<EOF /permfiles/plain
EOF
RUN for name in all rw owned plain; do stat -c "%04a %U:%G" /permfiles/$name >> perms; done
FROM scratch
COPY --from=build /dest /
""",
        tmp_path / "c",
    )
    assert contents(out) == {
        "single": "single file\n",
        "double/EOF": "first file\n",
        "double/EOF2": "second file\n",
        "perms": "0777 root:root\n0644 root:root\n0644 daemon:www-data\n0644 root:root\n",
    }


def test_quotes_backslashes_and_dollars_in_copied_heredocs(pybuild: Command, tmp_path: Path):
    out = build_files(
        pybuild,
        """
FROM scratch

COPY <<EOF quotefile
"quotes in file"
EOF

COPY <<EOF slashfile1
\\
EOF
COPY <<EOF slashfile2
\\\\
EOF
COPY <<EOF slashfile3
\\$
EOF

COPY <<"EOF" rawslashfile1
\\
EOF
COPY <<"EOF" rawslashfile2
\\\\
EOF
COPY <<"EOF" rawslashfile3
\\$
EOF
""",
        tmp_path / "c",
    )
    assert contents(out) == {
        "quotefile": '"quotes in file"\n',
        "slashfile1": "\n",
        "slashfile2": "\\\n",
        "slashfile3": "$\n",
        "rawslashfile1": "\\\n",
        "rawslashfile2": "\\\\\n",
        "rawslashfile3": "\\$\n",
    }


def test_run_gives_the_heredoc_to_the_shell_the_named_interpreter_or_a_command(pybuild: Command, tmp_path: Path):
    out = build_files(
        pybuild,
        """
FROM busybox AS build
WORKDIR /dest
RUN <<EOF
echo "i am" >> basic
whoami >> basic
EOF
RUN <<EOF
#!/bin/awk -f
BEGIN {
	print "hello" >> "./out1"
	print "world" >> "./out1"
}
EOF
RUN <<-EOF
	#!/bin/awk -f
	BEGIN {
		print "hello" >> "./out2"
		print "world" >> "./out2"
	}
EOF
RUN cat <<EOF1 | tr '[:upper:]' '[:lower:]' > ./out3; \\
	cat <<EOF2 | tr '[:lower:]' '[:upper:]' > ./out4
hello WORLD
EOF1
HELLO world
EOF2
RUN <<EOF 3<<IN1 4<<IN2 awk -f -
BEGIN {
	while ((getline line < "/proc/self/fd/3") > 0)
		print tolower(line) > "./fd3"
	while ((getline line < "/proc/self/fd/4") > 0)
		print toupper(line) > "./fd4"
}
EOF
hello WORLD
IN1
HELLO world
IN2
RUN echo "<<EOF" > lookalike; echo '<<EOF' >> lookalike
SHELL ["/bin/awk"]
RUN <<EOF
BEGIN {
	print "foo" > "/dest/fake"
}
EOF
FROM scratch
COPY --from=build /dest /
""",
        tmp_path / "c",
    )
    assert contents(out) == {
        "basic": "i am\nroot\n",
        "out1": "hello\nworld\n",
        "out2": "hello\nworld\n",
        "out3": "hello world\n",
        "out4": "HELLO WORLD\n",
        "fd3": "hello world\n",
        "fd4": "HELLO WORLD\n",
        "lookalike": "<<EOF\n<<EOF\n",
        "fake": "foo\n",
    }


def test_a_dash_takes_leading_tabs_away(pybuild: Command, tmp_path: Path):
    out = build_files(
        pybuild,
        """
FROM busybox AS build
COPY <<EOF /dest/foo-copy
	foo
EOF
COPY <<-EOF /dest/bar-copy
	bar
	EOF
RUN <<EOF
echo "
	foo" > /dest/foo-run
EOF
RUN <<-EOF
echo "
	bar" > /dest/bar-run
EOF
RUN <<EOF
#!/bin/sh
echo "
	foo" > /dest/foo2-run
EOF
RUN <<-EOF
#!/bin/sh
echo "
	bar" > /dest/bar2-run
EOF
RUN <<EOF sh > /dest/foo3-run
echo "
	foo"
EOF
RUN <<-EOF sh > /dest/bar3-run
echo "
	bar"
EOF
FROM scratch
COPY --from=build /dest /
""",
        tmp_path / "c",
    )
    assert contents(out) == {
        "foo-copy": "\tfoo\n",
        "foo-run": "\n\tfoo\n",
        "foo2-run": "\n\tfoo\n",
        "foo3-run": "\n\tfoo\n",
        "bar-copy": "bar\n",
        "bar-run": "\nbar\n",
        "bar2-run": "\nbar\n",
        "bar3-run": "\nbar\n",
    }


def test_variables_in_heredocs(pybuild: Command, tmp_path: Path):
    out = build_files(
        pybuild,
        """
FROM busybox as build
ARG name=world
COPY <<EOF /dest/c1
Hello ${name}!
EOF
COPY <<'EOF' /dest/c2
Hello ${name}!
EOF
COPY <<"EOF" /dest/c3
Hello ${name}!
EOF
COPY <<EOF /dest/q1
Hello '${name}'!
EOF
COPY <<EOF /dest/q2
Hello "${name}"!
EOF
COPY <<'EOF' /dest/qsingle1
Hello '${name}'!
EOF
COPY <<"EOF" /dest/qdouble2
Hello "${name}"!
EOF
RUN <<EOF
greeting="Hello"
echo "${greeting} ${name}!" > /dest/r1
EOF
RUN <<EOF
name="new world"
echo "Hello ${name}!" > /dest/r2
EOF
FROM scratch
COPY --from=build /dest /
""",
        tmp_path / "c",
    )
    assert contents(out) == {
        "c1": "Hello world!\n",
        "c2": "Hello ${name}!\n",
        "c3": "Hello ${name}!\n",
        "q1": "Hello 'world'!\n",
        "q2": 'Hello "world"!\n',
        "qsingle1": "Hello '${name}'!\n",
        "qdouble2": 'Hello "${name}"!\n',
        "r1": "Hello world!\n",
        "r2": "Hello new world!\n",
    }


def test_a_trigger_carries_its_heredoc(pybuild: Command, tmp_path: Path, registry: str):
    name = f"{registry}/conformance/heredoc:base"
    base = """
FROM busybox
ONBUILD RUN <<EOF
echo "hello world" >> /dest
EOF
ONBUILD COPY <<EOF <<"RAW" /more/
$PATH
EOF
$PATH
RAW
"""
    pybuild.build(base, tmp_path / "base", "--output", f"type=image,push=true,name={name}")
    out = build_files(
        pybuild,
        f"FROM {name} AS base\nFROM scratch\nCOPY --from=base /dest /dest\nCOPY --from=base /more /more\n",
        tmp_path / "c",
    )
    assert (out / "dest").read_text() == "hello world\n"
    assert (out / "more/EOF").read_text() == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
    assert (out / "more/RAW").read_text() == "$PATH\n"


def test_history_of_heredocs(pybuild: Command, tmp_path: Path):
    image = build_image(
        pybuild,
        """
FROM busybox
RUN <<EOF
echo one
echo two
EOF
COPY <<a <<b /to/
1
a
2
b
""",
        tmp_path / "c",
    )
    assert image.history[-2] == "RUN /bin/sh -c echo one\necho two\n # buildkit"
    assert image.history[-1] == "COPY <<a <<b /to/ # buildkit"


def test_an_unterminated_heredoc_is_refused(pybuild: Command, tmp_path: Path):
    error = refused(pybuild, "FROM busybox\nRUN <<EOF\necho\n", tmp_path / "c")
    assert "unterminated heredoc" in error
