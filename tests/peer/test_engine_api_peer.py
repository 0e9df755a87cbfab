"""Answers fit the Engine API's public description, as the Docker project publishes it (``swagger.yaml``, fetched by tools/setup.sh).

Every operation of the description is either answered, and then validated, or refused with 501 and a sentence.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from daemons.running_daemon import Answer, RunningDaemon, context_tar, running_daemon

pytestmark = pytest.mark.peer

REPOSITORY = Path(__file__).resolve().parents[2]
VARIABLE = "PYBUILD_TEST_SWAGGER"
FETCHED = REPOSITORY / ".venv/engine-api/swagger.yaml"
SERVED = ("/images", "/build", "/distribution", "/auth", "/info", "/version", "/_ping", "/events", "/system", "/commit")

Schema = dict[str, Any]

# Docker's own daemon has null in place of these lists and maps when they are empty, and "" for no isolation: clients know that.
LOOSE = [
    ("Isolation", ""),
    *((name, None) for name in ("Env", "Cmd", "Entrypoint", "OnBuild", "Labels", "Volumes", "Tags")),
]
# Clients look for a network before they build, and go on if there is none.
EXCEPTIONS = {("GET", "/networks/{id}"): 404}


class Description:
    """The description of one version."""

    def __init__(self, file: Path) -> None:
        yaml = pytest.importorskip("yaml")
        self.content: Schema = yaml.load(
            file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        )
        self.version: str = self.content["info"]["version"]

    @property
    def operations(self) -> dict[tuple[str, str], Schema]:
        return {
            (method.upper(), path): operation
            for path, operations in self.content["paths"].items()
            for method, operation in operations.items()
            if method != "parameters"
        }

    def problems(self, value: object, schema: Schema) -> list[str]:
        """Where ``value`` doesn't fit ``schema``."""
        jsonschema = pytest.importorskip("jsonschema")
        whole = {**self._converted(schema), "definitions": self._definitions}
        return [
            f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}"
            for error in jsonschema.Draft4Validator(whole).iter_errors(value)
            if (error.absolute_path[-1] if error.absolute_path else "", error.instance) not in LOOSE
        ]

    @functools.cached_property
    def _definitions(self) -> Schema:
        return {name: self._converted(schema) for name, schema in self.content["definitions"].items()}

    def _converted(self, schema: Any) -> Any:  # Any: JSON schema
        """Swagger 2's schemas as JSON schemas: null is what ``x-nullable`` allows."""
        if isinstance(schema, list):
            return [self._converted(item) for item in schema]
        if not isinstance(schema, dict):
            return schema
        out = {name: self._converted(value) for name, value in schema.items() if name != "example"}
        kind = out.get("type")
        if schema.get("x-nullable") and isinstance(kind, str):
            out["type"] = [kind, "null"]
            if "enum" in out:
                out["enum"] = [*out["enum"], None]
        if schema.get("x-nullable") and "allOf" in out:
            return {"anyOf": [out, {"type": "null"}]}
        return out


def _description(file: Path) -> Description:
    if not file.is_file():
        pytest.skip(f"the Engine API's description is not there: run tools/setup.sh, or name the file in {VARIABLE}")
    return Description(file)


@pytest.fixture(scope="module")
def description() -> Description:
    return _description(Path(os.environ.get(VARIABLE) or FETCHED))


