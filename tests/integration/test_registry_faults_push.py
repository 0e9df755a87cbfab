"""Pushes to a registry that misbehaves: what it then has is complete, and it is told why when it isn't."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from registry_servers.fault_registry import (
    Exchange,
    FaultRegistry,
    Refuser,
    answer,
    hang_up,
    refuse,
    reset_at_once,
)
from registry_servers.sample_images import ARM64, make_image, make_index, read
from registry_servers.token_server import Rights, TokenServer

from pybuild.errors import PybuildError
from pybuild.layers.blobs import BlobStore
from pybuild.layers.descriptor import OCI_CONFIG, OCI_LAYER_FOREIGN, OCI_MANIFEST, Descriptor
from pybuild.layers.digest import Digest
from pybuild.layers.image import ImageConfig, Index, Manifest
from pybuild.layers.references import Reference
from pybuild.registry_client.client import RegistryClient
from pybuild.registry_client.credentials import Credential, FixedCredentials
from pybuild.registry_client.push import MissingContent, PushReport, push
from pybuild.registry_client.settings import NetworkSettings
from pybuild.registry_client.stores import RememberedOrigins
from pybuild.registry_client.transport import Denied, RateLimited, Transport, Unauthorized, UnexpectedStatus

pytestmark = pytest.mark.integration
NAME = "team/app"
BIG = 20 << 20


@pytest.fixture
def registry() -> Iterator[FaultRegistry]:
    with FaultRegistry() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "store")


def client_for(
    *, lines: list[str] | None = None, credentials: FixedCredentials | None = None, **network: object
) -> RegistryClient:
    options: dict[str, object] = {"stall_timeout_seconds": 2.0, **network}
    transport = Transport(
        None,
        NetworkSettings(**options),  # type: ignore[arg-type]  # the keywords are the fields'
        sleep=lambda seconds: None,
        log=None if lines is None else lines.append,
    )
    return RegistryClient(transport, credentials)


def pushed(
    registry: FaultRegistry,
    store: BlobStore,
    descriptor: Descriptor,
    *,
    client: RegistryClient | None = None,
    name: str = NAME,
    **options: object,
) -> PushReport:
    with client or client_for() as used:
        return push(used, Reference.parse(f"{registry.host}/{name}:1"), descriptor, store, **options)  # type: ignore[arg-type]  # push's own keywords


def complete(registry: FaultRegistry, store: BlobStore, descriptor: Descriptor, *, name: str = NAME) -> None:
    """The registry has the manifest and every blob of it, byte for byte."""
    media_type, data = registry.manifests[name]["1"]
    assert media_type == descriptor.media_type
    assert data == read(store, descriptor.digest)
    manifest = Manifest.from_bytes(data)
    for blob in (manifest.config, *manifest.layers):
        assert registry.blobs[name][str(blob.digest)] == read(store, blob.digest)


def _body_cut(count: int, then: Callable[[Exchange], bool]) -> Callable[[Exchange], bool]:
    """Read ``count`` bytes of a longer body into the session, then break off."""

    def action(x: Exchange) -> bool:
        if int(x.headers.get("content-length", "0")) <= count:
            return False
        session = x.path.rpartition("/")[2]
        taken = x.handler.rfile.read(count)
        x.registry.uploads[session] += taken
        return then(x)

    return action


def test_blobs_come_before_config_before_manifest_before_tag(registry: FaultRegistry, store: BlobStore) -> None:
    image = make_image(store)
    index = make_index(store, image, make_image(store, seed=1, platform=ARM64))
    pushed(registry, store, index)
    puts = [seen.path for seen in registry.requests("PUT")]
    assert puts[-1] == f"/v2/{NAME}/manifests/1"
    assert all("/blobs/uploads/" in path for path in puts[:8])
    assert all("/manifests/sha256:" in path for path in puts[8:10])
    configs = {
        str(Manifest.from_bytes(read(store, child.digest)).config.digest)
        for child in Index.from_bytes(read(store, index.digest)).manifests
    }
    order = [seen.query["digest"] for seen in registry.requests("PUT", "/blobs/uploads/")]
    assert set(order[-2:]) == configs


def test_nothing_changed_costs_one_request(registry: FaultRegistry, store: BlobStore) -> None:
    image = make_image(store, layers=6)
    first = pushed(registry, store, image)
    assert (first.sent, first.unchanged) == (7, False)
    registry.seen.clear()
    again = pushed(registry, store, image)
    assert again.unchanged
    assert again.bytes_sent == 0
    assert [seen.method for seen in registry.seen] == ["HEAD"]


def test_a_new_tag_for_the_same_sends_only_the_manifest(registry: FaultRegistry, store: BlobStore) -> None:
    image = make_image(store, layers=6)
    pushed(registry, store, image)
    registry.seen.clear()
    with client_for() as client:
        report = push(client, Reference.parse(f"{registry.host}/{NAME}:2"), image, store, tags=["3", "1"])
    assert report.manifests == 2
    assert report.bytes_sent == 0
    assert len(registry.requests("PUT")) == 2
    assert len(registry.seen) == 5
    assert registry.manifests[NAME]["2"] == registry.manifests[NAME]["3"] == registry.manifests[NAME]["1"]


def test_only_what_is_missing_is_sent(registry: FaultRegistry, store: BlobStore) -> None:
    image = make_image(store, layers=4)
    manifest = Manifest.from_bytes(read(store, image.digest))
    for layer in manifest.layers[:3]:
        registry.add_blob(NAME, read(store, layer.digest))
    report = pushed(registry, store, image)
    assert (report.sent, report.existing) == (2, 3)
    assert report.bytes_sent == manifest.layers[3].size + manifest.config.size
    complete(registry, store, image)


def test_blobs_of_other_repositories_are_mounted(registry: FaultRegistry, store: BlobStore) -> None:
    image = make_image(store)
    origins = RememberedOrigins()
    pushed(registry, store, image, name="other/app", origins=origins)
    report = pushed(registry, store, image, origins=origins)
    assert (report.mounted, report.sent, report.bytes_sent) == (4, 0, 0)
    complete(registry, store, image)
    report = pushed(registry, store, image, name="third/app", mount_from=["none/app", "team/app"])
    assert report.mounted + report.sent == 4


def test_blobs_that_the_repository_has_are_not_sent_because_a_mount_failed(
    registry: FaultRegistry, store: BlobStore
) -> None:
    image = make_image(store, layers=3, size=200_000)
    layers = Manifest.from_bytes(read(store, image.digest)).layers
    for layer in layers:
        registry.add_blob(NAME, read(store, layer.digest))
    report = pushed(registry, store, image, mount_from=["none/app"])
    assert (report.sent, report.existing) == (1, 3)
    complete(registry, store, image)


def test_blobs_that_are_known_to_be_in_the_repository_cost_one_request(
    registry: FaultRegistry, store: BlobStore
) -> None:
    image = make_image(store)
    manifest = Manifest.from_bytes(read(store, image.digest))
    blobs = (manifest.config, *manifest.layers)
    origins = RememberedOrigins()
    for blob in blobs:
        registry.add_blob(NAME, read(store, blob.digest))
        origins.remember(registry.host, NAME, (blob.digest,))
    gone = manifest.layers[0]
    del registry.blobs[NAME][str(gone.digest)]
    lines: list[str] = []
    with client_for(lines=lines) as client:
        report = pushed(registry, store, image, client=client, origins=origins, mount_from=["none/app"])
    assert (report.sent, report.existing) == (1, len(blobs) - 1)
    for blob in blobs:
        asked = [line.split()[0] for line in lines if str(blob.digest) in line]
        assert asked[0] == "HEAD"
        assert len(asked) == 1 or blob == gone
    complete(registry, store, image)


def test_a_refused_mount_becomes_an_upload(registry: FaultRegistry, store: BlobStore) -> None:
    image = make_image(store)
    registry.on("POST", "/blobs/uploads/", lambda x: x.error(403, "DENIED") if "mount" in x.query else False)
    report = pushed(registry, store, image, mount_from=["secret/app"])
    assert report.sent == 4
    complete(registry, store, image)


@pytest.mark.parametrize("break_off", [hang_up, reset_at_once])
@pytest.mark.parametrize("times", [1, 3])
def test_an_upload_that_breaks_goes_on_where_the_registry_is(
    registry: FaultRegistry, store: BlobStore, break_off: Callable[[Exchange], bool], times: int
) -> None:
    image = make_image(store, layers=1, size=BIG)
    for method in ("PUT", "PATCH"):
        registry.on(method, "/blobs/uploads/", _body_cut(3 << 20, break_off), times=times)

    def anywhere(x: Exchange) -> bool:
        # The registry answers status requests for the session whatever state the URL carries.
        session = x.path.rpartition("/")[2]
        x.query["at"] = str(len(x.registry.uploads.get(session, b"")))
        return False

    registry.on("*", "/blobs/uploads/", anywhere)
    pushed(registry, store, image)
    complete(registry, store, image)
    assert len(registry.requests("POST")) == 2  # the layer's and the configuration's
    assert len(registry.requests("GET", "/blobs/uploads/")) >= times
    starts = [seen.headers["content-range"].partition("-")[0] for seen in registry.requests("PATCH")]
    assert starts[0] == str(3 << 20)


def test_a_session_that_the_registry_lost_is_opened_again(registry: FaultRegistry, store: BlobStore) -> None:
    image = make_image(store, layers=2)

    def lose(x: Exchange) -> bool:
        x.registry.uploads.clear()
        return False

    registry.on("PUT", "/blobs/uploads/", lose, times=2)
    pushed(registry, store, image, client=client_for(parallel=1))
    complete(registry, store, image)


def test_a_session_lost_after_a_break_starts_over(registry: FaultRegistry, store: BlobStore) -> None:
    image = make_image(store, layers=1, size=BIG)
    registry.on("PUT", "/blobs/uploads/", _body_cut(1 << 20, hang_up), times=2)
    pushed(registry, store, image)  # its state in the URL is stale then, as docker's registry would say
    complete(registry, store, image)


def test_an_upload_that_always_breaks_is_given_up(registry: FaultRegistry, store: BlobStore) -> None:
    image = make_image(store, layers=1)
    registry.on("PUT", "/blobs/uploads/", hang_up)
    with pytest.raises(PybuildError):
        pushed(registry, store, image, client=client_for(attempts=3))
    assert NAME not in registry.manifests or "1" not in registry.manifests[NAME]


def test_a_body_too_large_for_what_is_in_front_is_sent_in_chunks(registry: FaultRegistry, store: BlobStore) -> None:
    image = make_image(store, layers=1, size=40 << 20)

    def limit(x: Exchange) -> bool:
        if int(x.headers.get("content-length", "0")) > 17 << 20:
            return x.error(413, "TOOBIG")
        return False

    registry.on("*", "/blobs/uploads/", limit)
    pushed(registry, store, image)
    complete(registry, store, image)
    assert len(registry.requests("PATCH")) == 3


def test_connections_closed_over_large_bodies_lead_to_chunks_too(registry: FaultRegistry, store: BlobStore) -> None:
    image = make_image(store, layers=1, size=40 << 20)
    registry.on("PUT", "/blobs/uploads/", lambda x: x.reset() if int(x.headers["content-length"]) > 17 << 20 else False)
    pushed(registry, store, image)
    complete(registry, store, image)
    assert len(registry.requests("PATCH")) == 3


def test_a_registry_that_counts_wrong_is_given_up(registry: FaultRegistry, store: BlobStore) -> None:
    image = make_image(store, layers=1, size=40 << 20)
    registry.on("PUT", "/blobs/uploads/", refuse(413, "TOOBIG"))
    registry.on("PATCH", "/blobs/uploads/", lambda x: x.reply(202, Location=x.path + "?at=0", Range="0-0"))
    with pytest.raises(PybuildError, match="counts other bytes"):
        pushed(registry, store, image, client=client_for(attempts=3))


def test_uploads_wait_as_long_as_the_registry_says(registry: FaultRegistry, store: BlobStore) -> None:
    image = make_image(store, layers=1)
    registry.on("PUT", "/blobs/uploads/", refuse(429, "TOOMANYREQUESTS", Retry_After="9"), times=1)
    sleeps: list[float] = []
    with RegistryClient(Transport(sleep=sleeps.append)) as client:
        push(client, Reference.parse(f"{registry.host}/{NAME}:1"), image, store)
    complete(registry, store, image)
    assert [9 <= pause <= 10 for pause in sleeps] == [True]
    registry.on("PUT", "/blobs/uploads/", refuse(429, "TOOMANYREQUESTS", Retry_After="9999"))
    with pytest.raises(RateLimited):
        pushed(registry, store, make_image(store, layers=1, seed=2))


def test_what_a_registry_wants_its_users_to_know_is_passed_on_once(registry: FaultRegistry, store: BlobStore) -> None:
    def warn(x: Exchange) -> bool:
        return x.reply(404, Warning='299 - "this registry moves \\"soon\\""')

    registry.on("HEAD", "/manifests/", warn)
    heard: list[str] = []
    with RegistryClient(Transport(on_warning=heard.append)) as client:
        push(client, Reference.parse(f"{registry.host}/{NAME}:1"), make_image(store, layers=1), store)
    assert heard == [f'{registry.host}: this registry moves "soon"']


def test_locations_may_be_absolute_and_keep_their_query(registry: FaultRegistry, store: BlobStore) -> None:
    image = make_image(store)
    ordinary = FaultRegistry.location
    registry.location = lambda x, name, session: registry.url + ordinary(registry, x, name, session)  # type: ignore[method-assign]
    pushed(registry, store, image)
    complete(registry, store, image)
    assert all(seen.query["state"] == "a/b=" and seen.query["digest"] for seen in registry.requests("PUT", "/blobs/"))


def test_authorization_doesnt_follow_an_upload_location_to_another_host(
    registry: FaultRegistry, store: BlobStore
) -> None:
    image = make_image(store, layers=1)
    with FaultRegistry() as storage, TokenServer(Rights(), make_token=lambda: refuser.issue()) as tokens:
        refuser = Refuser(tokens.realm)
        registry.on("*", "/v2/", refuser)
        ordinary = FaultRegistry.location
        registry.location = lambda x, name, session: storage.url + ordinary(registry, x, name, session)  # type: ignore[method-assign]
        storage.uploads, storage.blobs = registry.uploads, registry.blobs
        pushed(registry, store, image)
        complete(registry, store, image)
        assert len(storage.seen) == 2
        assert all("authorization" not in seen.headers for seen in storage.seen)


def test_an_early_401_while_the_body_is_sent_renews_the_token(registry: FaultRegistry, store: BlobStore) -> None:
    image = make_image(store, layers=1, size=BIG)
    with TokenServer(Rights(), make_token=lambda: refuser.issue()) as tokens:
        refuser = Refuser(tokens.realm)

        def early(x: Exchange) -> bool:
            refuser.left.clear()
            x.start(
                401,
                {
                    "WWW-Authenticate": f'Bearer realm="{tokens.realm}",service="faults"',
                    "Content-Length": "0",
                    "Connection": "close",
                },
            )
            return x.hang_up()

        registry.on("PUT", "/blobs/uploads/", early, times=1)
        registry.on("*", "/v2/", refuser)
        pushed(registry, store, image)
        complete(registry, store, image)


def test_a_token_that_expires_between_requests_is_renewed(registry: FaultRegistry, store: BlobStore) -> None:
    image = make_image(store, layers=3)
    with TokenServer(Rights(), make_token=lambda: refuser.issue()) as tokens:
        refuser = Refuser(tokens.realm, uses=2)
        registry.on("*", "/v2/", refuser)
        pushed(registry, store, image)
        complete(registry, store, image)
        assert {request.scopes for request in tokens.requests} == {(f"repository:{NAME}:pull,push",)}


def test_two_challenges_in_one_header_fall_back_to_basic(registry: FaultRegistry, store: BlobStore) -> None:
    image = make_image(store, layers=1)

    def both(x: Exchange) -> bool:
        if x.headers.get("authorization", "").startswith("Basic dXNlcjpzM2NyZXQ="):
            return False
        return x.error(401, "UNAUTHORIZED", WWW_Authenticate=f'Basic realm="a", Bearer realm="{registry.url}/no/token"')

    registry.on("*", "/v2/", both)
    credentials = FixedCredentials({registry.host: Credential("user", "s3cret")})
    lines: list[str] = []
    pushed(registry, store, image, client=client_for(credentials=credentials, lines=lines, attempts=1))
    complete(registry, store, image)
    assert lines
    assert not any("s3cret" in line or "dXNlcjpzM2NyZXQ=" in line for line in lines)


def test_refusals_are_told_in_the_registrys_words(registry: FaultRegistry, store: BlobStore) -> None:
    image = make_image(store, layers=1)
    registry.on("POST", "/blobs/uploads/", refuse(403, "DENIED", "quota exceeded for team"))
    with pytest.raises(Denied, match="quota exceeded for team"):
        pushed(registry, store, image)
    registry.rules.clear()
    registry.on("PUT", "/manifests/", refuse(400, "MANIFEST_INVALID", "labels are mandatory"))
    with pytest.raises(UnexpectedStatus, match="labels are mandatory"):
        pushed(registry, store, image)
    registry.rules.clear()
    registry.on("PUT", "/blobs/uploads/", refuse(400, "DIGEST_INVALID", "not that digest"))
    with pytest.raises(UnexpectedStatus, match="not that digest"):
        pushed(registry, store, make_image(store, seed=5, layers=1))
    registry.rules.clear()
    registry.on("*", "/v2/", answer(401))
    with pytest.raises(Unauthorized) as caught:
        pushed(registry, store, image)
    assert caught.value.hint == f"log in with pybuild login {registry.host}"


def test_a_registry_that_stores_another_digest_is_noticed(registry: FaultRegistry, store: BlobStore) -> None:
    image = make_image(store, layers=1)
    other = str(Digest.of(b"other"))
    registry.on("PUT", "/manifests/", lambda x: x.reply(201, Docker_Content_Digest=other))
    with pytest.raises(PybuildError, match="under another digest"):
        pushed(registry, store, image)


def test_missing_blobs_and_children_are_named(registry: FaultRegistry, store: BlobStore) -> None:
    image = make_image(store)
    manifest = Manifest.from_bytes(read(store, image.digest))
    store.delete(manifest.layers[1].digest)
    with pytest.raises(MissingContent, match=str(manifest.layers[1].digest)):
        pushed(registry, store, image)
    assert "1" not in registry.manifests.get(NAME, {})
    arm = make_image(store, seed=1, platform=ARM64)
    index = make_index(store, make_image(store, seed=2), arm)
    data = read(store, arm.digest)
    store.delete(arm.digest)
    with pytest.raises(MissingContent, match="linux/arm64"):
        pushed(registry, store, index)
    registry.add_manifest(NAME, str(arm.digest), data, OCI_MANIFEST)
    assert pushed(registry, store, index).manifests == 2


def test_foreign_layers_stay_where_they_are(registry: FaultRegistry, store: BlobStore) -> None:
    layer = Descriptor(OCI_LAYER_FOREIGN, Digest.of(b"x"), 1, urls=("https://elsewhere.example/x",))
    config = ImageConfig.empty(ARM64).with_(diff_ids=(Digest.of(b"x"),)).to_bytes()
    manifest = Manifest(Descriptor(OCI_CONFIG, store.write(config), len(config)), (layer,)).to_bytes()
    report = pushed(registry, store, Descriptor(OCI_MANIFEST, store.write(manifest), len(manifest)))
    assert (report.sent, report.skipped) == (1, 1)
    assert str(layer.digest) not in registry.blobs[NAME]


@pytest.mark.parametrize("api", [True, False])
def test_referrers_are_listed_by_the_api_or_by_a_tag(registry: FaultRegistry, store: BlobStore, api: bool) -> None:
    registry.referrers_api = api
    image = make_image(store)
    pushed(registry, store, image)
    empty = b"{}"
    config = Descriptor("application/vnd.oci.empty.v1+json", store.write(empty), len(empty))
    artifacts = []
    for number in (1, 2):
        data = Manifest(
            config,
            (Descriptor("text/plain", store.write(b"note %d" % number), 6),),
            subject=Descriptor(image.media_type, image.digest, image.size),
            artifact_type=f"application/x-note{number}",
        ).to_bytes()
        artifacts.append(Descriptor(OCI_MANIFEST, store.write(data), len(data)))
    with client_for() as client:
        repository = client.repository(Reference.parse(f"{registry.host}/{NAME}"))
        assert repository.referrers(image.digest) == ()
        for artifact in artifacts:
            push(client, Reference.parse(f"{registry.host}/{NAME}@{artifact.digest}"), artifact, store)
        found = repository.referrers(image.digest)
        assert {item.digest for item in found} == {item.digest for item in artifacts}
        assert {item.artifact_type for item in found} == {"application/x-note1", "application/x-note2"}
        one = repository.referrers(image.digest, artifact_type="application/x-note2")
        assert [item.digest for item in one] == [artifacts[1].digest]
    assert (f"sha256-{image.digest.hex}" in registry.manifests[NAME]) is not api


def test_the_log_shows_each_request_without_upload_states(registry: FaultRegistry, store: BlobStore) -> None:
    lines: list[str] = []
    pushed(registry, store, make_image(store, layers=1), client=client_for(lines=lines))
    assert len(lines) == len(registry.seen)
    assert not any("a%2Fb" in line or "a/b=" in line for line in lines)
    assert any(line.startswith("PUT ") and " 201 " in line and "state=…" in line for line in lines)
    json.dumps(lines)
