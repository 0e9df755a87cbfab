"""What the API reads and says: parameters, filters, times, credentials, versions, events, progress, options, figures."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.builder.progress import StepDone, StepLog, StepStarted
from pybuild.daemon.api_build import build_request
from pybuild.daemon.api_classic import ClassicTranscript
from pybuild.daemon.api_errors import ApiError, BadParameter, message_of, status_of
from pybuild.daemon.api_events import DaemonEvent, Events
from pybuild.daemon.api_images import joined_name
from pybuild.daemon.api_metrics import Metrics
from pybuild.daemon.api_progress import bytes_text, end_of_pull, progress_fields, pull_messages
from pybuild.daemon.api_request import Filters, OneCredential, Parameters, _decoded, parse_time
from pybuild.daemon.api_versions import NEWEST, OLDEST, ApiVersion, UnsupportedVersion
from pybuild.daemon.daemon_options import ConflictingSettings, DaemonOptions, merge, normal_address
from pybuild.errors import PybuildError, UsageError
from pybuild.layers.descriptor import Platform
from pybuild.layers.digest import Digest
from pybuild.layers.images import ImageInUse, ImageNotFound
from pybuild.layers.references import InvalidReference, Reference
from pybuild.parser import parse
from pybuild.registry_client.credentials import Credential
from pybuild.registry_client.transfers import Transfer, TransferState


def parameters(version: ApiVersion = NEWEST, **values: Any) -> Parameters:
    return Parameters(
        [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in values.items()],
        version=version,
    )


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("1", True),
        ("true", True),
        ("True", True),
        ("yes", True),
        ("0", False),
        ("false", False),
        ("no", False),
        ("none", False),
        ("", False),
    ],
)
def test_booleans_are_read_as_docker_reads_them(text: str, truth: bool) -> None:
    assert parameters(q=text).flag("q") is truth


def test_a_missing_boolean_has_its_default() -> None:
    assert parameters().flag("rm", default=True)
    assert not parameters().flag("rm")


@pytest.mark.parametrize("value", ['{"label": ["a", "b=c"]}', '{"label": {"a": true, "b=c": true, "d": false}}'])
def test_filters_are_read_in_todays_and_in_the_old_form(value: str) -> None:
    assert parameters(filters=value).filters(["label"]).get("label") == ("a", "b=c")


@pytest.mark.parametrize("value", ["[]", '{"colour": ["red"]}', '{"label": "a"}', '{"label": [1]}', "{", '"x"'])
def test_filters_that_make_no_sense_are_refused(value: str) -> None:
    with pytest.raises(BadParameter):
        parameters(filters=value).filters(["label"])


def test_a_filter_that_is_true_or_false_says_so() -> None:
    assert Filters({"dangling": ("true",)}).flag("dangling") is True
    assert Filters({"dangling": ("0",)}).flag("dangling") is False
    assert Filters({}).flag("dangling") is None
    with pytest.raises(BadParameter):
        Filters({"dangling": ("perhaps",)}).flag("dangling")


def test_a_platform_is_json_and_only_in_versions_that_know_it() -> None:
    value = {"os": "linux", "architecture": "arm", "variant": "v7"}
    assert parameters(platform=value).platform() == Platform("linux", "arm", "v7")
    assert parameters(ApiVersion(1, 41), platform=value).platform(since=ApiVersion(1, 48)) is None
    with pytest.raises(BadParameter):
        parameters(platform="linux/arm").platform()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1700000000", 1.7e9),
        ("1700000000.5", 1700000000.5),
        ("2023-11-14T22:13:20Z", 1.7e9),
        ("10m", 400.0),
        ("1h", -2600.0),
    ],
)
def test_times_are_numbers_dates_or_durations_before_now(text: str, seconds: float) -> None:
    assert parse_time(text, now=1000.0) == seconds


@given(st.text(max_size=40))
@settings(deadline=None, max_examples=100)
def test_no_time_crashes(text: str) -> None:
    try:
        parse_time(text, now=0.0)
    except BadParameter:
        pass


@given(st.text(max_size=80))
@settings(deadline=None, max_examples=100)
def test_no_credential_header_crashes(text: str) -> None:
    _decoded(text)
    _decoded(base64.b64encode(text.encode()).decode())


def test_both_alphabets_of_base64_are_read() -> None:
    value = {"username": "u", "password": "\u00bf\u00bf\u00ff\u00fe??>>"}
    raw = json.dumps(value, ensure_ascii=False).encode()
    for encoded in (base64.b64encode(raw), base64.urlsafe_b64encode(raw), base64.urlsafe_b64encode(raw).rstrip(b"=")):
        assert _decoded(encoded.decode()) == value


def test_a_credential_for_one_registry_goes_to_no_other() -> None:
    credential = Credential("u", "p")
    one = OneCredential("a.test", credential)
    assert one.get("a.test") == credential
    assert one.get("mirror.test") is None


def test_versions_outside_of_what_is_spoken_are_refused() -> None:
    assert ApiVersion.parse("v1.41") == ApiVersion(1, 41) < ApiVersion(1, 100)
    for text in (f"1.{OLDEST.minor - 1}", f"1.{NEWEST.minor + 1}", "2.0", "x", "1", "1.41.0"):
        with pytest.raises(UnsupportedVersion):
            ApiVersion.parse(text)


def test_names_are_joined_from_dockers_two_parameters() -> None:
    assert joined_name("busybox", "1") == "docker.io/library/busybox:1"
    assert joined_name("busybox:1", "") == "busybox:1"
    digest = f"sha256:{'0' * 64}"
    assert joined_name("busybox", digest) == f"docker.io/library/busybox@{digest}"
    assert joined_name("", "x") is None
    with pytest.raises(InvalidReference):
        joined_name("busybox", "no tag")


def test_a_build_request_has_all_that_the_query_says() -> None:
    request = build_request(
        Parameters(
            [
                ("t", "a:1"),
                ("t", "b:2"),
                ("dockerfile", "./sub/../My.Dockerfile"),
                ("buildargs", '{"A": "1", "B": null}'),
                ("labels", '{"l": "m"}'),
                ("extrahosts", "h:1.2.3.4"),
                ("extrahosts", "six=[::1]"),
                ("networkmode", "host"),
                ("shmsize", "1024"),
                ("ulimits", '[{"Name": "nofile", "Soft": 1, "Hard": 2}]'),
                ("nocache", "1"),
                ("pull", "true"),
                ("squash", "1"),
                ("target", "stage"),
                ("platform", "linux/arm64"),
                ("cachefrom", '["cache:1"]'),
                ("cgroupparent", "/p"),
            ],
            version=NEWEST,
        )
    )
    assert request.tags == ("a:1", "b:2")
    assert request.dockerfile == "My.Dockerfile"
    assert dict(request.build_args) == {"A": "1"}
    assert dict(request.labels) == {"l": "m"}
    assert request.extra_hosts == (("h", "1.2.3.4"), ("six", "::1"))
    assert (request.network, request.entitlements) == ("host", {"network.host"})
    assert (request.shm_size, request.ulimits) == (1024, (("nofile", 1, 2),))
    assert request.no_cache
    assert request.pull
    assert request.squash
    assert (request.target, request.platforms) == ("stage", (Platform("linux", "arm64"),))
    assert (request.cache_from, request.cgroup_parent) == (("type=registry,ref=cache:1",), "/p")
    assert (request.context, request.hide_ignored_definition) == ("-", True)


@given(st.dictionaries(st.sampled_from(["dockerfile", "t", "buildargs", "ulimits", "extrahosts", "outputs", "networkmode", "remote", "shmsize", "cachefrom"]), st.text(max_size=30)))  # fmt: skip
@settings(deadline=None, max_examples=200)
def test_no_query_makes_more_than_a_refusal(values: dict[str, str]) -> None:
    refused = 400
    try:
        request = build_request(Parameters(values.items(), version=NEWEST))
    except PybuildError as error:
        refused = status_of(error)
    else:
        assert request.dockerfile is None or not request.dockerfile.startswith(("/", "../"))
    assert refused in (400, 501)


# --- telling ---------------------------------------------------------------------------------------------------------


def test_errors_have_the_statuses_and_words_that_clients_look_for() -> None:
    assert (status_of(ImageNotFound("x")), message_of(ImageNotFound("x"))) == (404, "No such image: x")
    assert status_of(ImageInUse("x", reason="r", forceable=True)) == 409
    assert status_of(UsageError("x")) == 400
    assert status_of(ApiError("x", status=418)) == 418
    assert status_of(PybuildError("x")) == 500


def test_sizes_and_bars_look_like_dockers() -> None:
    assert [bytes_text(count) for count in (0, 999, 1000, 1234567, 5_340_000_000)] == [
        "0B",
        "999B",
        "1kB",
        "1.235MB",
        "5.34GB",
    ]
    assert progress_fields(50, 100) == {
        "progressDetail": {"current": 50, "total": 100},
        "progress": f"[{'=' * 25}>{' ' * 25}]      50B/100B",
    }
    assert progress_fields(100, 100)["progress"] == f"[{'=' * 50}>]     100B/100B"
    assert progress_fields(5, 0) == {"progressDetail": {"current": 5}, "progress": "      5B"}


def test_a_pull_is_told_layer_by_layer() -> None:
    sent: list[Any] = []
    here, new = Digest.of(b"here"), Digest.of(b"new")
    reference = Reference.parse("host.test/a/b:1")
    messages = pull_messages(sent.append, reference, is_here=lambda digest: digest == here)
    for digest, state, current in (
        (here, TransferState.WAITING, 0),
        (new, TransferState.WAITING, 0),
        (here, TransferState.EXISTS, 5),
        (new, TransferState.RUNNING, 3),
        (new, TransferState.RUNNING, 4),
        (new, TransferState.DONE, 10),
    ):
        messages(Transfer(digest, "layer", state, current, 10))
    messages(Transfer(Digest.of(b"c"), "config", TransferState.DONE, 1, 1))
    end_of_pull(sent.append, messages, reference, digest=Digest.of(b"m"), changed=True)
    assert [(message["status"], message.get("id", "")) for message in sent] == [
        ("Pulling from a/b", "1"),
        ("Pulling fs layer", new.hex[:12]),
        ("Already exists", here.hex[:12]),
        ("Downloading", new.hex[:12]),
        ("Download complete", new.hex[:12]),
        ("Pull complete", new.hex[:12]),
        (f"Digest: {Digest.of(b'm')}", ""),
        ("Status: Downloaded newer image for host.test/a/b:1", ""),
    ]


def transcript(dockerfile: str, **options: Any) -> tuple[ClassicTranscript, list[Any]]:
    sent: list[Any] = []
    made = ClassicTranscript(
        sent.append, build_args={}, target=options.get("target"), quiet=options.get("quiet", False)
    )
    made.dockerfile(parse(dockerfile.encode()))
    return made, sent


def text_of(sent: list[Any]) -> str:
    return "".join(message.get("stream", "") for message in sent)


def test_what_a_later_step_prints_waits_for_its_turn() -> None:
    shown, sent = transcript("FROM busybox\nRUN one\nRUN two\n")
    for key, line in (("k2", 2), ("k3", 3)):
        shown.emit(StepStarted(key, "", 0.0, (), (line, line)))
    shown.emit(StepLog("k3", 1, b"second\n", 0.0))
    shown.emit(StepDone("k3", 0.0))
    assert "second" not in text_of(sent)
    shown.emit(StepLog("k2", 1, "fir\u00e9".encode()[:-1], 0.0))
    shown.emit(StepLog("k2", 1, "\u00e9".encode()[1:] + b"st\n", 0.0))
    shown.emit(StepDone("k2", 0.0))
    shown.finish(Digest.of(b"image"))
    text = text_of(sent)
    assert "fir\u00e9st\n" in text
    assert (
        text.index("Step 2/3 : RUN one") < text.index("st\n") < text.index("Step 3/3 : RUN two") < text.index("second")
    )
    assert text.endswith(f" ---> {Digest.of(b'image').hex[:12]}\n")


def test_a_failed_step_is_the_last_that_is_shown() -> None:
    shown, sent = transcript("FROM busybox\nRUN one\nRUN two\nRUN three\n")
    shown.emit(StepStarted("k2", "", 0.0, (), (2, 2)))
    shown.emit(StepDone("k2", 0.0, cached=True))
    shown.emit(StepStarted("k3", "", 0.0, (), (3, 3)))
    shown.emit(StepLog("k3", 2, b"oops\n", 0.0))
    shown.emit(StepDone("k3", 0.0, error="exit code: 1"))
    shown.fail()
    text = text_of(sent)
    assert " ---> Using cache\n" in text
    assert "oops\n" in text
    assert "Step 4/4" not in text


def test_only_stages_that_are_built_are_counted() -> None:
    _, sent = transcript("FROM busybox AS a\nRUN one\nFROM busybox AS unused\nRUN two\nFROM a\nRUN three\n")
    assert text_of(sent).startswith("Step 1/4 : FROM busybox AS a\n")
    _, sent = transcript("FROM busybox AS a\nRUN one\nFROM a AS b\nRUN three\n", target="a")
    assert text_of(sent).startswith("Step 1/2 : ")
    _, sent = transcript("FROM busybox\n", quiet=True)
    assert sent == []


def test_events_filter_by_every_name_an_image_has() -> None:
    event = DaemonEvent(
        "image", "tag", f"sha256:{'ab' * 32}", {"name": "host.test:5/a/b:1", "vendor": "me"}, 5_000_000_007
    )
    yes = [
        {"type": ("image",)},
        {"event": ("tag", "push")},
        {"image": ("host.test:5/a/b:1",)},
        {"image": ("host.test:5/a/b",)},
        {"image": ("ab" * 6,)},
        {"label": ("vendor",)},
        {"label": ("vendor=me",)},
        {"scope": ("local",)},
        {},
    ]
    no = [
        {"type": ("daemon",)},
        {"event": ("ta",)},
        {"image": ("b",)},
        {"label": ("vendor=you",)},
        {"container": ("x",)},
        {"scope": ("swarm",)},
    ]
    assert all(event.passes(Filters(wanted)) for wanted in yes)
    assert not any(event.passes(Filters(wanted)) for wanted in no)
    assert event.to_json(ApiVersion(1, 41))["status"] == "tag"
    assert "status" not in event.to_json(ApiVersion(1, 52))
    assert (event.to_json(NEWEST)["time"], event.to_json(NEWEST)["timeNano"]) == (5, 5_000_000_007)


def test_events_that_happen_at_once_still_have_an_order() -> None:
    import asyncio

    events = Events(clock_ns=lambda: 7)

    async def listen() -> list[int]:
        async with events.listen() as listener:
            events.report("image", "pull", "b")
            second = await listener.next(timeout_seconds=5)
            assert second is not None
            return [*(event.time_ns for event in listener.past), second.time_ns]

    events.report("image", "pull", "a")
    assert asyncio.run(listen()) == [7, 8]


def test_figures_are_in_prometheus_form() -> None:
    metrics = Metrics(started=1.0)
    metrics.add("a_total", help="things", kind="counter", route='/x"\n')
    metrics.observe("b_seconds", 0.3, help="durations")
    lines = metrics.render().splitlines()
    assert "# TYPE a_total counter" in lines
    assert 'a_total{route="/x\\"\\n"} 1' in lines
    assert 'b_seconds_bucket{le="0.05"} 0' in lines
    assert 'b_seconds_bucket{le="+Inf"} 1' in lines
    assert "process_start_time_seconds 1" in lines


# --- options ---------------------------------------------------------------------------------------------------------


def options(flags: dict[str, Any] | None = None, **table: Any) -> DaemonOptions:
    return merge(
        flags or {}, {key.replace("_", "-"): value for key, value in table.items()}, default_host="unix:///d.sock"
    )


def test_options_come_from_flags_or_from_the_file() -> None:
    assert options().hosts == ("unix:///d.sock",)
    assert options({"host": ["/a.sock"]}).hosts == ("unix:///a.sock",)
    assert options(hosts=["unix:///b.sock", "fd://"]).hosts == ("unix:///b.sock", "fd://")
    assert options(mode="600", log_format="json").mode == 0o600
    assert options({"log-level": "warn"}, log_level="warn").log_level == "warn"


def test_a_flag_and_the_file_must_not_contradict_each_other() -> None:
    with pytest.raises(ConflictingSettings, match="log-level: \\(from flag: debug, from file: warn\\)"):
        options({"log-level": "debug"}, log_level="warn")


@pytest.mark.parametrize(
    "table",
    [
        {"unknown": 1},
        {"log_level": "loud"},
        {"log_format": "xml"},
        {"mode": "999"},
        {"host": 5},
        {"shutdown_timeout": True},
        {"host": ["http://x"]},
        {"host": ["tcp://0.0.0.0:2376"]},
        {"tlscert": "/nowhere"},
        {"tls": True},
    ],
)
def test_options_that_make_no_sense_are_refused(table: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        options(**table)


def test_tcp_needs_verified_clients_or_two_confirmations(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).touch()
    files = {"tlscacert": f"{tmp_path}/ca", "tlscert": f"{tmp_path}/cert", "tlskey": f"{tmp_path}/key"}
    tcp = ["tcp://:2376"]
    assert options(host=tcp, **files).hosts == ("tcp://127.0.0.1:2376",)
    assert options(host=tcp, tls=False, allow_unauthenticated_tcp=True).hosts
    for table in (
        {"tls": False},
        {"allow_unauthenticated_tcp": True},
        {**files, "tlsverify": False},
        {**files, "tls": False},
    ):
        with pytest.raises(UsageError, match="refusing to listen on TCP"):
            options(host=tcp, **table)


@given(st.text(max_size=30))
@settings(deadline=None, max_examples=100)
def test_no_address_crashes(text: str) -> None:
    try:
        assert "://" in normal_address(text)
    except UsageError:
        pass
