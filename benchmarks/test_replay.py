"""The replay: a project's history built commit by commit, each on a machine that has nothing but the registry's cache.

A round is one commit: build, export of the cache, push, on an empty store. Each image is compared with its commit's files, and the steps that
ran with what the commit changed. Bytes and requests are counted between the tool and the registry. ``PYBUILD_REPLAY_REPOSITORY``: another
repository of a Python project, whose history is replayed instead of this one's.
"""

from __future__ import annotations

import os
import re
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import pytest
from counting_proxy import CountingProxy, Traffic
from replay import COMMITS, Commit, Images, NoHistory, check_out, commits

# What tells the Dockerfile's RUN steps from each other.
_STEPS = {"/bin/busybox": "packages", "sha256sum": "dependencies", "find .": "compile", "/etc/passwd": "user"}


class Way(ABC):
    """A tool with one kind of cache. ``host``: the registry; ``said``: what the tool printed when it built last."""

    kind = "pybuild"

    def __init__(self, tool: Any, name: str, *, host: str) -> None:  # Any: conftest's Tool, which can't be imported
        self.tool = tool
        self.name = name
        self.host = host
        self.base = f"--build-arg=BASE={host}/base"

    @abstractmethod
    def build(self, context: Path, number: int) -> str:
        """Build and push ``app:number`` with the cache that the commits before left there; what the tool said."""

    @abstractmethod
    def cached(self, said: str) -> dict[str, bool]:
        """For each RUN step that was reached whether it came from the cache."""


class OfPybuild(Way):
    """``options`` name the cache; in them ``{cache}`` is a repository, ``{last}`` the last image."""

    options: tuple[str, ...] = ()

    def build(self, context: Path, number: int) -> str:
        app = f"{self.host}/{self.name}/app"
        options = [
            text.format(cache=f"{self.host}/{self.name}/cache", last=f"{app}:{number - 1}") for text in self.options
        ]
        self.tool.run("build", "--progress=plain", self.base, *options, "--push", "-t", f"{app}:{number}", str(context))
        return str(self.tool.said)

    def cached(self, said: str) -> dict[str, bool]:
        hits = set(re.findall(r"^#(\d+) CACHED", said, re.M))
        return {
            _step(command): number in hits for number, command in re.findall(r"^#(\d+) \[.*\] RUN (.*)", said, re.M)
        }


class CacheTo(OfPybuild):
    options = ("--cache-from=type=registry,ref={cache}:main", "--cache-to=type=registry,ref={cache}:main,mode=max")


class CacheRepo(OfPybuild):
    options = ("--cache-repo={cache}",)


class Inline(OfPybuild):
    options = ("--cache-from={last}", "--cache-to=type=inline")


class OfBuildah(Way):
    kind = "buildah"

    def build(self, context: Path, number: int) -> str:
        cache = f"{self.host}/{self.name}/cache"
        self.tool.run(
            "build", "--layers", "--tls-verify=false", f"--isolation={self.tool.isolation}", self.base,
            f"--cache-from={cache}", f"--cache-to={cache}", "-t", "app", str(context),
        )  # fmt: skip
        said = str(self.tool.said)
        self.tool.push("app", f"{self.host}/{self.name}/app:{number}")
        return said

    def cached(self, said: str) -> dict[str, bool]:
        steps = re.findall(r"STEP \d+/\d+: RUN (.*)\n--> (Cache pulled|Pushing cache|Using cache)?", said)
        return {_step(command): word in ("Cache pulled", "Using cache") for command, word in steps}


def _step(command: str) -> str:
    return next(name for words, name in _STEPS.items() if words in command)


WAYS: dict[str, type[Way]] = {
    "pybuild, --cache-to with mode=max": CacheTo,
    "pybuild, --cache-repo": CacheRepo,
    "pybuild, inline cache": Inline,
    "buildah, --cache-to": OfBuildah,
}


@pytest.mark.parametrize("way", WAYS)
def test_replay(benchmark: Any, new_tool: Any, workspace: Path, registry: str, way: str) -> None:
    history = Path(os.environ.get("PYBUILD_REPLAY_REPOSITORY") or Path(__file__).parents[1])
    try:
        pending = commits(history)
    except NoHistory as reason:
        pytest.skip(str(reason))
    kind = WAYS[way]
    tool = new_tool(kind.kind, f"replay-{kind.__name__.lower()}")
    publisher = new_tool("pybuild", "replay-base")
    publisher.name_image("base:latest", f"{registry}/base")
    publisher.push("base", f"{registry}/base")
    directory = workspace / "replay-context"
    images = Images(registry)
    done: list[Commit] = []
    traffic: list[Traffic] = []
    said = ""

    with CountingProxy(int(registry.rpartition(":")[2])) as proxy:
        builder = kind(tool, kind.__name__.lower(), host=f"127.0.0.1:{proxy.port}")

        def check() -> None:
            """The last round's image is its commit's, and just the steps ran whose inputs had changed."""
            traffic.append(proxy.take())
            commit, before = done[-1], done[-2] if len(done) > 1 else None
            found = images.contents(f"{builder.name}/app", str(len(done)))
            assert found.sources == commit.sources
            assert found.installed == commit.installed
            cached = builder.cached(said)
            new = {
                "packages": before is None,
                "user": before is None,
                "dependencies": before is None or before.installed != commit.installed,
                "compile": before is None or before.visible != commit.visible,
            }
            if kind is Inline:
                # The image has its own steps only. Those of the stages before run if a copy from them is missing.
                assert cached["user"] is not new["user"]
                return
            assert cached["compile"] is not new["compile"]
            assert all(cached[name] is not new[name] for name in cached)

        def prepare() -> None:
            if done:
                check()
            shutil.rmtree(tool.root, ignore_errors=True)
            tool.root.mkdir()
            done.append(check_out(history, pending.pop(0), directory=directory))
            proxy.take()

        def build() -> None:
            nonlocal said
            said = builder.build(directory, len(done))

        tool.cpu_seconds.clear()
        benchmark.group = "replay"
        benchmark.pedantic(build, setup=prepare, rounds=COMMITS)
        check()
    benchmark.extra_info["replay"] = {
        "way": way,
        "seconds": list(benchmark.stats.stats.data),
        "cpu": sum(tool.cpu_seconds),
        "up": [one.up for one in traffic],
        "down": [one.down for one in traffic],
        "requests": [len(one.requests) for one in traffic],
    }
