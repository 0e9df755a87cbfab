"""COPY and ADD: sources of all kinds, destinations, flags."""

from __future__ import annotations

import pytest
from fakes.lowering import chain, created_by, lowered

from pybuild.builder.graph import (
    ContextSource,
    FileCopy,
    GitSource,
    HttpSource,
    ImageSource,
    InlineFile,
    Merge,
    Unpack,
)
from pybuild.errors import PybuildError
from pybuild.layers.digest import Digest
from pybuild.parser.errors import DockerfileError


def copy(text: str, before: str = "", **options: object) -> FileCopy:
    operation = lowered(f"FROM busybox\n{before}\n{text}\n", **options).vertex.op
    assert isinstance(operation, FileCopy)
    return operation


COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHA = "sha256:" + "a" * 64


class Remotes:
    """Git remotes whose references all name one commit."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def git_commit(self, remote: str, ref: str, *, checksum: str = "") -> str:
        self.asked.append((remote, ref))
        if "missing" in remote:
            raise PybuildError("repository not found")
        return COMMIT

    def http(self, url: str, *, checksum: object) -> object:
        raise AssertionError("lowering downloads nothing")

    def git_tree(self, remote: str, **options: object) -> object:
        raise AssertionError("lowering checks nothing out")


def test_a_copy_reads_the_context():
    image = lowered("FROM busybox\nCOPY a b/c /d/\n")
    assert image.vertex.op == FileCopy(sources=("/a", "/b/c"), destination="/d/")
    assert image.vertex.inputs[1].op == ContextSource("context")
    assert image.vertex.inputs[1].note.title == "[internal] load build context"
    assert image.vertex.inputs[0].note.title.startswith("[1/2] FROM")
    assert created_by(image)[-1] == "COPY a b/c /d/ # buildkit"


@pytest.mark.parametrize(
    ("text", "destination"),
    [
        ("/d", "/d"),
        ("/d/", "/d/"),
        ("/d/.", "/d/"),
        ("/d/../e/", "/e/"),
        ("/", "/"),
        ("d", "/w/d"),
        ("d/", "/w/d/"),
        (".", "/w/"),
        ("./", "/w/"),
        ("..", "/"),
        ("$EMPTY", "/w/"),
        ("../../../x", "/x"),
    ],
)
def test_destinations_are_resolved_and_keep_their_trailing_slash(text, destination):
    assert copy(f"COPY a {text}", before="ENV EMPTY=\nWORKDIR /w").destination == destination


def test_sources_are_rooted_and_expanded():
    before = "ENV A=x B='y z' C="
    assert copy("COPY $A ../../up /abs ./a//b '$A' /d/", before).sources == ("/x", "/up", "/abs", "/a/b", "/$A")
    assert copy("COPY $B /d/", before).sources == ("/y z",)
    assert copy("COPY $C /d/", before).sources == ("/",)
    assert copy("COPY *.py dir/[ab]?.c /d/", before).sources == ("/*.py", "/dir/[ab]?.c")


def test_json_form_takes_names_with_blanks():
    operation = copy('COPY ["a b", "c", "/d e/"]')
    assert (operation.sources, operation.destination) == (("/a b", "/c"), "/d e/")


def test_owners_from_stages_are_kept_and_from_the_context_are_root():
    assert not copy("COPY a /b").keep_owner
    assert copy("COPY --from=alpine a /b").keep_owner
    assert copy("COPY --from=alpine --chown=1:2 a /b").owner == "1:2"


def test_chown_and_chmod_are_expanded():
    operation = copy("COPY --chown=$U:$U --chmod=$M a /b", before="ARG U=me\nARG M=u=rwX,go=rX")
    assert (operation.owner, operation.mode) == ("me:me", "u=rwX,go=rX")
    image = lowered("FROM busybox\nARG U=me\nCOPY --chmod=755 --link --from=alpine --chown=$U --exclude=*.x a /b\n")
    assert created_by(image)[-1] == "COPY --chown=me --chmod=755 a /b # buildkit"


@pytest.mark.parametrize("mode", ["0755", "7777", "u=rwX,go=rX", "a+x", "-w", "g=u"])
def test_valid_modes(mode):
    assert copy(f"COPY --chmod={mode} a /b").mode == mode


@pytest.mark.parametrize("mode", ["10000", "999", "0o755"])
def test_invalid_modes_are_refused(mode):
    with pytest.raises(DockerfileError) as caught:
        copy("COPY --chmod=$M a /b", before=f"ARG M={mode}")
    assert f"invalid chmod parameter: '{mode}'. it should be octal string and between 0 and 07777" in str(caught.value)
    assert caught.value.lines == (3, 3)


def test_excludes_and_parents():
    assert copy("COPY --exclude=*.md --exclude=$X a /b", before="ENV X=1").exclude == ("*.md", "$X")
    operation = copy("COPY --parents ./x/a/./b/c.txt d/*/e.txt /abs /p/")
    assert operation.parents
    assert operation.sources == ("/x/a/./b/c.txt", "/d/*/e.txt", "/abs")
    image = lowered("FROM busybox\nCOPY --parents x/./y /p/\n")
    assert created_by(image)[-1] == "COPY --parents x/./y /p/ # buildkit"


def test_link_makes_a_layer_of_its_own():
    image = lowered("FROM busybox\nCOPY --link a /b\n")
    assert image.vertex.op == Merge()
    base, copied = image.vertex.inputs
    assert isinstance(base.op, ImageSource)
    assert copied.op == FileCopy(sources=("/a",), destination="/b", link=True)
    assert [source.op for source in copied.inputs] == [ContextSource("context")]
    assert copied.note.title == "[2/2] COPY --link a /b"
    assert image.vertex.note.title == "[2/2] LINK COPY --link a /b"
    assert created_by(image)[-1] == "COPY a /b # buildkit"


def test_link_gives_way_to_chmod():
    operation = copy("COPY --link --chmod=755 a /b")
    assert not operation.link


def test_heredocs_become_files():
    before = "ENV A=1"
    operation = copy("COPY <<one <<'two' <<-three /d/\n$A \"$A\" \\$A\none\n$A\ntwo\n\t\tx\n\tthree", before)
    assert operation.sources == ()
    assert operation.inline == (
        InlineFile("one", b'1 "1" $A\n'),
        InlineFile("two", b"$A\n"),
        InlineFile("three", b"x\n"),
    )
    image = lowered("FROM busybox\nCOPY <<EOF /d\nx\nEOF\n")
    assert len(image.vertex.inputs) == 1
    assert created_by(image)[-1] == "COPY <<EOF /d # buildkit"


def test_heredocs_and_paths_make_one_layer():
    image = lowered("FROM busybox\nCOPY a <<EOF b /d/\nx\nEOF\n")
    assert image.vertex.op == FileCopy(sources=("/a", "/b"), destination="/d/", inline=(InlineFile("EOF", b"x\n"),))
    assert created_by(image)[-1] == "COPY a b <<EOF /d/ # buildkit"


def test_add_unpacks_local_archives_unless_told_not_to():
    assert copy("ADD a.tar /b").unpack is Unpack.LOCAL
    assert copy("ADD --unpack=false a.tar /b").unpack is Unpack.NEVER
    assert copy("COPY a.tar /b").unpack is Unpack.NEVER


def test_add_takes_a_url():
    image = lowered(f"FROM busybox\nADD --checksum={SHA} https://h/dir/a%20b.tar.gz?x=1 /d/\n")
    assert image.vertex.op == FileCopy(sources=("/a b.tar.gz",), destination="/d/")
    source = image.vertex.inputs[1]
    assert source.op == HttpSource("https://h/dir/a%20b.tar.gz?x=1", "a b.tar.gz", Digest.parse(SHA))
    assert source.note.title == image.vertex.note.title
    assert copy("ADD --unpack https://h/a.tar /d").unpack is Unpack.LOCAL
    unnamed = lowered("FROM busybox\nADD https://h/ /d\n").vertex.inputs[1].op
    assert unnamed == HttpSource("https://h/", "__unnamed__")


def test_add_takes_a_git_repository_and_looks_its_commit_up_once():
    remotes = Remotes()
    text = "FROM busybox\nARG R=v1\nADD --keep-git-dir https://h/r.git#$R:sub /a\nADD https://h/r.git#$R /b\n"
    image = lowered(text, remote_sources=remotes)
    first = chain(image)[1]
    assert first.op == FileCopy(sources=("/",), destination="/a")
    assert first.inputs[1].op == GitSource("https://h/r.git", "v1", "sub", COMMIT, keep_git_dir=True)
    assert image.vertex.inputs[1].op == GitSource("https://h/r.git", "v1", "", COMMIT)
    assert remotes.asked == [("https://h/r.git", "v1")]


def test_a_git_commit_needs_no_remote():
    image = lowered(f"FROM busybox\nADD https://h/r.git?ref={COMMIT}&submodules=false /a\n")
    assert image.vertex.inputs[1].op == GitSource("https://h/r.git", COMMIT, "", COMMIT, submodules=False)


def test_a_git_remote_that_fails_is_reported_with_its_line():
    with pytest.raises(DockerfileError, match="repository not found") as caught:
        lowered("FROM busybox\nADD https://h/missing.git /a\n", remote_sources=Remotes())
    assert caught.value.lines == (2, 2)


def test_unneeded_stages_ask_no_remote():
    remotes = Remotes()
    lowered("FROM busybox AS x\nADD https://h/missing.git /a\nFROM busybox\n", remote_sources=remotes)
    assert remotes.asked == []


def test_sources_of_several_origins_are_gathered_and_make_one_layer():
    image = lowered("FROM busybox\nADD --chown=5 https://h/a*.txt local dir https://h/b /d/\n")
    operation = image.vertex.op
    assert operation == FileCopy(sources=("/0/a\\*.txt", "/1/", "/2/b"), destination="/d/", owner="5", keep_owner=True)
    gathered = image.vertex.inputs[1]
    assert [vertex.op for vertex in (gathered, gathered.inputs[0], gathered.inputs[0].inputs[0])] == [
        FileCopy(sources=("/b",), destination="/2/"),
        FileCopy(sources=("/local", "/dir"), destination="/1/", unpack=Unpack.LOCAL),
        FileCopy(sources=("/a*.txt",), destination="/0/"),
    ]
    assert sum(not entry.empty_layer for entry in image.history) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("COPY https://h/a /b", "source can't be a URL for COPY"),
        ("COPY https://h/a.git /b", "source can't be a git ref for COPY"),
        (f"ADD --checksum={SHA} a /b", "checksum requires HTTP(S) or Git sources"),
        (f"ADD --checksum={SHA} https://h/a https://h/b /b/", "checksum can't be specified for multiple sources"),
        ("ADD --checksum=nonsense https://h/a /b", "invalid checksum digest format: nonsense"),
        ("ADD --checksum=md5:abc https://h/a /b", "unsupported digest algorithm: md5:abc"),
        ("ADD https://h/r.git?foo=1 /b", 'unexpected query "foo"'),
        ("ADD --keep-git-dir=false https://h/r.git?keep-git-dir=true /b", "inconsistent keep-git-dir configuration"),
        ("ADD --checksum=abc https://h/r.git?checksum=def /b", 'checksum mismatch "abc" != "def"'),
    ],
)
def test_wrong_copies_are_refused_with_their_line(text, message):
    with pytest.raises(DockerfileError) as caught:
        lowered(f"FROM busybox\n{text}\n", remote_sources=Remotes())
    assert message in str(caught.value)
    assert caught.value.lines == (2, 2)
