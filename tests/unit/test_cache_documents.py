"""Caches outside of a store: their options, their document, which steps they get, and packs of cache mounts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.builder.cache_format import (
    CacheBundle,
    CachedLayer,
    CachedStep,
    InvalidCache,
    bundle_bytes,
    bundle_json,
    read_bundle,
)
from pybuild.builder.cache_specs import (
    CacheMode,
    CacheType,
    parse_cache_from,
    parse_cache_repo,
    parse_cache_to,
    parse_mounts_place,
)
from pybuild.daemon.cache_places import bundle_from, manifest_of
from pybuild.errors import PybuildError, UsageError
from pybuild.layers.descriptor import OCI_LAYER_GZIP, Descriptor
from pybuild.layers.digest import Digest
from pybuild.layers.entries import CacheRecord, Kind
from pybuild.layers.tree_packs import PACK_BYTES, pack_tree
from pybuild.layers.tree_views import DirectoryView

A, B, C = (Digest.of(text) for text in (b"a", b"b", b"c"))


def layer(diff_id: Digest, *, created: float = 1.25) -> CachedLayer:
    blob = Descriptor(OCI_LAYER_GZIP, Digest.of(str(diff_id).encode()), 100)
    return CachedLayer(diff_id, size=1024, empty=False, created=created, blob=blob, level=6)


def step(key: str, *layers: Digest, own: int = 1) -> CachedStep:
    record = CacheRecord(key, layers, own, '{"by":"definition"}', 1234.5678901)
    return CachedStep(record, aliases=(f"{key}-content",), stage="build", instruction="RUN x", title="[1/2] RUN x")


BUNDLE = CacheBundle((step("k1", A), step("k2", A, B), step("k3", A, C), step("k0", own=0)), (layer(B), layer(C)))


# --- the document -------------------------------------------------------------------------------------------------------


def test_a_document_is_read_as_it_was_written() -> None:
    assert read_bundle(bundle_bytes(BUNDLE)) == BUNDLE


def test_stacks_share_what_they_stand_on() -> None:
    assert [row[0] for row in bundle_json(BUNDLE)["stacks"]] == [-1, 0, 0]


def test_a_deep_stack_costs_a_line_for_each_layer() -> None:
    digests = [Digest.of(str(number).encode()) for number in range(3000)]
    steps = tuple(step(f"k{number}", *digests[: number + 1]) for number in range(0, 3000, 100))
    assert len(bundle_json(CacheBundle(steps, ()))["stacks"]) == 2901
    assert read_bundle(bundle_bytes(CacheBundle(steps, ()))).steps == steps


def test_another_epoch_is_an_empty_cache() -> None:
    value = bundle_json(BUNDLE)
    value["epoch"] += 1
    assert read_bundle(json.dumps(value).encode()) == CacheBundle((), ())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 2),
        ("stacks", [[0, str(A)]]),
        ("stacks", [[1, str(A)], [0, str(B)]]),
        ("stacks", [[-2, str(A)]]),
        ("stacks", [[-1, "sha256:short"]]),
        ("steps", [{"key": "k", "stack": 9, "own": 0, "created": 1}]),
        ("steps", [{"key": "k", "stack": 0, "own": 5, "created": 1}]),
        ("steps", [{"key": 7, "stack": 0, "own": 0, "created": 1}]),
        ("steps", {"k": 1}),
        ("layers", [{"diffID": str(A), "size": -1, "created": 1}]),
        ("layers", [{"diffID": str(A), "size": 1, "created": 1, "blob": {"digest": 5}}]),
    ],
)
def test_a_document_that_is_wrong_is_refused(field: str, value: object) -> None:
    document = {**bundle_json(BUNDLE), field: value}
    with pytest.raises(InvalidCache):
        read_bundle(json.dumps(document).encode())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(str(A)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "version",
                    "epoch",
                    "layers",
                    "stacks",
                    "steps",
                    "key",
                    "stack",
                    "own",
                    "created",
                    "blob",
                    "diffID",
                    "size",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150)
@given(JSON)
def test_whatever_somebody_wrote_is_read_or_refused(value: Any) -> None:  # Any: JSON
    document = {**bundle_json(BUNDLE), **(value if isinstance(value, dict) else {"steps": value})}
    for data in (json.dumps(document).encode(), json.dumps(value).encode()):
        try:
            read_bundle(data)
        except InvalidCache:
            continue


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200))
def test_rubbish_is_no_cache(data: bytes) -> None:
    with pytest.raises(PybuildError):
        bundle_from(data, read=lambda descriptor: data)


def test_a_manifest_leads_to_the_document() -> None:
    document = bundle_bytes(BUNDLE)
    blobs = [one.blob for one in BUNDLE.layers if one.blob is not None]
    for oci in (True, False):
        data = manifest_of(document, blobs, oci=oci)
        assert bundle_from(data, read=lambda descriptor: {Digest.of(document): document}[descriptor.digest]) == BUNDLE


# --- options ------------------------------------------------------------------------------------------------------------


def test_sources() -> None:
    assert parse_cache_from("reg.example/app:cache").ref == "reg.example/app:cache"
    assert parse_cache_from("type=registry,ref=app").type is CacheType.REGISTRY
    local = parse_cache_from("type=local,src=dir,tag=main")
    assert (local.path, local.tag) == ("dir", "main")
    s3 = parse_cache_from("type=s3,bucket=b,region=r,name=a;b,access_key_id=k,secret_access_key=hidden")
    assert s3.bucket is not None
    assert s3.bucket.names == ("a", "b")
    assert "hidden" not in repr(s3)


def test_targets() -> None:
    target = parse_cache_to("type=registry,ref=app,mode=max,compression=zstd,compression-level=5,oci-mediatypes=false")
    assert (target.mode, target.compression, target.compression_level, target.oci) == (CacheMode.MAX, "zstd", 5, False)
    assert target.ignore_errors
    assert not parse_cache_to("type=registry,ref=app,ignore-error=false").ignore_errors
    assert parse_cache_to("type=inline").type is CacheType.INLINE
    assert parse_cache_to("inline").type is CacheType.INLINE
    assert parse_cache_to("type=registry,ref=app,image-manifest=false").warnings


def test_repositories_and_mounts() -> None:
    repository = parse_cache_repo("reg.example:5000/app/steps,mode=r,compression=zstd")
    assert (repository.ref, repository.read, repository.write) == ("reg.example:5000/app/steps", True, False)
    place = parse_mounts_place("./dir,id=a,id=b,max-size=1.5GB", option="--cache-mounts-to")
    assert (place.path, place.ids, place.max_size) == ("./dir", ("a", "b"), int(1.5 * (1 << 30)))
    assert parse_mounts_place("reg.example/m:1", option="--cache-mounts-from").ref == "reg.example/m:1"
    assert parse_mounts_place("type=local,dest=d,tag=x", option="--cache-mounts-to").tag == "x"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "type=",
        "type=gha",
        "ref=x",
        "type=registry,ref=x,x=y",
        "type=local",
        "type=s3",
        "type=registry,ref=X Y",
        "a,b",
    ],
)
def test_sources_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_cache_from(text)


@settings(deadline=None, max_examples=80)
@given(st.text(max_size=40))
def test_any_text_is_an_option_or_a_usage_error(text: str) -> None:
    for parse in (parse_cache_from, parse_cache_to, parse_cache_repo):
        try:
            parse(text)
        except UsageError:
            continue


# --- packs --------------------------------------------------------------------------------------------------------------


def fill(root: Path, *, count: int, size: int = 300_000) -> None:
    for number in range(count):
        path = root / f"{number % 7}" / f"file{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number % 256]) * size)


def paths(packs: Any) -> list[list[str]]:  # Any: entries
    return [[entry.path for entry in pack] for pack in packs]


def test_a_small_tree_is_one_pack_and_its_directories(tmp_path: Path) -> None:
    fill(tmp_path, count=5, size=10)
    tree = pack_tree(DirectoryView(str(tmp_path)))
    assert len(tree.packs) == 2
    assert all(entry.kind is Kind.DIRECTORY and entry.mtime_ns == 0 for entry in tree.packs[-1])
    assert (tree.files, tree.size, tree.left_out) == (5, 50, 0)


def test_a_new_file_changes_few_packs(tmp_path: Path) -> None:
    fill(tmp_path, count=200)
    before = pack_tree(DirectoryView(str(tmp_path))).packs
    (tmp_path / "3" / "new").write_bytes(b"new")
    after = pack_tree(DirectoryView(str(tmp_path))).packs
    assert len(before) > 8
    assert len(set(map(tuple, paths(after))) - set(map(tuple, paths(before)))) == 1
    assert sorted(path for pack in paths(after) for path in pack) == sorted(
        [*(path for pack in paths(before) for path in pack), "3/new"]
    )


def test_packs_stay_small(tmp_path: Path) -> None:
    fill(tmp_path, count=150)
    tree = pack_tree(DirectoryView(str(tmp_path)))
    assert max(sum(entry.size for entry in pack) for pack in tree.packs) <= 2 * PACK_BYTES


def test_a_limit_leaves_out_what_was_used_least_lately(tmp_path: Path) -> None:
    fill(tmp_path, count=10, size=1000)
    for number in range(10):
        path = tmp_path / f"{number % 7}" / f"file{number}"
        os.utime(path, (1000 + number, 1000 + number))
    tree = pack_tree(DirectoryView(str(tmp_path)), max_bytes=4500)
    kept = {entry.path.rpartition("/")[2] for pack in tree.packs for entry in pack if entry.kind is Kind.FILE}
    assert kept == {"file6", "file7", "file8", "file9"}
    assert tree.left_out == 6


def test_what_cannot_travel_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    tree = pack_tree(DirectoryView(str(tmp_path)))
    assert paths(tree.packs) == [["link"]]
