"""The daemon in operation: many clients, clients that go away or send garbage, kills and restarts, sockets, TLS, signals, figures."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import Pybuild, free_port
from daemons.running_daemon import RunningDaemon, UnixConnection, context_tar, running_daemon
from registry_servers.private_ca import private_ca

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def daemon(_seed_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    directory = tmp_path_factory.mktemp("daemon")
    subprocess.run(["cp", "-a", str(_seed_root), str(directory / "root")], check=True)
    with running_daemon(directory, directory / "root", "--log-format", "json") as running:
        yield running


def processes_with(marker: str) -> list[int]:
    """The processes that have ``marker`` among their arguments."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if marker.encode() in words:
                found.append(int(name))
    return found


def wait_until(condition: object, *, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]  # a function of no arguments
        if time.monotonic() > deadline:
            pytest.fail("it did not come about in time")
        time.sleep(0.05)


def begin_sleeping(daemon: RunningDaemon, marker: str, **query: str) -> UnixConnection:
    """A build whose second step sleeps, with ``marker`` as an argument of it; returns when it does."""
    body = context_tar(
        {"Dockerfile": f"FROM busybox\nRUN echo {marker} > /kept-{marker}\nRUN echo begun && sleep {marker}\n"}
    )
    connection = UnixConnection(daemon.socket)
    path = "/build?" + "&".join(f"{key}={value}" for key, value in query.items())
    connection.request("POST", path, body)
    response = connection.getresponse()
    while b"begun" not in (line := response.readline()) or b"Step" in line:
        assert line, daemon.log
    wait_until(lambda: processes_with(marker))
    return connection


# --- clients ---------------------------------------------------------------------------------------------------------


def test_fifty_clients_build_at_once(daemon: RunningDaemon) -> None:
    def one(number: int) -> tuple[int, str]:
        answer = daemon.build(
            {"Dockerfile": f"FROM busybox\nRUN echo shared > /s\nENV N={number}\n"}, t=f"fifty:{number}"
        )
        shown = daemon.request("GET", f"/images/fifty:{number}/json").json()
        return answer.status, next(entry for entry in shown["Config"]["Env"] if entry.startswith("N="))

    with ThreadPoolExecutor(50) as pool:
        results = list(pool.map(one, range(50)))
    assert results == [(200, f"N={number}") for number in range(50)]


def test_a_client_that_goes_away_ends_its_build(daemon: RunningDaemon) -> None:
    connection = begin_sleeping(daemon, "771001")
    connection.close()
    wait_until(lambda: not processes_with("771001"))
    wait_until(lambda: daemon.request("GET", "/health").json()["running"] == 0)
    assert os.listdir(daemon.root / "active") == []
    again = daemon.build({"Dockerfile": "FROM busybox\nRUN echo 771001 > /kept-771001\n"}).text()
    assert "Using cache" in again, "what was finished before counts"


def test_a_build_can_be_cancelled_by_its_identifier(daemon: RunningDaemon) -> None:
    connection = begin_sleeping(daemon, "771002", buildid="mine")
    assert daemon.request("POST", "/build/cancel", query={"id": "mine"}).status == 200
    wait_until(lambda: not processes_with("771002"))
    connection.close()
    assert daemon.request("POST", "/build/cancel", query={"id": "nobody's"}).status == 200
    assert daemon.request("POST", "/build/cancel").status == 400


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"garbage" * 1000, "no tar archive"),
        (b"", "the body is empty"),
        (gzip.compress(b"not a tar" * 100), "archive"),
        (context_tar({"../../evil": "x", "Dockerfile": "FROM scratch\n"}), "leaves the archive"),
        (context_tar({"x": "y"}), "Dockerfile"),
        (context_tar({"Dockerfile": "FROM busybox\n" * 3})[:700], "archive"),
    ],
    ids=["garbage", "empty", "gzip", "traversal", "no-dockerfile", "truncated"],
)
def test_a_context_that_is_none_is_refused(daemon: RunningDaemon, body: bytes, words: str) -> None:
    answer = daemon.request("POST", "/build", body)
    assert answer.status == 400, answer.body
    assert words in answer.json()["message"]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"dockerfile": "../../../etc/passwd"}, 400),
        ({"dockerfile": "/etc/passwd"}, 400),
        ({"remote": "/etc"}, 400),
        ({"remote": "client-session"}, 501),
        ({"session": "x"}, 501),
        ({"buildargs": "{x"}, 400),
        ({"labels": '["x"]'}, 400),
        ({"ulimits": '[{"Name":1}]'}, 400),
        ({"networkmode": "container:x"}, 501),
        ({"networkmode": "nonsense"}, 400),
        ({"t": "Upper:Case"}, 400),
        ({"t": "busybox@sha256:" + "0" * 64}, 400),
        ({"extrahosts": "nonsense"}, 400),
        ({"shmsize": "many"}, 400),
        ({"platform": "a/b/c/d"}, 400),
        ({"outputs": '[{"Type":"local","Attrs":{"dest":"/etc"}}]'}, 400),
        ({"version": "3"}, 400),
    ],
)
def test_a_wrong_build_parameter_is_refused(daemon: RunningDaemon, query: dict[str, str], status: int) -> None:
    answer = daemon.request("POST", "/build", context_tar({"Dockerfile": "FROM busybox\n"}), query=query)
    assert answer.status == status, answer.body
    assert answer.json()["message"]


