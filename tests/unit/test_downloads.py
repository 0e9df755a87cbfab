"""Downloads for ADD and remote contexts, from a real server on loopback."""

from __future__ import annotations

import gzip
import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pybuild.daemon.remotes import RemoteFetcher
from pybuild.errors import PybuildError
from pybuild.layers.digest import Digest
from pybuild.registry_client.download import ChecksumMismatch, Downloader, DownloadFailed, file_name
from pybuild.registry_client.settings import NetworkSettings
from pybuild.registry_client.transport import AnswerTooLarge, Transport

Answer = tuple[int, Mapping[str, str], bytes]


class Server:
    """Answers each path by a function of the request's headers; remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[Mapping[str, str]], Answer]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.cut: dict[str, list[int]] = {}
        """Per path: after how many bytes of the body to break the connection, for one answer after the other."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                server.asked.append((self.path, headers))
                status, extra, body = server.answers[self.path](headers)
                self.send_response(status)
                for name, value in extra.items():
                    self.send_header(name, value)
                if "Content-Length" not in extra and status != 304:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                cuts = server.cut.get(self.path)
                if cuts:
                    self.wfile.write(body[: cuts.pop(0)])
                    self.wfile.flush()
                    self.close_connection = True
                else:
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def transport() -> Iterator[Transport]:
    network = NetworkSettings(stall_timeout_seconds=2.0)
    with Transport(network=network, sleep=lambda seconds: None) as transport:
        yield transport


@pytest.fixture
def downloader(transport: Transport, tmp_path: Path) -> Downloader:
    return Downloader(transport, tmp_path / "cache", wall_clock=time.time)


def fixed(body: bytes, **headers: str) -> Callable[[Mapping[str, str]], Answer]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda asked: (200, named, body)


