"""Pulls from a registry that misbehaves: what is pulled is right or nothing is."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from registry_servers.fault_registry import (
    Exchange,
    FaultRegistry,
    Refuser,
    answer,
    endless,
    hang_up,
    refuse,
    reset_after,
    reset_at_once,
    send_blob,
    short_after,
    stall_after,
)
from registry_servers.sample_images import AMD64, make_image, make_index, read
from registry_servers.token_server import Rights, TokenServer

from pybuild.errors import Cancelled, PybuildError
from pybuild.layers.blobs import BlobStore
from pybuild.layers.descriptor import (
    DOCKER_MANIFEST_V1_SIGNED,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_LAYER_FOREIGN,
    OCI_MANIFEST,
    Descriptor,
    Platform,
)
from pybuild.layers.digest import Digest
from pybuild.layers.image import ImageConfig, Index, Manifest
from pybuild.layers.references import Reference
from pybuild.registry_client.auth import LoginFailed
from pybuild.registry_client.client import ContentMismatch, ImageNotFound, RegistryClient, UnsupportedManifest
from pybuild.registry_client.credentials import Credential, FixedCredentials
from pybuild.registry_client.pull import NoMatchingPlatform, PulledImage, pull, resolve
from pybuild.registry_client.settings import NetworkSettings, Proxies, RegistrySettings
from pybuild.registry_client.transfers import Transfer, TransferState
from pybuild.registry_client.transport import (
    AnswerTooLarge,
    BadRedirect,
    ConnectionFailed,
    Offline,
    RateLimited,
    Transport,
    Unauthorized,
    UnexpectedStatus,
)

pytestmark = pytest.mark.integration
NAME = "team/app"
BIG = 600_000


@pytest.fixture
def registry() -> Iterator[FaultRegistry]:
    with FaultRegistry() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "pulled")


class Setup:
    """A registry with one image, and a client that doesn't wait between tries."""

    def __init__(self, registry: FaultRegistry, source: BlobStore, *, layers: int = 2, size: int = BIG) -> None:
        self.registry = registry
        self.source = source
        self.descriptor = make_image(source, layers=layers, size=size)
        self.manifest = Manifest.from_bytes(read(source, self.descriptor.digest))
        self.layer = self.manifest.layers[0]
        self.publish(self.descriptor)

    def publish(self, descriptor: Descriptor, *, tag: str = "1", name: str = NAME) -> None:
        data = read(self.source, descriptor.digest)
        self.registry.add_manifest(name, tag, data, descriptor.media_type)
        if descriptor.media_type == OCI_INDEX:
            for child in Index.from_bytes(data).manifests:
                self.publish(child, tag=str(child.digest), name=name)
            return
        manifest = Manifest.from_bytes(data)
        for blob in (manifest.config, *manifest.layers):
            if self.source.has(blob.digest):
                self.registry.add_blob(name, read(self.source, blob.digest), algorithm=blob.digest.algorithm)


@pytest.fixture
def setup(registry: FaultRegistry, tmp_path: Path) -> Setup:
    return Setup(registry, BlobStore(tmp_path / "source"))


def client_for(
    *,
    sleeps: list[float] | None = None,
    lines: list[str] | None = None,
    settings: RegistrySettings | None = None,
    **network: object,
) -> RegistryClient:
    """A client with short timeouts whose pauses are only noted."""
    options: dict[str, object] = {"stall_timeout_seconds": 0.5, "connect_timeout_seconds": 2.0, **network}
    noted = sleeps if sleeps is not None else []
    transport = Transport(
        settings,
        NetworkSettings(**options),  # type: ignore[arg-type]  # the keywords are the fields'
        sleep=noted.append,
        log=None if lines is None else lines.append,
    )
    return RegistryClient(transport)


def pulled(setup: Setup, store: BlobStore, client: RegistryClient | None = None, *, target: str = ":1") -> PulledImage:
    with client or client_for() as used:
        return pull(used, Reference.parse(f"{setup.registry.host}/{NAME}{target}"), store, platform=AMD64)


def whole(setup: Setup, store: BlobStore) -> None:
    """Everything of the image is in the store."""
    for blob in (setup.descriptor, setup.manifest.config, *setup.manifest.layers):
        assert Digest.of(read(store, blob.digest), blob.digest.algorithm) == blob.digest


def nothing_to_run(setup: Setup, store: BlobStore) -> None:
    """The manifest isn't there, so nothing could be run or pushed."""
    assert not store.has(setup.descriptor.digest)


# --- blobs that break ---


@pytest.mark.parametrize("fault", [reset_after, short_after])
@pytest.mark.parametrize("part", [0, 100_000, 3])
def test_a_blob_that_breaks_several_times_is_resumed_where_it_stopped(
    setup: Setup, store: BlobStore, fault: Callable[[int], Callable[[Exchange], bool]], part: int
) -> None:
    setup.registry.on("GET", f"/blobs/{setup.layer.digest}", fault(part), times=3)
    pulled(setup, store)
    whole(setup, store)
    ranges = [seen.headers.get("range") for seen in setup.registry.requests("GET", str(setup.layer.digest))]
    assert len(ranges) == 4
    if part == 100_000:
        assert ranges == [None, "bytes=100000-", "bytes=200000-", "bytes=300000-"]


