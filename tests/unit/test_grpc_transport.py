"""gRPC over HTTP/2, both ends in this process: calls, statuses, flow control, cancellation, and what garbage does."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fakes.buildkit_peer import connected
from h2.errors import ErrorCodes
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.daemon.api_buildkit import BuildkitRoutes, FirstBytes
from pybuild.daemon.api_server import Router
from pybuild.daemon.buildkit_api.calling import Channel, ClientCall
from pybuild.daemon.buildkit_api.http2 import PREFACE, Http2Connection
from pybuild.daemon.buildkit_api.messages import health_pb2
from pybuild.daemon.buildkit_api.messages.session_pb2 import BytesMessage
from pybuild.daemon.buildkit_api.rpc import Code, Detail, RpcError, Services
from pybuild.daemon.buildkit_api.serving import Server
from pybuild.daemon.buildkit_api.sessions import Sessions
from pybuild.daemon.buildkit_api.tunnel import run_tunnel
from pybuild.errors import PybuildError

ECHO = "/t.T/Echo"


async def echo(request: BytesMessage, call: Any) -> BytesMessage:
    return BytesMessage(data=request.data)


def echoing() -> Services:
    services = Services()
    services.unary(ECHO, BytesMessage, echo)
    return services


async def ask(channel: Channel, data: bytes, *, path: str = ECHO, **more: Any) -> bytes:
    return (await channel.unary(path, BytesMessage(data=data), response=BytesMessage, **more)).data


def failing(error: BaseException) -> Services:
    async def fail(request: BytesMessage, call: Any) -> BytesMessage:
        raise error

    services = Services()
    services.unary(ECHO, BytesMessage, fail)
    return services


@pytest.mark.parametrize("size", [0, 1, 16384, 65536, (16 << 20) + 5])
def test_a_message_of_any_size_arrives_whole(size: int) -> None:
    async def run() -> None:
        async with connected(echoing()) as channel:
            data = bytes(range(256)) * (size // 256 + 1)
            assert await ask(channel, data[:size]) == data[:size]

    asyncio.run(run())


def test_many_calls_at_a_time_get_their_own_answers() -> None:
    async def run() -> None:
        async with connected(echoing()) as channel:
            answers = await asyncio.gather(*(ask(channel, b"%d" % number * 3000) for number in range(200)))
            assert answers == [b"%d" % number * 3000 for number in range(200)]

    asyncio.run(run())


def test_metadata_and_details_and_any_text_of_a_status_arrive() -> None:
    async def fail(request: BytesMessage, call: Any) -> BytesMessage:
        assert call.metadata.all("x-name") == ("1", "2")
        raise RpcError(Code.FAILED_PRECONDITION, "50 % of “ü”\nline two", details=[Detail("type/x", b"\0\1")])

    async def run() -> None:
        services = Services()
        services.unary(ECHO, BytesMessage, fail)
        async with connected(services) as channel:
            with pytest.raises(RpcError) as caught:
                await ask(channel, b"", metadata=[("x-name", "1"), ("x-name", "2")])
            assert caught.value.code is Code.FAILED_PRECONDITION
            assert caught.value.message == "50 % of “ü”\nline two"
            assert caught.value.details == (Detail("type/x", b"\0\1"),)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (PybuildError("no such stage"), Code.UNKNOWN, "no such stage"),
        (KeyError("x"), Code.INTERNAL, "KeyError"),
        (RpcError(Code.NOT_FOUND, "gone"), Code.NOT_FOUND, "gone"),
    ],
)
def test_what_a_handler_raises_becomes_the_status(error: BaseException, code: Code, words: str) -> None:
    async def run() -> None:
        async with connected(failing(error)) as channel:
            with pytest.raises(RpcError, match=words) as caught:
                await ask(channel, b"")
            assert caught.value.code is code

    asyncio.run(run())


def test_an_unknown_method_is_unimplemented_and_the_connection_goes_on() -> None:
    async def run() -> None:
        async with connected(echoing()) as channel:
            with pytest.raises(RpcError, match=r"unknown method No for service t\.T") as caught:
                await ask(channel, b"", path="/t.T/No")
            assert caught.value.code is Code.UNIMPLEMENTED
            assert await ask(channel, b"x") == b"x"

    asyncio.run(run())


def test_health_is_told_of_the_server_and_of_each_service() -> None:
    async def run() -> None:
        async with connected(echoing()) as channel:
            for service in ("", "t.T"):
                request = health_pb2.HealthCheckRequest(service=service)
                answer = await channel.unary(
                    "/grpc.health.v1.Health/Check", request, response=health_pb2.HealthCheckResponse
                )
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(RpcError, match="no service"):
                await channel.unary(
                    "/grpc.health.v1.Health/Check",
                    health_pb2.HealthCheckRequest(service="other"),
                    response=health_pb2.HealthCheckResponse,
                )

    asyncio.run(run())


def test_a_stream_in_both_directions_keeps_its_order() -> None:
    async def double(call: Any) -> None:
        while (message := await call.receive()) is not None:
            await call.send(BytesMessage(data=message.data * 2))

    async def run() -> None:
        services = Services()
        services.stream(ECHO, BytesMessage, double)
        async with connected(services) as channel:
            opened: ClientCall[BytesMessage, BytesMessage] = channel.stream(ECHO, BytesMessage)
            async with opened as call:
                for number in range(50):
                    await call.send(BytesMessage(data=b"%d" % number))
                    answer = await call.receive()
                    assert answer is not None
                    assert answer.data == b"%d" % number * 2
                await call.finish_sending()
                assert await call.receive() is None

    asyncio.run(run())


def test_a_sender_waits_for_a_reader_that_is_slow() -> None:
    sent = 0

    async def pour(request: BytesMessage, call: Any) -> None:
        nonlocal sent
        for _ in range(64):
            await call.send(BytesMessage(data=bytes(1 << 20)))
            sent += 1

    async def run() -> None:
        services = Services()
        services.server_stream(ECHO, BytesMessage, pour)
        async with connected(services) as channel:
            opened: ClientCall[BytesMessage, BytesMessage] = channel.stream(ECHO, BytesMessage)
            async with opened as call:
                await call.send(BytesMessage(), end=True)
                await asyncio.sleep(0.2)
                held = sent
                received = 0
                while await call.receive() is not None:
                    received += 1
        # The window and what the kernel's buffers take.
        assert held < 8
        assert received == 64

    asyncio.run(run())


@pytest.mark.parametrize("has_sent_all", [False, True])
def test_a_call_that_is_left_cancels_its_handler(has_sent_all: bool) -> None:
    async def run() -> None:
        ended = asyncio.Event()

        async def wait(call: Any) -> None:
            try:
                await asyncio.sleep(600)
            finally:
                ended.set()

        services = echoing()
        services.stream("/t.T/Wait", BytesMessage, wait)
        async with connected(services) as channel:
            opened: ClientCall[BytesMessage, BytesMessage] = channel.stream("/t.T/Wait", BytesMessage)
            async with opened as call:
                await call.send(BytesMessage(), end=has_sent_all)
                await ask(channel, b"")
            await asyncio.wait_for(ended.wait(), 10)
            assert await ask(channel, b"still there") == b"still there"

    asyncio.run(run())


def test_a_connection_that_ends_cancels_its_handlers_and_fails_its_calls() -> None:
    async def run() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def wait(call: Any) -> None:
            begun.set()
            try:
                await asyncio.sleep(600)
            finally:
                ended.set()

        services = Services()
        services.stream("/t.T/Wait", BytesMessage, wait)
        async with connected(services) as channel:
            waiting = asyncio.ensure_future(ask(channel, b"", path="/t.T/Wait"))
            await begun.wait()
            channel.connection.close()
            with pytest.raises(RpcError) as caught:
                await waiting
            assert caught.value.code is Code.UNAVAILABLE
            await asyncio.wait_for(ended.wait(), 10)
            with pytest.raises(RpcError, match="has gone"):
                await ask(channel, b"")

    asyncio.run(run())


def test_a_server_that_stops_tells_its_callers() -> None:
    async def run() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def wait(call: Any) -> None:
            begun.set()
            try:
                await asyncio.sleep(600)
            finally:
                ended.set()

        services = Services()
        services.stream("/t.T/Wait", BytesMessage, wait)
        ours, theirs = socket.socketpair()
        server, connection = Server(services), Http2Connection()
        await asyncio.get_running_loop().create_connection(server.connection, sock=theirs)
        await asyncio.get_running_loop().create_connection(lambda: connection, sock=ours)
        waiting = asyncio.ensure_future(ask(Channel(connection), b"", path="/t.T/Wait"))
        await begun.wait()
        server.close()
        with pytest.raises(RpcError, match="the daemon is stopping") as caught:
            await waiting
        assert caught.value.code is Code.UNAVAILABLE
        await asyncio.wait_for(ended.wait(), 10)

    asyncio.run(run())


def test_a_deadline_ends_the_call_on_the_server() -> None:
    async def wait(request: BytesMessage, call: Any) -> BytesMessage:
        await asyncio.sleep(600)
        return request

    async def run() -> None:
        services = Services()
        services.unary(ECHO, BytesMessage, wait)
        async with connected(services) as channel:
            with pytest.raises(RpcError) as caught:
                await ask(channel, b"", metadata=[("grpc-timeout", "50m")])
            assert caught.value.code is Code.DEADLINE_EXCEEDED

    asyncio.run(run())


def test_a_handler_that_answers_before_it_has_read_all_is_heard() -> None:
    async def refuse(call: Any) -> None:
        raise RpcError(Code.PERMISSION_DENIED, "not here")

    async def run() -> None:
        services = Services()
        services.stream(ECHO, BytesMessage, refuse)
        async with connected(services) as channel:
            with pytest.raises(RpcError, match="not here"):
                await ask(channel, bytes(8 << 20))

    asyncio.run(run())


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\1\0\0\0\0", Code.UNIMPLEMENTED),
        (b"\0\xff\xff\xff\xff", Code.RESOURCE_EXHAUSTED),
        (b"\0\0\0\0\5abc", Code.INTERNAL),
        (b"\0\0", Code.INTERNAL),
        (b"\0\0\0\0\2\xff\xff", Code.INTERNAL),
        (b"", Code.INVALID_ARGUMENT),
    ],
)
def test_a_message_that_is_none_fails_its_call_only(data: bytes, code: Code) -> None:
    async def run() -> None:
        async with connected(echoing()) as channel:
            opened: ClientCall[BytesMessage, BytesMessage] = channel.stream(ECHO, BytesMessage)
            async with opened as call:
                await call._stream.write(data, end=True)
                with pytest.raises(RpcError) as caught:
                    await call.receive()
            assert caught.value.code is code
            assert await ask(channel, b"x") == b"x"

    asyncio.run(run())


def test_a_request_that_is_not_grpc_is_refused_as_http() -> None:
    async def run() -> None:
        async with connected(echoing()) as channel:
            stream = channel.connection.open(
                [(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", "/")]
            )
            assert (await stream.received_headers()).first(":status") == "415"
            stream.reset(ErrorCodes.CANCEL)

    asyncio.run(run())


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.binary(max_size=200), max_size=5),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=60)), max_size=8),
)
def test_garbage_ends_at_worst_its_own_connection(
    garbage: list[bytes], frames: list[tuple[int, int, int, bytes]]
) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        problems: list[Any] = []
        loop.set_exception_handler(lambda _, context: problems.append(context))
        server = Server(echoing())
        ours, theirs = socket.socketpair()
        await loop.create_connection(server.connection, sock=theirs)
        ours.setblocking(False)
        await loop.sock_sendall(ours, PREFACE + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        for kind, flags, number, payload in frames:
            head = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + number.to_bytes(4, "big")
            await _send(loop, ours, head + payload)
        for each in garbage:
            await _send(loop, ours, each)
        ours.close()
        await asyncio.sleep(0.001)
        server.close()
        await asyncio.sleep(0)
        assert problems == []

    asyncio.run(run())


async def _send(loop: asyncio.AbstractEventLoop, to: socket.socket, data: bytes) -> None:
    try:
        await loop.sock_sendall(to, data)
    except OSError:
        pass


def test_a_connection_in_a_stream_of_messages_is_as_good_as_one_of_its_own() -> None:
    async def run() -> None:
        inner = Http2Connection()
        done = asyncio.Event()

        async def session(call: Any) -> None:
            async def receive() -> bytes | None:
                message = await call.receive()
                return None if message is None else bytes(message.data)

            async def send(data: bytes) -> None:
                await call.send(BytesMessage(data=data))

            await run_tunnel(inner, receive=receive, send=send)
            done.set()

        services = Services()
        services.stream("/t.T/Session", BytesMessage, session)
        async with connected(services) as channel:
            opened: ClientCall[BytesMessage, BytesMessage] = channel.stream("/t.T/Session", BytesMessage)
            async with opened as call:
                client_side = Server(echoing()).connection()

                async def receive() -> bytes | None:
                    message = await call.receive()
                    return None if message is None else message.data

                async def send(data: bytes) -> None:
                    await call.send(BytesMessage(data=data))

                serving = asyncio.ensure_future(run_tunnel(client_side, receive=receive, send=send))
                data = bytes(5 << 20)
                # Our side of the tunnel is there when the handler runs.
                while inner._transport is None:
                    await asyncio.sleep(0.01)
                assert await ask(Channel(inner), data) == data
                inner.close()
                await asyncio.wait_for(done.wait(), 10)
                await asyncio.wait_for(serving, 10)

    asyncio.run(run())


class _Taker(asyncio.Protocol):
    def __init__(self) -> None:
        self.data = b""
        self.lost = False

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True


@pytest.mark.parametrize(
    ("sent", "is_http2"),
    [
        ([b"GET / HTTP/1.1\r\n"], False),
        ([b"P", b"OST / HTTP/1.1\r\n"], False),
        ([b"PRI", b" * HTTP/2.0\r\n\r\nSM", b"\r\n\r\nrest"], True),
        ([PREFACE], True),
        ([b"PRI * HTTP/1.1\r\n\r\n"], False),
    ],
)
def test_the_first_bytes_tell_who_serves_a_connection(sent: list[bytes], is_http2: bool) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        http1, http2 = _Taker(), _Taker()
        ours, theirs = socket.socketpair()
        await loop.create_connection(lambda: FirstBytes(http1=lambda: http1, http2=lambda: http2), sock=theirs)
        ours.setblocking(False)
        for each in sent:
            await loop.sock_sendall(ours, each)
            await asyncio.sleep(0.01)
        ours.close()
        await asyncio.sleep(0.01)
        taker, other = (http2, http1) if is_http2 else (http1, http2)
        assert (taker.data, taker.lost, other.data) == (b"".join(sent), True, b"")

    asyncio.run(run())


class _Upgrades:
    """What the endpoints need of a daemon."""

    def __init__(self, server: Server) -> None:
        self.buildkit = self
        self.sessions = Sessions()
        self._server = server

    def connection(self) -> Http2Connection:
        return self._server.connection()


async def _upgraded(socket_path: Path, path: str, headers: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(made, str(socket_path))
    request = f"POST {path} HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n{headers}\r\n"
    await loop.sock_sendall(made, request.encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += await loop.sock_recv(made, 1)
    assert answer.startswith(b"HTTP/1.1 101 ")
    return made


def test_connections_are_upgraded_in_both_roles_and_nothing_of_them_stays(tmp_path: Path) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = Server(echoing())
        daemon = _Upgrades(server)
        application = web.Application()
        BuildkitRoutes(daemon).register(Router(application))  # type: ignore[arg-type]  # as much of a Daemon as it uses
        runner = web.AppRunner(application, handler_cancellation=True)
        await runner.setup()
        await web.UnixSite(runner, str(tmp_path / "s")).start()
        ours = Http2Connection()
        raw = await _upgraded(tmp_path / "s", "/v1.41/grpc", "")
        await loop.create_connection(lambda: ours, sock=raw)
        assert await ask(Channel(ours), b"x" * 100_000) == b"x" * 100_000
        session_headers = "X-Docker-Expose-Session-Uuid: s1\r\nX-Docker-Expose-Session-Grpc-Method: /t.T/Echo\r\n"
        raw = await _upgraded(tmp_path / "s", "/session", session_headers)
        theirs = server.connection()
        await loop.create_connection(lambda: theirs, sock=raw)
        session = await daemon.sessions.get("s1")
        assert session.offers(ECHO)
        assert await ask(session.channel, b"back") == b"back"
        ours.close()
        theirs.close()
        assert runner.server is not None
        async with asyncio.timeout(10):
            while runner.server.connections:
                await asyncio.sleep(0.01)
            await session.ended.wait()
        with pytest.raises(RpcError, match="no active session"):
            await daemon.sessions.get("s1", wait_seconds=0.01)
        await runner.cleanup()

    asyncio.run(run())
