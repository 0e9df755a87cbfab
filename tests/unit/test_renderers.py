"""How progress is shown: BuildKit's plain lines, its JSON stream, the redrawn block."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence

import pytest

from pybuild.builder.progress import BuildWarning, Event, StepDone, StepLog, StepProgress, StepStarted
from pybuild.cli.progress import Collecting, renderer_for, report_warnings
from pybuild.cli.render_json import JsonRenderer
from pybuild.cli.render_plain import PlainRenderer, human_bytes
from pybuild.cli.render_tty import TtyRenderer
from pybuild.errors import UsageError

EVENTS: Sequence[Event] = (
    StepStarted("a", "[internal] load build definition from Dockerfile", 10.0),
    StepProgress("a", "transferring dockerfile:", 142, 142, True, 10.0),
    StepDone("a", 10.04),
    StepStarted("b", "[1/3] FROM busybox", 10.1),
    StepDone("b", 10.1, cached=True),
    StepStarted("c", "[2/3] RUN one", 10.2, lines=(2, 2)),
    StepStarted("d", "[3/3] RUN two", 10.2),
    StepLog("c", 1, b"first\nsec", 10.5),
    StepLog("d", 2, b"other\n", 10.6),
    StepLog("c", 1, b"ond\nunfinished", 11.0),
    StepDone("c", 11.45),
    StepDone("d", 12.0, error="process failed"),
)


def plain(events: Sequence[Event]) -> str:
    out = io.StringIO()
    renderer = PlainRenderer(out)
    for event in events:
        renderer.emit(event)
    renderer.close()
    return out.getvalue()


def test_plain_progress_is_buildkits() -> None:
    assert plain(EVENTS) == (
        "#1 [internal] load build definition from Dockerfile\n"
        "#1 transferring dockerfile: 142B done\n"
        "#1 DONE 0.0s\n"
        "\n"
        "#2 [1/3] FROM busybox\n"
        "#2 CACHED\n"
        "\n"
        "#3 [2/3] RUN one\n"
        "#3 ...\n"
        "\n"
        "#4 [3/3] RUN two\n"
        "#4 ...\n"
        "\n"
        "#3 [2/3] RUN one\n"
        "#3 0.300 first\n"
        "#3 ...\n"
        "\n"
        "#4 [3/3] RUN two\n"
        "#4 0.400 other\n"
        "#4 ...\n"
        "\n"
        "#3 [2/3] RUN one\n"
        "#3 0.800 second\n"
        "#3 1.250 unfinished\n"
        "#3 DONE 1.2s\n"
        "\n"
        "#4 [3/3] RUN two\n"
        "#4 ERROR: process failed\n"
    )


def test_output_is_never_clipped_and_carriage_returns_show_the_last_state() -> None:
    long = b"x" * 100_000
    shown = plain([StepStarted("c", "RUN", 0.0), StepLog("c", 1, long + b"\n10%\r20%\r30%\n", 1.0), StepDone("c", 1.0)])
    assert long.decode() in shown
    assert "#1 1.000 30%\n" in shown
    assert "10%" not in shown


def test_bytes_that_are_no_text_are_shown_somehow() -> None:
    assert "�" in plain([StepStarted("c", "RUN", 0.0), StepLog("c", 1, b"\xff\n", 0.0)])


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0B"), (999, "999B"), (1615, "1.61kB"), (12_340, "12.34kB"), (47_880_000, "47.88MB"), (3e9, "3.00GB")],
)
def test_sizes_are_dockers(count: float, shown: str) -> None:
    assert human_bytes(count) == shown


def test_the_json_stream_holds_vertexes_statuses_logs_and_warnings() -> None:
    out = io.StringIO()
    renderer = JsonRenderer(out)
    for event in (
        *EVENTS,
        BuildWarning("StageNameCasing", "Stage name 'X' should be lowercase", lines=(1, 1), url="u"),
    ):
        renderer.emit(event)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert {key for line in lines for key in line} == {"vertexes", "statuses", "logs", "warnings"}
    vertexes = [vertex for line in lines for vertex in line.get("vertexes", [])]
    assert {"digest": "b", "cached": True}.items() <= vertexes[3].items()
    assert vertexes[-1]["error"] == "process failed"
    logs = b"".join(
        base64.b64decode(log["data"]) for line in lines for log in line.get("logs", []) if log["vertex"] == "c"
    )
    assert logs == b"first\nsecond\nunfinished"
    assert lines[-1]["warnings"][0]["range"] == [{"start": {"line": 1}, "end": {"line": 1}}]


@pytest.mark.parametrize("color", [True, False])
def test_the_block_fits_the_terminal_and_ends_complete(color: bool) -> None:
    out = io.StringIO()
    renderer = TtyRenderer(out, color=color)
    for event in (
        *EVENTS,
        StepStarted("e", "[4/4] " + "x" * 300, 12.0),
        StepProgress("e", "sha256:abc", 5, 10, False, 12.0),
    ):
        renderer.emit(event)
    renderer.close()
    final = out.getvalue().rpartition("[+] Building")[2]
    assert "CACHED [1/3] FROM busybox" in final
    assert "ERROR [3/3] RUN two" in final
    assert ("\x1b[31m" in final) == color
    import re

    for line in re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", final).splitlines():
        assert len(line) <= 80


def test_escape_sequences_of_a_step_never_reach_the_terminal() -> None:
    out = io.StringIO()
    renderer = TtyRenderer(out, color=False)
    renderer.emit(StepStarted("c", "RUN", 0.0))
    renderer.emit(StepLog("c", 1, b"\x1b[2Jwiped\x1b]0;title\x07 \x1b[31mred\n", 0.0))
    lines = "\n".join(renderer._block(80, final=False))
    renderer.close()
    assert "wiped" in lines
    assert "\x1b" not in lines


def test_auto_is_plain_where_there_is_no_terminal_and_unknown_modes_are_refused() -> None:
    assert isinstance(renderer_for("auto", variables={}, stream=io.StringIO()), PlainRenderer)
    with pytest.raises(UsageError, match="unknown progress mode"):
        renderer_for("fancy", variables={}, stream=io.StringIO())


def test_each_warning_is_listed_once_in_dockers_form() -> None:
    out = io.StringIO()
    collecting = Collecting(PlainRenderer(io.StringIO()))
    for _ in range(3):
        collecting.emit(BuildWarning("JSONArgsRecommended", "JSON arguments recommended for CMD", lines=(3, 3)))
    collecting.emit(BuildWarning("", "[Warning] One or more build-args [X] were not consumed"))
    report_warnings(collecting.warnings, stream=out)
    assert out.getvalue() == (
        "\n 2 warnings found:\n"
        " - JSONArgsRecommended: JSON arguments recommended for CMD (line 3)\n"
        " - [Warning] One or more build-args [X] were not consumed\n"
    )
