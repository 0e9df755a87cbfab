"""Git and HTTP sources as contexts and as sources of ADD, seen from the command line."""

from __future__ import annotations

import io
import shutil
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, build_files, refused, write_files
from conformance.loopback import git, serve_directory, serve_files

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("git") is None, reason="the program git is not installed"),
]


@dataclass
class Repository:
    """``url`` of its .git, and its commits by the name of a branch or tag."""

    url: str
    commits: dict[str, str]


def commit(directory: Path, message: str, **files: str) -> None:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        git(directory, "add", name)
    git(directory, "commit", "-q", "-m", message)


@pytest.fixture(scope="module", params=["sha1", "sha256"])
def tags(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    """Tags v0.0.1 to v0.0.3, each with its own ``foo``; v0.0.3 is also the annotated tag ``noted``."""
    directory = tmp_path_factory.mktemp("tags")
    git(directory, "init", "-q", f"--object-format={request.param}")
    for tag in ("v0.0.1", "v0.0.2", "v0.0.3"):
        commit(directory, tag, foo=f"foo of {tag}\n")
        git(directory, "tag", tag)
    git(directory, "tag", "-a", "-m", "noted", "noted")
    git(directory, "update-server-info")
    commits = {tag: git(directory, "rev-parse", tag) for tag in ("v0.0.1", "v0.0.2", "v0.0.3", "noted")}
    with serve_directory(directory) as url:
        yield Repository(f"{url}/.git", commits)


def test_add_takes_trees_of_a_repository(pybuild: Command, tmp_path: Path, tags: Repository) -> None:
    second, third = tags.commits["v0.0.2"], tags.commits["v0.0.3"]
    out = build_files(
        pybuild,
        f"""
FROM busybox
ADD {tags.url}#v0.0.1 /x
ARG REPO="{tags.url}"
ARG TAG="v0.0.2"
ADD --keep-git-dir=true --chown=4242:8484 --checksum={second} ${{REPO}}#${{TAG}} /chowned
RUN [ "$(stat -c %u:%g /chowned/foo)" = 4242:8484 ]
ADD --checksum={third} ${{REPO}}#v0.0.3 /without
ADD --keep-git-dir --checksum={second} ${{REPO}}#${{TAG}} /again
ADD --keep-git-dir=true --checksum={third} ${{REPO}}#{third} /commit
ADD --checksum={third[:9]} ${{REPO}}#noted /noted1
ADD --checksum={tags.commits["noted"]} ${{REPO}}#noted /noted2
""",
        tmp_path / "c",
    )
    found = {
        name: (out / name / "foo").read_text().split()[-1] for name in ("x", "chowned", "without", "again", "commit")
    }
    assert found == {"x": "v0.0.1", "chowned": "v0.0.2", "without": "v0.0.3", "again": "v0.0.2", "commit": "v0.0.3"}
    assert [name for name in ("x", "chowned", "without", "again", "commit") if (out / name / ".git").is_dir()] == [
        "chowned", "again", "commit",
    ]  # fmt: skip
    assert git(out / "chowned", "-c", "safe.directory=*", "status", "-s") == ""
    assert git(out / "chowned", "-c", "safe.directory=*", "rev-parse", "HEAD") == second


@pytest.mark.parametrize(
    ("checksum", "ref", "texts"),
    [
        ("{v0.0.2}", "v0.0.3", ["expected checksum to match"]),
        ("{v0.0.2}", "{v0.0.3}", ["expected checksum to match"]),
        ("foobar", "v0.0.3", ["invalid checksum", "expected hex commit hash"]),
        ("", "nosuch", ["repository does not contain ref"]),
    ],
)
def test_a_wrong_commit_is_refused_and_poisons_nothing(
    pybuild: Command, tmp_path: Path, tags: Repository, checksum: str, ref: str, texts: list[str]
) -> None:
    for name, commit_id in tags.commits.items():
        checksum, ref = checksum.replace(f"{{{name}}}", commit_id), ref.replace(f"{{{name}}}", commit_id)
    pybuild.build(f"FROM scratch\nADD {tags.url}#v0.0.3 /dir\n", tmp_path / "c")
    flag = f"--checksum={checksum} " if checksum else ""
    message = refused(pybuild, f"FROM busybox\nADD {flag}{tags.url}#{ref} /dir\n", tmp_path / "c")
    for text in (*texts, "Dockerfile:2", ">>> ADD "):
        assert text in message


def test_a_checksum_changes_no_key(pybuild: Command, tmp_path: Path, tags: Repository) -> None:
    found = set()
    for flag in ("", f"--checksum={tags.commits['v0.0.2']} "):
        dockerfile = f"""
FROM busybox AS src
ADD --keep-git-dir {flag}{tags.url}#v0.0.2 /repo
RUN head -c 16 /dev/urandom | base64 > /repo/unique.txt
FROM scratch
COPY --from=src /repo/unique.txt /
"""
        found.add((build_files(pybuild, dockerfile, tmp_path / "c") / "unique.txt").read_text())
    assert len(found) == 1


# --- the query form ------------------------------------------------------------------------------------------------------

DOCKERFILE = """
FROM scratch AS withgit
COPY .git/HEAD out

FROM scratch as withsubmod
COPY submod/file out

FROM scratch
COPY foo out
"""


@pytest.fixture(scope="module")
def branches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    """Branches base, feature and master; tags v0.0.1, v0.0.2 and latest; a submodule; a Dockerfile."""
    submodule = tmp_path_factory.mktemp("submodule")
    git(submodule, "init", "-q")
    commit(submodule, "initial", file="123\n")
    git(submodule, "update-server-info")
    directory = tmp_path_factory.mktemp("branches")
    with serve_directory(submodule) as submodule_url, serve_directory(directory) as url:
        git(directory, "init", "-q")
        git(directory, "submodule", "--quiet", "add", f"{submodule_url}/.git", "submod")
        commit(directory, "initial", foo="base\n", Dockerfile=DOCKERFILE)
        git(directory, "tag", "v0.0.1")
        git(directory, "branch", "base")
        commit(directory, "feature", foo="feature\n", **{"sub/foo": "subfeature\n", "sub/Dockerfile": DOCKERFILE})
        git(directory, "branch", "feature")
        git(directory, "checkout", "-q", "-B", "master", "base")
        commit(directory, "v0.0.2", foo="v0.0.2\n")
        git(directory, "tag", "v0.0.2")
        commit(directory, "latest", foo="latest\n")
        git(directory, "tag", "latest")
        git(directory, "update-server-info")
        commits = {name: git(directory, "rev-parse", name) for name in ("v0.0.2", "latest")}
        yield Repository(f"{url}/.git", commits)


GOOD = [
    ("#v0.0.2", "", "v0.0.2"),
    ("?ref=base", "", "base"),
    ("?branch=base", "", "base"),
    ("?tag=v0.0.2#refs/tags/v0.0.2", "", "v0.0.2"),
    ("?commit={latest}", "", "latest"),
    ("?commit={latest:.8}", "", "latest"),
    ("?ref={v2}", "", "v0.0.2"),
    ("?tag=v0.0.2&commit={v2}", "", "v0.0.2"),
    ("?ref={v2}&commit={v2}", "", "v0.0.2"),
    ("#feature:sub", "", "subfeature"),
    ("?subdir=sub&ref=feature", "", "subfeature"),
    ("?keep-git-dir=true", "withgit", "{latest}"),
    ("?tag=v0.0.2&keep-git-dir=true", "withgit", "{v2}"),
    ("?keep-git-dir&submodules", "withgit", "{latest}"),
    ("", "withsubmod", "123"),
    ("?submodules=true", "withsubmod", "123"),
    ("?submodules", "withsubmod", "123"),
]
BAD = [
    ("?tag=v0.0.2&commit={latest}", "", "expected checksum to match"),
    ("?branch=invalid", "", "repository does not contain ref"),
    ("?branch=v0.0.2", "", "repository does not contain ref"),
    ("?commit={v2:.8}", "", "expected checksum to match"),
    ("?commit={v2}", "", "expected checksum to match"),
    ("?ref={v2:.8}", "", "repository does not contain ref"),
    ("?tag=v0.0.2#refs/heads/master", "", "ref conflicts"),
    ("", "withgit", '.git/HEAD": not found'),
    ("?keep-git-dir=false", "withgit", '.git/HEAD": not found'),
    ("?submodules=false", "withsubmod", 'submod/file": not found'),
]


def filled(text: str, repository: Repository) -> str:
    return text.format(v2=repository.commits["v0.0.2"], latest=repository.commits["latest"])


def added(url: str) -> str:
    return f"""
FROM scratch AS main
ADD {url} /repo/
FROM scratch as withsubmod
COPY --from=main /repo/submod/file /repo/foo
FROM scratch AS withgit
COPY --from=main /repo/.git/HEAD /repo/foo
FROM main
"""


PLACES = {"": "foo", "withgit": ".git/HEAD", "withsubmod": "submod/file"}


def test_references_name_trees_in_add(pybuild: Command, tmp_path: Path, branches: Repository) -> None:
    lines = [f"ADD {branches.url}{filled(query, branches)} /{n}/\n" for n, (query, _, _) in enumerate(GOOD)]
    out = build_files(pybuild, "FROM scratch\n" + "".join(lines), tmp_path / "c")
    found = {
        f"{query} {target}": (out / f"{n}/{PLACES[target]}").read_text() for n, (query, target, _) in enumerate(GOOD)
    }
    assert found == {f"{query} {target}": filled(content, branches) + "\n" for query, target, content in GOOD}


def test_references_name_contexts(pybuild: Command, tmp_path: Path, branches: Repository) -> None:
    for query, target, content in GOOD:
        targets = [f"--target={target}"] if target else []
        pybuild.run("build", *targets, "-o", str(tmp_path / "o"), branches.url + filled(query, branches))
        assert (tmp_path / "o/out").read_text() == filled(content, branches) + "\n", query


@pytest.mark.parametrize(("query", "target", "text"), BAD)
def test_references_that_name_nothing_are_refused(
    pybuild: Command, tmp_path: Path, branches: Repository, query: str, target: str, text: str
) -> None:
    url = branches.url + filled(query, branches)
    targets = [f"--target={target}"] if target else []
    result = pybuild.run("build", *targets, url, check=False)
    assert result.returncode == 1
    assert text in result.stderr
    assert result.stderr.splitlines()[-1].startswith("ERROR: ")
    assert text in refused(pybuild, added(url), tmp_path / "c", *targets)


# --- contexts ------------------------------------------------------------------------------------------------------------


def test_a_branch_of_a_repository_is_a_context(pybuild: Command, tmp_path: Path) -> None:
    directory = tmp_path / "r"
    directory.mkdir()
    git(directory, "init", "-q")
    first = "FROM busybox AS build\nRUN echo -n fromgit > foo\nFROM scratch\nCOPY --from=build foo bar\n"
    commit(directory, "initial", Dockerfile=first)
    git(directory, "branch", "first")
    commit(directory, "second", Dockerfile=first + "COPY --from=build foo bar2\n")
    git(directory, "update-server-info")
    with serve_directory(directory) as url:
        pybuild.run("build", "-o", str(tmp_path / "o1"), f"{url}/.git#first")
        pybuild.run("build", "-o", str(tmp_path / "o2"), f"{url}/.git")
    assert {path.name: path.read_text() for path in (tmp_path / "o1").iterdir()} == {"bar": "fromgit"}
    assert {path.name: path.read_text() for path in (tmp_path / "o2").iterdir()} == {
        "bar": "fromgit",
        "bar2": "fromgit",
    }


def test_an_archive_or_a_dockerfile_from_http_is_a_context(pybuild: Command, tmp_path: Path) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in (("mydockerfile", b"FROM scratch\nCOPY foo bar\n"), ("foo", b"foo-contents")):
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    dockerfile = b'FROM busybox\nRUN echo -n "foo-contents" > /foo\nFROM scratch\nCOPY --from=0 /foo /foo\n'
    with serve_files({"/myurl": (archive.getvalue(), {}), "/df": (dockerfile, {"ETag": '"1"'})}) as url:
        pybuild.run("build", "-f", "mydockerfile", "-o", str(tmp_path / "o1"), f"{url}/myurl")
        pybuild.run("build", "-f", "bogus", "-o", str(tmp_path / "o2"), f"{url}/df")
    assert (tmp_path / "o1/bar").read_text() == "foo-contents"
    assert (tmp_path / "o2/foo").read_text() == "foo-contents"


def test_a_repository_is_a_named_context(pybuild: Command, tmp_path: Path, branches: Repository) -> None:
    context = write_files(tmp_path / "c", {})
    dockerfile = "FROM scratch\nCOPY --from=src /foo /out\n"
    out = build_files(pybuild, dockerfile, context, f"--build-context=src={branches.url}?branch=feature")
    assert (out / "out").read_text() == "feature\n"
    url = f"{branches.url}?tag=v0.0.2&commit={branches.commits['latest']}"
    message = refused(pybuild, dockerfile, context, f"--build-context=src={url}")
    assert "expected checksum to match" in message
