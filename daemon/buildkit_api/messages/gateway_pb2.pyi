import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from pybuild.daemon.buildkit_api.messages import common_pb2 as _common_pb2
from pybuild.daemon.buildkit_api.messages import control_pb2 as _control_pb2
from pybuild.daemon.buildkit_api.messages import files_pb2 as _files_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Result(_message.Message):
    __slots__ = ("ref_deprecated", "refs_deprecated", "ref", "refs", "metadata", "attestations")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    class AttestationsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Attestations
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Attestations, _Mapping]] = ...) -> None: ...
    REF_DEPRECATED_FIELD_NUMBER: _ClassVar[int]
    REFS_DEPRECATED_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    REFS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    ATTESTATIONS_FIELD_NUMBER: _ClassVar[int]
    ref_deprecated: str
    refs_deprecated: RefMapDeprecated
    ref: Ref
    refs: RefMap
    metadata: _containers.ScalarMap[str, bytes]
    attestations: _containers.MessageMap[str, Attestations]
    def __init__(self, ref_deprecated: _Optional[str] = ..., refs_deprecated: _Optional[_Union[RefMapDeprecated, _Mapping]] = ..., ref: _Optional[_Union[Ref, _Mapping]] = ..., refs: _Optional[_Union[RefMap, _Mapping]] = ..., metadata: _Optional[_Mapping[str, bytes]] = ..., attestations: _Optional[_Mapping[str, Attestations]] = ...) -> None: ...

class RefMapDeprecated(_message.Message):
    __slots__ = ("refs",)
    class RefsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REFS_FIELD_NUMBER: _ClassVar[int]
    refs: _containers.ScalarMap[str, str]
    def __init__(self, refs: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Ref(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    DEF_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ..., **kwargs) -> None: ...

class RefMap(_message.Message):
    __slots__ = ("refs",)
    class RefsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Ref
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Ref, _Mapping]] = ...) -> None: ...
    REFS_FIELD_NUMBER: _ClassVar[int]
    refs: _containers.MessageMap[str, Ref]
    def __init__(self, refs: _Optional[_Mapping[str, Ref]] = ...) -> None: ...

class Attestations(_message.Message):
    __slots__ = ("attestation",)
    ATTESTATION_FIELD_NUMBER: _ClassVar[int]
    attestation: _containers.RepeatedCompositeFieldContainer[Attestation]
    def __init__(self, attestation: _Optional[_Iterable[_Union[Attestation, _Mapping]]] = ...) -> None: ...

class Attestation(_message.Message):
    __slots__ = ("kind", "metadata", "ref", "path", "in_toto_predicate_type")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    KIND_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    IN_TOTO_PREDICATE_TYPE_FIELD_NUMBER: _ClassVar[int]
    kind: int
    metadata: _containers.ScalarMap[str, bytes]
    ref: Ref
    path: str
    in_toto_predicate_type: str
    def __init__(self, kind: _Optional[int] = ..., metadata: _Optional[_Mapping[str, bytes]] = ..., ref: _Optional[_Union[Ref, _Mapping]] = ..., path: _Optional[str] = ..., in_toto_predicate_type: _Optional[str] = ...) -> None: ...

class SolveRequest(_message.Message):
    __slots__ = ("definition", "frontend", "frontend_opt", "allow_result_return", "allow_result_array_ref", "final", "exporter_attr", "cache_imports", "frontend_inputs", "evaluate", "source_policies")
    class FrontendOptEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class FrontendInputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _common_pb2.Definition
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_common_pb2.Definition, _Mapping]] = ...) -> None: ...
    DEFINITION_FIELD_NUMBER: _ClassVar[int]
    FRONTEND_FIELD_NUMBER: _ClassVar[int]
    FRONTEND_OPT_FIELD_NUMBER: _ClassVar[int]
    ALLOW_RESULT_RETURN_FIELD_NUMBER: _ClassVar[int]
    ALLOW_RESULT_ARRAY_REF_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    EXPORTER_ATTR_FIELD_NUMBER: _ClassVar[int]
    CACHE_IMPORTS_FIELD_NUMBER: _ClassVar[int]
    FRONTEND_INPUTS_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_POLICIES_FIELD_NUMBER: _ClassVar[int]
    definition: _common_pb2.Definition
    frontend: str
    frontend_opt: _containers.ScalarMap[str, str]
    allow_result_return: bool
    allow_result_array_ref: bool
    final: bool
    exporter_attr: bytes
    cache_imports: _containers.RepeatedCompositeFieldContainer[_common_pb2.CacheOptionsEntry]
    frontend_inputs: _containers.MessageMap[str, _common_pb2.Definition]
    evaluate: bool
    source_policies: _containers.RepeatedCompositeFieldContainer[_control_pb2.SourcePolicy]
    def __init__(self, definition: _Optional[_Union[_common_pb2.Definition, _Mapping]] = ..., frontend: _Optional[str] = ..., frontend_opt: _Optional[_Mapping[str, str]] = ..., allow_result_return: bool = ..., allow_result_array_ref: bool = ..., final: bool = ..., exporter_attr: _Optional[bytes] = ..., cache_imports: _Optional[_Iterable[_Union[_common_pb2.CacheOptionsEntry, _Mapping]]] = ..., frontend_inputs: _Optional[_Mapping[str, _common_pb2.Definition]] = ..., evaluate: bool = ..., source_policies: _Optional[_Iterable[_Union[_control_pb2.SourcePolicy, _Mapping]]] = ...) -> None: ...

