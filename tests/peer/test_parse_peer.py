"""The same Dockerfiles given to buildah: both accept or both refuse, and words mean the same.

buildah reads an older language: what it may not know yet (symbolic modes, ``${v#p}``, here-documents) is not asked of it, nor
anything that it checks only when it runs the step.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from pybuild.parser import Cmd, DockerfileError, Entrypoint, Env, ExecForm, Label, Shell, expand, parse

pytestmark = pytest.mark.peer


class Buildah:
    """buildah with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        program = shutil.which("buildah")
        if program is None:
            pytest.skip("the program buildah is not installed")
        self.command = [
            program, "--root", str(folder / "root"), "--runroot", str(folder / "run"), "--storage-driver", "vfs",
        ]  # fmt: skip

    def build(self, text: str) -> str | None:
        """The image's ID, None where buildah refuses the file."""
        context = self.folder / "context"
        context.mkdir(exist_ok=True)
        (context / "a").write_text("a")
        (context / "b").write_text("b")
        (context / "Dockerfile").write_bytes(text.encode("utf-8", "surrogateescape"))
        done = subprocess.run(
            [*self.command, "bud", "-q", "--layers=false", str(context)], capture_output=True, text=True, timeout=60
        )
        return done.stdout.strip().splitlines()[-1] if done.returncode == 0 else None

    def config(self, image: str) -> dict[str, object]:
        done = subprocess.run(
            [*self.command, "inspect", "--type", "image", image], capture_output=True, text=True, check=True, timeout=60
        )
        config = json.loads(done.stdout)["OCIv1"]["config"]
        assert isinstance(config, dict)
        return config


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Buildah:
    return Buildah(tmp_path_factory.mktemp("buildah"))


@pytest.mark.parametrize(
    "line",
    [
        "ENV a=b",
        "ENV a b c",
        "env a=b c=d",
        "ENV a",
        "ENV a=b c",
        "ENV",
        "LABEL a=b",
        "LABEL a",
        "ARG a",
        "ARG a=b",
        "ARG",
        "CMD",
        'CMD ["a"]',
        "CMD [1]",
        "CMD a b",
        'ENTRYPOINT ["a"',
        "EXPOSE 80",
        "EXPOSE",
        "VOLUME /a",
        "VOLUME",
        'VOLUME [""]',
        "USER a",
        "USER",
        "WORKDIR /a",
        "WORKDIR",
        "STOPSIGNAL SIGTERM",
        "STOPSIGNAL",
        "SHELL []",
        "SHELL sh",
        'SHELL ["sh"]',
        "HEALTHCHECK NONE",
        "HEALTHCHECK NONE x",
        "HEALTHCHECK CMD x",
        "HEALTHCHECK CMD",
        "HEALTHCHECK FOO",
        "HEALTHCHECK --interval=1s --retries=2 CMD x",
        "HEALTHCHECK --interval=1 CMD x",
        "HEALTHCHECK --retries=-1 CMD x",
        "ONBUILD CMD x",
        "ONBUILD",
        "ONBUILD FROM x",
        "ONBUILD ONBUILD CMD x",
        "COPY a /a",
        "COPY a",
        "COPY a b /d/",
        'COPY ["a", "/a"]',
        "COPY --chown=1:2 a /a",
        "COPY --chown a /a",
        "COPY --foo=x a /a",
        "ADD --from=x a /a",
        "MAINTAINER a b",
        "FOO x",
        "ENV a=b \\\n\n c=d",
        "ENV a=b \\\n# comment\n c=d",
        "  # comment\n\tENV a=b",
    ],
)
def test_both_accept_or_both_refuse(buildah: Buildah, line: str) -> None:
    text = f"FROM scratch\n{line}\n"
    try:
        parse(text)
        ours = True
    except DockerfileError:
        ours = False
    assert (buildah.build(text) is not None) == ours


def test_variables_and_quotes_mean_the_same(buildah: Buildah) -> None:
    text = r"""FROM scratch
ENV plain=word quoted="two words" single='$plain' both="it's" escaped=two\ words dollar=\$plain
ENV nested="$plain-${plain}" default="${unset:-fall $plain}" other=${plain:+yes} none=${unset:+no} "key"=v
ENV legacy  the rest "of" the line $plain
ENV back="a\tb" slash=a\tb double=a\\b empty= quotes="say \"x\""
ENV in_one=$plain plain=changed
ENV after=$plain
ENV unicode=é☃ joined=a\
b \
  # a comment
  last=z
"""
    image = buildah.build(text)
    assert image is not None
    config = buildah.config(image)
    env: dict[str, str] = {}
    for instruction in parse(text).instructions:
        if isinstance(instruction, Env):
            before = dict(env)
            for pair in instruction.pairs:
                assert pair.value is not None
                env[expand(pair.key, before).text] = expand(pair.value, before).text
    theirs = config["Env"]
    assert isinstance(theirs, list)
    assert {key: value for key, _, value in (entry.partition("=") for entry in theirs) if key != "PATH"} == env


def test_labels_and_commands_mean_the_same(buildah: Buildah) -> None:
    text = r"""FROM scratch
LABEL one.two="a b" three='c' four=d\ e
LABEL legacy five six
SHELL ["/bin/x", "-c"]
ENTRYPOINT [ "a",	"\u00e9\n\"" ]
CMD ["b", "c d"]
"""
    image = buildah.build(text)
    assert image is not None
    config = buildah.config(image)
    labels: dict[str, str] = {}
    for instruction in parse(text).instructions:
        match instruction:
            case Label(pairs=pairs):
                for pair in pairs:
                    assert pair.value is not None
                    labels[expand(pair.key, {}).text] = expand(pair.value, {}).text
            case Cmd(command=ExecForm(args=args)):
                assert config["Cmd"] == list(args)
            case Entrypoint(command=ExecForm(args=args)):
                assert config["Entrypoint"] == list(args)
            case Shell(args=args):
                assert args == ("/bin/x", "-c")
            case _:
                pass
    theirs = config["Labels"]
    assert isinstance(theirs, dict)
    assert {key: value for key, value in theirs.items() if not key.startswith("io.buildah")} == labels
