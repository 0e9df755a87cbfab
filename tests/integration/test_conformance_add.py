"""ADD of archives and of files from HTTP servers, seen from the command line."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, build_files, build_image, read_tar, refused, write_files

pytestmark = pytest.mark.integration


def archive(*members: tuple[str, str, str], mode: int = 0o644) -> bytes:
    """A tar of (name, kind, content or link target)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, value in members:
            header = tarfile.TarInfo(name)
            header.mode = 0o755 if kind == "dir" else mode
            header.type = {
                "dir": tarfile.DIRTYPE,
                "file": tarfile.REGTYPE,
                "symlink": tarfile.SYMTYPE,
                "hardlink": tarfile.LNKTYPE,
            }[kind]
            if kind == "file":
                header.size = len(value)
                tar.addfile(header, io.BytesIO(value.encode()))
            else:
                header.linkname = value
                tar.addfile(header)
    return out.getvalue()


@dataclass
class Files:
    """What a loopback server offers, and what it was asked for."""

    url: str = ""
    answers: dict[str, tuple[bytes, dict[str, str]]] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)


@pytest.fixture
def http() -> Iterator[Files]:
    """A web server on loopback."""
    files = Files()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            files.requests.append((self.command, self.path, self.headers.get("User-Agent", "")))
            if self.path not in files.answers:
                self.send_error(404)
                return
            body, headers = files.answers[self.path]
            etag = '"' + hashlib.sha256(body).hexdigest()[:12] + '"'
            self.send_response(304 if self.headers.get("If-None-Match") == etag else 200)
            self.send_header("ETag", etag)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    files.url = f"http://127.0.0.1:{server.server_port}"
    yield files
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_download_is_named_by_its_url_and_dated_by_its_server(pybuild: Command, tmp_path: Path, http: Files):
    http.answers["/foo"] = (b"content1", {})
    http.answers["/"] = (b"content2", {"Last-Modified": formatdate(1_600_000_000, usegmt=True)})
    text = f"FROM scratch\nADD {http.url}/foo /dest/\nADD {http.url}/ /dest/\n"
    out = build_files(pybuild, text, tmp_path / "c")
    assert (out / "dest/foo").read_bytes() == b"content1"
    assert (out / "dest/__unnamed__").read_bytes() == b"content2"
    image = build_image(pybuild, text, tmp_path / "c")
    assert (image.entry(0, "dest/foo").mode, image.entry(0, "dest/foo").mtime) == (0o600, 0)
    assert (image.entry(1, "dest/__unnamed__").mode, image.entry(1, "dest/__unnamed__").mtime) == (0o600, 1_600_000_000)
    of_foo = [method for method, path, _ in http.requests if path == "/foo"]
    assert of_foo == ["GET", "HEAD"]
    assert all("buildkit/v" in agent for _, _, agent in http.requests)


def test_modes_of_downloads(pybuild: Command, tmp_path: Path, http: Files):
    http.answers["/foo"] = (b"content1", {})
    out = build_files(
        pybuild,
        f"""
FROM busybox AS build
ADD --chmod=644 {http.url}/foo /tmp/foo1
ADD --chmod=755 {http.url}/foo /tmp/foo2
ADD --chmod=0413 {http.url}/foo /tmp/foo3
ARG mode
ADD --chmod=${{mode}} {http.url}/foo /tmp/foo4
RUN for n in 1 2 3 4; do stat -c "%04a" /tmp/foo$n >> /dest; done
FROM scratch
COPY --from=build /dest /dest
""",
        tmp_path / "c",
        "--build-arg=mode=400",
    )
    assert (out / "dest").read_text().split() == ["0644", "0755", "0413", "0400"]


def test_checksums_of_downloads(pybuild: Command, tmp_path: Path, http: Files):
    http.answers["/foo"] = (b"content1", {})
    right, other = hashlib.sha256(b"content1").hexdigest(), hashlib.sha256(b"").hexdigest()
    context = write_files(tmp_path / "c", {"foo": "local file"})
    url = f"{http.url}/foo"
    pybuild.build(
        f"""
FROM scratch
ADD --checksum=sha256:{right} {url} /tmp/foo
ENV DIGEST=sha256:{right} LINK={url}
ADD --checksum=${{DIGEST}} ${{LINK}} /tmp/bar
""",
        context,
    )
    for checksum, source, expected in (
        (f"sha256:{other}", url, "digest mismatch"),
        ("md5:7e55db001d319a94b0b713529a756623", url, "unsupported digest algorithm"),
        (f"unknown:{right}", url, "unsupported digest algorithm"),
        (right, url, "invalid checksum digest format"),
        (f"sha256:{right}", "foo", "checksum requires HTTP(S) or Git sources"),
    ):
        assert expected in refused(pybuild, f"FROM scratch\nADD --checksum={checksum} {source} /tmp/foo\n", context)
    error = refused(pybuild, f"FROM scratch\nADD --checksum=sha256:{right} {url} {url} /tmp/\n", context)
    assert "checksum can't be specified for multiple sources" in error
    # what was refused is not remembered as good
    pybuild.build(f"FROM scratch\nADD --checksum=sha256:{right} {url} /tmp/foo\n", context, "--no-cache")