class SolveResponse(_message.Message):
    __slots__ = ("ref", "result")
    REF_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ref: str
    result: Result
    def __init__(self, ref: _Optional[str] = ..., result: _Optional[_Union[Result, _Mapping]] = ...) -> None: ...

class ReturnRequest(_message.Message):
    __slots__ = ("result", "error")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    result: Result
    error: _common_pb2.Status
    def __init__(self, result: _Optional[_Union[Result, _Mapping]] = ..., error: _Optional[_Union[_common_pb2.Status, _Mapping]] = ...) -> None: ...

class ReturnResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InputsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InputsResponse(_message.Message):
    __slots__ = ("definitions",)
    class DefinitionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _common_pb2.Definition
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_common_pb2.Definition, _Mapping]] = ...) -> None: ...
    DEFINITIONS_FIELD_NUMBER: _ClassVar[int]
    definitions: _containers.MessageMap[str, _common_pb2.Definition]
    def __init__(self, definitions: _Optional[_Mapping[str, _common_pb2.Definition]] = ...) -> None: ...

class ResolveImageConfigRequest(_message.Message):
    __slots__ = ("ref", "platform", "resolve_mode", "log_name", "resolver_type", "session_id", "store_id")
    REF_FIELD_NUMBER: _ClassVar[int]
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    RESOLVE_MODE_FIELD_NUMBER: _ClassVar[int]
    LOG_NAME_FIELD_NUMBER: _ClassVar[int]
    RESOLVER_TYPE_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    ref: str
    platform: _common_pb2.Platform
    resolve_mode: str
    log_name: str
    resolver_type: int
    session_id: str
    store_id: str
    def __init__(self, ref: _Optional[str] = ..., platform: _Optional[_Union[_common_pb2.Platform, _Mapping]] = ..., resolve_mode: _Optional[str] = ..., log_name: _Optional[str] = ..., resolver_type: _Optional[int] = ..., session_id: _Optional[str] = ..., store_id: _Optional[str] = ...) -> None: ...

class ResolveImageConfigResponse(_message.Message):
    __slots__ = ("digest", "config", "ref")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    digest: str
    config: bytes
    ref: str
    def __init__(self, digest: _Optional[str] = ..., config: _Optional[bytes] = ..., ref: _Optional[str] = ...) -> None: ...

class ResolveSourceMetaRequest(_message.Message):
    __slots__ = ("source", "platform", "log_name", "resolve_mode", "image")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    LOG_NAME_FIELD_NUMBER: _ClassVar[int]
    RESOLVE_MODE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    source: _common_pb2.Source
    platform: _common_pb2.Platform
    log_name: str
    resolve_mode: str
    image: ResolveSourceImageRequest
    def __init__(self, source: _Optional[_Union[_common_pb2.Source, _Mapping]] = ..., platform: _Optional[_Union[_common_pb2.Platform, _Mapping]] = ..., log_name: _Optional[str] = ..., resolve_mode: _Optional[str] = ..., image: _Optional[_Union[ResolveSourceImageRequest, _Mapping]] = ...) -> None: ...

class ResolveSourceImageRequest(_message.Message):
    __slots__ = ("no_config", "attestation_chain", "resolve_attestations")
    NO_CONFIG_FIELD_NUMBER: _ClassVar[int]
    ATTESTATION_CHAIN_FIELD_NUMBER: _ClassVar[int]
    RESOLVE_ATTESTATIONS_FIELD_NUMBER: _ClassVar[int]
    no_config: bool
    attestation_chain: bool
    resolve_attestations: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, no_config: bool = ..., attestation_chain: bool = ..., resolve_attestations: _Optional[_Iterable[str]] = ...) -> None: ...

class ResolveSourceMetaResponse(_message.Message):
    __slots__ = ("source", "image", "git", "http")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    GIT_FIELD_NUMBER: _ClassVar[int]
    HTTP_FIELD_NUMBER: _ClassVar[int]
    source: _common_pb2.Source
    image: ResolveSourceImageResponse
    git: ResolveSourceGitResponse
    http: ResolveSourceHTTPResponse
    def __init__(self, source: _Optional[_Union[_common_pb2.Source, _Mapping]] = ..., image: _Optional[_Union[ResolveSourceImageResponse, _Mapping]] = ..., git: _Optional[_Union[ResolveSourceGitResponse, _Mapping]] = ..., http: _Optional[_Union[ResolveSourceHTTPResponse, _Mapping]] = ...) -> None: ...

class ResolveSourceImageResponse(_message.Message):
    __slots__ = ("digest", "config")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    digest: str
    config: bytes
    def __init__(self, digest: _Optional[str] = ..., config: _Optional[bytes] = ...) -> None: ...

