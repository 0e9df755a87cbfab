"""Private keys from files, and signatures that others accept."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.builder.request import SshSource
from pybuild.daemon.ssh_agent import AgentUnusable, serve_agents
from pybuild.daemon.ssh_curves import ed25519_public, ed25519_sign
from pybuild.daemon.ssh_keys import InvalidKey, parse_private_key, string

needs_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="the program ssh-keygen is not installed")
KINDS = [("rsa", "2048"), ("ecdsa", "256"), ("ecdsa", "384"), ("ecdsa", "521"), ("ed25519", "256")]


def keygen(path: Path, kind: str, bits: str, *more: str) -> Path:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, "-b", bits, "-N", "", "-C", "c", *more, "-f", str(path)], check=True
    )
    return path


def test_ed25519_gives_the_signatures_of_rfc_8032() -> None:
    seed = bytes.fromhex("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7")
    assert ed25519_public(seed).hex() == "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025"
    assert ed25519_sign(seed, bytes.fromhex("af82")).hex() == (
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
    )


@needs_keygen
@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_keys_of_every_form_have_the_public_key_that_ssh_keygen_says(tmp_path: Path, kind: str, bits: str) -> None:
    path = keygen(tmp_path / "key", kind, bits)
    public = subprocess.run(
        ["ssh-keygen", "-y", "-f", path], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    forms = [path.read_bytes()]
    for form in ["PEM", "PKCS8"] if kind != "ed25519" else []:
        copy = Path(shutil.copy(path, tmp_path / form))
        subprocess.run(
            ["ssh-keygen", "-q", "-p", "-N", "", "-m", form, "-f", copy], check=True, stdout=subprocess.DEVNULL
        )
        forms.append(copy.read_bytes())
    assert len({form.split(b"\n")[0] for form in forms}) == len(forms)
    import base64

    for form in forms:
        assert base64.b64encode(parse_private_key(form, name="key").public).decode() == public


@needs_keygen
@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_ssh_keygen_accepts_the_agents_signatures(tmp_path: Path, kind: str, bits: str) -> None:
    path = keygen(tmp_path / "key", kind, bits)
    public = path.with_suffix(".pub").read_text()
    (tmp_path / "allowed").write_text(f"me {public}")
    (tmp_path / "data").write_text("data")
    (tmp_path / "run").mkdir()
    with serve_agents([SshSource("default", (str(path),))], str(tmp_path / "run")) as sockets:
        assert set(sockets) == {"default"}
        path.unlink()
        # The socket's path is for this process; ssh-keygen gets the real one.
        environment = {"SSH_AUTH_SOCK": str(tmp_path / "run/0"), "PATH": "/usr/bin:/bin"}
        listed = subprocess.run(["ssh-add", "-L"], capture_output=True, text=True, env=environment, check=True).stdout
        assert listed.split()[:2] == public.split()[:2]
        subprocess.run(
            ["ssh-keygen", "-Y", "sign", "-f", f"{path}.pub", "-n", "file", str(tmp_path / "data")],
            env=environment, check=True, capture_output=True,
        )  # fmt: skip
        refused = subprocess.run(["ssh-add", "-D"], capture_output=True, env=environment)
        assert refused.returncode != 0
        assert subprocess.run(["ssh-add", "-L"], capture_output=True, env=environment).returncode == 0
    verified = subprocess.run(
        ["ssh-keygen", "-Y", "verify", "-f", str(tmp_path / "allowed"), "-I", "me", "-n", "file", "-s", str(tmp_path / "data.sig")],
        input="data", text=True, capture_output=True,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stderr + verified.stdout
    assert list((tmp_path / "run").iterdir()) in ([], [tmp_path / "run/0"])


@needs_keygen
def test_a_protected_key_and_what_is_no_key_are_refused(tmp_path: Path) -> None:
    path = keygen(tmp_path / "key", "ed25519", "256")
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", path], check=True, stdout=subprocess.DEVNULL)
    with pytest.raises(InvalidKey, match="passphrase protected"):
        parse_private_key(path.read_bytes(), name="key")
    with pytest.raises(InvalidKey, match="no key found"):
        parse_private_key(b"hello", name="key")
    with pytest.raises(InvalidKey, match="damaged"):
        parse_private_key(b"-----BEGIN PRIVATE KEY-----\naGVsbG8=\n-----END PRIVATE KEY-----\n", name="key")


@pytest.mark.parametrize("kind", ["OPENSSH PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "PRIVATE KEY"])
@given(content=st.binary(max_size=200), magic=st.booleans())
@settings(deadline=None, max_examples=40)
def test_damaged_keys_are_refused(kind: str, content: bytes, magic: bool) -> None:
    import base64

    if magic:
        content = b"openssh-key-v1\0" + string(b"none") * 2 + string(b"") + b"\0\0\0\1" + string(b"") + string(content)
    text = f"-----BEGIN {kind}-----\n".encode() + base64.b64encode(content) + f"\n-----END {kind}-----\n".encode()
    with pytest.raises(InvalidKey):
        parse_private_key(text, name="key")


def test_an_agent_behind_the_agent_is_asked_but_not_changed(tmp_path: Path) -> None:
    seen: list[bytes] = []
    upstream = socket.socket(socket.AF_UNIX)
    upstream.bind(str(tmp_path / "up"))
    upstream.listen()
    (tmp_path / "run").mkdir()
    source = SshSource("x", (str(tmp_path / "up"),))
    with serve_agents([source], str(tmp_path / "run")) as sockets, socket.socket(socket.AF_UNIX) as client:
        client.connect(sockets["x"])
        client.sendall(string(b"\x13"))  # remove all identities
        assert client.recv(100) == string(b"\x05")
        client.sendall(string(b"\x0b"))
        connection, _ = upstream.accept()
        with connection:
            seen.append(connection.recv(100))
            connection.sendall(string(b"\x0c\0\0\0\0"))
            assert client.recv(100) == string(b"\x0c\0\0\0\0")
            client.close()
            assert connection.recv(100) == b""
    upstream.close()
    assert seen == [string(b"\x0b")]


def test_keys_and_sockets_do_not_mix(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    (tmp_path / "key").write_text("x")
    for paths, text in [
        (("s", "s"), "only single socket allowed"),
        (("s", "key"), "invalid combination of keys and sockets"),
        (("missing",), "can't read"),
    ]:
        with pytest.raises(AgentUnusable, match=text):
            with serve_agents([SshSource("a", tuple(str(tmp_path / path) for path in paths))], str(tmp_path)):
                pass
    listener.close()