def test_a_server_that_ignores_ranges_still_gives_the_right_bytes(setup: Setup, store: BlobStore) -> None:
    setup.registry.ranges = False
    setup.registry.on("GET", f"/blobs/{setup.layer.digest}", reset_after(300_000), times=2)
    pulled(setup, store)
    whole(setup, store)


@pytest.mark.parametrize("back", [1000, 400_000])
def test_a_server_that_answers_an_earlier_range_is_understood(setup: Setup, store: BlobStore, back: int) -> None:
    def earlier(x: Exchange) -> bool:
        start = max(0, int(x.headers["range"].removeprefix("bytes=").rstrip("-")) - back)
        x.headers["range"] = f"bytes={start}-"
        return send_blob(x, setup.registry.blobs[NAME][str(setup.layer.digest)])

    setup.registry.on("GET", f"/blobs/{setup.layer.digest}", reset_after(400_000), times=1)
    setup.registry.on("GET", f"/blobs/{setup.layer.digest}", earlier)
    pulled(setup, store)
    whole(setup, store)


def test_a_server_that_answers_a_later_range_is_not_believed(setup: Setup, store: BlobStore) -> None:
    def later(x: Exchange) -> bool:
        x.headers["range"] = "bytes=500000-"
        return send_blob(x, setup.registry.blobs[NAME][str(setup.layer.digest)])

    setup.registry.on("GET", f"/blobs/{setup.layer.digest}", reset_after(400_000), times=1)
    setup.registry.on("GET", f"/blobs/{setup.layer.digest}", later)
    with pytest.raises(PybuildError, match="another part"):
        pulled(setup, store)
    nothing_to_run(setup, store)


@pytest.mark.parametrize("at", [None, 0, 100_000])
def test_a_stall_before_or_inside_an_answer_times_out_and_resumes(
    setup: Setup, store: BlobStore, at: int | None
) -> None:
    setup.registry.on("GET", f"/blobs/{setup.layer.digest}", stall_after(at), times=1)
    pulled(setup, store, client_for(stall_timeout_seconds=0.3))
    whole(setup, store)


def test_a_slow_blob_is_no_stall(setup: Setup, store: BlobStore) -> None:
    def slowly(x: Exchange) -> bool:
        data = setup.registry.blobs[NAME][str(setup.layer.digest)]
        x.start(200, {"Content-Length": str(len(data))})
        for at in range(0, len(data), 100_000):
            x.write(data[at : at + 100_000])
            time.sleep(0.12)
        return True

    setup.registry.on("GET", f"/blobs/{setup.layer.digest}", slowly)
    pulled(setup, store, client_for(stall_timeout_seconds=0.4))
    whole(setup, store)
    assert len(setup.registry.requests("GET", str(setup.layer.digest))) == 1


def test_a_registry_that_always_stalls_is_given_up(setup: Setup, store: BlobStore) -> None:
    setup.registry.on("GET", "/manifests/", stall_after(None))
    sleeps: list[float] = []
    with pytest.raises(ConnectionFailed, match="stopped answering"):
        pulled(setup, store, client_for(sleeps=sleeps, stall_timeout_seconds=0.1, attempts=3))
    assert len(sleeps) == 2


def test_a_blob_that_breaks_without_end_is_given_up(setup: Setup, store: BlobStore) -> None:
    setup.registry.on("GET", f"/blobs/{setup.layer.digest}", reset_after(0))
    with pytest.raises(ConnectionFailed):
        pulled(setup, store, client_for(attempts=3))
    nothing_to_run(setup, store)
    setup.registry.rules.clear()
    setup.registry.on("GET", f"/blobs/{setup.layer.digest}", reset_after(70_000))
    setup.registry.ranges = False
    with pytest.raises(ConnectionFailed):
        pulled(setup, store, client_for(attempts=3))
    nothing_to_run(setup, store)


def test_the_next_pull_goes_on_where_a_failed_one_stopped(setup: Setup, store: BlobStore) -> None:
    setup.registry.on("GET", f"/blobs/{setup.layer.digest}", reset_after(400_000), times=1)
    setup.registry.on("GET", f"/blobs/{setup.layer.digest}", reset_at_once, times=4)
    with pytest.raises(ConnectionFailed):
        pulled(setup, store, client_for(attempts=2))
    setup.registry.rules.clear()
    setup.registry.seen.clear()
    pulled(setup, store)
    whole(setup, store)
    assert [seen.headers.get("range") for seen in setup.registry.requests("GET", str(setup.layer.digest))] == [
        "bytes=400000-"
    ]


def test_a_wrong_beginning_of_an_earlier_pull_is_thrown_away(setup: Setup, store: BlobStore) -> None:
    with store.ingest(
        expected=setup.layer.digest, expected_size=setup.layer.size, partial_key=str(setup.layer.digest)
    ) as ingest:
        ingest.write(b"not the beginning of this layer")
    pulled(setup, store)
    whole(setup, store)


# --- content that is wrong ---


def test_a_blob_with_another_digest_is_refused(setup: Setup, store: BlobStore) -> None:
    other = bytes(setup.layer.size)
    setup.registry.on("GET", f"/blobs/{setup.layer.digest}", lambda x: send_blob(x, other))
    with pytest.raises(ContentMismatch, match="is not sha256:"):
        pulled(setup, store)
    nothing_to_run(setup, store)
    assert not store.has(setup.layer.digest)
    setup.registry.rules.clear()
    pulled(setup, store)
    whole(setup, store)