def test_a_dockerfile_that_is_a_link_out_of_the_context_is_not_followed(daemon: RunningDaemon) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        link = tarfile.TarInfo("Dockerfile")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    answer = daemon.request("POST", "/build", out.getvalue())
    assert answer.status == 400
    assert "root:" not in answer.body.decode()


def test_a_bomb_of_a_context_does_not_fill_the_memory(daemon: RunningDaemon) -> None:
    before = daemon.resident_bytes()
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as packed:
        big = tarfile.TarInfo("big")
        big.size = 200 << 20
        packed.write(big.tobuf())
        for _ in range(200):
            packed.write(bytes(1 << 20))
        packed.write(context_tar({"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"}))
    answer = daemon.request("POST", "/build", out.getvalue())
    assert "Successfully built" in answer.text()
    assert daemon.resident_bytes() - before < 64 << 20


def test_a_slow_reader_makes_the_work_wait_and_not_the_memory_grow(daemon: RunningDaemon) -> None:
    before = daemon.resident_bytes()
    body = context_tar(
        {"Dockerfile": "FROM busybox\nRUN yes 0123456789012345678901234567890123456789 | head -c 100000000\n"}
    )
    connection = UnixConnection(daemon.socket)
    connection.request("POST", "/build", body)
    connection.getresponse()
    time.sleep(1)
    assert daemon.resident_bytes() - before < 64 << 20
    connection.close()
    wait_until(lambda: daemon.request("GET", "/health").json()["running"] == 0)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01 not http at all\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /build HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
        b"POST /build HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\nabc",
        b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n",
        b"\0" * 4096,
    ],
)
def test_what_is_no_request_does_no_harm(daemon: RunningDaemon, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(daemon.socket))
        raw.sendall(data)
        raw.settimeout(0.3)
        try:
            raw.recv(1000)
        except TimeoutError:
            pass
    assert daemon.request("GET", "/_ping").body == b"OK"


def test_unknown_endpoints_and_versions_are_told(daemon: RunningDaemon) -> None:
    assert (daemon.request("GET", "/nope").status, daemon.request("PUT", "/_ping").status) == (404, 404)
    assert daemon.request("GET", "/nope").json() == {"message": "page not found"}
    assert "too old" in daemon.request("GET", "/v1.12/info").json()["message"]
    assert "too new" in daemon.request("GET", "/v1.99/info").json()["message"]
    for method, path in (
        ("GET", "/swarm"),
        ("POST", "/containers/create"),
        ("POST", "/commit"),
    ):
        answer = daemon.request(method, path)
        assert answer.status == 501
        assert len(answer.json()["message"].split()) > 5
    assert daemon.request("GET", "/networks/default").status == 404
    for path in ("/session", "/v1.41/grpc"):
        answer = daemon.request("POST", path)
        assert (answer.status, "upgraded" in answer.json()["message"]) == (400, True)


def test_ping_has_the_headers_that_clients_negotiate_with(daemon: RunningDaemon) -> None:
    for method, body in (("GET", b"OK"), ("HEAD", b"")):
        answer = daemon.request(method, "/_ping")
        assert answer.body == body
        assert answer.headers["Api-Version"] == "1.56"
        assert answer.headers["Builder-Version"] == "2"
        assert answer.headers["Ostype"] == "linux"
        assert answer.headers["Cache-Control"] == "no-cache, no-store, must-revalidate"


# --- seeing in -------------------------------------------------------------------------------------------------------


def test_requests_are_counted_and_can_be_found_in_the_log(daemon: RunningDaemon) -> None:
    answer = daemon.request("GET", "/version", headers={"X-Request-Id": "asked-by-me"})
    assert answer.headers["X-Request-Id"] == "asked-by-me"
    wait_until(lambda: "asked-by-me" in daemon.log)
    line = next(line for line in map(json.loads, daemon.log.splitlines()) if line.get("request") == "asked-by-me")
    assert (line["level"], line["method"], line["path"], line["status"]) == ("info", "GET", "/version", 200)
    text = daemon.request("GET", "/metrics").body.decode()
    assert 'pybuild_requests_total{method="GET",route="/version",status="200"}' in text
    assert "process_resident_memory_bytes " in text


