"""``--on-error``: a shell in the failed step, or its file system kept."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, write_files

pytestmark = pytest.mark.integration

DOCKERFILE = """
FROM busybox
ENV A=b
WORKDIR /w
USER 1000
RUN --mount=target=/ctx,rw --mount=type=secret,id=s,env=S --mount=type=tmpfs,target=/t echo partial > /t/x && cp /t/x /tmp/made && exit 3
"""


def test_a_shell_has_all_that_the_failed_step_had(pybuild: Command, tmp_path: Path) -> None:
    context = write_files(tmp_path / "c", {"Dockerfile": DOCKERFILE, "s": "secret value"})
    script = b"cat /tmp/made; ls /ctx; echo =$A=$S=$PWD=$(id -u)=; exit\n"
    result = pybuild.run(  # type: ignore[call-arg]  # the fixture takes stdin as well
        "build", "--progress=plain", "--on-error=shell", f"--secret=id=s,src={context / 's'}", str(context),
        check=False, stdin=script,
    )  # fmt: skip
    assert result.returncode == 1
    assert "partial" in result.stdout
    assert "=b=secret value=/w=1000=" in result.stdout
    assert "Dockerfile  s" in result.stdout
    assert "shell in the failed step" in result.stderr
    assert result.stderr.splitlines()[-1].endswith("exit code: 3")


def test_the_file_system_of_a_failed_step_is_kept(pybuild: Command, tmp_path: Path) -> None:
    context = write_files(tmp_path / "c", {"Dockerfile": DOCKERFILE, "s": "secret value"})
    result = pybuild.run(
        "build", "--progress=plain", "--on-error=keep", f"--secret=id=s,src={context / 's'}", str(context), check=False
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith("exit code: 3")
    found = re.search(r"enter it with: pybuild run -t (failed-step:[0-9a-f]{8})", result.stderr)
    assert found is not None
    shown = pybuild.run(
        "run", found[1], "sh", "-c", "cat /tmp/made; echo =$A=$S=$PWD=$(id -u)=; ls / | grep -c ctx; true"
    )
    assert shown.stdout.split() == ["partial", "=b==/w=1000=", "0"]


def test_a_finished_step_stays_cached_after_a_failure(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = "FROM busybox\nRUN echo one\nRUN exit 1\n"
    for expected in ("#5 0.", "#5 CACHED"):
        result = pybuild.build(dockerfile, tmp_path / "c", check=False)
        assert result.returncode == 1
        assert expected in result.stderr
