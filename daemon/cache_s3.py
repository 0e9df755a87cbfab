"""A cache in an S3-compatible object store, by boto3, which is an optional part: ``pip install 'pybuild[s3]'``.

    <prefix><manifests_prefix><name>        the manifest, as a registry would have it
    <prefix><blobs_prefix><digest>          the document and the layers' blobs

Owns the objects' keys and turning boto3's errors into ours. Objects are never deleted: the bucket's lifecycle rules are the place for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

from pybuild.builder.cache_format import CONFIG_TYPE, CacheBundle
from pybuild.builder.cache_specs import S3Bucket
from pybuild.errors import PybuildError
from pybuild.layers.descriptor import DOCKER_MANIFEST, OCI_MANIFEST, Descriptor
from pybuild.layers.digest import Digest
from pybuild.registry_client.stores import BlobSource

from .cache_places import NoCacheThere, Saved, bundle_from, manifest_of

T = TypeVar("T")
_CHUNK_BYTES: Final = 1 << 20
_PARALLEL: Final = 4
_MANIFEST_BYTES: Final = 16 << 20


class S3Failed(PybuildError):
    """The object store, or the lack of boto3, prevents what was asked."""


class S3Place:
    """A cache in a bucket."""

    def __init__(self, bucket: S3Bucket) -> None:
        self._bucket = bucket
        self._client: Any = None  # Any: boto3 has no types of its own

    @property
    def name(self) -> str:
        return f"s3://{self._bucket.bucket}/{self._bucket.prefix}{self._bucket.names[0]}"

    origin = None

    def manifest(self) -> bytes:
        """The manifest under the first name that exists. Raises NoCacheThere, S3Failed."""
        for name in self._bucket.names:
            found = self._try(partial(self._get, key=self._manifest_key(name)))
            if found is not None:
                return bytes(found.read(_MANIFEST_BYTES))
        raise NoCacheThere(f"{self.name}: there is no cache yet")

    def load(self) -> CacheBundle:
        """See CachePlace."""
        return bundle_from(self.manifest(), read=self.read)

    def read(self, descriptor: Descriptor) -> bytes:
        """A small blob, verified. Raises PybuildError."""
        data = b"".join(self.chunks(descriptor))
        if Digest.of(data, descriptor.digest.algorithm) != descriptor.digest:
            raise S3Failed(f"{self.name}: {descriptor.digest} has other content than its digest says")
        return data

    def chunks(self, blob: Descriptor) -> Iterator[bytes]:
        """See CachePlace."""
        body = self._try(lambda client: self._get(client, key=self._blob_key(blob.digest)))
        if body is None:
            raise S3Failed(f"{self.name}: {blob.digest} is missing")
        while chunk := self._try(lambda client: body.read(_CHUNK_BYTES)):
            yield chunk

    def save(
        self,
        document: bytes,
        layers: Sequence[Descriptor],
        *,
        blobs: BlobSource,
        oci: bool = True,
        config_type: str = CONFIG_TYPE,
    ) -> Saved:
        """See CachePlace."""
        data = manifest_of(document, layers, oci=oci, config_type=config_type)
        descriptor = Descriptor(OCI_MANIFEST if oci else DOCKER_MANIFEST, Digest.of(data), len(data))
        with ThreadPoolExecutor(_PARALLEL, "s3") as pool:
            sent = sum(pool.map(lambda layer: self._upload(layer, blobs), layers))
        self._try(lambda client: self._put(client, key=self._blob_key(Digest.of(document)), data=document))
        for name in self._bucket.names:
            self._try(partial(self._put, key=self._manifest_key(name), data=data))
        return Saved(descriptor, bytes_sent=sent)

    # --- objects ---

    def _upload(self, blob: Descriptor, blobs: BlobSource) -> int:
        key = self._blob_key(blob.digest)
        if self._try(lambda client: client.head_object(Bucket=self._bucket.bucket, Key=key)) is not None:
            return 0
        with blobs.open(blob.digest) as file:
            self._try(lambda client: client.upload_fileobj(file, self._bucket.bucket, key))
        return blob.size

    def _get(self, client: Any, *, key: str) -> Any:  # Any: boto3
        return client.get_object(Bucket=self._bucket.bucket, Key=key)["Body"]

    def _put(self, client: Any, *, key: str, data: bytes) -> Any:  # Any: boto3
        return client.put_object(Bucket=self._bucket.bucket, Key=key, Body=data)

    def _manifest_key(self, name: str) -> str:
        return f"{self._bucket.prefix}{self._bucket.manifests_prefix}{name}"

    def _blob_key(self, digest: Digest) -> str:
        return f"{self._bucket.prefix}{self._bucket.blobs_prefix}{digest}"

    def _try(self, call: Callable[[Any], T]) -> T | None:  # Any: boto3
        """What ``call`` gives; None if there is no such object. Raises S3Failed."""
        client = self._connected()
        from botocore.exceptions import (  # type: ignore[import-untyped,import-not-found,unused-ignore]  # no types, or not installed
            BotoCoreError,
            ClientError,
        )

        try:
            return call(client)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in ("404", "NoSuchKey", "NotFound"):
                return None
            raise S3Failed(f"{self.name}: {error}") from error
        except (BotoCoreError, OSError, ValueError) as error:
            raise S3Failed(f"{self.name}: {error}") from error

    def _connected(self) -> Any:  # Any: boto3
        if self._client is None:
            try:
                import boto3  # type: ignore[import-untyped,import-not-found,unused-ignore]  # no types, or not installed
                from botocore.config import Config  # type: ignore[import-untyped,import-not-found,unused-ignore]  # no types, or not installed
            except ImportError as error:
                raise S3Failed("caches in S3 need boto3", hint="pip install 'pybuild[s3]'") from error
            style = {"addressing_style": "path"} if self._bucket.use_path_style else {}
            self._client = boto3.client(
                "s3",
                region_name=self._bucket.region or None,
                endpoint_url=self._bucket.endpoint_url or None,
                config=Config(s3=style, retries={"max_attempts": 4}, connect_timeout=10, read_timeout=60),
                **self._bucket.settings,
            )
        return self._client