def test_an_event_stream_is_live_and_ends_with_its_client(daemon: RunningDaemon) -> None:
    connection = UnixConnection(daemon.socket, timeout=10)
    connection.request("GET", '/events?filters={"event":["tag"]}')
    response = connection.getresponse()
    daemon.request("POST", "/images/busybox/tag", query={"repo": "live", "tag": "1"})
    event = json.loads(response.readline())
    assert (event["Action"], event["Actor"]["Attributes"]["name"]) == ("tag", "live:1")
    listening = lambda: daemon.request("GET", "/info").json()["NEventsListener"]  # noqa: E731
    assert listening() == 1
    connection.close()
    wait_until(lambda: listening() == 0)


# --- the process -----------------------------------------------------------------------------------------------------


def test_a_killed_daemon_loses_nothing_that_was_finished(pybuild: Pybuild, tmp_path: Path) -> None:
    with running_daemon(tmp_path / "d", pybuild.root) as daemon:
        daemon.build({"Dockerfile": "FROM busybox\nRUN echo finished > /f\n"}, t="finished:1")
        begin_sleeping(daemon, "772001")
        daemon.kill()
        wait_until(lambda: not processes_with("772001"))
        daemon.start()
        assert daemon.request("GET", "/images/finished:1/json").status == 200
        assert "Using cache" in daemon.build({"Dockerfile": "FROM busybox\nRUN echo finished > /f\n"}).text()
        assert "Using cache" in daemon.build({"Dockerfile": "FROM busybox\nRUN echo 772001 > /kept-772001\n"}).text()
        wait_until(lambda: os.listdir(pybuild.root / "active") == [])


def test_a_daemon_that_is_told_to_end_ends_its_work_first(pybuild: Pybuild, tmp_path: Path) -> None:
    with running_daemon(tmp_path / "d", pybuild.root, "--pidfile", str(tmp_path / "pid")) as daemon:
        assert (tmp_path / "pid").read_text() == f"{daemon.pid}\n"
        begin_sleeping(daemon, "772002")
        assert daemon.stop() == 0
        assert not processes_with("772002")
        assert not daemon.socket.exists()
        assert not (tmp_path / "pid").exists()
        assert os.listdir(pybuild.root / "active") == []


def test_the_command_line_and_a_daemon_share_a_store(pybuild: Pybuild, tmp_path: Path) -> None:
    with running_daemon(tmp_path / "d", pybuild.root) as daemon:
        with ThreadPoolExecutor(4) as pool:
            by_daemon = [
                pool.submit(daemon.build, {"Dockerfile": f"FROM busybox\nRUN echo {n % 2} > /n\n"}, t=f"both:d{n}")
                for n in range(4)
            ]
            for number in range(2):
                pybuild.build(
                    f"FROM busybox\nRUN echo {number} > /n\n", tmp_path / f"c{number}", "-t", f"both:c{number}"
                )
            assert all(future.result().status == 200 for future in by_daemon)
        names = {row["RepoTags"][0] for row in daemon.request("GET", "/images/json").json() if row["RepoTags"]}
        listed = pybuild.run("images", "--format", "{{.Repository}}:{{.Tag}}").stdout.split()
        assert len(names) == 3, "equal images are one, with several names"
        assert {f"both:d{number}" for number in range(4)} | {"both:c0", "both:c1", "busybox:latest"} == set(listed)


def test_a_reload_takes_new_settings_and_survives_wrong_ones(pybuild: Pybuild, tmp_path: Path) -> None:
    with running_daemon(tmp_path / "d", pybuild.root, config='[daemon]\nlog-level = "info"\n') as daemon:
        assert daemon.config is not None
        daemon.config.write_text('[daemon]\nlog-level = "debug"\n[registry."docker.io"]\nmirrors = ["mirror.test"]\n')
        os.kill(daemon.pid, signal.SIGHUP)
        info = lambda: daemon.request("GET", "/info").json()  # noqa: E731
        wait_until(lambda: info()["Debug"] is True)
        assert info()["RegistryConfig"]["Mirrors"] == ["https://mirror.test/"]
        daemon.config.write_text("this is no TOML")
        os.kill(daemon.pid, signal.SIGHUP)
        wait_until(lambda: "can't be reloaded" in daemon.log)
        assert info()["RegistryConfig"]["Mirrors"] == ["https://mirror.test/"]