@pytest.fixture(scope="module")
def daemon(_seed_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    directory = tmp_path_factory.mktemp("daemon")
    subprocess.run(["cp", "-a", str(_seed_root), str(directory / "root")], check=True)
    with running_daemon(directory, directory / "root") as running:
        answer = running.build(
            {
                "Dockerfile": 'FROM busybox\nRUN echo x > /x\nENV A=b\nUSER 1:2\nEXPOSE 80\nVOLUME /v\nLABEL l=m\nENTRYPOINT ["sh"]\n'
                'CMD ["-c"]\nWORKDIR /w\nSTOPSIGNAL 9\nSHELL ["/bin/sh"]\nHEALTHCHECK --interval=5s CMD true\nONBUILD RUN echo\n'
            },
            t="full:1",
        )
        assert answer.status == 200, answer.body
        running.request("POST", "/images/busybox/tag", query={"repo": "loose", "tag": "1"})
        yield running


class Caller:
    """Requests in the description's version, whose answers are checked against it."""

    def __init__(self, daemon: RunningDaemon, description: Description) -> None:
        self._daemon = daemon
        self._description = description

    def __call__(
        self,
        method: str,
        path: str,
        *,
        of: str | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """``of``: the operation's path in the description, if it isn't ``path`` itself. Asserts that status, type and content are described."""
        operation = self._description.operations[(method, of or path.partition("?")[0])]
        answer = self._daemon.request(method, f"/v{self._description.version}{path}", body, headers=headers)
        described = {str(status): response for status, response in operation["responses"].items()}
        # A parameter that is wrong is 400 everywhere (the daemon's general errors), whether or not an operation lists it.
        response = described.get(str(answer.status)) or (
            {"schema": {"$ref": "#/definitions/ErrorResponse"}} if answer.status in (400, 501) else None
        )
        assert response is not None, f"{method} {path}: status {answer.status} is not described: {answer.body[:300]!r}"
        schema = response.get("schema")
        kind = answer.headers.get("Content-Type", "").partition(";")[0]
        if answer.status >= 400:
            assert kind == "application/json"
        elif answer.body:
            produces = operation.get("produces") or self._description.content["produces"]
            assert kind in produces, f"{kind} is none of {produces}"
        if schema is not None and "json" in kind and method != "HEAD":
            values = answer.messages() if of == "/events" else [answer.json()]
            for value in values:
                problems = self._description.problems(value, schema)
                assert problems == [], f"{method} {path}: {problems}"
        return answer


@pytest.fixture
def call(daemon: RunningDaemon, description: Description) -> Caller:
    return Caller(daemon, description)


def test_what_does_not_fit_is_noticed(description: Description) -> None:
    assert description.problems({"message": 1}, {"$ref": "#/definitions/ErrorResponse"})
    assert description.problems({}, {"$ref": "#/definitions/ErrorResponse"})
    assert description.problems({"message": "x"}, {"$ref": "#/definitions/ErrorResponse"}) == []
    assert description.problems([{"Id": "x"}], {"type": "array", "items": {"$ref": "#/definitions/ImageSummary"}})


@pytest.mark.parametrize("path", ["/_ping", "/version", "/info", "/system/df", "/images/json"])
def test_what_is_asked_without_parameters(call: Caller, path: str) -> None:
    assert call("GET", path).status == 200


def test_ping_has_the_headers_that_are_described(call: Caller, description: Description) -> None:
    for method in ("GET", "HEAD"):
        answer = call(method, "/_ping")
        described = description.operations[(method, "/_ping")]["responses"][200]["headers"]
        present = {name.lower() for name in answer.headers}
        assert {name.lower() for name in described} - {"swarm", "builder-version"} <= present
    assert answer.body == b""


@pytest.mark.parametrize(
    ("path", "of"),
    [
        ("/images/json?all=1&digests=1&shared-size=1&manifests=1", "/images/json"),
        ('/images/json?filters={"reference":["full"]}', "/images/json"),
        ("/images/full:1/json", "/images/{name}/json"),
        ("/images/busybox/json", "/images/{name}/json"),
        ("/images/loose:1/history", "/images/{name}/history"),
        ("/images/full:1/history", "/images/{name}/history"),
        ("/images/full:1/get", "/images/{name}/get"),
        ("/images/get?names=full:1&names=busybox", "/images/get"),
        ("/images/full:1/json?manifests=1", "/images/{name}/json"),
        ("/system/df?type=image", "/system/df"),
        ("/system/df?verbose=1", "/system/df"),
    ],
)
def test_what_is_asked_of_images(call: Caller, path: str, of: str) -> None:
    answer = call("GET", path.replace('"', "%22").replace("{", "%7B").replace("}", "%7D"), of=of)
    assert answer.status == 200
    assert answer.body


@pytest.mark.parametrize(
    ("method", "path", "of", "status"),
    [
        ("GET", "/images/none/json", "/images/{name}/json", 404),
        ("GET", "/images/none/history", "/images/{name}/history", 404),
        ("POST", "/images/none/tag?repo=a&tag=b", "/images/{name}/tag", 404),
        ("POST", "/images/busybox/tag?repo=UPPER&tag=b", "/images/{name}/tag", 400),
        ("POST", "/images/busybox/tag", "/images/{name}/tag", 400),
        ("DELETE", "/images/none", "/images/{name}", 404),
        ("POST", "/images/create", "/images/create", 400),
        ("POST", "/images/create?fromImage=127.0.0.1:9/none&tag=x", "/images/create", None),
        ("GET", "/distribution/127.0.0.1:9/none/json", "/distribution/{name}/json", None),
        ("GET", "/images/json?filters=%7B", "/images/json", 400),
        ("GET", "/events?since=nonsense", "/events", 400),
        ("POST", "/auth", "/auth", 400),
        ("POST", "/build?remote=/etc", "/build", 400),
        ("POST", "/build", "/build", 400),
        ("POST", "/build/prune?filters=%7B", "/build/prune", 400),
        ("GET", "/images/search?term=x", "/images/search", 501),
        ("POST", "/images/load", "/images/load", None),
    ],
)
def test_errors(call: Caller, method: str, path: str, of: str, status: int | None) -> None:
    answer = call(method, path, of=of, body=b"" if method == "POST" else None)
    assert answer.status >= 400
    assert status is None or answer.status == status
    assert answer.json()["message"].strip()


def test_tagging_deleting_and_pruning(call: Caller, daemon: RunningDaemon) -> None:
    assert call("POST", "/images/busybox/tag?repo=other&tag=1", of="/images/{name}/tag").status == 201
    deleted = call("DELETE", "/images/other:1", of="/images/{name}")
    assert deleted.json() == [{"Untagged": "other:1"}]
    daemon.build({"Dockerfile": "FROM busybox\nRUN echo nameless > /n\n"})
    assert call("POST", "/images/prune").json()["ImagesDeleted"]
    assert call("POST", "/build/prune").status == 200


def test_an_image_with_several_names_conflicts(call: Caller) -> None:
    call("POST", "/images/full:1/tag?repo=full&tag=2", of="/images/{name}/tag")
    identifier = call("GET", "/images/full:1/json", of="/images/{name}/json").json()["Id"]
    assert call("DELETE", f"/images/{identifier}", of="/images/{name}").status == 409


def test_building_and_loading_stream(call: Caller, description: Description) -> None:
    built = call("POST", "/build?t=built", of="/build", body=context_tar({"Dockerfile": "FROM busybox\nRUN echo b\n"}))
    messages = built.messages()
    for message in messages:
        assert description.problems(message, {"$ref": "#/definitions/BuildInfo"}) == []
    assert description.problems(next(m["aux"] for m in messages if "aux" in m), {"$ref": "#/definitions/ImageID"}) == []
    failed = call("POST", "/build", body=context_tar({"Dockerfile": "FROM busybox\nRUN exit 3\n"})).messages()
    assert description.problems(failed[-1], {"$ref": "#/definitions/BuildInfo"}) == []
    assert failed[-1]["errorDetail"]["code"] == 3
    saved = call("GET", "/images/built/get", of="/images/{name}/get").body
    assert "Loaded image" in call("POST", "/images/load", body=saved).text()
    imported = call("POST", "/images/create?fromSrc=-&repo=imported", of="/images/create", body=context_tar({"f": "x"}))
    assert imported.messages()[-1]["status"].startswith("sha256:")


def test_registries(call: Caller, description: Description, registry: str) -> None:
    name = f"{registry}/described/app"
    call("POST", f"/images/busybox/tag?repo={name}&tag=1", of="/images/{name}/tag")
    pushed = call("POST", f"/images/{name}/push?tag=1", of="/images/{name}/push", headers={"X-Registry-Auth": "e30="})
    for message in pushed.messages():
        assert description.problems(message, {"$ref": "#/definitions/PushImageInfo"}) == []
    pulled = call("POST", f"/images/create?fromImage={name}&tag=1", of="/images/create")
    for message in pulled.messages():
        assert description.problems(message, {"$ref": "#/definitions/CreateImageInfo"}) == []
    assert call("GET", f"/distribution/{name}:1/json", of="/distribution/{name}/json").status == 200
    body = json.dumps({"username": "u", "password": "p", "serveraddress": registry}).encode()
    assert call("POST", "/auth", body=body).status in (200, 204)


def test_events(call: Caller, description: Description) -> None:
    kind = description.operations[("GET", "/events")]["produces"][0]
    path = f"/events?since=0&until={time.time()}"
    assert call("GET", path, of="/events", headers={"Accept": kind}).messages()


def test_every_other_operation_is_refused_with_a_sentence(daemon: RunningDaemon, description: Description) -> None:
    wrong: list[str] = []
    for method, path in description.operations:
        if path.startswith(SERVED) and path != "/commit":
            continue
        filled = path.replace("{id}", "x").replace("{name}", "x")
        answer = daemon.request(method, f"/v{description.version}{filled}")
        if method == "HEAD":
            fits = answer.status == 501
        elif path == "/session":
            fits = answer.status in (101, 400, 501)
        elif (method, path) in EXCEPTIONS:
            fits = answer.status == EXCEPTIONS[(method, path)] and bool(answer.json()["message"])
        else:
            fits = answer.status == 501 and len(answer.json()["message"].split()) > 3
        if not fits:
            wrong.append(f"{method} {path}: {answer.status} {answer.body[:100]!r}")
    assert wrong == []
