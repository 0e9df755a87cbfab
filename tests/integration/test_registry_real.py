"""Against docker-registry itself: plain, with basic authentication, with tokens, with TLS and client certificates, as a mirror."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from registry_servers.breaking_proxy import BreakingProxy
from registry_servers.connect_proxy import ConnectProxy
from registry_servers.docker_registry import PROGRAM, RunningRegistry, docker_registry
from registry_servers.private_ca import PrivateCa, private_ca
from registry_servers.sample_images import AMD64, ARM64, make_image, make_index, read
from registry_servers.token_server import Rights, TokenServer

from pybuild.layers.blobs import BlobStore
from pybuild.layers.descriptor import OCI_INDEX, OCI_MANIFEST, Descriptor
from pybuild.layers.digest import Digest
from pybuild.layers.image import Index, Manifest
from pybuild.layers.references import Reference
from pybuild.registry_client.auth import LoginFailed
from pybuild.registry_client.client import ImageNotFound, RegistryClient
from pybuild.registry_client.compose import delete
from pybuild.registry_client.credentials import Credential, DockerConfig, FixedCredentials, NoCredentials
from pybuild.registry_client.fetch import BlobReader
from pybuild.registry_client.login import login
from pybuild.registry_client.pull import pull
from pybuild.registry_client.push import push
from pybuild.registry_client.settings import NetworkSettings, Proxies, RegistrySettings
from pybuild.registry_client.transport import (
    ConnectionFailed,
    RegistryError,
    Transport,
    Unauthorized,
    UnexpectedStatus,
)

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(PROGRAM is None, reason="docker-registry is not installed"),
]
USER, SECRET = "tester", "s3cret words"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with docker_registry(tmp_path_factory.mktemp("plain")) as running:
        yield running


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> PrivateCa:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    return private_ca(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "store")


def client_for(
    settings: RegistrySettings | None = None,
    credentials: FixedCredentials | DockerConfig | NoCredentials | None = None,
    *,
    lines: list[str] | None = None,
) -> RegistryClient:
    return RegistryClient(Transport(settings, log=None if lines is None else lines.append), credentials)


def round_trip(client: RegistryClient, name: str, store: BlobStore, fresh: BlobStore) -> None:
    """Push an index with two platforms and pull both back."""
    index = make_index(store, make_image(store), make_image(store, seed=1, platform=ARM64))
    reference = Reference.parse(name)
    push(client, reference, index, store)
    pulled = pull(client, reference, fresh, all_platforms=True)
    assert pulled.descriptor == index
    for digest in fresh:
        assert Digest.of(read(fresh, digest)) == digest
    assert sorted(fresh) == sorted(store)


def test_a_round_trip_keeps_every_byte(plain: RunningRegistry, store: BlobStore, tmp_path: Path) -> None:
    with client_for() as client:
        round_trip(client, f"{plain.host}/round/trip:1", store, BlobStore(tmp_path / "fresh"))


def test_nothing_changed_is_one_request(plain: RunningRegistry, store: BlobStore) -> None:
    image = make_image(store, layers=6)
    reference = Reference.parse(f"{plain.host}/same/app:1")
    with client_for() as client:
        push(client, reference, image, store)
    with client_for() as client:
        assert push(client, reference, image, store).unchanged
        assert client.transport.requests_sent == 1


def test_mounts_move_no_bytes(plain: RunningRegistry, store: BlobStore) -> None:
    image = make_image(store, layers=4, seed=20)
    with client_for() as client:
        push(client, Reference.parse(f"{plain.host}/mount/one:1"), image, store)
        report = push(client, Reference.parse(f"{plain.host}/mount/two:1"), image, store, mount_from=["mount/one"])
    assert (report.mounted, report.bytes_sent) == (5, 0)


def test_a_registry_can_be_listed_and_deleted_from(plain: RunningRegistry, store: BlobStore) -> None:
    image = make_image(store, seed=30)
    reference = Reference.parse(f"{plain.host}/list/app:v1")
    with client_for() as client:
        push(client, reference, image, store, tags=["v2", "v3"])
        assert sorted(client.repository(reference).tags(page_items=2)) == ["v1", "v2", "v3"]
        assert "list/app" in list(client.catalog(plain.host))
        assert client.repository(reference).referrers(image.digest) == ()
        assert delete(client, reference.with_tag("v2")) in (None, image.digest)
        assert client.repository(reference).head_manifest("v2") is None
        with pytest.raises(ImageNotFound):
            delete(client, reference.with_tag("v2"))


def test_a_blob_can_be_read_from_the_middle(plain: RunningRegistry, store: BlobStore) -> None:
    image = make_image(store, layers=1, size=500_000, seed=40)
    layer = Manifest.from_bytes(read(store, image.digest)).layers[0]
    reference = Reference.parse(f"{plain.host}/range/app:1")
    with client_for() as client:
        push(client, reference, image, store)
        with BlobReader(client.repository(reference), layer) as reader:
            reader.seek(400_000)
            assert reader.read() == read(store, layer.digest)[400_000:]


def test_sha512_images_are_pushed_and_pulled(plain: RunningRegistry, store: BlobStore, tmp_path: Path) -> None:
    # docker-registry computes sha256 for the manifest itself; layers keep the digest that they were pushed under.
    data = b"layer" * 1000
    digest = store.write(data, algorithm="sha512")
    image = make_image(store, layers=1, seed=50)
    manifest = Manifest.from_bytes(read(store, image.digest))
    body = Manifest(manifest.config, (Descriptor(manifest.layers[0].media_type, digest, len(data)),)).to_bytes()
    descriptor = Descriptor(OCI_MANIFEST, store.write(body), len(body))
    reference = Reference.parse(f"{plain.host}/sha512/app:1")
    fresh = BlobStore(tmp_path / "fresh")
    with client_for() as client:
        push(client, reference, descriptor, store)
        pull(client, reference, fresh, platform=AMD64)
    assert read(fresh, digest) == data


@pytest.mark.parametrize("times", [1, 4])
def test_connections_that_break_do_not_spoil_a_round_trip(
    plain: RunningRegistry, store: BlobStore, tmp_path: Path, times: int
) -> None:
    image = make_image(store, layers=3, size=8 << 20, seed=200 + times)
    with BreakingProxy(plain.port, after_bytes=3 << 20, times=times) as proxy:
        transport = Transport(sleep=lambda seconds: None)
        with RegistryClient(transport) as client:
            push(client, Reference.parse(f"{proxy.host}/broken/app:{times}"), image, store)
        assert proxy.broken == times
    fresh = BlobStore(tmp_path / "fresh")
    with BreakingProxy(plain.port, after_bytes=3 << 20, times=times) as proxy:
        with RegistryClient(Transport(sleep=lambda seconds: None)) as client:
            pull(client, Reference.parse(f"{proxy.host}/broken/app:{times}"), fresh, platform=AMD64)
        assert proxy.broken == times
    assert sorted(fresh) == sorted(store)
    for digest in fresh:
        assert Digest.of(read(fresh, digest)) == digest


def test_an_image_that_refers_to_another_is_found_by_the_tag(plain: RunningRegistry, store: BlobStore) -> None:
    image = make_image(store, seed=60)
    note = make_image(store, layers=1, seed=61)
    manifest = Manifest.from_bytes(read(store, note.digest))
    subject = Descriptor(image.media_type, image.digest, image.size)
    body = Manifest(manifest.config, manifest.layers, subject=subject, artifact_type="application/x-note").to_bytes()
    artifact = Descriptor(OCI_MANIFEST, store.write(body), len(body))
    reference = Reference.parse(f"{plain.host}/refers/app:1")
    with client_for() as client:
        push(client, reference, image, store)
        push(client, reference.with_digest(artifact.digest), artifact, store)
        found = client.repository(reference).referrers(image.digest)
    assert [(item.digest, item.artifact_type) for item in found] == [(artifact.digest, "application/x-note")]


# --- basic authentication ---


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    if shutil.which("htpasswd") is None:
        pytest.skip("htpasswd is not installed")
    with docker_registry(tmp_path_factory.mktemp("basic"), htpasswd=(USER, SECRET)) as running:
        yield running


def test_basic_authentication(basic: RunningRegistry, store: BlobStore, tmp_path: Path) -> None:
    lines: list[str] = []
    credentials = FixedCredentials({basic.host: Credential(USER, SECRET)})
    with client_for(credentials=credentials, lines=lines) as client:
        round_trip(client, f"{basic.host}/basic/app:1", store, BlobStore(tmp_path / "fresh"))
    assert sum(" 401 " in line for line in lines) == 1
    assert not any(SECRET in line for line in lines)
    with client_for() as client, pytest.raises(Unauthorized) as caught:
        client.repository(Reference.parse(f"{basic.host}/basic/app")).get_manifest("1")
    assert caught.value.hint == f"log in with pybuild login {basic.host}"


def test_login_and_logout_with_basic_authentication(basic: RunningRegistry, tmp_path: Path) -> None:
    config = DockerConfig(str(tmp_path / "config.json"), environment={})
    with client_for() as client:
        with pytest.raises(LoginFailed):
            login(client, basic.host, Credential(USER, "wrong"))
        config.store(basic.host, login(client, basic.host, Credential(USER, SECRET)))
    with client_for(credentials=config) as client:
        client.ping(basic.host)
    config.erase(basic.host)
    with client_for(credentials=config) as client, pytest.raises(Unauthorized):
        client.ping(basic.host)


def test_a_failed_helper_is_the_hint_of_a_refusal(basic: RunningRegistry, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"credHelpers": {basic.host: "absent"}}))
    config = DockerConfig(str(tmp_path / "config.json"), environment={"PATH": str(tmp_path)})
    with client_for(credentials=config) as client, pytest.raises(Unauthorized) as caught:
        client.ping(basic.host)
    assert caught.value.hint == "docker-credential-absent is not installed"


# --- tokens ---


@pytest.fixture(scope="module")
def tokens(ca: PrivateCa) -> Iterator[TokenServer]:
    with TokenServer(Rights({USER: SECRET}), ca=ca) as server:
        yield server


@pytest.fixture(scope="module")
def token(tokens: TokenServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    directory = tmp_path_factory.mktemp("token")
    with docker_registry(directory, token=tokens.settings(directory)) as running:
        yield running


def test_tokens_per_scope(token: RunningRegistry, tokens: TokenServer, store: BlobStore, tmp_path: Path) -> None:
    credentials = FixedCredentials({token.host: Credential(USER, SECRET)})
    tokens.requests.clear()
    with client_for(credentials=credentials) as client:
        round_trip(client, f"{token.host}/token/app:1", store, BlobStore(tmp_path / "fresh"))
    assert [(r.user, r.scopes) for r in tokens.requests] == [(USER, ("repository:token/app:pull,push",))]


def test_anonymous_pulls_and_refused_pushes(token: RunningRegistry, store: BlobStore, tmp_path: Path) -> None:
    image = make_image(store, seed=70)
    reference = Reference.parse(f"{token.host}/public/app:1")
    with client_for(credentials=FixedCredentials({token.host: Credential(USER, SECRET)})) as client:
        push(client, reference, image, store)
    with client_for() as client:
        assert pull(client, reference, BlobStore(tmp_path / "fresh"), platform=AMD64).descriptor.digest == image.digest
        with pytest.raises(Unauthorized) as caught:
            push(client, reference.with_tag("2"), make_image(store, seed=71), store)
        assert "pybuild login" in (caught.value.hint or "")


def test_wrong_credentials_stop_a_push_but_not_a_public_pull(token: RunningRegistry, store: BlobStore) -> None:
    image = make_image(store, seed=75)
    reference = Reference.parse(f"{token.host}/wrong/app:1")
    with client_for(credentials=FixedCredentials({token.host: Credential(USER, SECRET)})) as client:
        push(client, reference, image, store)
    credentials = FixedCredentials({token.host: Credential(USER, "wrong")})
    with client_for(credentials=credentials) as client:
        assert client.repository(reference).get_manifest("1").descriptor.digest == image.digest
        with pytest.raises(LoginFailed, match="wrong user name or password"):
            push(client, reference, make_image(store, seed=76), store)


def test_login_keeps_an_identity_token_instead_of_the_secret(
    token: RunningRegistry, tokens: TokenServer, store: BlobStore, tmp_path: Path
) -> None:
    file = tmp_path / "config.json"
    config = DockerConfig(str(file), environment={})
    with client_for() as client:
        kept = login(client, token.host, Credential(USER, SECRET))
    assert kept.identity_token
    config.store(token.host, kept)
    assert SECRET not in file.read_text()
    tokens.requests.clear()
    with client_for(credentials=config) as client:
        push(client, Reference.parse(f"{token.host}/identity/app:1"), make_image(store, seed=80), store)
    assert {(r.method, r.user) for r in tokens.requests} == {("POST", USER)}


def test_tokens_that_live_for_seconds_are_renewed(ca: PrivateCa, store: BlobStore, tmp_path: Path) -> None:
    with TokenServer(Rights({USER: SECRET}), ca=ca, lifetime_seconds=1) as short:
        directory = tmp_path / "short"
        directory.mkdir()
        with docker_registry(directory, token=short.settings(directory)) as registry:
            credentials = FixedCredentials({registry.host: Credential(USER, SECRET)})
            with client_for(credentials=credentials) as client:
                for number in range(3):
                    push(
                        client,
                        Reference.parse(f"{registry.host}/short/app:{number}"),
                        make_image(store, seed=90 + number),
                        store,
                    )
                    subprocess.run(["sleep", "1.1"], check=True)
    assert len(short.requests) >= 3


def test_mounting_asks_for_the_right_to_read_the_other_repository(
    token: RunningRegistry, tokens: TokenServer, store: BlobStore
) -> None:
    image = make_image(store, seed=95)
    credentials = FixedCredentials({token.host: Credential(USER, SECRET)})
    with client_for(credentials=credentials) as client:
        push(client, Reference.parse(f"{token.host}/from/app:1"), image, store)
        report = push(client, Reference.parse(f"{token.host}/to/app:1"), image, store, mount_from=["from/app"])
    assert report.mounted == 4


# --- TLS ---


def test_tls_with_a_private_authority(ca: PrivateCa, store: BlobStore, tmp_path: Path) -> None:
    with docker_registry(tmp_path / "tls", tls=(ca.server, ca.server_key)) as registry:
        settings = RegistrySettings.from_tables({registry.host: {"ca": [str(ca.ca)]}})
        with client_for(settings) as client:
            round_trip(client, f"{registry.host}/tls/app:1", store, BlobStore(tmp_path / "fresh"))
        reference = Reference.parse(f"{registry.host}/tls/app:1")
        with client_for() as client, pytest.raises(ConnectionFailed, match="not trusted") as caught:
            client.repository(reference).get_manifest("1")
        assert "ca = " in (caught.value.hint or "")
        insecure = RegistrySettings.from_tables({registry.host: {"insecure": True}})
        with client_for(insecure) as client:
            assert client.repository(reference).get_manifest("1").descriptor.media_type == OCI_INDEX
        certs = tmp_path / "certs.d" / registry.host
        certs.mkdir(parents=True)
        shutil.copy(ca.ca, certs / "ca.crt")
        with client_for(RegistrySettings(certs_d=(str(tmp_path / "certs.d"),))) as client:
            assert client.repository(reference).head_manifest("1") is not None


def test_client_certificates(ca: PrivateCa, store: BlobStore, tmp_path: Path) -> None:
    with docker_registry(tmp_path / "mtls", tls=(ca.server, ca.server_key), client_ca=ca.ca) as registry:
        table = {"ca": [str(ca.ca)], "keypair": [{"cert": str(ca.client), "key": str(ca.client_key)}]}
        with client_for(RegistrySettings.from_tables({registry.host: table})) as client:
            round_trip(client, f"{registry.host}/mtls/app:1", store, BlobStore(tmp_path / "fresh"))
        del table["keypair"]
        with client_for(RegistrySettings.from_tables({registry.host: table})) as client:
            with pytest.raises(RegistryError):
                client.ping(registry.host)


def test_tls_goes_through_a_proxy_that_wants_a_secret(ca: PrivateCa, store: BlobStore, tmp_path: Path) -> None:
    with (
        docker_registry(tmp_path / "tls", tls=(ca.server, ca.server_key)) as registry,
        ConnectProxy(user="me", secret="s3cret") as proxy,
    ):
        host = f"registry.test:{registry.port}"  # a name that only the proxy can resolve
        settings = RegistrySettings.from_tables({host: {"ca": [str(ca.ca)]}})
        lines: list[str] = []
        network = NetworkSettings(proxies=Proxies(https=f"http://me:s3cret@127.0.0.1:{proxy.port}"))
        with RegistryClient(Transport(settings, network, log=lines.append)) as client:
            round_trip(client, f"{host}/proxied/app:1", store, BlobStore(tmp_path / "fresh"))
        assert set(proxy.tunnels) == {host}
        assert not any("s3cret" in line for line in lines)
        network = NetworkSettings(proxies=Proxies(https=f"http://127.0.0.1:{proxy.port}"))
        with RegistryClient(Transport(settings, network)) as client, pytest.raises(ConnectionFailed, match="proxy"):
            client.ping(host)


def test_a_tls_registry_on_loopback_is_found_by_many_threads_at_once(ca: PrivateCa, tmp_path: Path) -> None:
    with docker_registry(tmp_path / "tls", tls=(ca.server, ca.server_key)) as registry:
        certs = tmp_path / "certs.d" / registry.host
        certs.mkdir(parents=True)
        shutil.copy(ca.ca, certs / "ca.crt")
        with client_for(RegistrySettings(certs_d=(str(tmp_path / "certs.d"),))) as client:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda n: client.ping(registry.host), range(16)))


def test_a_certificate_for_another_name_is_refused(ca: PrivateCa, tmp_path: Path) -> None:
    with docker_registry(tmp_path / "name", tls=(ca.server, ca.server_key)) as registry:
        host = f"127.0.0.2:{registry.port}"
        settings = RegistrySettings.from_tables({host: {"ca": [str(ca.ca)]}})
        with client_for(settings) as client, pytest.raises(ConnectionFailed):
            client.ping(host)


def test_plain_http_is_not_tried_where_tls_is_asked_for(plain: RunningRegistry, store: BlobStore) -> None:
    settings = RegistrySettings.from_tables({plain.host: {"http": False}})
    with client_for(settings) as client, pytest.raises(ConnectionFailed, match="doesn't speak TLS"):
        client.ping(plain.host)


# --- a pull-through mirror ---


def test_pulls_go_through_a_mirror_and_pushes_dont(store: BlobStore, tmp_path: Path) -> None:
    image = make_image(store)
    with (
        docker_registry(tmp_path / "origin") as origin,
        docker_registry(tmp_path / "mirror", mirror_of=f"http://{origin.host}") as mirror,
    ):
        settings = RegistrySettings.from_tables({origin.host: {"mirrors": [mirror.host]}})
        reference = Reference.parse(f"{origin.host}/mirrored/app:1")
        with client_for(settings) as client:
            push(client, reference, image, store)
            lines: list[str] = []
        with client_for(settings, lines=lines) as client:
            pulled = pull(client, reference, BlobStore(tmp_path / "fresh"), platform=AMD64)
        assert pulled.descriptor.digest == image.digest
        assert lines
        assert all(mirror.host in line for line in lines)
        with client_for(RegistrySettings.from_tables({"r.example": {"mirrors": [mirror.host]}})) as client:
            with pytest.raises((UnexpectedStatus, ConnectionFailed, ImageNotFound)):
                push(client, Reference.parse("r.example/x:1"), image, store)


def test_an_index_has_what_was_pushed(plain: RunningRegistry, store: BlobStore) -> None:
    index = make_index(store, make_image(store, seed=110))
    with client_for() as client:
        push(client, Reference.parse(f"{plain.host}/index/app:1"), index, store)
        found = client.repository(Reference.parse(f"{plain.host}/index/app")).get_manifest("1")
    assert Index.from_bytes(found.data).manifests[0].platform == AMD64