@pytest.mark.parametrize("difference", [-1000, 1000])
def test_a_blob_with_another_size_is_refused(setup: Setup, store: BlobStore, difference: int) -> None:
    data = read(setup.source, setup.layer.digest)
    other = data[:difference] if difference < 0 else data + bytes(difference)
    setup.registry.on("GET", f"/blobs/{setup.layer.digest}", lambda x: send_blob(x, other))
    with pytest.raises(ContentMismatch):
        pulled(setup, store, client_for(attempts=2))
    nothing_to_run(setup, store)


def test_an_endless_blob_is_cut_at_its_size(setup: Setup, store: BlobStore) -> None:
    setup.registry.on("GET", f"/blobs/{setup.layer.digest}", endless)
    with pytest.raises(ContentMismatch, match="longer than its"):
        pulled(setup, store)
    nothing_to_run(setup, store)


def test_a_manifest_with_another_digest_is_refused(setup: Setup, store: BlobStore) -> None:
    other = make_image(setup.source, seed=7)
    data = read(setup.source, other.digest)
    setup.registry.on("GET", "/manifests/", lambda x: x.reply(200, data, Content_Type=OCI_MANIFEST))
    with pytest.raises(ContentMismatch, match="another digest"):
        pulled(setup, store, target=f"@{setup.descriptor.digest}")
    setup.registry.rules.clear()
    setup.registry.on(
        "GET",
        "/manifests/1",
        lambda x: x.reply(200, data, Content_Type=OCI_MANIFEST, Docker_Content_Digest=str(setup.descriptor.digest)),
    )
    with pytest.raises(ContentMismatch, match="not the one that the registry says"):
        pulled(setup, store)
    nothing_to_run(setup, store)


@pytest.mark.parametrize("declared", [True, False])
def test_a_huge_manifest_is_refused_without_reading_it(setup: Setup, store: BlobStore, declared: bool) -> None:
    size = 300 << 20
    sent = [0]

    def huge(x: Exchange) -> bool:
        headers = {"Content-Type": OCI_MANIFEST}
        x.start(200, headers | ({"Content-Length": str(size)} if declared else {"Connection": "close"}))
        while sent[0] < size:
            x.write(b" " * (1 << 20))
            sent[0] += 1 << 20
        return x.hang_up()

    setup.registry.on("GET", "/manifests/", huge)
    with pytest.raises(AnswerTooLarge):
        pulled(setup, store)
    assert sent[0] < 64 << 20


def test_an_endless_error_body_is_bounded(setup: Setup, store: BlobStore) -> None:
    def rude(x: Exchange) -> bool:
        x.start(418, {"Content-Type": "text/plain", "Transfer-Encoding": "chunked"})
        while True:
            x.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")

    setup.registry.on("GET", "/manifests/", rude)
    with pytest.raises(UnexpectedStatus) as caught:
        pulled(setup, store)
    assert len(caught.value.message) < 600


def test_a_huge_configuration_is_refused(setup: Setup, store: BlobStore) -> None:
    config = Descriptor(OCI_CONFIG, setup.manifest.config.digest, 300 << 20)
    data = Manifest(config, setup.manifest.layers).to_bytes()
    setup.registry.add_manifest(NAME, "1", data, OCI_MANIFEST)
    with pytest.raises(ContentMismatch, match="larger than"):
        pulled(setup, store)


@pytest.mark.parametrize(
    ("data", "media_type", "message"),
    [
        (b'{"schemaVersion":1,"fsLayers":[]}', DOCKER_MANIFEST_V1_SIGNED, "schema 1"),
        (b'{"schemaVersion":1,"name":"x","fsLayers":[]}', "application/json", "schema 1"),
        (b"<html></html>", "text/html", "not valid JSON"),
        (b"[]", OCI_MANIFEST, "not a JSON object"),
        (b"{}", OCI_MANIFEST, "incomplete"),
        (b"{}", "application/json", "neither a manifest nor an index"),
        (b'{"mediaType":"application/x-other","config":{}}', "application/x-other", "neither a manifest nor an index"),
        (b'{"manifests":[],"config":{},"layers":[]}', OCI_INDEX, "a manifest and an index at once"),
        (b'{"manifests":[],"config":{},"layers":[]}', OCI_MANIFEST, "a manifest and an index at once"),
        (
            json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode(),
            OCI_MANIFEST,
            "the document itself",
        ),
        (b'{"schemaVersion":2,"config":{"digest":"md5:x","size":1},"layers":[]}', OCI_MANIFEST, "invalid digest"),
        (b'{"schemaVersion":2,"config":{"digest":5},"layers":[]}', OCI_MANIFEST, "digest"),
        (b'{"schemaVersion":2,"manifests":[]}', OCI_INDEX, "no match for platform"),
        (b'{"schemaVersion":2,"manifests":"x"}', OCI_INDEX, "wrong type"),
        (b"[" * 200_000, OCI_MANIFEST, "not valid JSON"),
    ],
)
def test_documents_that_are_no_manifest_are_refused_with_the_reason(
    setup: Setup, store: BlobStore, data: bytes, media_type: str, message: str
) -> None:
    setup.registry.add_manifest(NAME, "1", data, media_type)
    with pytest.raises(PybuildError, match=message):
        pulled(setup, store)
    assert list(store) == []


