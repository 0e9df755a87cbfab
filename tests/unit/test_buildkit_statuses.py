"""Our events as BuildKit's statuses, and who reads them."""

from __future__ import annotations

import asyncio
import json

from pybuild.builder.failure import BuildFailed
from pybuild.builder.progress import BuildWarning, StepDone, StepLog, StepProgress, StepStarted
from pybuild.daemon.buildkit_api.build_errors import rpc_error
from pybuild.daemon.buildkit_api.rpc import Code
from pybuild.daemon.buildkit_api.status_log import StatusLog, StatusMapping
from pybuild.errors import Cancelled
from pybuild.parser import parse

STEP = StepStarted("sha256:1", "[1/2] RUN true", 10.5, inputs=("sha256:0",), lines=(2, 2))


def test_a_step_is_told_whole_at_its_beginning_and_at_its_end() -> None:
    mapping = StatusMapping()
    (begun,) = mapping.status(STEP).vertexes
    assert (begun.digest, begun.name, list(begun.inputs)) == ("sha256:1", "[1/2] RUN true", ["sha256:0"])
    assert (begun.started.seconds, begun.started.nanos) == (10, 500_000_000)
    assert not begun.HasField("completed")
    assert mapping.unfinished == (STEP,)
    (ended,) = mapping.status(StepDone("sha256:1", 12.0, error="it broke")).vertexes
    assert (ended.name, ended.error, ended.completed.seconds) == ("[1/2] RUN true", "it broke", 12)
    assert ended.started == begun.started
    assert mapping.unfinished == ()


def test_a_cached_step_says_so() -> None:
    mapping = StatusMapping()
    mapping.status(STEP)
    assert mapping.status(StepDone("sha256:1", 12.0, cached=True)).vertexes[0].cached


def test_output_keeps_its_bytes_and_its_stream() -> None:
    (log,) = StatusMapping().status(StepLog("sha256:1", 2, b"\xff\n", 1.0)).logs
    assert (log.vertex, log.stream, log.msg) == ("sha256:1", 2, b"\xff\n")


def test_transfers_have_no_total_and_pulls_have() -> None:
    mapping = StatusMapping()
    (transfer,) = mapping.status(StepProgress("s", "transferring context:", 5, 5, True, 2.0)).statuses
    assert (transfer.current, transfer.total, transfer.HasField("completed")) == (5, 0, True)
    (first,) = mapping.status(StepProgress("s", "sha256:aa", 1, 9, False, 3.0)).statuses
    (last,) = mapping.status(StepProgress("s", "sha256:aa", 9, 9, True, 4.0)).statuses
    assert (first.total, first.HasField("completed")) == (9, False)
    assert (last.started, last.completed.seconds) == (first.started, 4)


def test_warnings_show_their_line_as_the_reference_writes_it() -> None:
    mapping = StatusMapping()
    mapping.status(StepStarted("sha256:d", "[internal] load build definition from Dockerfile", 1.0))
    mapping.dockerfile = parse(b"FROM scratch\n", filename="Dockerfile")
    (warning,) = mapping.status(BuildWarning("Rule", "words", lines=(1, 1), url="u", detail="why")).warnings
    assert warning.short == b"Rule: words (line 1)"
    assert (warning.vertex, warning.url, list(warning.detail)) == ("sha256:d", "u", [b"why"])
    assert (warning.info.filename, warning.info.data) == ("Dockerfile", b"FROM scratch\n")
    assert warning.ranges[0].start.line == 1


def test_names_that_are_not_utf8_can_be_told() -> None:
    assert StatusMapping().status(StepStarted("s", "COPY \udcff /", 1.0)).SerializeToString()


def test_readers_see_everything_however_late_they_come() -> None:
    async def run() -> tuple[list[str], list[str]]:
        log = StatusLog(asyncio.get_running_loop())
        log.emit(STEP)

        async def read() -> list[str]:
            return [vertex.digest async for status in log.follow() for vertex in status.vertexes]

        early = asyncio.ensure_future(read())
        await asyncio.sleep(0)
        await asyncio.to_thread(log.emit, StepDone("sha256:1", 11.0))
        log.finish()
        log.emit(StepStarted("after", "the end", 12.0))
        return await early, await read()

    early, late = asyncio.run(run())
    assert early == late == ["sha256:1", "sha256:1"]


def test_output_that_nobody_reads_has_an_end() -> None:
    async def run() -> int:
        log = StatusLog(asyncio.get_running_loop())
        for _ in range(80):
            log.emit(StepLog("s", 1, bytes(1 << 20), 1.0))
        log.finish()
        return sum([len(entry.msg) async for status in log.follow() for entry in status.logs])

    assert asyncio.run(run()) == 32 << 20


def test_output_that_is_read_makes_room_for_more_and_what_was_left_out_is_told() -> None:
    async def scenario() -> None:
        log = StatusLog(asyncio.get_running_loop())
        log.emit(STEP)
        piece = b"x" * (8 << 20)

        def emit(count: int) -> None:
            for number in range(count):
                log.emit(StepLog("sha256:1", 1, b"%d" % number + piece, float(number)))

        reader = log.follow()
        assert (await anext(reader)).vertexes
        emit(6)
        first = [(await anext(reader)).logs[0].msg[:1] for _ in range(3)]
        assert first == [b"0", b"1", b"2"]
        emit(1)
        log.emit(StepDone("sha256:1", 12.0))
        log.finish()
        rest = [status async for status in reader]
        assert [part.msg[:2] for status in rest for part in status.logs] == [b"\n[", b"0x"]
        assert b"clipped" in rest[0].logs[0].msg
        assert rest[-1].vertexes[0].HasField("completed")
        # Who comes later gets what is left, and every step.
        late = [status async for status in log.follow()]
        assert [len(status.vertexes) for status in late if status.vertexes] == [1, 1]
        assert sum(len(part.msg) for status in late for part in status.logs) <= 33 << 20

    asyncio.run(scenario())


def test_a_failed_build_shows_the_client_where() -> None:
    dockerfile = parse(b"FROM scratch\nCOPY a b\n", filename="D")
    error = rpc_error(BuildFailed("it broke", hint=None, lines=(2, 2)), dockerfile)
    assert (error.code, error.message) == (Code.UNKNOWN, "it broke")
    (detail,) = error.details
    assert detail.type_url == "github.com/moby/buildkit/errdefs.Source+json"
    value = json.loads(detail.value)
    assert value["info"]["filename"] == "D"
    assert value["ranges"] == [{"start": {"line": 2}, "end": {"line": 2}}]


def test_a_cancelled_build_has_grpcs_own_code() -> None:
    assert rpc_error(Cancelled(), None).code is Code.CANCELLED
