"""The registry client as the engine uses it: settings, credentials and network put together, made when it is first needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .settings import Settings

if TYPE_CHECKING:
    from pybuild.registry_client.client import RegistryClient
    from pybuild.registry_client.credentials import Credentials, DockerConfig

_CERTS_D = ("/etc/docker/certs.d", "/etc/containers/certs.d")


class Registries:
    """Gives the one client of an engine, or one with other credentials. Thread-safe; ``close`` ends its connections."""

    def __init__(
        self,
        settings: Settings,
        *,
        docker_config: Path,
        variables: Mapping[str, str],
        user_agent: str,
        log: Callable[[str], None] | None,
        offline: bool = False,
        credentials: Credentials | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        """``docker_config``: the directory of Docker's config.json; ``variables``: proxies and what credential helpers get;
        ``credentials``: used instead of Docker's configuration; ``warn``: see DockerConfig."""
        self._settings = settings
        self._config_file = str(docker_config / "config.json")
        self._config: DockerConfig | None = None
        self._variables = variables
        self._user_agent = user_agent
        self._log = log
        self._offline = offline
        self._credentials = credentials
        self._warn = warn
        self._docker_config = docker_config
        self._lock = threading.Lock()
        self._client: RegistryClient | None = None

    @property
    def variables(self) -> Mapping[str, str]:
        """The environment that proxies come from."""
        return self._variables

    @property
    def config(self) -> DockerConfig:
        """Docker's configuration with its credentials."""
        if self._config is None:
            from pybuild.registry_client.credentials import DockerConfig

            self._config = DockerConfig(self._config_file, environment=self._variables, warn=self._warn)
        return self._config

    @property
    def client(self) -> RegistryClient:
        with self._lock:
            if self._client is None:
                if self._credentials is None and self._warn is not None:
                    self.config.hosts()  # warns of a file that can't be read, also where no credentials are wanted
                self._client = self.with_credentials(self._credentials or self.config)
            return self._client

    def with_credentials(self, credentials: Credentials) -> RegistryClient:
        """A client of its own, to be closed by the caller."""
        from pybuild.registry_client.client import RegistryClient
        from pybuild.registry_client.settings import NetworkSettings, Proxies, RegistrySettings
        from pybuild.registry_client.transport import Transport

        transport = Transport(
            RegistrySettings.from_tables(self._settings.registry, certs_d=_CERTS_D),
            NetworkSettings(
                user_agent=self._user_agent, proxies=Proxies.from_environment(self._variables), offline=self._offline
            ),
            log=self._log,
        )
        return RegistryClient(transport, credentials)

    def acting_for(self, credentials: Credentials) -> Registries:
        """The same registries as somebody else sees them; to be closed by the caller."""
        return self._changed(self._settings, credentials)

    def with_settings(self, settings: Settings) -> Registries:
        """Registries with other settings; to be closed by the caller."""
        return self._changed(settings, self._credentials)

    def _changed(self, settings: Settings, credentials: Credentials | None) -> Registries:
        return Registries(
            settings,
            docker_config=self._docker_config,
            variables=self._variables,
            user_agent=self._user_agent,
            log=self._log,
            offline=self._offline,
            credentials=credentials,
            warn=self._warn,
        )

    def close(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.transport.close()
                self._client = None