@pytest.mark.parametrize(
    "content_type", ["", "application/json", "text/plain; charset=utf-8", "application/octet-stream"]
)
def test_a_generic_or_missing_content_type_doesnt_matter(setup: Setup, store: BlobStore, content_type: str) -> None:
    data = read(setup.source, setup.descriptor.digest)
    headers = {"Content_Type": content_type} if content_type else {}
    setup.registry.on("GET", "/manifests/", lambda x: x.reply(200, data, **headers))
    setup.registry.on("HEAD", "/manifests/", lambda x: x.start(200, {"Content-Length": str(len(data))}))
    assert pulled(setup, store).descriptor.media_type == OCI_MANIFEST
    whole(setup, store)
    with client_for() as client:
        found = client.repository(Reference.parse(f"{setup.registry.host}/{NAME}")).head_manifest("1")
    assert found == Descriptor(OCI_MANIFEST, setup.descriptor.digest, len(data))


def test_an_index_that_lies_about_its_entry_is_refused(setup: Setup, store: BlobStore) -> None:
    for wrong in (
        Descriptor(OCI_MANIFEST, setup.descriptor.digest, setup.descriptor.size + 1, platform=AMD64),
        Descriptor(OCI_INDEX, setup.descriptor.digest, setup.descriptor.size, platform=AMD64),
    ):
        setup.registry.add_manifest(NAME, "1", Index((wrong,)).to_bytes(), OCI_INDEX)
        with pytest.raises(ContentMismatch, match="its index says"):
            pulled(setup, store)
    assert list(store) == []


def test_an_index_within_itself_or_too_deep_ends(setup: Setup, store: BlobStore) -> None:
    inner = setup.descriptor
    for _ in range(12):
        inner = make_index(setup.source, Descriptor(inner.media_type, inner.digest, inner.size, platform=AMD64))
        setup.registry.add_manifest(NAME, str(inner.digest), read(setup.source, inner.digest), OCI_INDEX)
    with pytest.raises(UnsupportedManifest, match="nested"):
        pulled(setup, store, target=f"@{inner.digest}")


def test_layers_and_configuration_must_agree_in_number(setup: Setup, store: BlobStore) -> None:
    data = Manifest(setup.manifest.config, setup.manifest.layers[:1]).to_bytes()
    setup.registry.add_manifest(NAME, "1", data, OCI_MANIFEST)
    with pytest.raises(ContentMismatch, match="has 1 layers, its configuration 2"):
        pulled(setup, store)


def test_sha512_stays_sha512(registry: FaultRegistry, store: BlobStore, tmp_path: Path) -> None:
    source = BlobStore(tmp_path / "source")
    data = b"layer" * 1000
    layer = Descriptor(OCI_LAYER, source.write(data, algorithm="sha512"), len(data))
    config = ImageConfig.empty(AMD64).with_(diff_ids=(Digest.of(data),)).to_bytes()
    manifest = Manifest(
        Descriptor(OCI_CONFIG, source.write(config, algorithm="sha512"), len(config)), (layer,)
    ).to_bytes()
    digest = source.write(manifest, algorithm="sha512")
    for blob in (data, config):
        registry.add_blob(NAME, blob, algorithm="sha512")
    registry.add_manifest(NAME, str(digest), manifest, OCI_MANIFEST)
    with client_for() as client:
        result = pull(client, Reference.parse(f"{registry.host}/{NAME}@{digest}"), store, platform=AMD64)
    assert str(result.descriptor.digest).startswith("sha512:")
    assert read(store, layer.digest) == data
    assert {item.algorithm for item in store} == {"sha512"}


# --- platforms ---


def test_all_platforms_or_one_of_an_index(setup: Setup, store: BlobStore, tmp_path: Path) -> None:
    arm = make_image(setup.source, seed=3, platform=Platform("linux", "arm64", "v8"))
    index = make_index(setup.source, setup.descriptor, arm)
    setup.publish(index)
    result = pulled(setup, store)
    assert result.descriptor == Descriptor(OCI_INDEX, index.digest, index.size)
    assert [image.descriptor.digest for image in result.manifests] == [setup.descriptor.digest]
    assert store.has(index.digest)
    assert not store.has(arm.digest)
    everything = BlobStore(tmp_path / "all")
    with client_for() as client:
        reference = Reference.parse(f"{setup.registry.host}/{NAME}:1")
        result = pull(client, reference, everything, all_platforms=True)
        assert [image.descriptor.digest for image in result.manifests] == [setup.descriptor.digest, arm.digest]
        with pytest.raises(NoMatchingPlatform) as caught:
            pull(client, reference, everything, platform=Platform("linux", "s390x"))
    assert caught.value.hint == "it has: linux/amd64, linux/arm64/v8"


def test_entries_without_a_platform_are_judged_by_their_configuration(setup: Setup, store: BlobStore) -> None:
    arm = make_image(setup.source, seed=3, platform=Platform("linux", "arm64"))
    index = make_index(
        setup.source,
        Descriptor(OCI_MANIFEST, arm.digest, arm.size),
        Descriptor(OCI_MANIFEST, setup.descriptor.digest, setup.descriptor.size),
    )
    setup.publish(index)
    assert pulled(setup, store).manifests[0].descriptor.digest == setup.descriptor.digest


