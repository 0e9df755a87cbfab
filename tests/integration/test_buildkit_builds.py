"""Builds over BuildKit's API, from a client in Python: HTTP/2 on the daemon's socket, the session as a call in it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import tarfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from daemons.running_daemon import RunningDaemon, running_daemon
from fakes.buildkit_peer import Directories, Results

from pybuild.daemon.buildkit_api.calling import Channel
from pybuild.daemon.buildkit_api.http2 import Http2Connection
from pybuild.daemon.buildkit_api.messages import control_pb2, gateway_pb2, session_pb2
from pybuild.daemon.buildkit_api.rpc import Code, RpcError, Services
from pybuild.daemon.buildkit_api.serving import Server
from pybuild.daemon.buildkit_api.sessions import ID, METHOD, SHARED_KEY
from pybuild.daemon.buildkit_api.tunnel import run_tunnel

pytestmark = pytest.mark.integration

CONTROL = "/moby.buildkit.v1.Control/"
BRIDGE = "/moby.buildkit.v1.frontend.LLBBridge/"


@pytest.fixture(scope="module")
def daemon(_seed_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    directory = tmp_path_factory.mktemp("daemon")
    subprocess.run(["cp", "-a", str(_seed_root), str(directory / "root")], check=True)
    with running_daemon(directory, directory / "root") as running:
        yield running


class Client:
    """One connection with one session. ``results``: what came back."""

    def __init__(self, channel: Channel, session: str, results: Results) -> None:
        self.channel = channel
        self.session = session
        self.results = results

    async def call(self, path: str, request: Any, response: Any, *, build: str = "") -> Any:
        metadata = [("buildkit-controlapi-buildid", build)] if build else []
        return await self.channel.unary(path, request, response=response, metadata=metadata)

    async def solve(self, *, ref: str = "", exporter: str = "", **attributes: Any) -> dict[str, str]:
        request = control_pb2.SolveRequest(
            ref=ref or uuid.uuid4().hex, session=self.session, frontend="dockerfile.v0", **attributes
        )
        if exporter:
            request.exporters.add(type=exporter)
        answer = await self.call(CONTROL + "Solve", request, control_pb2.SolveResponse)
        return dict(answer.exporter_response)

    async def statuses(self, ref: str) -> list[control_pb2.StatusResponse]:
        found = []
        async with self.channel.stream(CONTROL + "Status", control_pb2.StatusResponse) as call:
            await call.send(control_pb2.StatusRequest(ref=ref), end=True)
            while (status := await call.receive()) is not None:
                found.append(status)
        return found


@asynccontextmanager
async def client(daemon: RunningDaemon, directories: dict[str, Path]) -> AsyncIterator[Client]:
    connection, results, services = Http2Connection(), Results(), Services()
    loop = asyncio.get_running_loop()
    await loop.create_unix_connection(lambda: connection, str(daemon.socket))
    channel = Channel(connection)
    Directories(directories).register(services)
    results.register(services)

    async def secret(request: Any, call: Any) -> Any:
        if request.id != "known":
            raise RpcError(Code.NOT_FOUND, "no such secret")
        return session_pb2.GetSecretResponse(data=b"from the client")

    services.unary("/moby.buildkit.secrets.v1.Secrets/GetSecret", session_pb2.GetSecretRequest, secret)
    identifier = uuid.uuid4().hex
    headers = [(ID, identifier), (SHARED_KEY, "k"), *((METHOD, path) for path in services.methods)]
    server = Server(services)

    async def serve() -> None:
        async with channel.stream(CONTROL + "Session", session_pb2.BytesMessage, metadata=headers) as call:

            async def receive() -> bytes | None:
                message = await call.receive()
                return None if message is None else message.data

            async def send(data: bytes) -> None:
                await call.send(session_pb2.BytesMessage(data=data))

            await run_tunnel(server.connection(), receive=receive, send=send)

    task = asyncio.ensure_future(serve())
    try:
        yield Client(channel, identifier, results)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, RpcError):
            await task
        connection.close()
        server.close()


def run(daemon: RunningDaemon, context: Path, work: Callable[[Client], Awaitable[Any]]) -> Any:
    async def inside() -> Any:
        async with client(daemon, {"context": context, "dockerfile": context}) as opened:
            return await asyncio.wait_for(work(opened), 60)

    return asyncio.run(inside())


def context_of(directory: Path, dockerfile: str, **files: str) -> Path:
    (directory / "Dockerfile").write_text(dockerfile)
    for name, text in files.items():
        (directory / name).write_text(text)
    return directory


def test_a_build_is_kept_under_its_name_and_tells_what_it_is(daemon: RunningDaemon, tmp_path: Path) -> None:
    context = context_of(tmp_path, "FROM busybox\nCOPY f /f\n", f="x")

    async def work(client: Client) -> dict[str, str]:
        request = control_pb2.SolveRequest(ref="kept", session=client.session, frontend="dockerfile.v0")
        request.exporters.add(type="moby", attrs={"name": "over/buildkit:1"})
        answer = await client.call(CONTROL + "Solve", request, control_pb2.SolveResponse)
        return dict(answer.exporter_response)

    answer = run(daemon, context, work)
    assert answer["image.name"] == "docker.io/over/buildkit:1"
    inspected = daemon.request("GET", "/images/over/buildkit:1/json").json()
    assert answer["containerimage.config.digest"] == inspected["Id"]


def test_progress_comes_from_the_first_step_to_the_last(daemon: RunningDaemon, tmp_path: Path) -> None:
    context = context_of(tmp_path, "FROM busybox\nRUN echo told-by-the-step\n")

    async def work(client: Client) -> list[control_pb2.StatusResponse]:
        reading = asyncio.ensure_future(client.statuses("progress"))
        await client.solve(ref="progress")
        return await reading

    statuses = run(daemon, context, work)
    names = [vertex.name for status in statuses for vertex in status.vertexes]
    assert names[0] == "[internal] load build definition from Dockerfile"
    assert "[2/2] RUN echo told-by-the-step" in names
    assert b"told-by-the-step" in b"".join(log.msg for status in statuses for log in status.logs)
    begun = {vertex.digest for status in statuses for vertex in status.vertexes}
    ended = {v.digest for status in statuses for v in status.vertexes if v.HasField("completed")}
    assert begun == ended


def test_what_is_exported_goes_to_the_client(daemon: RunningDaemon, tmp_path: Path) -> None:
    context = context_of(tmp_path, "FROM scratch\nCOPY f /there\n", f="content")

    async def work(client: Client) -> list[Any]:
        await client.solve(exporter="tar")
        return client.results.archives

    ((_, data),) = run(daemon, context, work)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        member = archive.extractfile("there")
        assert member is not None
        assert member.read() == b"content"


def test_a_failing_step_comes_with_the_dockerfiles_lines(daemon: RunningDaemon, tmp_path: Path) -> None:
    context = context_of(tmp_path, "FROM busybox\nRUN exit 7\n")
    with pytest.raises(RpcError, match="did not complete successfully: exit code: 7") as caught:
        run(daemon, context, lambda client: client.solve())
    assert [detail.type_url for detail in caught.value.details] == ["github.com/moby/buildkit/errdefs.Source+json"]


def test_ignored_files_stay_with_the_client(daemon: RunningDaemon, tmp_path: Path) -> None:
    context = context_of(tmp_path, "FROM busybox\nCOPY . /c\nRUN test ! -e /c/no && test -e /c/yes\n", no="", yes="")
    (context / ".dockerignore").write_text("no\n")
    run(daemon, context, lambda client: client.solve())


def test_secrets_are_asked_for_when_a_step_needs_them(daemon: RunningDaemon, tmp_path: Path) -> None:
    line = "RUN --mount=type=secret,id={},required=true test \"$(cat /run/secrets/{})\" = 'from the client'\n"
    context = context_of(tmp_path, "FROM busybox\n" + line.format("known", "known"))
    run(daemon, context, lambda client: client.solve())
    context_of(tmp_path, "FROM busybox\n" + line.format("other", "other"))
    with pytest.raises(RpcError, match="secret other: not found"):
        run(daemon, context, lambda client: client.solve())


def test_a_client_drives_a_build_by_itself(daemon: RunningDaemon, tmp_path: Path) -> None:
    context = context_of(tmp_path, "FROM busybox\nCOPY f /f\n", f="x")

    async def work(client: Client) -> dict[str, str]:
        request = control_pb2.SolveRequest(ref="driven", session=client.session)
        request.exporters.add(type="moby", attrs={"name": "driven"})
        solving = asyncio.ensure_future(client.call(CONTROL + "Solve", request, control_pb2.SolveResponse))
        pong = await client.call(BRIDGE + "Ping", gateway_pb2.PingRequest(), gateway_pb2.PongResponse, build="driven")
        assert "return" in {cap.id for cap in pong.frontend_api_caps if cap.enabled}
        wanted = gateway_pb2.SolveRequest(frontend="dockerfile.v0", allow_result_return=True)
        solved = await client.call(BRIDGE + "Solve", wanted, gateway_pb2.SolveResponse, build="driven")
        assert solved.result.ref.id
        assert not solving.done()
        returned = gateway_pb2.ReturnRequest(result=solved.result)
        await client.call(BRIDGE + "Return", returned, gateway_pb2.ReturnResponse, build="driven")
        return dict((await solving).exporter_response)

    assert run(daemon, context, work)["image.name"] == "docker.io/library/driven:latest"


def test_images_are_resolved_for_clients(daemon: RunningDaemon, tmp_path: Path) -> None:
    async def work(client: Client) -> Any:
        request = control_pb2.SolveRequest(ref="resolving", session=client.session)
        solving = asyncio.ensure_future(client.call(CONTROL + "Solve", request, control_pb2.SolveResponse))
        asked = gateway_pb2.ResolveSourceMetaRequest(source={"identifier": "docker-image://busybox"})
        answer = await client.call(
            BRIDGE + "ResolveSourceMeta", asked, gateway_pb2.ResolveSourceMetaResponse, build="resolving"
        )
        await client.call(BRIDGE + "Return", gateway_pb2.ReturnRequest(), gateway_pb2.ReturnResponse, build="resolving")
        await solving
        return answer

    answer = run(daemon, context_of(tmp_path, "FROM scratch\n"), work)
    inspected = daemon.request("GET", "/images/busybox/json").json()
    assert json.loads(answer.image.config)["rootfs"]["diff_ids"] == inspected["RootFS"]["Layers"]


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("frontend.lint", b"ConsistentInstructionCasing"),
        ("frontend.outline", b'"name": "A"'),
        ("frontend.targets", b'"targets"'),
        ("frontend.subrequests.describe", b"frontend.outline"),
    ],
)
def test_questions_are_answered_without_a_build(
    daemon: RunningDaemon, tmp_path: Path, question: str, words: bytes
) -> None:
    context = context_of(tmp_path, "FROM busybox\nARG A\nrun true\n")

    async def work(client: Client) -> bytes:
        request = control_pb2.SolveRequest(ref=question, session=client.session)
        solving = asyncio.ensure_future(client.call(CONTROL + "Solve", request, control_pb2.SolveResponse))
        asked = gateway_pb2.SolveRequest(frontend="dockerfile.v0", frontend_opt={"requestid": question})
        answer = await client.call(BRIDGE + "Solve", asked, gateway_pb2.SolveResponse, build=question)
        returned = gateway_pb2.ReturnRequest(result=gateway_pb2.Result(metadata=answer.result.metadata))
        await client.call(BRIDGE + "Return", returned, gateway_pb2.ReturnResponse, build=question)
        await solving
        return bytes(answer.result.metadata["result.json"])

    assert words in run(daemon, context, work)


@pytest.mark.parametrize(
    ("request_fields", "words"),
    [
        ({"frontend": "gateway.v0", "frontend_attrs": {"source": "x/y"}}, "not built in"),
        ({"frontend": "nothing.v1"}, "not built in"),
        ({"definition": {"def": [b"\x1a\x02\n\x00"]}}, "low-level operations"),
        ({"frontend": "dockerfile.v0", "exporters": [{"type": "floppy"}]}, "could not be found"),
        ({"frontend": "dockerfile.v0", "cache": {"exports": [{"type": "gha"}]}}, 'unknown cache exporter: "gha"'),
        ({"frontend": "dockerfile.v0", "entitlements": ["device"]}, "device"),
    ],
)
def test_what_there_is_not_is_refused_in_a_sentence(
    daemon: RunningDaemon, tmp_path: Path, request_fields: dict[str, Any], words: str
) -> None:
    async def work(client: Client) -> None:
        request = control_pb2.SolveRequest(ref=uuid.uuid4().hex, session=client.session, **request_fields)
        await client.call(CONTROL + "Solve", request, control_pb2.SolveResponse)

    with pytest.raises(RpcError, match=words):
        run(daemon, context_of(tmp_path, "FROM scratch\n"), work)


def test_a_client_that_goes_away_ends_its_step(daemon: RunningDaemon, tmp_path: Path) -> None:
    mark = f"9{os.getpid()}"
    context = context_of(tmp_path, f"FROM busybox\nRUN sleep {mark}\n")

    def running() -> bool:
        return subprocess.run(["pgrep", "-fx", f"sleep {mark}"], capture_output=True, check=False).returncode == 0

    async def work(client: Client) -> None:
        solving = asyncio.ensure_future(client.solve())
        while not running():  # a process outside is no event
            assert not solving.done()
            await asyncio.sleep(0.05)
        solving.cancel()

    run(daemon, context, work)
    for _ in range(200):
        if not running():
            return
        asyncio.run(asyncio.sleep(0.05))
    raise AssertionError("the step goes on")


@pytest.fixture
def root(_seed_root: Path, tmp_path: Path) -> Path:
    """A store of one's own."""
    subprocess.run(["cp", "-a", str(_seed_root), str(tmp_path / "root")], check=True)
    return tmp_path / "root"


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_daemon_that_ends_in_the_middle_of_a_build_leaves_nothing_in_the_next_ones_way(
    end: str, root: Path, tmp_path: Path
) -> None:
    context = tmp_path / "context"
    context.mkdir()
    context_of(context, "FROM busybox\nRUN echo begun && sleep 300\n")

    with running_daemon(tmp_path / "daemon", root) as daemon:

        async def work(client: Client) -> int | None:
            solving = asyncio.ensure_future(client.solve(ref="long"))
            async with client.channel.stream(CONTROL + "Status", control_pb2.StatusResponse) as call:
                await call.send(control_pb2.StatusRequest(ref="long"), end=True)
                while (status := await call.receive()) is not None:
                    if any(b"begun" in log.msg for log in status.logs):
                        break
                ended = await asyncio.to_thread(getattr(daemon, end))
            with pytest.raises(RpcError):
                await solving
            return ended

        ended = run(daemon, context, work)
        if end == "stop":
            assert ended == 0
            assert os.listdir(root / "active") == []
        daemon.start()
        assert os.listdir(root / "active") == []