def test_a_flag_and_the_file_must_agree(pybuild: Pybuild, tmp_path: Path) -> None:
    config = tmp_path / "pybuild.toml"
    config.write_text('[daemon]\nlog-level = "warn"\nhost = ["unix:///a.sock"]\n')
    refused = pybuild.run(
        "--config", str(config), "daemon", "--log-level", "debug", "--host", "unix:///b.sock", check=False
    )
    assert refused.returncode == 1
    assert "specified both as a flag and in the configuration file" in refused.stderr
    assert "log-level: (from flag: debug, from file: warn)" in refused.stderr
    assert "host: (from flag: unix:///b.sock, from file: unix:///a.sock)" in refused.stderr


# --- sockets ---------------------------------------------------------------------------------------------------------


def test_the_socket_is_open_to_its_group_only(pybuild: Pybuild, tmp_path: Path) -> None:
    with running_daemon(tmp_path / "d", pybuild.root, "--group", "daemon", "--mode", "620") as daemon:
        import grp

        status = daemon.socket.stat()
        assert stat.S_IMODE(status.st_mode) == 0o620
        assert status.st_gid == grp.getgrnam("daemon").gr_gid


def test_a_second_daemon_leaves_the_first_ones_socket_alone(pybuild: Pybuild, tmp_path: Path) -> None:
    with running_daemon(tmp_path / "d", pybuild.root) as daemon:
        refused = pybuild.run("daemon", "--host", daemon.address, check=False)
        assert refused.returncode == 1
        assert "another daemon listens there" in refused.stderr
        assert daemon.request("GET", "/_ping").status == 200


def test_tcp_is_refused_unless_clients_are_verified_or_it_is_asked_for_twice(pybuild: Pybuild, tmp_path: Path) -> None:
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    for flags in ((), ("--tls=false",), ("--allow-unauthenticated-tcp",)):
        refused = pybuild.run("daemon", "--host", address, *flags, check=False)
        assert refused.returncode == 2
        assert "refusing to listen on TCP" in refused.stderr
    both = ("--host", address, "--host", f"unix://{tmp_path}/d/s.sock", "--tls=false", "--allow-unauthenticated-tcp")
    with running_daemon(tmp_path / "d", pybuild.root, *both) as daemon:
        assert "is open to everybody" in daemon.log
        assert pybuild.run("-H", address, "images", "-q").stdout


def test_tcp_with_tls_admits_only_clients_with_a_certificate(pybuild: Pybuild, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("the program openssl is not installed")
    made = private_ca(tmp_path / "ca")
    port = free_port()
    flags = ("--tlscacert", str(made.ca), "--tlscert", str(made.server), "--tlskey", str(made.server_key))
    address = f"tcp://127.0.0.1:{port}"
    certificates = tmp_path / "certs"
    certificates.mkdir()
    shutil.copy(made.ca, certificates / "ca.pem")
    with running_daemon(
        tmp_path / "d", pybuild.root, "--host", address, "--host", f"unix://{tmp_path}/d/s.sock", *flags
    ) as daemon:
        variables = {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(certificates)}
        without = pybuild.run("-H", address, "images", env=variables, check=False)
        assert without.returncode == 1
        plain = pybuild.run("-H", address, "images", check=False)
        assert plain.returncode == 1
        shutil.copy(made.client, certificates / "cert.pem")
        shutil.copy(made.client_key, certificates / "key.pem")
        assert "busybox" in pybuild.run("-H", address, "images", env=variables).stdout
        if shutil.which("docker") is not None:
            shown = daemon.docker("images", "-q", env={"DOCKER_HOST": address, **variables})
            assert shown.stdout


def test_systemd_can_hand_over_the_socket(pybuild: Pybuild, tmp_path: Path) -> None:
    path, notices = tmp_path / "passed.sock", tmp_path / "notify.sock"
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        listening.bind(str(path))
        listening.listen()
        notified.bind(str(notices))
        notified.settimeout(20)
        daemon = RunningDaemon(pybuild.root, path, tmp_path, ["--host", "fd://"])

        def become() -> None:
            # What systemd does before it executes a service: sd_listen_fds(3).
            os.dup2(listening.fileno(), 3)
            os.set_inheritable(3, True)

        # LISTEN_PID must be the daemon's own, which only it knows.
        command = ["sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", *daemon.command()]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                pass_fds=(3,) if listening.fileno() == 3 else (),
                close_fds=False,
                preexec_fn=become,
                env={**os.environ, "LISTEN_FDS": "1", "NOTIFY_SOCKET": str(notices)},
            )
        try:
            assert notified.recv(1000).startswith(b"READY=1")
            assert daemon.request("GET", "/_ping").body == b"OK"
        finally:
            process.terminate()
            assert process.wait(20) == 0
        assert notified.recv(1000) == b"STOPPING=1"
        assert path.exists(), "the socket is systemd's"