def test_resolve_reads_manifest_and_configuration_only(setup: Setup) -> None:
    with client_for() as client:
        found = resolve(client, Reference.parse(f"{setup.registry.host}/{NAME}:1"), AMD64)
        assert found.image.config is not None
        assert len(found.image.config.diff_ids) == 2
        assert len(setup.registry.seen) == 2
        setup.registry.seen.clear()
        resolve(
            client,
            Reference.parse(f"{setup.registry.host}/{NAME}:1"),
            AMD64,
            known=lambda digest: read(setup.source, digest) if setup.source.has(digest) else None,
        )
    assert [(seen.method, seen.path) for seen in setup.registry.seen] == [("HEAD", f"/v2/{NAME}/manifests/1")]


# --- statuses ---


def test_too_many_requests_waits_as_long_as_the_registry_says(setup: Setup, store: BlobStore) -> None:
    setup.registry.on("GET", "/manifests/", refuse(429, "TOOMANYREQUESTS", Retry_After="7"), times=2)
    sleeps: list[float] = []
    pulled(setup, store, client_for(sleeps=sleeps))
    assert len(sleeps) == 2
    assert all(7 <= pause <= 8 for pause in sleeps)


def test_an_absurd_wait_is_refused(setup: Setup, store: BlobStore) -> None:
    setup.registry.on("GET", "/manifests/", refuse(429, "TOOMANYREQUESTS", "slow down", Retry_After="86400"))
    sleeps: list[float] = []
    with pytest.raises(RateLimited, match="slow down") as caught:
        pulled(setup, store, client_for(sleeps=sleeps))
    assert sleeps == []
    assert "86400 seconds" in (caught.value.hint or "")


def test_passing_server_errors_are_tried_again_with_growing_pauses(setup: Setup, store: BlobStore) -> None:
    setup.registry.on("GET", "/manifests/", answer(503), times=2)
    setup.registry.on("GET", "/blobs/", answer(502), times=2)
    setup.registry.on("GET", "/blobs/", hang_up, times=1)
    sleeps: list[float] = []
    pulled(setup, store, client_for(sleeps=sleeps))
    whole(setup, store)
    assert len(sleeps) == 5
    assert max(sleeps) < 2


def test_lasting_server_errors_are_told_in_the_registrys_words(setup: Setup, store: BlobStore) -> None:
    setup.registry.on("GET", "/manifests/", refuse(500, "UNKNOWN", "the disk is full"))
    with pytest.raises(UnexpectedStatus, match="status 500: the disk is full"):
        pulled(setup, store, client_for(attempts=2))
    assert len(setup.registry.seen) == 2


def test_the_waiting_has_a_budget(setup: Setup, store: BlobStore) -> None:
    setup.registry.on("GET", "/manifests/", answer(503))
    sleeps: list[float] = []
    with pytest.raises(UnexpectedStatus, match="503"):
        pulled(setup, store, client_for(sleeps=sleeps, attempts=1000, retry_budget_seconds=3.0))
    assert sum(sleeps) <= 3


def test_what_isnt_there_is_not_found(setup: Setup, store: BlobStore) -> None:
    with pytest.raises(ImageNotFound, match=r"team/app:none: not found"):
        pulled(setup, store, target=":none")
    del setup.registry.blobs[NAME][str(setup.layer.digest)]
    with pytest.raises(ImageNotFound, match=str(setup.layer.digest)):
        pulled(setup, store)
    nothing_to_run(setup, store)


def test_a_refused_head_falls_back_to_get(setup: Setup) -> None:
    setup.registry.on("HEAD", "/", answer(405))
    with client_for() as client:
        repository = client.repository(Reference.parse(f"{setup.registry.host}/{NAME}"))
        for _ in range(2):
            assert repository.head_manifest("1") == Descriptor(
                OCI_MANIFEST, setup.descriptor.digest, setup.descriptor.size
            )
        assert repository.head_manifest("none") is None
        assert repository.head_blob(setup.layer.digest) == setup.layer.size
        assert repository.head_blob(Digest.of(b"none")) is None
    assert len(setup.registry.requests("HEAD")) == 1


# --- redirects ---


def _redirect(url: str, status: int = 307) -> Callable[[Exchange], bool]:
    return lambda x: x.reply(status, Location=url)


def test_authorization_never_follows_a_redirect_to_another_host(setup: Setup, store: BlobStore) -> None:
    data = read(setup.source, setup.layer.digest)
    with FaultRegistry() as cdn, TokenServer(Rights(), make_token=lambda: refuser.issue()) as tokens:
        refuser = Refuser(tokens.realm)
        setup.registry.on("*", "/v2/", refuser)
        setup.registry.on("GET", f"/blobs/{setup.layer.digest}", _redirect(f"{cdn.url}/signed?X-Signature=s3cret"))
        cdn.on("GET", "/signed", lambda x: send_blob(x, data))
        lines: list[str] = []
        pulled(setup, store, client_for(lines=lines))
        whole(setup, store)
        assert all("authorization" in s.headers for s in setup.registry.requests("GET", "/blobs/"))
        assert [s.headers.get("authorization") for s in cdn.seen] == [None]
        assert not any("s3cret" in line or token in line for line in lines for token in refuser.left)


