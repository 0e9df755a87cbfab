"""What an operator adds to the provenance of all builds: the JSON files of ``provenanceEnvDir``, as in buildkitd's configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from pybuild.errors import PybuildError

_BUILTIN: Final = frozenset({"buildConfig", "builderPlatform", "platform"})


class InvalidProvenanceEnvironment(PybuildError):
    """A file of the directory can't be taken."""


def read_provenance_environment(directory: str) -> dict[str, Any]:  # Any: JSON that an operator wrote
    """Every ``*.json`` file of ``directory``, in the order of their names, merged; nothing if there is no directory. Raises
    InvalidProvenanceEnvironment."""
    out: dict[str, Any] = {}
    if not directory:
        return out
    for path in sorted(Path(directory).glob("*.json")):
        try:
            value = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise InvalidProvenanceEnvironment(f"failed to load provenance environment {path}: {error}") from error
        if not isinstance(value, dict):
            raise InvalidProvenanceEnvironment(f"failed to load provenance environment {path}: it is not a JSON object")
        for key in _BUILTIN & value.keys():
            raise InvalidProvenanceEnvironment(
                f'key "{key}" is builtin and not allowed to be modified in provenance config', hint=f"it is in {path}"
            )
        out.update(value)
    return out