class ResolveSourceGitResponse(_message.Message):
    __slots__ = ("checksum", "ref", "commit_checksum")
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    COMMIT_CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    checksum: str
    ref: str
    commit_checksum: str
    def __init__(self, checksum: _Optional[str] = ..., ref: _Optional[str] = ..., commit_checksum: _Optional[str] = ...) -> None: ...

class ResolveSourceHTTPResponse(_message.Message):
    __slots__ = ("checksum", "filename", "last_modified")
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    LAST_MODIFIED_FIELD_NUMBER: _ClassVar[int]
    checksum: str
    filename: str
    last_modified: _timestamp_pb2.Timestamp
    def __init__(self, checksum: _Optional[str] = ..., filename: _Optional[str] = ..., last_modified: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ReadFileRequest(_message.Message):
    __slots__ = ("ref", "file_path", "range", "mount_index")
    REF_FIELD_NUMBER: _ClassVar[int]
    FILE_PATH_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    MOUNT_INDEX_FIELD_NUMBER: _ClassVar[int]
    ref: str
    file_path: str
    range: FileRange
    mount_index: int
    def __init__(self, ref: _Optional[str] = ..., file_path: _Optional[str] = ..., range: _Optional[_Union[FileRange, _Mapping]] = ..., mount_index: _Optional[int] = ...) -> None: ...

class FileRange(_message.Message):
    __slots__ = ("offset", "length")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    offset: int
    length: int
    def __init__(self, offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class ReadFileResponse(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class ReadDirRequest(_message.Message):
    __slots__ = ("ref", "dir_path", "include_pattern", "mount_index")
    REF_FIELD_NUMBER: _ClassVar[int]
    DIR_PATH_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_PATTERN_FIELD_NUMBER: _ClassVar[int]
    MOUNT_INDEX_FIELD_NUMBER: _ClassVar[int]
    ref: str
    dir_path: str
    include_pattern: str
    mount_index: int
    def __init__(self, ref: _Optional[str] = ..., dir_path: _Optional[str] = ..., include_pattern: _Optional[str] = ..., mount_index: _Optional[int] = ...) -> None: ...

class ReadDirResponse(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[_files_pb2.Stat]
    def __init__(self, entries: _Optional[_Iterable[_Union[_files_pb2.Stat, _Mapping]]] = ...) -> None: ...

class StatFileRequest(_message.Message):
    __slots__ = ("ref", "path", "mount_index")
    REF_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    MOUNT_INDEX_FIELD_NUMBER: _ClassVar[int]
    ref: str
    path: str
    mount_index: int
    def __init__(self, ref: _Optional[str] = ..., path: _Optional[str] = ..., mount_index: _Optional[int] = ...) -> None: ...

class StatFileResponse(_message.Message):
    __slots__ = ("stat",)
    STAT_FIELD_NUMBER: _ClassVar[int]
    stat: _files_pb2.Stat
    def __init__(self, stat: _Optional[_Union[_files_pb2.Stat, _Mapping]] = ...) -> None: ...

class EvaluateRequest(_message.Message):
    __slots__ = ("ref",)
    REF_FIELD_NUMBER: _ClassVar[int]
    ref: str
    def __init__(self, ref: _Optional[str] = ...) -> None: ...

class EvaluateResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PingRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PongResponse(_message.Message):
    __slots__ = ("frontend_api_caps", "llb_caps", "workers")
    FRONTEND_API_CAPS_FIELD_NUMBER: _ClassVar[int]
    LLB_CAPS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    frontend_api_caps: _containers.RepeatedCompositeFieldContainer[_common_pb2.ApiCap]
    llb_caps: _containers.RepeatedCompositeFieldContainer[_common_pb2.ApiCap]
    workers: _containers.RepeatedCompositeFieldContainer[_common_pb2.WorkerRecord]
    def __init__(self, frontend_api_caps: _Optional[_Iterable[_Union[_common_pb2.ApiCap, _Mapping]]] = ..., llb_caps: _Optional[_Iterable[_Union[_common_pb2.ApiCap, _Mapping]]] = ..., workers: _Optional[_Iterable[_Union[_common_pb2.WorkerRecord, _Mapping]]] = ...) -> None: ...

class WarnRequest(_message.Message):
    __slots__ = ("digest", "level", "short", "detail", "url", "info", "ranges")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    SHORT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    digest: str
    level: int
    short: bytes
    detail: _containers.RepeatedScalarFieldContainer[bytes]
    url: str
    info: _common_pb2.SourceInfo
    ranges: _containers.RepeatedCompositeFieldContainer[_common_pb2.Range]
    def __init__(self, digest: _Optional[str] = ..., level: _Optional[int] = ..., short: _Optional[bytes] = ..., detail: _Optional[_Iterable[bytes]] = ..., url: _Optional[str] = ..., info: _Optional[_Union[_common_pb2.SourceInfo, _Mapping]] = ..., ranges: _Optional[_Iterable[_Union[_common_pb2.Range, _Mapping]]] = ...) -> None: ...

class WarnResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