def test_the_daemon_tells_of_itself_and_of_its_cache(daemon: RunningDaemon, tmp_path: Path) -> None:
    async def work(client: Client) -> None:
        info = await client.call(CONTROL + "Info", control_pb2.InfoRequest(), control_pb2.InfoResponse)
        assert info.buildkit_version.package == "pybuild"
        listed = await client.call(
            CONTROL + "ListWorkers", control_pb2.ListWorkersRequest(), control_pb2.ListWorkersResponse
        )
        assert listed.record[0].platforms[0].os == "linux"
        await client.solve()
        usage = await client.call(CONTROL + "DiskUsage", control_pb2.DiskUsageRequest(), control_pb2.DiskUsageResponse)
        assert any("echo for > /the-cache" in record.description for record in usage.record), usage
        async with client.channel.stream(CONTROL + "ListenBuildHistory", control_pb2.BuildHistoryEvent) as call:
            await call.send(control_pb2.BuildHistoryRequest(early_exit=True), end=True)
            assert await call.receive() is None

    run(daemon, context_of(tmp_path, "FROM busybox\nRUN echo for > /the-cache\n"), work)


@pytest.mark.parametrize(
    "attributes", [{"context": "/etc"}, {"context:x": "/etc"}, {"filename": "../../../../etc/passwd"}]
)
def test_nothing_is_read_of_the_daemons_machine(
    daemon: RunningDaemon, tmp_path: Path, attributes: dict[str, str]
) -> None:
    context = context_of(tmp_path, "FROM busybox\nCOPY --from=x passwd /p\n")
    with pytest.raises(RpcError) as caught:
        run(daemon, context, lambda client: client.solve(frontend_attrs=attributes))
    assert "root:" not in str(caught.value) + str(caught.value.details)
