"""pybuild: an image build toolkit and Dockerfile interpreter.

    import pybuild
    pybuild.build(".", tags="app:1")
    pybuild.build(pybuild.image("busybox").run("echo hi > /hello").cmd("cat", "/hello"), tags="hello:1")

``docs/python-api.md`` describes what can be imported from here. This package itself imports nothing: each name is imported when it is first
used, so that ``pybuild --version`` starts as fast as Python does.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own is not imported here; type checkers know the name
if TYPE_CHECKING:
    from pybuild import mount
    from pybuild.api import build, engine
    from pybuild.builder.build import BuildResult
    from pybuild.builder.definition import Image, Tree, directory, git, http, image, scratch
    from pybuild.builder.failure import BuildFailed
    from pybuild.builder.outputs import Output, OutputType
    from pybuild.daemon.engine import Engine
    from pybuild.errors import Cancelled, PybuildError, UsageError

__version__ = "0.1.0"

__all__ = [
    "BuildFailed",
    "BuildResult",
    "Cancelled",
    "Engine",
    "Image",
    "Output",
    "OutputType",
    "PybuildError",
    "Tree",
    "UsageError",
    "__version__",
    "build",
    "directory",
    "engine",
    "git",
    "http",
    "image",
    "mount",
    "scratch",
]

_HOMES = {
    "BuildFailed": "pybuild.builder.failure",
    "BuildResult": "pybuild.builder.build",
    "Cancelled": "pybuild.errors",
    "Engine": "pybuild.daemon.engine",
    "Image": "pybuild.builder.definition",
    "Output": "pybuild.builder.outputs",
    "OutputType": "pybuild.builder.outputs",
    "PybuildError": "pybuild.errors",
    "Tree": "pybuild.builder.definition",
    "UsageError": "pybuild.errors",
    "build": "pybuild.api",
    "directory": "pybuild.builder.definition",
    "engine": "pybuild.api",
    "git": "pybuild.builder.definition",
    "http": "pybuild.builder.definition",
    "image": "pybuild.builder.definition",
    "scratch": "pybuild.builder.definition",
}


def __getattr__(name: str) -> object:
    if name == "mount":
        from importlib import import_module

        return import_module("pybuild.mount")
    if name not in _HOMES:
        raise AttributeError(f"module 'pybuild' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
