"""Building from Python: with Dockerfiles, and with images that are described in Python."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import Any, Protocol

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.attested_images import read_layout
from conformance.built_images import BuiltImage, read_images
from conformance.built_images import Command as Plain

import pybuild as api
from pybuild.builder.progress import Event, StepDone, StepStarted

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[2]


class Command(Plain, Protocol):
    root: Path


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """A directory with two files and an ignore file."""
    directory = tmp_path / "context"
    directory.mkdir()
    (directory / "a.txt").write_text("a")
    (directory / "b.log").write_text("b")
    (directory / ".dockerignore").write_text("*.log\n")
    return directory


def built(image: api.Image, pybuild: Command, context: Path, **options: Any) -> BuiltImage:
    """Build into an OCI layout and read it."""
    layout = context.with_name(f"layout-{len(list(context.parent.iterdir()))}")
    api.build(image, directory=context, root=pybuild.root, outputs=f"type=oci,tar=false,dest={layout}", **options)
    (found,) = read_images(layout)
    return found


def test_a_context_with_a_dockerfile_is_built_as_the_command_does_it(pybuild: Command, context: Path):
    (context / "Dockerfile").write_text("FROM busybox\nARG A\nRUN echo $A > /out\n")
    result = api.build(context, tags="api:1", build_args={"A": "1"}, root=pybuild.root)
    assert result.image_id is not None
    assert pybuild.run("run", "api:1", "cat", "/out").stdout == "1\n"
    pybuild.run("build", "--require-cache", "--build-arg=A=1", str(context))
    assert result.metadata["image.name"] == "docker.io/library/api:1"


def test_a_dockerfile_may_be_text(pybuild: Command, context: Path):
    out = io.BytesIO()
    api.build(
        context, dockerfile_text="FROM scratch\nCOPY . /\n", outputs="type=tar,dest=-", stdout=out, root=pybuild.root
    )
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        assert archive.getnames() == [".dockerignore", "a.txt"]


def test_a_described_image_has_files_configuration_and_history(pybuild: Command, context: Path):
    image = (
        api.image("busybox")
        .env({"A": "1"}, B="2")
        .workdir("/w")
        .run('echo "$A$B" > out')
        .run(["touch", "listed"], cwd="/tmp", user="7")
        .copy("*.txt", "copied/", owner="5:6", mode=0o600)
        .write("/etc/motd", "hello\n", mode=0o640)
        .label(x="y")
        .user("1000")
        .expose(80, "53/udp")
        .volume("/data")
        .stop_signal("SIGINT")
        .entrypoint("/bin/sh", "-c")
        .cmd("true")
    )
    result = built(image, pybuild, context, labels={"more": "1"})
    assert result.config == {
        "User": "1000",
        "ExposedPorts": {"53/udp": {}, "80/tcp": {}},
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "A=1", "B=2"],
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": ["true"],
        "Volumes": {"/data": {}},
        "WorkingDir": "/w",
        "Labels": {"more": "1", "x": "y"},
        "StopSignal": "SIGINT",
        "ArgsEscaped": True,
    }
    assert result.history[1:] == [
        "ENV A=1 B=2",
        "WORKDIR /w",
        'RUN /bin/sh -c echo "$A$B" > out # buildkit',
        "RUN touch listed # buildkit",
        "COPY *.txt copied/ # buildkit",
        "WRITE /etc/motd # buildkit",
        "LABEL x=y",
        "USER 1000",
        "EXPOSE [80/tcp 53/udp]",
        "VOLUME [/data]",
        "STOPSIGNAL SIGINT",
        'ENTRYPOINT ["/bin/sh" "-c"]',
        'CMD ["true"]',
    ]
    assert [entry.content for layer in result.layers for entry in layer if entry.name == "w/out"] == [b"12\n"]
    listed = next(entry for layer in result.layers for entry in layer if entry.name == "tmp/listed")
    assert listed.owner == (7, 0)
    copied = next(entry for layer in result.layers for entry in layer if entry.name == "w/copied/a.txt")
    assert (copied.owner, copied.mode, copied.content) == ((5, 6), 0o600, b"a")
    written = next(entry for layer in result.layers for entry in layer if entry.name == "etc/motd")
    assert (written.mode, written.content) == (0o640, b"hello\n")


def test_images_directories_and_files_are_trees_to_copy_and_mount_from(pybuild: Command, context: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "x").write_text("x")
    (other / "y").write_text("y")
    made = api.image("busybox").named("made").run("mkdir /d && echo made > /d/file && chown 3:4 /d/file")
    image = (
        api.scratch()
        .copy("/d/file", "/one", from_=made)
        .copy(api.directory(other, exclude=["y"]), "/two/")
        .copy("b.log", "/three", from_=api.directory(context, exclude=[]), link=True)
    )
    result = built(image, pybuild, context)
    files = {entry.name: entry for layer in result.layers for entry in layer if entry.kind == "file"}
    assert set(files) == {"one", "two/x", "three"}
    assert (files["one"].content, files["one"].owner) == (b"made\n", (3, 4))
    mounted = api.image("busybox").run(
        "cat /m/file /c/a.txt > /out; echo kept > /cache/x; test -d /scratch; cat /run/secrets/token >> /out; echo $T >> /out",
        mounts=[
            api.mount.bind(made, "/m", source="/d"),
            api.mount.bind(api.directory("."), "/c"),
            api.mount.cache("/cache"),
            api.mount.tmpfs("/scratch"),
            api.mount.secret("token"),
            api.mount.secret("token", env="T"),
        ],
    )
    secrets: dict[str, str | bytes | Path] = {"token": "hush\n"}
    layers = built(mounted, pybuild, context, secrets=secrets).layers
    assert [(entry.name, entry.content) for entry in layers[-1]] == [("out", b"made\nahush\nhush\n")]


def test_equal_steps_of_python_and_dockerfiles_share_the_cache(pybuild: Command, context: Path):
    (context / "Dockerfile").write_text("FROM busybox\nRUN echo shared > /out\n")
    pybuild.run("build", str(context))
    api.build(api.image("busybox").run("echo shared > /out"), root=pybuild.root, require_cache=True)
    base = api.image("busybox").run("echo base > /base")
    with api.engine(root=pybuild.root) as engine:
        api.build(base.run("echo 1 > /1"), using=engine)
        api.build(base, using=engine, require_cache=True)
        seen: list[Event] = []
        api.build(base.run("echo 2 > /2"), using=engine, progress=seen.append)
    titles = {event.step: event.title for event in seen if isinstance(event, StepStarted)}
    cached = {titles[event.step]: event.cached for event in seen if isinstance(event, StepDone)}
    assert cached["[2/3] RUN echo base > /base"] is True
    assert cached["[3/3] RUN echo 2 > /2"] is False


def test_a_described_image_takes_platforms_outputs_and_attestations(pybuild: Command, context: Path, tmp_path: Path):
    layout = tmp_path / "layout"
    result = api.build(
        api.scratch().copy("a.txt", "/"),
        directory=context,
        platforms=["linux/amd64", "linux/arm64"],
        outputs=[f"type=oci,tar=false,dest={layout}", api.Output(api.OutputType.LOCAL, dest=str(tmp_path / "files"))],
        provenance=True,
        root=pybuild.root,
    )
    assert str(result.metadata["containerimage.digest"]).startswith("sha256:")
    assert (tmp_path / "files/linux_arm64/a.txt").read_text() == "a"
    predicate = read_layout(layout).predicate("linux/arm64")
    request = predicate["buildDefinition"]["externalParameters"]["request"]
    assert request == {"locals": [{"name": "context"}], "compatibilityVersion": 30}
    assert predicate["runDetails"]["metadata"]["buildkit_completeness"]["request"] is False
    steps = predicate["buildDefinition"]["internalParameters"]["buildConfig"]["llbDefinition"]
    assert "copy" in steps[1]["op"]["Op"]["file"]["actions"][0]["Action"]


def test_source_date_epoch_makes_builds_equal(pybuild: Command, context: Path):
    image = api.image("busybox").write("/a", "a")
    one, two = (
        built(image, pybuild, context, source_date_epoch=1_000_000_000, no_cache=True) for _ in ("first", "second")
    )
    assert one.document["created"] == "2001-09-09T01:46:40Z"
    assert one.manifest["config"] == two.manifest["config"]


def test_a_failed_step_raises_what_the_command_would_print(pybuild: Command, context: Path):
    with pytest.raises(api.BuildFailed) as failed:
        api.build(api.image("busybox").run("echo last words; exit 3"), root=pybuild.root)
    assert "exit code: 3" in failed.value.message
    assert failed.value.title == "[2/2] RUN echo last words; exit 3"
    assert failed.value.output == ("last words",)
    with pytest.raises(api.PybuildError, match="not found"):
        api.build(api.scratch().copy("missing", "/"), directory=context, root=pybuild.root)
    with pytest.raises(api.PybuildError):
        api.build(api.image("127.0.0.1:1/absent"), root=pybuild.root)


def test_a_build_can_be_cancelled(pybuild: Command):
    cancel = threading.Event()

    def stop(event: Event) -> None:
        if isinstance(event, StepStarted) and "sleep" in event.title:
            threading.Timer(0.3, cancel.set).start()

    with pytest.raises(api.Cancelled):
        api.build(api.image("busybox").run("sleep 60"), root=pybuild.root, progress=stop, cancel=cancel)


@pytest.mark.parametrize(
    "call",
    [
        lambda: api.image(""),
        lambda: api.scratch().run(""),
        lambda: api.scratch().run("x", network="some"),
        lambda: api.scratch().copy([], "/"),
        lambda: api.scratch().write("/a/", ""),
        lambda: api.scratch().shell(),
        lambda: api.build(api.scratch(), target="x"),
        lambda: api.build(".", dockerfile="a", dockerfile_text="b"),
        lambda: api.build(api.scratch(), outputs="type=tar,dest=x", push=True),
    ],
)
def test_what_cant_be_is_refused_at_once(call: Any):
    with pytest.raises(api.UsageError):
        call()


def test_the_example_builds_an_image_that_serves_its_pages(pybuild: Command, tmp_path: Path):
    for _ in ("fresh", "cached"):
        done = subprocess.run(
            [sys.executable, str(REPOSITORY / "examples/python_api/build_site.py"), "site:test"],
            env={"PATH": "/usr/bin:/bin", "PYBUILD_ROOT": str(pybuild.root), "HOME": str(tmp_path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.startswith("site:test is sha256:")
    assert done.stderr.count("CACHED") == 8
    assert "written in fr" in pybuild.run("run", "site:test", "cat", "/var/www/fr.html").stdout
    inspected = json.loads(pybuild.run("inspect", "site:test").stdout)[0]
    assert inspected["Config"]["Env"][-1] == "LANGUAGES=en,de,fr"


def test_importing_the_package_imports_nothing_and_every_name_is_there():
    code = (
        "import sys, pybuild; before = set(sys.modules); "
        "assert not any(name.startswith('pybuild.') for name in before), before; "
        "[getattr(pybuild, name) for name in pybuild.__all__]; "
        "assert set(pybuild.__all__) <= set(dir(pybuild)); "
        "assert not hasattr(pybuild, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