def test_a_signed_url_that_expired_is_asked_for_again(setup: Setup, store: BlobStore) -> None:
    data = read(setup.source, setup.layer.digest)
    with FaultRegistry() as cdn:
        count = [0]

        def sign(x: Exchange) -> bool:
            count[0] += 1
            return x.reply(307, Location=f"{cdn.url}/signed?n={count[0]}")

        def serve(x: Exchange) -> bool:
            if x.query["n"] == "1":
                send_blob(x, data, stop_at=200_000)
                return x.reset()
            if x.query["n"] == "2":
                return x.reply(403, b"<Error>Request has expired</Error>")
            return send_blob(x, data)

        setup.registry.on("GET", f"/blobs/{setup.layer.digest}", sign)
        cdn.on("GET", "/signed", serve)
        pulled(setup, store)
        whole(setup, store)
        assert [seen.headers.get("range") for seen in cdn.seen] == [None, "bytes=200000-", "bytes=200000-"]


def test_redirect_loops_and_chains_end(setup: Setup, store: BlobStore) -> None:
    setup.registry.on("GET", "/manifests/1", _redirect(f"/v2/{NAME}/manifests/2"))
    setup.registry.on("GET", "/manifests/2", _redirect(f"/v2/{NAME}/manifests/1"))
    with pytest.raises(BadRedirect, match="in a circle"):
        pulled(setup, store)
    setup.registry.rules.clear()
    setup.registry.on(
        "GET", "/manifests/", lambda x: x.reply(302, Location=f"/v2/{NAME}/manifests/x{len(setup.registry.seen)}")
    )
    with pytest.raises(BadRedirect, match="more than 10 times"):
        pulled(setup, store)
    setup.registry.rules.clear()
    setup.registry.on("GET", "/manifests/", _redirect("file:///etc/passwd"))
    with pytest.raises(BadRedirect, match="not HTTP"):
        pulled(setup, store)


# --- authentication ---


def test_a_token_that_expires_in_the_middle_is_renewed(setup: Setup, store: BlobStore) -> None:
    with TokenServer(Rights(), make_token=lambda: refuser.issue()) as tokens:
        refuser = Refuser(tokens.realm, uses=1)
        setup.registry.on("*", "/v2/", refuser)
        setup.registry.on("GET", f"/blobs/{setup.layer.digest}", reset_after(100_000), times=3)
        pulled(setup, store, client_for(parallel=1))
        whole(setup, store)
        assert len(tokens.requests) >= 5
        assert {request.scopes for request in tokens.requests} == {(f"repository:{NAME}:pull",)}


def test_many_threads_share_one_token(setup: Setup, store: BlobStore, tmp_path: Path) -> None:
    many = make_image(setup.source, layers=12, seed=9, size=20_000)
    setup.publish(many)
    with TokenServer(Rights(), make_token=lambda: refuser.issue()) as tokens:
        refuser = Refuser(tokens.realm)
        setup.registry.on("*", "/v2/", refuser)
        pulled(setup, store, client_for(parallel=8))
        assert len(tokens.requests) == 1


def test_a_registry_that_never_accepts_a_token_is_given_up(setup: Setup, store: BlobStore) -> None:
    with TokenServer(Rights(), make_token=lambda: "useless") as tokens:
        setup.registry.on("*", "/v2/", Refuser(tokens.realm))
        with pytest.raises(Unauthorized) as caught:
            pulled(setup, store)
        assert "pybuild login" in (caught.value.hint or "")
        assert len(setup.registry.seen) < 6


def test_refused_credentials_are_the_reason_when_an_anonymous_pull_is_refused_too(
    setup: Setup, store: BlobStore
) -> None:
    rights = Rights({"user": "s3cret"})
    with TokenServer(rights, make_token=lambda: "useless") as tokens:
        setup.registry.on("*", "/v2/", Refuser(tokens.realm))
        transport = Transport(None, NetworkSettings(stall_timeout_seconds=2.0), sleep=lambda seconds: None)
        client = RegistryClient(transport, FixedCredentials({setup.registry.host: Credential("user", "old")}))
        with pytest.raises(LoginFailed, match="wrong user name or password"):
            pulled(setup, store, client)
    assert [request.user for request in tokens.requests][:2] == ["user", None]


# --- mirrors, foreign layers ---


def test_mirrors_are_asked_first_and_left_when_they_fail(setup: Setup, store: BlobStore) -> None:
    with FaultRegistry() as empty, FaultRegistry() as broken:
        broken.on("*", "/", answer(500))
        mirrors = [f"{empty.host}/some/prefix", broken.host, "127.0.0.1:1"]
        settings = RegistrySettings.from_tables({setup.registry.host: {"mirrors": mirrors}})
        pulled(setup, store, client_for(settings=settings, attempts=1))
        whole(setup, store)
        assert empty.seen[0].path == f"/v2/some/prefix/{NAME}/manifests/1"
        assert empty.seen[0].query == {"ns": setup.registry.host}
        assert broken.requests("GET", "/manifests/1")


def test_a_mirror_that_breaks_inside_a_blob_is_replaced_where_it_stopped(setup: Setup, store: BlobStore) -> None:
    with FaultRegistry() as mirror:
        mirror.manifests, mirror.blobs = setup.registry.manifests, setup.registry.blobs
        mirror.on("GET", f"/blobs/{setup.layer.digest}", reset_after(300_000), times=1)
        mirror.on("GET", f"/blobs/{setup.layer.digest}", hang_up)
        settings = RegistrySettings.from_tables({setup.registry.host: {"mirrors": [mirror.host]}})
        pulled(setup, store, client_for(settings=settings, attempts=2))
        whole(setup, store)
        assert [s.headers.get("range") for s in setup.registry.seen] == ["bytes=300000-"]


