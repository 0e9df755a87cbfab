"""Runs the ``git`` program, cut off from whatever configuration, credentials and prompts the machine has.

Owns its environment, its credentials' way in (never its arguments), its end, and what is shown of its errors. Knows no repository.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final
from urllib.parse import unquote, urlsplit, urlunsplit

from pybuild.errors import Cancelled, PybuildError
from pybuild.values import dataclass, field

AUTH_HEADER_SECRET: Final = "GIT_AUTH_HEADER"
AUTH_TOKEN_SECRET: Final = "GIT_AUTH_TOKEN"
NETWORK_PROTOCOLS: Final = ("http", "https", "ssh", "git")
_POLL_SECONDS: Final = 0.1
_STALL_SECONDS: Final = 60
_GITHUB: Final = ("https://github.com/", "https://www.github.com/")
_NOISE: Final = re.compile(r"(hint|remote): |Cloning into|From |warning: redirecting|\s*$")

# Options that a repository's content or a stray file must not be able to change.
_OPTIONS: Final = (
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.autocrlf", "false"),
    ("core.sharedRepository", "umask"),
    ("credential.helper", ""),
    ("advice.detachedHead", "false"),
    ("init.defaultBranch", "master"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("pack.threads", "1"),
    ("safe.directory", "*"),
    ("http.lowSpeedLimit", "1"),
    ("http.lowSpeedTime", str(_STALL_SECONDS)),
    ("submodule.recurse", "false"),
)


class GitFailed(PybuildError):
    """``git`` refused. ``output``: what it said, secrets removed."""

    def __init__(self, action: str, output: str, *, hint: str | None = None) -> None:
        said = [line for line in output.splitlines() if not _NOISE.match(line)]
        super().__init__(f"{action}: {said[0].removeprefix('fatal: ') if said else 'git failed'}", hint=hint)
        self.output = output


class GitMissing(PybuildError):
    """There is no ``git`` program."""

    def __init__(self) -> None:
        super().__init__("git sources need the git program, which is not installed", hint="install the package git")


@dataclass(frozen=True, slots=True)
class GitSettings:
    """``environment``: the variables that are passed on (PATH and proxies are picked out); ``ssh_auth_sock``: an agent's socket;
    ``known_hosts``: a file, None accepts any host key as the reference does; ``protocols``: what may be spoken."""

    environment: Mapping[str, str] = field(default_factory=dict)
    ssh_auth_sock: str | None = None
    known_hosts: str | None = None
    protocols: tuple[str, ...] = NETWORK_PROTOCOLS


class GitCommand:
    """``git`` for one set of secrets. ``cancel`` ends a running command and everything it started."""

    def __init__(
        self,
        settings: GitSettings,
        *,
        secrets: Mapping[str, bytes] | None = None,
        cancel: threading.Event | None = None,
    ) -> None:
        self.settings = settings
        self._secrets = secrets or {}
        self._cancel = cancel

    def run(
        self,
        *arguments: str,
        action: str,
        remote: str = "",
        protocols: Sequence[str] | None = None,
        git_dir: str = "",
        work_tree: str = "",
        index: str = "",
        cwd: str = "",
    ) -> bytes:
        """Run ``git ARGUMENTS`` and give its standard output.

        ``action``: what an error starts with; ``remote``: the URL whose credentials are needed; ``protocols``: other ones than the
        settings'. Raises GitFailed, GitMissing, Cancelled.
        """
        command = ["git"]
        if git_dir:
            command.append(f"--git-dir={git_dir}")
        if work_tree:
            command.append(f"--work-tree={work_tree}")
        credentials = self._credentials(remote) if remote else ()
        env = self._environment(credentials, protocols if protocols is not None else self.settings.protocols)
        if index:
            env["GIT_INDEX_FILE"] = index
        try:
            process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=cwd or work_tree or git_dir or "/",
                env=env,
                umask=0o022,
                process_group=0,
            )
        except FileNotFoundError:
            raise GitMissing from None
        with process:
            out, err = self._wait(process)
        if process.returncode:
            raise GitFailed(action, self._shown(err, credentials))
        return out

    def _wait(self, process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
        try:
            while True:
                try:
                    return process.communicate(timeout=_POLL_SECONDS if self._cancel is not None else None)
                except subprocess.TimeoutExpired:
                    if self._cancel is not None and self._cancel.is_set():
                        raise Cancelled from None
        except BaseException:
            # git's helpers (ssh, remote-https) are in its process group; none of them outlives it.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.communicate()
            raise

    def _environment(self, credentials: Sequence[tuple[str, str]], protocols: Sequence[str]) -> dict[str, str]:
        given = self.settings.environment
        ssh = [
            "ssh",
            "-F",
            "/dev/null",
            "-o",
            "BatchMode=yes",
            "-o",
            "ConnectTimeout=30",
            "-o",
            "ServerAliveInterval=20",
        ]
        if self.settings.known_hosts is None:
            ssh += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        else:
            ssh += ["-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={self.settings.known_hosts}"]
        env = {
            "PATH": given.get("PATH", os.defpath),
            "HOME": "/dev/null",
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "true",
            "GIT_SSH_COMMAND": " ".join(ssh),
            "GIT_ALLOW_PROTOCOL": ":".join(protocols),
            "GIT_PROTOCOL": "version=2",
        }
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"):
            for spelling in (name, name.lower()):
                if spelling in given:
                    env[spelling] = given[spelling]
        for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
            if name in given:
                env[name.replace("SSL_CERT_FILE", "GIT_SSL_CAINFO").replace("SSL_CERT_DIR", "GIT_SSL_CAPATH")] = given[
                    name
                ]
        if self.settings.ssh_auth_sock is not None:
            env["SSH_AUTH_SOCK"] = self.settings.ssh_auth_sock
        options = (*_OPTIONS, *credentials)
        env["GIT_CONFIG_COUNT"] = str(len(options))
        for number, (key, value) in enumerate(options):
            env[f"GIT_CONFIG_KEY_{number}"] = key
            env[f"GIT_CONFIG_VALUE_{number}"] = value
        return env

    def _credentials(self, remote: str) -> tuple[tuple[str, str], ...]:
        """Options that carry the credentials for ``remote``: a secret's, else those that its URL holds."""
        parts = urlsplit(remote)
        if parts.scheme not in ("http", "https"):
            return ()
        value = self._secret(parts.netloc.rpartition("@")[2])
        if value is None and parts.username is not None:
            user, password = unquote(parts.username), unquote(parts.password or "")
            value = "basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        if value is None:
            return ()
        scope = next((prefix for prefix in _GITHUB if remote.startswith(prefix)), plain_url(remote))
        return ((f"http.{scope}.extraHeader", f"Authorization: {value}"),)

    def _secret(self, host: str) -> str | None:
        for name in (
            f"{AUTH_HEADER_SECRET}.{host}",
            f"{AUTH_TOKEN_SECRET}.{host}",
            AUTH_HEADER_SECRET,
            AUTH_TOKEN_SECRET,
        ):
            value = self._secrets.get(name)
            if value is None:
                continue
            value = value.strip(b"\r\n")
            if name.startswith(AUTH_HEADER_SECRET):
                return value.decode("latin-1")
            return "basic " + base64.b64encode(b"x-access-token:" + value).decode()
        return None

    def _shown(self, err: bytes, credentials: Sequence[tuple[str, str]]) -> str:
        text = err.decode("utf-8", "replace")
        secrets = [value.decode("utf-8", "replace").strip() for value in self._secrets.values()]
        secrets += [value.partition(": ")[2].rpartition(" ")[2] for _, value in credentials]
        for secret in secrets:
            if secret:
                text = text.replace(secret, "…")
        return _URL_USER.sub(r"\1", text)


_URL_USER: Final = re.compile(r"([a-z][a-z0-9+.-]*://)[^/@\s'\"]+@")


def plain_url(remote: str) -> str:
    """An HTTP(S) URL without user information; anything else as it is, since a user's name in ssh is no secret."""
    parts = urlsplit(remote)
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return remote
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
