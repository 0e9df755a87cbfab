"""Docker's config.json and credential helpers. The helpers are real programs, written here."""

from __future__ import annotations

import base64
import json
import os
import stat
import threading
from pathlib import Path

import pytest

from pybuild.registry_client.credentials import (
    DOCKER_HUB_KEY,
    Credential,
    CredentialError,
    DockerConfig,
    FixedCredentials,
    normal_host,
)

HELPER = """#!/bin/sh
echo "$1" >> {log}
case "$1" in
get) read -r server; if [ -f "{state}/$(echo "$server" | tr / _)" ]; then cat "{state}/$(echo "$server" | tr / _)"
     else echo "credentials not found in native keychain"; exit 1; fi ;;
store) cat > {state}/stored ;;
erase) cat > {state}/erased ;;
esac
"""


def _config(path: Path, value: object) -> DockerConfig:
    file = path / "config.json"
    file.write_text(json.dumps(value))
    return DockerConfig(str(file), environment={"PATH": f"{path}:{os.environ['PATH']}"})


def _helper(path: Path, name: str = "test") -> Path:
    program = path / f"docker-credential-{name}"
    program.write_text(HELPER.format(log=path / "calls", state=path))
    program.chmod(0o755)
    return path / "calls"


def _auth(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_auths_are_found_whatever_form_their_key_has(tmp_path: Path) -> None:
    config = _config(
        tmp_path,
        {
            "auths": {
                "https://index.docker.io/v1/": {"auth": _auth("hub:secret")},
                "https://R.example/v2/": {"auth": _auth("user:with:colons")},
                "localhost:5000": {"username": "plain", "password": "text"},
                "token.example": {"auth": _auth("x:"), "identitytoken": "refresh"},
                "empty.example": {},
            }
        },
    )
    assert config.get("docker.io") == config.get("registry-1.docker.io") == Credential("hub", "secret")
    assert config.get("r.example") == Credential("user", "with:colons")
    assert config.get("localhost:5000") == Credential("plain", "text")
    assert config.get("token.example") == Credential("x", "", "refresh")
    assert config.get("empty.example") is None
    assert config.get("other.example") is None


def test_the_entry_of_the_longest_namespace_wins(tmp_path: Path) -> None:
    config = _config(
        tmp_path,
        {"auths": {"r.example": {"auth": _auth("all:a")}, "r.example/team/app": {"auth": _auth("app:b")}}},
    )
    assert config.get("r.example", "team/app") == Credential("app", "b")
    assert config.get("r.example", "team/app/sub") == Credential("app", "b")
    assert config.get("r.example", "team/other") == Credential("all", "a")


def test_a_missing_file_is_empty_and_a_broken_one_an_error(tmp_path: Path) -> None:
    assert DockerConfig(str(tmp_path / "none.json"), environment={}).get("r.example") is None
    for text in ("{", "[]", '"x"', "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CredentialError):
            DockerConfig(str(tmp_path / "config.json"), environment={}).get("r.example")
    config = _config(tmp_path, {"auths": {"r.example": {"auth": "bm9jb2xvbg=="}}})
    with pytest.raises(CredentialError, match=r"r\.example"):
        config.get("r.example")


def test_a_broken_file_is_warned_of_once_and_counts_as_none_but_is_never_written(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    warnings: list[str] = []
    for text in ("{", '{"auths": {"r.example": {"auth": "bm9jb2xvbg=="}}}', '{"credsStore": "../x"}'):
        file.write_text(text)
        config = DockerConfig(str(file), environment={}, warn=warnings.append)
        config.hosts()
        assert config.get("r.example") is config.get("r.example") is None
    assert [text.startswith(f"Error loading config file: {file}") for text in warnings] == [True] * 3
    file.write_text("{")
    with pytest.raises(CredentialError):
        config.store("r.example", Credential("u", "s"))
    with pytest.raises(CredentialError):
        config.erase("r.example")
    assert file.read_text() == "{"


def test_a_helper_is_asked_once_for_one_host_also_by_many_threads(tmp_path: Path) -> None:
    calls = _helper(tmp_path)
    (tmp_path / "r.example").write_text('{"ServerURL":"r.example","Username":"u","Secret":"s"}')
    config = _config(tmp_path, {"credHelpers": {"r.example": "test"}})
    found: list[Credential | None] = []
    threads = [threading.Thread(target=lambda: found.append(config.get("r.example"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [Credential("u", "s")] * 8
    assert calls.read_text().split() == ["get"]


def test_a_helpers_identity_token_and_its_not_found(tmp_path: Path) -> None:
    _helper(tmp_path)
    (tmp_path / "r.example").write_text('{"ServerURL":"r.example","Username":"<token>","Secret":"refresh"}')
    config = _config(tmp_path, {"credsStore": "test", "auths": {"old.example": {"auth": _auth("kept:here")}}})
    assert config.get("r.example") == Credential(identity_token="refresh")
    assert config.get("none.example") is None
    assert config.get("old.example") == Credential("kept", "here")
    assert config.helper_failures == {}


def test_docker_hub_is_asked_for_by_its_old_url(tmp_path: Path) -> None:
    _helper(tmp_path)
    (tmp_path / "https:__index.docker.io_v1_").write_text('{"ServerURL":"","Username":"hub","Secret":"s"}')
    assert _config(tmp_path, {"credsStore": "test"}).get("docker.io") == Credential("hub", "s")


def test_a_helper_that_is_missing_or_fails_is_noted_not_fatal(tmp_path: Path) -> None:
    config = _config(tmp_path, {"credHelpers": {"a.example": "absent", "b.example": "broken", "c.example": "odd"}})
    for name, text in (
        ("broken", "#!/bin/sh\necho the keyring is locked; exit 2\n"),
        ("odd", "#!/bin/sh\necho hello\n"),
    ):
        program = tmp_path / f"docker-credential-{name}"
        program.write_text(text)
        program.chmod(0o755)
    assert [config.get(host) for host in ("a.example", "b.example", "c.example")] == [None, None, None]
    assert "not installed" in config.helper_failures["a.example"]
    assert "the keyring is locked" in config.helper_failures["b.example"]
    assert "can't be read" in config.helper_failures["c.example"]


def test_a_helpers_name_cannot_leave_its_directory(tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match="not the name of a credential helper"):
        _config(tmp_path, {"credsStore": "../../bin/sh"}).get("r.example")


def test_login_writes_privately_and_keeps_what_else_is_there(tmp_path: Path) -> None:
    config = _config(tmp_path, {"HttpHeaders": {"X": "y"}, "auths": {"https://r.example": {"auth": "b2xkOm9sZA=="}}})
    file = tmp_path / "config.json"
    os.chmod(file, 0o644)
    assert config.store("r.example", Credential("new", "säcret")) == str(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    value = json.loads(file.read_text())
    assert value["HttpHeaders"] == {"X": "y"}
    assert value["auths"] == {"r.example": {"auth": _auth("new:säcret")}}
    assert config.get("r.example") == Credential("new", "säcret")
    config.store("docker.io", Credential("hub", "", identity_token="t"))
    assert json.loads(file.read_text())["auths"][DOCKER_HUB_KEY]["identitytoken"] == "t"
    assert config.get("docker.io") == Credential("hub", "", "t")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]


def test_login_makes_the_directory_and_follows_a_link(tmp_path: Path) -> None:
    target = tmp_path / "real" / "config.json"
    link = tmp_path / "config.json"
    link.symlink_to(target)
    DockerConfig(str(link), environment={}).store("r.example", Credential("u", "s"))
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert stat.S_IMODE(target.parent.stat().st_mode) == 0o700


def test_logins_at_the_same_time_all_last(tmp_path: Path) -> None:
    file = str(tmp_path / "config.json")
    threads = [
        threading.Thread(
            target=lambda n=n: DockerConfig(file, environment={}).store(f"r{n}.example", Credential("u", str(n)))
        )
        for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    config = DockerConfig(file, environment={})
    assert [config.get(f"r{n}.example") for n in range(12)] == [Credential("u", str(n)) for n in range(12)]


def test_a_helper_stores_and_erases_with_secrets_on_its_standard_input(tmp_path: Path) -> None:
    calls = _helper(tmp_path)
    config = _config(tmp_path, {"credsStore": "test"})
    assert config.store("r.example", Credential("u", "s3cret")) == "docker-credential-test"
    assert json.loads((tmp_path / "stored").read_text()) == {
        "ServerURL": "r.example",
        "Username": "u",
        "Secret": "s3cret",
    }
    assert json.loads((tmp_path / "config.json").read_text())["auths"] == {"r.example": {}}
    assert config.erase("r.example") is True
    assert (tmp_path / "erased").read_text() == "r.example"
    assert "s3cret" not in calls.read_text() + (tmp_path / "config.json").read_text()


def test_logout_forgets_every_form_of_a_host(tmp_path: Path) -> None:
    config = _config(tmp_path, {"auths": {"https://index.docker.io/v1/": {"auth": _auth("a:b")}, "x.example": {}}})
    assert config.erase("docker.io") is True
    assert config.get("docker.io") is None
    assert config.erase("docker.io") is False
    assert json.loads((tmp_path / "config.json").read_text()) == {"auths": {"x.example": {}}}


def test_secrets_are_not_in_representations() -> None:
    shown = repr(Credential("user", "s3cret", "t0ken", "r3gistry"))
    assert "user" in shown
    assert not any(text in shown for text in ("s3cret", "t0ken", "r3gistry"))


def test_fixed_credentials_come_before_others() -> None:
    fallback = FixedCredentials({"other.example": Credential("o", "p")})
    fixed = FixedCredentials({"https://index.docker.io/v1/": Credential("u", "s")}, fallback=fallback)
    assert fixed.get("docker.io") == Credential("u", "s")
    assert fixed.get("other.example") == Credential("o", "p")
    assert fixed.get("none.example") is None
    assert normal_host("https://user@R.example:5000/v2/") == "r.example:5000"