def test_foreign_layers_come_from_their_urls(setup: Setup, store: BlobStore) -> None:
    data = b"foreign" * 1000
    with FaultRegistry() as elsewhere:
        elsewhere.add_blob("files", data)
        url = f"{elsewhere.url}/v2/files/blobs/{Digest.of(data)}"
        layer = Descriptor(OCI_LAYER_FOREIGN, Digest.of(data), len(data), urls=("ftp://no.example/x", url))
        config = ImageConfig.empty(AMD64).with_(diff_ids=(Digest.of(data),)).to_bytes()
        setup.registry.add_blob(NAME, config)
        manifest = Manifest(Descriptor(OCI_CONFIG, Digest.of(config), len(config)), (layer,)).to_bytes()
        setup.registry.add_manifest(NAME, "1", manifest, OCI_MANIFEST)
        pulled(setup, store)
    assert read(store, layer.digest) == data


# --- the rest ---


def test_offline_asks_nobody(setup: Setup, store: BlobStore) -> None:
    with pytest.raises(Offline):
        pulled(setup, store, client_for(offline=True))
    assert setup.registry.seen == []


def test_a_closed_port_is_told_at_once(store: BlobStore) -> None:
    sleeps: list[float] = []
    with client_for(sleeps=sleeps) as client, pytest.raises(ConnectionFailed, match="refused"):
        pull(client, Reference.parse("127.0.0.1:1/app"), store, platform=AMD64)
    assert sleeps == []


def test_requests_go_through_a_proxy_except_to_loopback(setup: Setup, store: BlobStore) -> None:
    with FaultRegistry() as proxy:
        proxy.on("GET", "", answer(404))
        network = {"proxies": Proxies(http=proxy.url)}
        with client_for(settings=RegistrySettings.from_tables({"r.example": {"http": True}}), **network) as client:
            with pytest.raises(ImageNotFound):
                pull(client, Reference.parse("r.example/app"), store, platform=AMD64)
        assert len(proxy.seen) == 1
        pulled(setup, store, client_for(**network))
        assert len(proxy.seen) == 1


def test_cancelling_ends_a_transfer(setup: Setup, store: BlobStore) -> None:
    cancel = threading.Event()

    def watch(transfer: Transfer) -> None:
        if transfer.kind == "layer" and transfer.state is TransferState.RUNNING:
            cancel.set()

    with client_for() as client, pytest.raises(Cancelled):
        pull(
            client,
            Reference.parse(f"{setup.registry.host}/{NAME}:1"),
            store,
            platform=AMD64,
            on_progress=watch,
            cancel=cancel,
        )
    nothing_to_run(setup, store)


@pytest.mark.parametrize("fault", [stall_after(1000), answer(429, Retry_After="50")])
def test_cancelling_ends_waiting_at_once(setup: Setup, store: BlobStore, fault: Callable[[Exchange], bool]) -> None:
    setup.registry.on("GET", f"/blobs/{setup.layer.digest}", fault)
    cancel = threading.Event()
    timer = threading.Timer(0.3, cancel.set)
    timer.start()
    start = time.monotonic()
    with RegistryClient(Transport()) as client, pytest.raises(Cancelled):
        pull(client, Reference.parse(f"{setup.registry.host}/{NAME}:1"), store, platform=AMD64, cancel=cancel)
    assert time.monotonic() - start < 5
    timer.join()
    nothing_to_run(setup, store)


def test_a_failure_stops_the_other_transfers_at_once(setup: Setup, store: BlobStore) -> None:
    setup.registry.on("GET", f"/blobs/{setup.layer.digest}", stall_after(1000))
    del setup.registry.blobs[NAME][str(setup.manifest.layers[1].digest)]
    start = time.monotonic()
    with RegistryClient(Transport()) as client, pytest.raises(ImageNotFound):
        pull(client, Reference.parse(f"{setup.registry.host}/{NAME}:1"), store, platform=AMD64)
    assert time.monotonic() - start < 5
    nothing_to_run(setup, store)


def test_progress_names_every_blob_to_its_end(setup: Setup, store: BlobStore) -> None:
    seen: list[Transfer] = []
    with client_for() as client:
        reference = Reference.parse(f"{setup.registry.host}/{NAME}:1")
        first = pull(client, reference, store, platform=AMD64, on_progress=seen.append)
        done = {item.digest for item in seen if item.state is TransferState.DONE}
        assert done == {
            setup.descriptor.digest,
            setup.manifest.config.digest,
            *(x.digest for x in setup.manifest.layers),
        }
        assert first.bytes_received == sum(layer.size for layer in setup.manifest.layers)
        again = pull(client, reference, store, platform=AMD64)
        assert (again.bytes_received, again.layers_existing) == (0, 2)


class Sink:
    """Takes a layer's bytes; remembers whether it was kept."""

    def __init__(self) -> None:
        self.data = b""
        self.kept = False

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def write(self, data: bytes) -> None:
        self.data += data

    def commit(self) -> None:
        self.kept = True