def ranged(body: bytes, tag: str) -> Callable[[Mapping[str, str]], Answer]:
    """A server that knows tags and ranges."""

    def answer(asked: Mapping[str, str]) -> Answer:
        if asked.get("if-none-match") == tag:
            return 304, {"ETag": tag}, b""
        given = asked.get("range")
        if given is not None and asked.get("if-range") == tag:
            start = int(given.removeprefix("bytes=").rstrip("-"))
            return 206, {"ETag": tag, "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}, body[start:]
        return 200, {"ETag": tag}, body

    return answer


def test_a_file_with_its_digest_name_and_time(server: Server, downloader: Downloader) -> None:
    date = formatdate(1_600_000_000, usegmt=True)
    server.answers["/dir/app.bin?x=1"] = fixed(b"content", Last_Modified=date)
    result = downloader.fetch(f"{server.url}/dir/app.bin?x=1")
    assert Path(result.path).read_bytes() == b"content"
    assert result.digest == Digest.of(b"content")
    assert (result.filename, result.last_modified, result.fresh) == ("app.bin", 1_600_000_000.0, True)


def test_a_known_tag_is_confirmed_and_not_fetched_again(server: Server, downloader: Downloader) -> None:
    server.answers["/f"] = ranged(b"one", '"t1"')
    first = downloader.fetch(f"{server.url}/f")
    second = downloader.fetch(f"{server.url}/f")
    assert server.asked[1][1]["if-none-match"] == '"t1"'
    assert (second.path, second.digest, second.fresh) == (first.path, first.digest, False)
    server.answers["/f"] = ranged(b"two", '"t2"')
    assert downloader.fetch(f"{server.url}/f").digest == Digest.of(b"two")


def test_a_server_that_sends_all_again_under_the_same_tag_isnt_read(server: Server, downloader: Downloader) -> None:
    server.answers["/f"] = fixed(b"same", ETag='"t"')
    downloader.fetch(f"{server.url}/f")
    assert not downloader.fetch(f"{server.url}/f").fresh


def test_a_date_confirms_only_files_that_were_old_enough(server: Server, downloader: Downloader) -> None:
    server.answers["/old"] = fixed(b"x", Last_Modified=formatdate(time.time() - 3600, usegmt=True))
    server.answers["/new"] = fixed(b"x", Last_Modified=formatdate(time.time(), usegmt=True))
    for path in ("/old", "/old", "/new", "/new"):
        downloader.fetch(f"{server.url}{path}")
    assert ["if-modified-since" in headers for _, headers in server.asked] == [False, True, False, False]


def test_a_broken_transfer_goes_on_where_it_broke(server: Server, downloader: Downloader) -> None:
    body = hashlib.sha256(b"seed").digest() * 50_000
    server.answers["/f"] = ranged(body, '"t"')
    server.cut["/f"] = [700_000, 300_000]
    result = downloader.fetch(f"{server.url}/f")
    assert result.digest == Digest.of(body)
    ranges = [headers.get("range") for _, headers in server.asked]
    assert ranges[0] is None
    assert ranges[1] == "bytes=700000-"
    assert ranges[2] == "bytes=1000000-"


def test_a_server_that_ignores_ranges_is_read_from_the_start(server: Server, downloader: Downloader) -> None:
    body = bytes(range(256)) * 1000
    server.answers["/f"] = fixed(body, ETag='"t"')
    server.cut["/f"] = [100_000]
    assert downloader.fetch(f"{server.url}/f").digest == Digest.of(body)


def test_a_file_that_changes_while_it_is_resumed_is_refused(server: Server, downloader: Downloader) -> None:
    answers = [fixed(b"a" * 1000, ETag='"a"'), fixed(b"b" * 1000, ETag='"b"')]
    server.answers["/f"] = lambda asked: answers.pop(0)(asked)
    server.cut["/f"] = [500]
    with pytest.raises(PybuildError, match="changed while it was being downloaded"):
        downloader.fetch(f"{server.url}/f")


def test_a_short_answer_without_a_validator_fails(server: Server, downloader: Downloader, tmp_path: Path) -> None:
    server.answers["/f"] = fixed(b"x" * 1000)
    server.cut["/f"] = [10] * 9
    with pytest.raises(PybuildError, match="ended before its length"):
        downloader.fetch(f"{server.url}/f")
    assert list((tmp_path / "cache/partial").iterdir()) == []
    assert list((tmp_path / "cache/files").iterdir()) == []


def test_a_checksum_is_verified_and_a_wrong_one_poisons_nothing(server: Server, downloader: Downloader) -> None:
    server.answers["/f"] = fixed(b"right")
    wrong = Digest.of(b"wrong")
    with pytest.raises(ChecksumMismatch) as caught:
        downloader.fetch(f"{server.url}/f", checksum=wrong)
    assert str(caught.value) == f"digest mismatch for {server.url}/f: {Digest.of(b'right')} (expected: {wrong})"
    assert downloader.fetch(f"{server.url}/f", checksum=Digest.of(b"right")).digest == Digest.of(b"right")
    with pytest.raises(ChecksumMismatch):
        downloader.fetch(f"{server.url}/f", checksum=wrong)


def test_a_known_checksum_needs_no_server(server: Server, downloader: Downloader) -> None:
    server.answers["/f"] = fixed(b"right")
    for algorithm in ("sha256", "sha512"):
        checksum = Digest.of(b"right", algorithm)
        downloader.fetch(f"{server.url}/f", checksum=checksum)
        before = len(server.asked)
        result = downloader.fetch(f"{server.url}/f", checksum=checksum)
        assert len(server.asked) == before
        assert result.digest == checksum
        assert Path(result.path).read_bytes() == b"right"


@pytest.mark.parametrize("status", [404, 403, 401, 500, 204])
def test_other_statuses_are_errors(server: Server, downloader: Downloader, status: int) -> None:
    server.answers["/f"] = lambda asked: (status, {}, b"" if status == 204 else b"sorry")
    with pytest.raises(DownloadFailed, match=f"invalid response status {status}") as caught:
        downloader.fetch(f"{server.url}/f")
    assert ("HTTP_AUTH_TOKEN_127.0.0.1" in (caught.value.hint or "")) is (status in (401, 403))


def test_credentials_go_to_their_host_only_and_are_never_shown(
    server: Server, transport: Transport, tmp_path: Path
) -> None:
    elsewhere = Server()
    try:
        elsewhere.answers["/target"] = fixed(b"x")
        server.answers["/f"] = lambda asked: (
            302,
            {"Location": elsewhere.url.replace("127.0.0.1", "localhost") + "/target"},
            b"",
        )
        server.answers["/gone"] = lambda asked: (404, {}, b"")
        secrets = {"HTTP_AUTH_TOKEN_127.0.0.1": b"s3cret\n", "HTTP_AUTH_HEADER_other.example": b"Basic eA=="}
        downloader = Downloader(transport, tmp_path / "cache", wall_clock=time.time, secrets=secrets)
        assert downloader.fetch(f"{server.url}/f").digest == Digest.of(b"x")
        assert server.asked[0][1]["authorization"] == "Bearer s3cret"
        assert "authorization" not in elsewhere.asked[0][1]
        with pytest.raises(DownloadFailed) as caught:
            downloader.fetch(f"{server.url}/gone")
        assert "s3cret" not in f"{caught.value} {caught.value.hint}"
        kept = "".join(path.read_text() for path in (tmp_path / "cache/urls").glob("*.json"))
        assert kept
        assert "s3cret" not in kept
    finally:
        elsewhere.close()


def test_what_needed_credentials_is_asked_for_again_without_them(
    server: Server, transport: Transport, tmp_path: Path
) -> None:
    server.answers["/f"] = lambda asked: (200, {"ETag": '"t"'}, b"x") if "authorization" in asked else (401, {}, b"")
    known = {"HTTP_AUTH_HEADER_127.0.0.1": b"Basic eA=="}
    Downloader(transport, tmp_path, wall_clock=time.time, secrets=known).fetch(f"{server.url}/f")
    with pytest.raises(DownloadFailed):
        Downloader(transport, tmp_path, wall_clock=time.time).fetch(f"{server.url}/f")


def test_an_encoded_answer_is_decoded(server: Server, downloader: Downloader) -> None:
    server.answers["/f"] = fixed(gzip.compress(b"plain" * 1000), Content_Encoding="gzip")
    assert downloader.fetch(f"{server.url}/f").digest == Digest.of(b"plain" * 1000)
    server.answers["/cut"] = fixed(gzip.compress(b"plain" * 1000)[:-20], Content_Encoding="gzip")
    with pytest.raises(PybuildError, match="gzip"):
        downloader.fetch(f"{server.url}/cut")


def test_sizes_are_bounded_even_when_the_server_doesnt_tell(
    server: Server, transport: Transport, tmp_path: Path
) -> None:
    downloader = Downloader(transport, tmp_path, wall_clock=time.time, limit_bytes=1000)
    server.answers["/f"] = fixed(bytes(1001))
    server.answers["/bomb"] = fixed(gzip.compress(bytes(1_000_000)), Content_Encoding="gzip")
    for path in ("/f", "/bomb"):
        with pytest.raises(AnswerTooLarge):
            downloader.fetch(f"{server.url}{path}")


@pytest.mark.parametrize(
    ("url", "disposition", "expected"),
    [
        ("https://h/a/b.tar.gz?x=/y", None, "b.tar.gz"),
        ("https://h/a/", None, "a"),
        ("https://h/", None, "download"),
        ("https://h", None, "download"),
        ("https://h/a%20b", None, "a b"),
        ("https://h/x", 'attachment; filename="real name.zip"', "real name.zip"),
        ("https://h/x", 'attachment; filename="../../etc/passwd"', "passwd"),
        ("https://h/x", 'attachment; filename=".."', "download"),
        ("https://h/x", "attachment; filename*=UTF-8''na%C3%AFve.txt", "naïve.txt"),
        ("https://h/x", "inline", "x"),
        ("https://h/x%00y", None, "download"),
        ("https://h/..%2f..%2fx", None, "x"),
    ],
)
def test_the_name_of_a_download_never_leads_anywhere(url: str, disposition: str | None, expected: str) -> None:
    assert file_name(url, disposition) == expected


def test_old_downloads_are_pruned_and_others_kept(server: Server, transport: Transport, tmp_path: Path) -> None:
    now = [time.time()]
    downloader = Downloader(transport, tmp_path, wall_clock=lambda: now[0])
    server.answers["/f"] = fixed(b"12345", ETag='"t"')
    downloader.fetch(f"{server.url}/f")
    assert downloader.prune(keep_seconds=3600) == 0
    now[0] += 7200
    assert downloader.prune(keep_seconds=3600) > 5
    assert downloader.fetch(f"{server.url}/f").fresh


def test_one_build_asks_for_a_url_once(server: Server, transport: Transport, tmp_path: Path) -> None:
    server.answers["/f"] = fixed(b"x", Last_Modified=formatdate(1_600_000_000, usegmt=True))
    remotes = RemoteFetcher(tmp_path, transport, wall_clock=time.time)
    threads = [threading.Thread(target=lambda: remotes.http(f"{server.url}/f", checksum=None)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1
