"""Registry tables, mirrors, schemes and proxies."""

from __future__ import annotations

from pathlib import Path

import pytest

from pybuild.cli.environment import Environment
from pybuild.registry_client.certificates import BadCertificate, certificates_for
from pybuild.registry_client.endpoints import places
from pybuild.registry_client.settings import (
    HostSettings,
    InvalidSettings,
    KeyPair,
    Proxies,
    RegistrySettings,
    is_loopback,
)


def test_tables_have_buildkits_keys() -> None:
    settings = RegistrySettings.from_tables(
        {
            "docker.io": {"mirrors": ["mirror.example:5000"]},
            "mirror.example:5000": {
                "http": True,
                "insecure": False,
                "ca": ["/etc/ssl/corp.pem"],
                "keypair": [{"key": "k.pem", "cert": "c.pem"}],
                "tlsconfigdir": ["/etc/certs"],
            },
        }
    )
    assert settings.unknown_keys == ()
    assert settings.host("docker.io").mirrors == ("mirror.example:5000",)
    assert settings.host("registry-1.docker.io") == settings.host("docker.io")
    assert settings.host("Mirror.example:5000") == HostSettings(
        (), True, False, ("/etc/ssl/corp.pem",), (KeyPair("c.pem", "k.pem"),), ("/etc/certs",)
    )
    assert settings.host("other.example") == HostSettings()


def test_unknown_keys_are_collected_and_wrong_types_refused() -> None:
    settings = RegistrySettings.from_tables({"r.example": {"mirror": ["x"], "http": True}})
    assert settings.unknown_keys == ('registry."r.example".mirror',)
    assert settings.host("r.example").http is True
    for table in ({"http": "yes"}, {"mirrors": [1]}, {"keypair": [{"cert": "only"}]}, "text"):
        with pytest.raises(InvalidSettings):
            RegistrySettings.from_tables({"r.example": table})


def test_unknown_keys_of_every_section_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pybuild.toml"
    file.write_text('[registry."r.example"]\nmirror = ["x"]\n[gc]\nmax = 1\n')
    environment = Environment(root=tmp_path, config_file=file, host=None, debug=False, log_level="info", variables={})
    assert environment.settings().registry == {"r.example": {"mirror": ["x"]}}
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {file}: unknown key {key!r} is ignored" for key in ("gc.max", 'registry."r.example".mirror')
    ]


@pytest.mark.parametrize(
    ("host", "table", "schemes"),
    [
        ("r.example", {}, ("https",)),
        ("r.example", {"http": True}, ("http",)),
        ("r.example", {"insecure": True}, ("https", "http")),
        ("r.example", {"insecure": True, "http": False}, ("https",)),
        ("localhost:5000", {}, ("http", "https")),
        ("127.0.0.3", {}, ("http", "https")),
        ("[::1]:5000", {}, ("http", "https")),
        ("localhost:5000", {"http": False}, ("https",)),
        ("localhost:5000", {"ca": ["x"]}, ("https", "http")),
    ],
)
def test_loopback_registries_speak_plain_http_unless_something_asks_for_tls(
    host: str, table: dict[str, object], schemes: tuple[str, ...]
) -> None:
    assert RegistrySettings.from_tables({host: table}).schemes(host) == schemes


def test_only_this_machine_is_loopback() -> None:
    assert all(is_loopback(host) for host in ("localhost", "LOCALHOST:80", "app.localhost", "127.9.9.9:1", "[::1]"))
    assert not any(
        is_loopback(host) for host in ("localhost.example", "128.0.0.1", "[::2]:5000", "127.0.0.1.nip.io", "")
    )


def test_mirrors_come_first_and_may_have_a_path_and_a_scheme() -> None:
    settings = RegistrySettings.from_tables(
        {"docker.io": {"mirrors": ["m.example", "http://cache.example:80/v2/proxy.docker.io/"]}}
    )
    found = places(settings, "docker.io", mirrors=True)
    assert [(p.host, p.prefix, p.namespace, p.scheme) for p in found] == [
        ("m.example", "", "docker.io", ""),
        ("cache.example:80", "proxy.docker.io", "docker.io", "http"),
        ("docker.io", "", "", ""),
    ]
    assert [p.host for p in places(settings, "docker.io", mirrors=False)] == ["docker.io"]


def test_certs_d_gives_authorities_and_client_certificates(tmp_path: Path) -> None:
    directory = tmp_path / "r.example:5000"
    directory.mkdir()
    for name in ("ca.crt", "other.crt", "client.cert", "client.key", "README"):
        (directory / name).touch()
    settings = RegistrySettings(certs_d=(str(tmp_path), "/does/not/exist"))
    found = certificates_for(settings, "r.example:5000")
    assert found.ca == (f"{directory}/ca.crt", f"{directory}/other.crt")
    assert found.keypairs == ((f"{directory}/client.cert", f"{directory}/client.key"),)
    assert certificates_for(settings, "r.example").ca == ()
    (directory / "client.key").unlink()
    with pytest.raises(BadCertificate, match="has no key beside it"):
        certificates_for(settings, "r.example:5000")


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("https://r.example/v2/", "http://secure.example:3128"),
        ("http://r.example/v2/", "http://plain.example:3128"),
        ("https://localhost:5000/", None),
        ("http://127.0.0.1/", None),
        ("https://internal.example/", None),
        ("https://a.internal.example/", None),
        ("https://notinternal.example/", "http://secure.example:3128"),
        ("https://a.dotted.example/", None),
        ("https://dotted.example/", "http://secure.example:3128"),
        ("https://10.1.2.3/", None),
        ("https://11.1.2.3/", "http://secure.example:3128"),
        ("https://ported.example:8443/", None),
        ("https://ported.example/", "http://secure.example:3128"),
    ],
)
def test_proxies_and_their_exceptions(url: str, proxy: str | None) -> None:
    proxies = Proxies.from_environment(
        {
            "http_proxy": "plain.example:3128",
            "HTTP_PROXY": "http://ignored.example",
            "HTTPS_PROXY": "http://secure.example:3128",
            "NO_PROXY": "internal.example, .dotted.example,10.0.0.0/8,ported.example:8443",
        }
    )
    assert proxies.for_url(url) == proxy


def test_a_cgi_request_cannot_set_the_proxy() -> None:
    assert Proxies.from_environment({"HTTP_PROXY": "http://evil.example", "REQUEST_METHOD": "GET"}).http == ""
    assert Proxies.from_environment({"HTTP_PROXY": "p.example", "NO_PROXY": "*"}).for_url("http://r.example") is None
