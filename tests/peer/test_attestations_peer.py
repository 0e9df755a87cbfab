"""Images with attestations in the hands of other tools: nothing is lost, and nobody takes an attestation for an image."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.attested_images import read_layout, read_registry
from conformance.built_images import Command

pytestmark = pytest.mark.peer


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"the program {name} is not installed")
    return path


def test_skopeo_copies_the_index_with_its_attestations(pybuild: Command, registry: str, tmp_path: Path):
    skopeo = program("skopeo")
    name = f"{registry}/peer/attested:1"
    pybuild.build("FROM busybox\nRUN echo 1 > /one\n", tmp_path / "c", "--provenance=true", "--push", f"-t={name}")
    before = read_registry(registry, "peer/attested", "1")
    subprocess.run(
        [skopeo, "copy", "--all", "--src-tls-verify=false", f"docker://{name}", f"oci:{tmp_path / 'copy'}:1"],
        check=True, capture_output=True,
    )  # fmt: skip
    after = read_layout(tmp_path / "copy")
    assert after.of().statements == before.of().statements
    # Without --all the image of this platform is chosen, as if there were no attestations.
    inspected = subprocess.run(
        [skopeo, "inspect", "--tls-verify=false", f"docker://{name}"], check=True, capture_output=True, text=True
    )
    assert json.loads(inspected.stdout)["Architecture"] == "amd64"


def test_an_index_with_attestations_that_skopeo_pushed_is_pulled_and_built_on(
    pybuild: Command, empty_pybuild: Command, registry: str, tmp_path: Path
):
    skopeo = program("skopeo")
    layout = tmp_path / "layout"
    pybuild.build(
        "FROM busybox\nRUN echo 1 > /one\n", tmp_path / "c", "--provenance=true",
        f"-o=type=oci,tar=false,dest={layout}",
    )  # fmt: skip
    name = f"{registry}/peer/pushed:1"
    subprocess.run(
        [skopeo, "copy", "--all", "--dest-tls-verify=false", f"oci:{layout}", f"docker://{name}"],
        check=True, capture_output=True,
    )  # fmt: skip
    empty_pybuild.run("pull", name)
    assert empty_pybuild.run("run", name, "cat", "/one").stdout == "1\n"
    empty_pybuild.build(f"FROM {name}\nRUN test -f /one\n", tmp_path / "d")