def test_layers_can_be_unpacked_while_they_arrive_also_over_breaks(setup: Setup, store: BlobStore) -> None:
    setup.registry.on("GET", f"/blobs/{setup.layer.digest}", reset_after(100_000), times=3)
    sinks: dict[Digest, Sink] = {}
    positions: dict[Digest, int] = {}

    def sink(layer):  # type: ignore[no-untyped-def]  # a LayerSinkFactory
        positions[layer.descriptor.digest] = layer.position
        return sinks.setdefault(layer.diff_id, Sink())

    with client_for() as client:
        reference = Reference.parse(f"{setup.registry.host}/{NAME}:1")
        result = pull(client, reference, store, platform=AMD64, layer_sink=sink)
    config = result.manifests[0].config
    assert config is not None
    assert [sinks[diff_id].data for diff_id in config.diff_ids] == [
        read(store, x.digest) for x in setup.manifest.layers
    ]
    assert all(sink.kept for sink in sinks.values())
    assert positions == {layer.digest: n for n, layer in enumerate(setup.manifest.layers)}


def test_attestations_come_along_but_are_not_unpacked(setup: Setup, store: BlobStore) -> None:
    statement = b'{"_type":"https://in-toto.io/Statement/v0.1"}'
    nowhere = Platform("unknown", "unknown")
    config = ImageConfig.empty(nowhere).with_(diff_ids=(Digest.of(statement),)).to_bytes()
    note = Descriptor("application/vnd.in-toto+json", setup.source.write(statement), len(statement))
    data = Manifest(Descriptor(OCI_CONFIG, setup.source.write(config), len(config)), (note,)).to_bytes()
    attestation = Descriptor(OCI_MANIFEST, setup.source.write(data), len(data), platform=nowhere)
    setup.publish(make_index(setup.source, setup.descriptor, attestation))
    asked: list[Digest] = []

    def sink(layer):  # type: ignore[no-untyped-def]  # a LayerSinkFactory
        asked.append(layer.descriptor.digest)

    with client_for() as client:
        reference = Reference.parse(f"{setup.registry.host}/{NAME}:1")
        result = pull(client, reference, store, all_platforms=True, layer_sink=sink)
    assert [image.is_image for image in result.manifests] == [True, False]
    assert set(asked) == {layer.digest for layer in setup.manifest.layers}
    assert read(store, note.digest) == statement


def test_a_sink_of_a_wrong_layer_is_not_kept(setup: Setup, store: BlobStore) -> None:
    other = bytes(setup.layer.size)
    setup.registry.on("GET", f"/blobs/{setup.layer.digest}", lambda x: send_blob(x, other))
    sinks: list[Sink] = []

    def sink(layer):  # type: ignore[no-untyped-def]  # a LayerSinkFactory
        if layer.descriptor.digest == setup.layer.digest:
            sinks.append(Sink())
            return sinks[-1]
        return None

    with client_for() as client, pytest.raises(ContentMismatch):
        pull(client, Reference.parse(f"{setup.registry.host}/{NAME}:1"), store, platform=AMD64, layer_sink=sink)
    assert [sink.kept for sink in sinks] == [False]


# --- lists ---


def test_tags_are_read_page_by_page(registry: FaultRegistry) -> None:
    registry._page_items = 3
    for number in range(10):
        registry.add_manifest(NAME, f"v{number}", b'{"config":{}}', OCI_MANIFEST)
    with client_for() as client:
        repository = client.repository(Reference.parse(f"{registry.host}/{NAME}"))
        assert list(repository.tags()) == [f"v{n}" for n in range(10)]
        assert list(client.catalog(registry.host)) == [NAME]
        with pytest.raises(ImageNotFound):
            list(client.repository(Reference.parse(f"{registry.host}/none")).tags())
    assert len(registry.requests("GET", "/tags/list")) == 5


def test_endless_tag_pages_end(registry: FaultRegistry) -> None:
    body = json.dumps({"name": NAME, "tags": ["a"]}).encode()

    def fresh(x: Exchange) -> bool:
        return x.reply(200, body, Link=f'<{x.path}?n=1&last={len(registry.seen)}>; rel="next"')

    registry.on("GET", "/tags/list", fresh)
    with client_for() as client:
        repository = client.repository(Reference.parse(f"{registry.host}/{NAME}"))
        with pytest.raises(PybuildError, match="doesn't end"):
            list(repository.tags())
        assert len(registry.seen) == 2
        registry.rules.clear()
        registry.on("GET", "/tags/list", lambda x: x.reply(200, body, Link=f'<{x.path}?n=1&last=a>; rel="next"'))
        with pytest.raises(PybuildError, match="doesn't end"):
            list(repository.tags())
        registry.rules.clear()
        registry.on("GET", "/tags/list", lambda x: x.reply(200, body, Link='<https://elsewhere.example/>; rel="next"'))
        with pytest.raises(PybuildError, match="at another host"):
            list(repository.tags())


@pytest.mark.parametrize("body", [b'{"tags":{}}', b'{"tags":[1]}', b'{"tags":"x"}'])
def test_unreadable_lists_are_refused(registry: FaultRegistry, body: bytes) -> None:
    registry.on("GET", "/tags/list", answer(200, body))
    with client_for() as client:
        repository = client.repository(Reference.parse(f"{registry.host}/{NAME}"))
        with pytest.raises(PybuildError, match="can't be read"):
            list(repository.tags())
