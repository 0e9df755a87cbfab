"""Connections without TLS and proxy: which URLs they take, and that answers of every form leave the connection usable."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakSet

import pytest

from pybuild.registry_client.exchanges import Response, TimeLimits
from pybuild.registry_client.plain_connections import PlainConnections, is_plain
from pybuild.registry_client.transport import BadRedirect, BytesBody, ConnectionFailed, Request, Transport


@contextmanager
def server(*answers: bytes) -> Iterator[tuple[str, list[int], list[bytes]]]:
    """Gives the answers in turn, over as many connections as are made. Yields its URL, the connection of each request, and the requests."""
    connections: list[int] = []
    seen: list[bytes] = []
    pending = list(answers)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        number = 0
        while pending:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            number += 1
            with sock:
                while pending:
                    head = b""
                    while b"\r\n\r\n" not in head:
                        block = sock.recv(65536)
                        if not block:
                            break
                        head += block
                    if not head:
                        break
                    connections.append(number)
                    seen.append(head)
                    answer = pending.pop(0)
                    sock.sendall(answer)
                    if b"Connection: close" in answer:
                        break

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", connections, seen
    finally:
        listener.close()
        thread.join(5)


def send_all(url: str, methods: Sequence[str]) -> list[tuple[Response, bytes]]:
    pool = PlainConnections(users=WeakSet(), limits=TimeLimits(5, 5))
    found = []
    for method in methods:
        with pool.send(method, f"{url}/v2/", headers={"A": "b"}, body=None, answer_seconds=5) as response:
            found.append((response, response.read(1000)))
    pool.close()
    return found


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:5000/v2/",
        "http://127.0.0.1/v2/a/b/blobs/sha256:00?digest=sha256%3A11&x=a/b",
        "http://[::1]:80/",
        "http://registry.example",
    ],
)
def test_urls_as_registries_give_them_are_plain(url: str) -> None:
    assert is_plain(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://localhost/v2/",
        "http://user:word@localhost/v2/",
        "http://localhost/a b",
        "http://localhost/a\r\nHost: x",
        "http://localhost/%zz",
        "http://localhost/a#b",
        "http://bücher.example/",
        "http://localhost/ü",
        "http://[fe80::1%25eth0]/",
        "http://localhost:port/",
        "HTTP://localhost/",
    ],
)
def test_urls_that_need_rewriting_or_tls_are_not_plain(url: str) -> None:
    assert not is_plain(url)


def test_answers_of_every_form_are_read_over_one_connection() -> None:
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n1\r\nf\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ]
    with server(*answers) as (url, connections, _):
        found = send_all(url, ["GET", "GET", "HEAD", "GET", "GET"])
    assert [body for _, body in found] == [b"abc", b"def", b"", b"", b""]
    assert connections == [1] * 5


def test_a_connection_that_the_server_closed_is_not_used_again() -> None:
    answers = [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ]
    with server(*answers) as (url, connections, _):
        found = send_all(url, ["GET", "GET"])
    assert [body for _, body in found] == [b"until the end", b"ok"]
    assert connections == [1, 2]


def test_headers_are_found_in_any_case_and_repeated_ones_are_joined() -> None:
    answer = b'HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm="a"\r\nwww-authenticate: Bearer x\r\nContent-Length: 0\r\n\r\n'
    with server(answer) as (url, _, _):
        [(response, _)] = send_all(url, ["GET"])
    assert response.headers["www-authenticate"] == 'Basic realm="a", Bearer x'
    assert response.headers.get("WWW-AUTHENTICATE") == response.headers["Www-Authenticate"]
    assert list(response.headers) == ["WWW-Authenticate", "Content-Length"]
    assert response.headers.get("absent") is None


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"no HTTP at all\r\n\r\nConnection: close", "protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\nabc", "short"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nab", "short"),
    ],
)
def test_broken_answers_are_told_apart(answer: bytes, kind: str) -> None:
    with server(answer) as (url, _, _), pytest.raises(ConnectionFailed) as caught:
        send_all(url, ["GET"])
    assert caught.value.kind == kind


def test_plain_requests_and_uploads_need_no_http_library() -> None:
    code = (
        "import sys; from pybuild.registry_client.transport import *\n"
        "with Transport() as transport:\n"
        "    with transport.send(Request('PUT', sys.argv[1], body=BytesBody(b'data'))) as response:\n"
        "        print(response.status, response.read(100).decode())\n"
        "print('requests' in sys.modules, 'urllib3' in sys.modules)"
    )
    with server(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok") as (url, _, seen):
        done = subprocess.run([sys.executable, "-c", code, f"{url}/x"], capture_output=True, text=True, check=True)
    assert done.stdout == "201 ok\nFalse False\n"
    head = seen[0].partition(b"\r\n\r\n")[0].lower()
    assert b"content-length: 4" in head
    assert b"accept-encoding: identity" in head
    assert head.count(b"host: ") == 1


def test_urls_that_need_rewriting_are_sent_all_the_same() -> None:
    with server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") as (url, _, seen), Transport() as transport:
        with transport.send(Request("POST", f"{url}/a b", body=BytesBody(b"x"))) as response:
            assert response.read(10) == b"ok"
    assert seen[0].startswith(b"POST /a%20b HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:99999/", "http://127.0.0.1:0/", "http://[::1/", "http://[:::]/", "file:///x"]
)
def test_what_is_no_url_of_a_web_server_is_refused_wherever_it_comes_from(target: str) -> None:
    with Transport() as transport:
        with pytest.raises(ConnectionFailed, match="not a valid HTTP URL"):
            transport.send(Request("GET", target))
        answer = f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()
        with server(answer) as (url, _, _), pytest.raises(BadRedirect):
            transport.send(Request("GET", url))


def test_an_answer_that_came_before_the_upload_ended_is_read() -> None:
    """The server answers, reads no more and closes: that resets the connection in the middle of the body."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(1000)
            sock.sendall(b"HTTP/1.1 401 No\r\nConnection: close\r\nContent-Length: 4\r\n\r\nnope")

    thread = threading.Thread(target=serve)
    thread.start()
    with listener, Transport() as transport:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with transport.send(Request("PUT", url, body=BytesBody(b"x" * (32 << 20)), retry=False)) as response:
            assert (response.status, response.read(10)) == (401, b"nope")
    thread.join()
