"""Sessions of BuildKit's clients: registering, waiting, ending; and each service of a session against a client in this process."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.buildkit_peer import Directories, Results, received, session_with
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.daemon.buildkit_api import sessions as session_registry
from pybuild.daemon.buildkit_api.file_modes import row_of, stat_of
from pybuild.daemon.buildkit_api.http2 import Http2Connection
from pybuild.daemon.buildkit_api.messages import content_pb2, files_pb2, health_pb2, session_pb2
from pybuild.daemon.buildkit_api.rpc import Code, Metadata, RpcError, Services
from pybuild.daemon.buildkit_api.session_blocking import SessionAgents, SessionCredentials, SessionSecrets
from pybuild.daemon.buildkit_api.session_content import Content
from pybuild.daemon.buildkit_api.session_exports import FileSend
from pybuild.daemon.buildkit_api.session_files import Received
from pybuild.daemon.buildkit_api.session_services import Upload
from pybuild.daemon.buildkit_api.sessions import ID, Session, Sessions
from pybuild.daemon.wire import WireError
from pybuild.layers.digest import Digest
from pybuild.layers.entries import Kind

OLD_NS = 1_600_000_000_123_456_789


def test_a_build_waits_for_its_session_but_not_for_ever() -> None:
    async def run() -> None:
        sessions = Sessions()
        with pytest.raises(RpcError, match="no active session for late"):
            await sessions.get("late", wait_seconds=0.01)
        waiting = asyncio.ensure_future(sessions.get("namespace:late"))
        await asyncio.sleep(0)
        session = sessions.begin(Metadata([(ID.upper(), "late")]))
        assert await waiting is session
        assert await sessions.get("late") is session

    asyncio.run(run())


def test_a_session_ends_with_its_connection_and_its_id_is_free_again() -> None:
    async def run() -> None:
        sessions = Sessions()
        session = sessions.begin(Metadata([(ID, "one")]))
        with pytest.raises(RpcError, match="already exists"):
            sessions.begin(Metadata([(ID, "one")]))
        ours, theirs = socket.socketpair()
        await asyncio.get_running_loop().create_connection(lambda: session.channel.connection, sock=ours)
        theirs.close()
        await asyncio.wait_for(session.ended.wait(), 10)
        with pytest.raises(RpcError, match="no active session"):
            await sessions.get("one", wait_seconds=0.01)
        again = sessions.begin(Metadata([(ID, "one")]))
        sessions.end(session)  # late, and not the one that is there now
        assert await sessions.get("one") is again
        with pytest.raises(RpcError, match="needs an id"):
            sessions.begin(Metadata())

    asyncio.run(run())


def test_a_session_whose_client_stopped_serving_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_registry, "_CHECK_SECONDS", 0.01)
    monkeypatch.setattr(session_registry, "_AGAIN_SECONDS", 0.01)

    async def run() -> None:
        checks = 0

        async def health(request: health_pb2.HealthCheckRequest, call: Any) -> health_pb2.HealthCheckResponse:
            nonlocal checks
            checks += 1
            if checks > 3 and checks != 5:  # one failure alone is forgiven
                raise RpcError(Code.UNAVAILABLE, "stopping")
            return health_pb2.HealthCheckResponse()

        services = Services()
        async with session_with(services) as session:
            services.unary("/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest, health)
            await asyncio.wait_for(session.ended.wait(), 10)
            assert checks == 7

    asyncio.run(run())


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 255), st.integers(0, 5), st.binary(max_size=60)), max_size=8)
)
def test_garbage_from_a_session_fails_the_calls_of_that_session(frames: list[tuple[int, int, int, bytes]]) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        problems: list[Any] = []
        loop.set_exception_handler(lambda _, context: problems.append(context))
        session = Sessions().begin(Metadata([(ID, "one")]))
        ours, theirs = socket.socketpair()
        await loop.create_connection(lambda: session.channel.connection, sock=ours)
        asking = asyncio.ensure_future(
            session.channel.unary("/a/B", session_pb2.BytesMessage(), response=session_pb2.BytesMessage)
        )
        await asyncio.sleep(0)
        theirs.sendall(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        for kind, flags, number, payload in frames:
            theirs.sendall(len(payload).to_bytes(3, "big") + bytes([kind, flags]) + number.to_bytes(4, "big") + payload)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(RpcError):
            await asyncio.wait_for(asking, 10)
        theirs.close()
        assert problems == []

    asyncio.run(run())


# --- files -----------------------------------------------------------------------------------------------------------


def a_tree(root: Path) -> Path:
    (root / "sub/deep").mkdir(parents=True)
    (root / "sub/deep/file").write_bytes(os.urandom(200_000))
    (root / "empty").write_bytes(b"")
    (root / "run.sh").write_bytes(b"#!/bin/sh\n")
    (root / "run.sh").chmod(0o4755)
    (root / "link").symlink_to("sub/deep/file")
    os.link(root / "run.sh", root / "sub/same")
    os.mkfifo(root / "pipe")
    Path(os.fsdecode(os.fsencode(root) + b"/n\xff")).write_bytes(b"not UTF-8")
    for path in [*root.rglob("*"), root]:
        os.utime(path, ns=(OLD_NS, OLD_NS), follow_symlinks=False)
    return root


def described(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content: object = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        name = str(path.relative_to(root))
        found[name] = (status.st_mode, status.st_mtime_ns, content, status.st_nlink if path.is_file() else 0)
    return found


def fetch(
    source: Path, store: Path, *, change: Callable[[], object] = lambda: None, shared_key: str = "key", **patterns: Any
) -> tuple[Directories, list[Received], dict[str, tuple[object, ...]]]:
    """Receive ``source`` twice with a ``change`` between; what the kept tree is in the end."""

    async def run() -> tuple[Directories, list[Received], dict[str, tuple[object, ...]]]:
        directories, services = Directories({"context": source}), Services()
        directories.register(services)
        got: list[Received] = []
        async with session_with(services, shared_key=shared_key) as session:
            for again in (False, True):
                if again:
                    directories.asked.clear()
                    change()
                async with received(session, "context", remotes=store, **patterns) as (path, brought):
                    got.append(brought)
                    found = described(path)
        return directories, got, found

    return asyncio.run(run())


def test_a_directory_arrives_as_it_is_and_unchanged_files_are_not_sent_again(tmp_path: Path) -> None:
    source = a_tree(tmp_path / "source")
    directories, got, found = fetch(source, tmp_path / "store")
    assert found == described(source)
    assert (got[0].paths, got[0].files, got[0].bytes) == (9, 4, 200_019)
    assert (got[1].files, got[1].bytes, directories.asked) == (0, 0, [])


def test_only_what_changed_is_asked_for(tmp_path: Path) -> None:
    source = a_tree(tmp_path / "source")

    def change() -> None:
        (source / "empty").write_bytes(b"not any more")
        os.utime(source / "empty", ns=(OLD_NS + 5, OLD_NS + 5))
        (source / "link").unlink()
        (source / "link").symlink_to("elsewhere")
        (source / "pipe").unlink()

    directories, got, found = fetch(source, tmp_path / "store", change=change)
    assert directories.asked == ["empty"]
    assert found == described(source)
    assert got[1].bytes == 12


def test_a_file_that_changed_just_now_is_always_sent(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "new").write_bytes(b"1")
    directories, _, found = fetch(source, tmp_path / "store", change=lambda: (source / "new").write_bytes(b"2"))
    assert directories.asked == ["new"]
    assert found["new"][2] == b"2"


@pytest.mark.parametrize("seconds", [0, 315_532_800, 499_162_500])
def test_a_file_whose_time_is_a_packers_is_always_sent(tmp_path: Path, seconds: int) -> None:
    source = tmp_path / "source"
    source.mkdir()

    def write(content: bytes) -> None:
        (source / "package.json").write_bytes(content)
        os.utime(source / "package.json", (seconds, seconds))

    write(b"1.0.1")
    _, _, found = fetch(source, tmp_path / "store", change=lambda: write(b"1.0.2"))
    assert found["package.json"][2] == b"1.0.2"


def test_patterns_and_names_of_any_text_reach_the_client(tmp_path: Path) -> None:
    source = a_tree(tmp_path / "source")
    directories, _, _ = fetch(
        source, tmp_path / "s", include=["a b", "*.c"], exclude=["ü+%", "x"], follow=("Dockerfile",)
    )
    metadata = directories.metadata
    assert metadata.all("include-patterns") == ("a b", "*.c")
    assert metadata.all("exclude-patterns") == ("%C3%BC%2B%25", "x")
    assert metadata.first("exclude-patterns-encoded") == "1"
    assert metadata.all("followpaths") == ("Dockerfile",)


def test_a_directory_that_the_client_refuses_fails_with_its_words(tmp_path: Path) -> None:
    async def run() -> None:
        directories, services = Directories({}), Services()
        directories.register(services)
        async with session_with(services) as session:
            with pytest.raises(RpcError, match="no access allowed"):
                async with received(session, "context", remotes=tmp_path):
                    pass
        async with session_with(Services()) as session:
            with pytest.raises(RpcError, match="offers no files"):
                async with received(session, "context", remotes=tmp_path):
                    pass

    asyncio.run(run())


_PACKET = files_pb2.Packet
_stats = st.builds(
    files_pb2.Stat,
    path=st.sampled_from([b"", b"a", b"a/b", b"../x", b"/etc/x", b"a/../../x", b"b", b"c\xff", b"a\0b"]),
    mode=st.sampled_from([0o644, 1 << 31 | 0o755, 1 << 27 | 0o777, 1 << 25, 1 << 26, 0o644 | 1 << 19]),
    size=st.integers(-5, 50),
    mod_time=st.sampled_from([0, OLD_NS, -1, (1 << 63) - 1]),
    linkname=st.sampled_from([b"", b"a", b"../../../../../outside", b"x\0y"]),
)
_packets = st.one_of(
    st.builds(_PACKET, type=st.just(_PACKET.STAT), stat=_stats),
    st.builds(_PACKET, type=st.just(_PACKET.DATA), id=st.integers(0, 4), data=st.binary(max_size=5)),
    st.builds(_PACKET, type=st.sampled_from([_PACKET.STAT, _PACKET.FIN, _PACKET.ERR, _PACKET.REQ])),
)


@settings(deadline=None, max_examples=80)
@given(st.lists(_packets, max_size=12))
def test_whatever_a_client_sends_instead_of_files_nothing_leaves_the_tree(
    tmp_path_factory: pytest.TempPathFactory, packets: list[files_pb2.Packet]
) -> None:
    place = tmp_path_factory.mktemp("outer")
    outside = place / "outside"
    outside.write_bytes(b"mine")

    async def send(call: Any) -> None:
        for packet in packets:
            await call.send(packet)

    async def run() -> None:
        services = Services()
        services.stream("/moby.filesync.v1.FileSync/DiffCopy", files_pb2.Packet, send)
        async with session_with(services) as session:
            try:
                async with received(session, "context", remotes=place / "remotes"):
                    pass
            except (RpcError, WireError, OSError):
                pass

    asyncio.run(run())
    assert {path.name for path in place.iterdir()} == {"outside", "remotes"}
    assert (outside.stat().st_nlink, outside.read_bytes()) == (1, b"mine")
    # What was made half-way is no obstacle to the next build.
    source = place / "source"
    source.mkdir()
    (source / "file").write_bytes(b"x")
    assert list(fetch(source, place / "remotes")[2]) == ["file"]


def test_modes_are_the_same_on_both_sides(tmp_path: Path) -> None:
    for bits in (0o644, 0o1755, 0o2755, 0o4711, 0o7000):
        file = tmp_path / f"{bits:o}"
        file.touch()
        file.chmod(bits)
        stat = stat_of(b"f", file.lstat(), link=b"")
        assert stat is not None
        row = row_of(stat, now_ns=0)
        assert row is not None
        assert (row.mode, row.kind) == (bits, Kind.FILE)
    device = stat_of(b"null", os.stat("/dev/null"), link=b"")
    assert device is not None
    assert (device.devmajor, device.devminor, row_of(device, now_ns=0)) == (1, 3, None)


# --- results ---------------------------------------------------------------------------------------------------------


def test_an_archive_goes_to_the_client_with_its_attributes() -> None:
    async def run() -> None:
        results, services = Results(), Services()
        results.register(services)
        async with session_with(services) as session:
            async with FileSend(session, exporter=2).archive({"image.name": "a:b"}) as sink:
                await sink.write(b"x" * 700_000)
                await sink.write(b"end")
            ((metadata, data),) = results.archives
            assert data == b"x" * 700_000 + b"end"
            assert metadata.first("exporter-md-image.name") == "a:b"
            assert metadata.first("buildkit-attachable-exporter-id") == "2"

    asyncio.run(run())


def test_a_client_that_wants_no_archive_says_why() -> None:
    async def refuse(call: Any) -> None:
        raise RpcError(Code.ALREADY_EXISTS, "target already exists")

    async def run() -> None:
        services = Services()
        services.stream("/moby.filesync.v1.FileSend/DiffCopy", session_pb2.BytesMessage, refuse)
        async with session_with(services) as session:

            async def send() -> None:
                async with FileSend(session).archive({}) as sink:
                    for _ in range(100):
                        await sink.write(bytes(1 << 20))

            with pytest.raises(RpcError, match="target already exists") as caught:
                await send()
            assert caught.value.code is Code.ALREADY_EXISTS

    asyncio.run(run())


def test_a_directory_goes_to_the_client_file_by_file(tmp_path: Path) -> None:
    source = a_tree(tmp_path / "source")
    (source / "pipe").unlink()
    target = tmp_path / "target"
    target.mkdir()

    async def run() -> None:
        results, services = Results(target), Services()
        results.register(services)
        async with session_with(services) as session:
            await FileSend(session).directory(source)

    asyncio.run(run())
    assert {name: row[2:] for name, row in described(target).items()} == {
        name: row[2:] for name, row in described(source).items()
    }


# --- the small services, from threads --------------------------------------------------------------------------------


def in_a_thread(services: Services, work: Callable[[Session, asyncio.AbstractEventLoop], Any]) -> Any:
    async def run() -> Any:
        async with session_with(services) as session:
            return await asyncio.to_thread(work, session, asyncio.get_running_loop())

    return asyncio.run(run())


def test_credentials_are_asked_for_once_by_the_name_that_clients_know() -> None:
    asked: list[str] = []

    async def credentials(request: session_pb2.CredentialsRequest, call: Any) -> session_pb2.CredentialsResponse:
        asked.append(request.host)
        match request.host:
            case "registry-1.docker.io":
                return session_pb2.CredentialsResponse(username="me", secret="s3cret")
            case "token.example":
                return session_pb2.CredentialsResponse(secret="refresh")
            case "broken.example":
                raise RpcError(Code.UNKNOWN, "the helper crashed")
        return session_pb2.CredentialsResponse()

    services = Services()
    services.unary("/moby.filesync.v1.Auth/Credentials", session_pb2.CredentialsRequest, credentials)

    def work(session: Session, loop: asyncio.AbstractEventLoop) -> None:
        found = SessionCredentials(session, loop)
        for _ in range(2):
            hub = found.get("docker.io", "library/busybox")
            assert hub is not None
            assert (hub.username, hub.secret) == ("me", "s3cret")
        token = found.get("token.example")
        assert token is not None
        assert (token.username, token.identity_token) == ("", "refresh")
        assert found.get("other.example:5000") is None
        assert found.get("broken.example") is None

    in_a_thread(services, work)
    assert asked == ["registry-1.docker.io", "token.example", "other.example:5000", "broken.example"]


def test_secrets_are_a_mapping_that_asks_the_client() -> None:
    async def secret(request: session_pb2.GetSecretRequest, call: Any) -> session_pb2.GetSecretResponse:
        if request.id != "key":
            raise RpcError(Code.NOT_FOUND, "secret not found")
        return session_pb2.GetSecretResponse(data=b"\0value")

    services = Services()
    services.unary("/moby.buildkit.secrets.v1.Secrets/GetSecret", session_pb2.GetSecretRequest, secret)

    def work(session: Session, loop: asyncio.AbstractEventLoop) -> None:
        secrets = SessionSecrets(session, loop)
        assert (secrets.get("key"), secrets.get("other"), list(secrets)) == (b"\0value", None, ["key"])

    in_a_thread(services, work)
    in_a_thread(Services(), lambda session, loop: SessionSecrets(session, loop).get("key"))


def test_an_agent_of_the_client_answers_on_a_socket_of_ours(tmp_path: Path) -> None:
    async def check(request: session_pb2.CheckAgentRequest, call: Any) -> session_pb2.CheckAgentResponse:
        if request.id != "default":
            raise RpcError(Code.UNKNOWN, "unset ssh forward key")
        return session_pb2.CheckAgentResponse()

    async def forward(call: Any) -> None:
        assert call.metadata.first("buildkit.ssh.id") == "default"
        while (message := await call.receive()) is not None:
            await call.send(session_pb2.BytesMessage(data=message.data.upper()))

    services = Services()
    services.unary("/moby.sshforward.v1.SSH/CheckAgent", session_pb2.CheckAgentRequest, check)
    services.stream("/moby.sshforward.v1.SSH/ForwardAgent", session_pb2.BytesMessage, forward)

    def work(session: Session, loop: asyncio.AbstractEventLoop) -> None:
        deep = tmp_path / ("d" * 120)
        deep.mkdir()
        agents = SessionAgents(session, loop, directory=deep)
        assert agents.get("none") is None
        path = agents["default"]
        assert Path(path).stat().st_mode & 0o777 == 0o600

        def talk() -> None:
            with socket.socket(socket.AF_UNIX) as agent:
                agent.connect(path)
                agent.sendall(b"hello")
                assert agent.recv(100) == b"HELLO"
                agent.shutdown(socket.SHUT_WR)
                assert agent.recv(100) == b""

        threads = [threading.Thread(target=talk) for _ in range(4)]
        for thread in threads:
            thread.start()
        talk()
        for thread in threads:
            thread.join(10)
        agents.close()
        assert list(deep.iterdir()) == []

    in_a_thread(services, work)


def test_an_upload_is_read_by_its_url() -> None:
    async def pull(call: Any) -> None:
        assert (call.metadata.first("urlhost"), call.metadata.first("urlpath")) == ("buildkit-session", "/abc")
        for _ in range(3):
            await call.send(session_pb2.BytesMessage(data=b"part"))

    async def run() -> None:
        services = Services()
        services.stream("/moby.upload.v1.Upload/Pull", session_pb2.BytesMessage, pull)
        async with session_with(services) as session:
            assert [part async for part in Upload(session).pull("buildkit-session", "/abc")] == [b"part"] * 3

    asyncio.run(run())


def test_blobs_are_read_from_and_written_to_a_store_of_the_client() -> None:
    blobs: dict[str, bytes] = {}

    async def info(request: content_pb2.InfoRequest, call: Any) -> content_pb2.InfoResponse:
        if call.metadata.first("buildkit-attachable-store-id") != "local:/c" or request.digest not in blobs:
            raise RpcError(Code.NOT_FOUND, "not found")
        return content_pb2.InfoResponse(info=content_pb2.Info(digest=request.digest, size=len(blobs[request.digest])))

    async def read(request: content_pb2.ReadContentRequest, call: Any) -> None:
        data = blobs[request.digest]
        for start in range(request.offset, len(data), 1000):
            await call.send(content_pb2.ReadContentResponse(offset=start, data=data[start : start + 1000]))

    async def write(call: Any) -> None:
        kinds, data = content_pb2.WriteContentRequest, b""
        while (request := await call.receive()) is not None:
            if request.action == kinds.STAT and request.expected in blobs:
                raise RpcError(Code.ALREADY_EXISTS, "already exists")
            if request.action == kinds.WRITE:
                assert request.offset == len(data)
                data += request.data
            if request.action == kinds.COMMIT:
                assert request.total == len(data)
                blobs[request.expected] = data
            await call.send(content_pb2.WriteContentResponse(action=request.action, offset=len(data)))

    async def pieces(data: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(data), 1_500_000):
            yield data[start : start + 1_500_000]

    async def run() -> None:
        services, service = Services(), "/containerd.services.content.v1.Content/"
        services.unary(service + "Info", content_pb2.InfoRequest, info)
        services.server_stream(service + "Read", content_pb2.ReadContentRequest, read)
        services.stream(service + "Write", content_pb2.WriteContentRequest, write)
        data = os.urandom(4_000_000)
        digest = Digest.of(data)
        async with session_with(services) as session:
            content = Content(session, "local:/c")
            assert await content.size(digest) is None
            for _ in range(2):
                await content.write(digest, len(data), data=pieces(data))
            assert await content.size(digest) == len(data)
            assert b"".join([part async for part in content.read(digest, offset=5)]) == data[5:]

    asyncio.run(run())


def test_a_session_that_goes_away_fails_what_is_asked_of_it() -> None:
    async def never(request: session_pb2.GetSecretRequest, call: Any) -> session_pb2.GetSecretResponse:
        await asyncio.sleep(600)
        return session_pb2.GetSecretResponse()

    services = Services()
    services.unary("/moby.buildkit.secrets.v1.Secrets/GetSecret", session_pb2.GetSecretRequest, never)

    def work(session: Session, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_soon_threadsafe(loop.call_later, 0.1, session.channel.connection.close)
        with pytest.raises(RpcError):
            SessionSecrets(session, loop).get("key")

    in_a_thread(services, work)


def test_a_connection_without_streams_holds_nothing() -> None:
    async def run() -> None:
        services = Services()
        services.unary("/t.T/Echo", session_pb2.BytesMessage, _echo)
        async with session_with(services) as session:
            for _ in range(300):
                await session.channel.unary(
                    "/t.T/Echo", session_pb2.BytesMessage(data=b"x"), response=session_pb2.BytesMessage
                )
            connection = session.channel.connection
            assert isinstance(connection, Http2Connection)
            assert connection._streams == {}

    asyncio.run(run())


async def _echo(request: session_pb2.BytesMessage, call: Any) -> session_pb2.BytesMessage:
    return request