def test_archives_unpack_when_they_are_added_from_the_context_only(pybuild: Command, tmp_path: Path, http: Files):
    tar = archive(("foo", "file", "content0"))
    packed = gzip.compress(tar)
    http.answers["/t.tar.gz"] = (packed, {})
    context = write_files(
        tmp_path / "c",
        {
            "t.tar": tar,
            "t.tar.gz": packed,
            "t.tar.xz": lzma.compress(tar),
            "disguised.txt": packed,
            "lone.xz": lzma.compress(b"no archive"),
            "folder/t.tar": tar,
        },
    )
    out = build_files(
        pybuild,
        f"""
FROM scratch
ADD t.tar /tar/
ADD t.tar.gz /gz/
ADD t.tar.xz /xz
ADD disguised.txt /disguised/
ADD lone.xz /lone/
ADD folder /folder/
ADD --unpack=false t.tar.gz /no/
COPY t.tar.gz /copied/
ADD {http.url}/t.tar.gz /url/
ADD --unpack=true {http.url}/t.tar.gz /unpacked/
ADD {http.url}/t.tar.gz /newname.tar.gz
""",
        context,
    )
    for name in ("tar", "gz", "xz", "disguised", "unpacked"):
        assert (out / name / "foo").read_text() == "content0"
    for name in ("no/t.tar.gz", "copied/t.tar.gz", "url/t.tar.gz", "newname.tar.gz"):
        assert (out / name).read_bytes() == packed
    assert (out / "lone/lone.xz").read_bytes() == lzma.compress(b"no archive")
    assert (out / "folder/t.tar").read_bytes() == tar


def test_parents_that_an_archive_only_implies_are_made(pybuild: Command, tmp_path: Path):
    tar = archive(("etc/dnf/", "dir", ""), ("etc/dnf/dnf.conf", "file", "content0"))
    context = write_files(tmp_path / "c", {"t.tar.gz": gzip.compress(tar)})
    out = build_files(pybuild, "\nFROM scratch\nADD t.tar.gz /\n", context)
    assert (out / "etc/dnf/dnf.conf").read_text() == "content0"


def test_archives_unpack_through_absolute_symlinks_without_leaving_the_root(pybuild: Command, tmp_path: Path):
    rootfs = archive(("run/", "dir", ""), ("var/", "dir", ""), ("var/run", "symlink", "/run"))
    head = "var/run/act/.git/HEAD"
    payload = archive(
        ("var/run/act/", "dir", ""),
        ("var/run/act/.git/", "dir", ""),
        (head, "file", "ref: refs/heads/main\n"),
        (f"{head}.link", "hardlink", head),
    )
    context = write_files(tmp_path / "c", {"rootfs.tar": rootfs, "payload.tar": payload})
    out = build_files(pybuild, "\nFROM scratch\nADD rootfs.tar /\nADD payload.tar /\n", context)
    assert (out / "run/act/.git/HEAD").read_text() == "ref: refs/heads/main\n"
    assert os.path.samefile(out / "run/act/.git/HEAD", out / "run/act/.git/HEAD.link")
    assert os.readlink(out / "var/run") == "/run"


def test_a_symlink_that_an_archive_brings_is_followed_by_later_copies(pybuild: Command, tmp_path: Path):
    tar = archive(("symlink", "symlink", "../tmp/symlink-target"))
    context = write_files(tmp_path / "c", {"foo": "content0", "t.tar": tar})
    out = build_files(pybuild, "\nFROM scratch\nADD t.tar /\nCOPY foo /symlink/\n", context)
    assert (out / "tmp/symlink-target/foo").read_text() == "content0"


def test_chown_applies_to_what_is_unpacked_and_to_the_destination(pybuild: Command, tmp_path: Path):
    context = write_files(tmp_path / "c", {"t.tar": archive(("foo", "file", "content0"))})
    target = tmp_path / "out.tar"
    pybuild.build("\nFROM scratch\nADD --chown=100:200 t.tar /out/\n", context, f"--output=type=tar,dest={target}")
    entries = {entry.name: entry for entry in read_tar(target.read_bytes())}
    assert entries["out/foo"].content == b"content0"
    assert entries["out/foo"].owner == entries["out/"].owner == (100, 200)


def test_a_mode_is_for_files_and_downloads_and_never_for_what_is_unpacked_beside_them(
    pybuild: Command, tmp_path: Path, http: Files
):
    http.answers["/foo"] = (b"content1", {})
    context = write_files(tmp_path / "c", {"t.tar": archive(("bar", "file", "content0"), mode=0o640), "f": "f"})
    image = build_image(pybuild, f"FROM scratch\nADD --chmod=751 t.tar f {http.url}/foo /out/\n", context)
    assert {name: image.entry(0, f"out/{name}").mode for name in ("bar", "f", "foo")} == {
        "bar": 0o640,
        "f": 0o751,
        "foo": 0o751,
    }


def test_a_wildcard_may_name_archives(pybuild: Command, tmp_path: Path):
    context = write_files(
        tmp_path / "c", {"t.tar": archive(("foo", "file", "content0")), "b.tar": archive(("bar", "file", "content1"))}
    )
    out = build_files(pybuild, "\nFROM scratch\nADD *.tar /dest\n", context)
    assert (out / "dest/foo").read_text() == "content0"
    assert (out / "dest/bar").read_text() == "content1"


def test_a_missing_download_names_its_url_and_its_line(pybuild: Command, tmp_path: Path, http: Files):
    error = refused(pybuild, f"FROM scratch\nADD {http.url}/nothing /\n", tmp_path / "c")
    assert "404" in error
    assert ">>> ADD" in error
