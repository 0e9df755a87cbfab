"""RUN --mount=type=secret, seen from the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, build_image, refused, write_files

pytestmark = pytest.mark.integration


def test_secrets_are_files_and_variables_of_one_step(pybuild: Command, tmp_path: Path) -> None:
    context = write_files(tmp_path / "c", {"pw": "pw"})
    dockerfile = """
FROM busybox
RUN --mount=type=secret,required=false,mode=741,uid=100,gid=102,target=/mysecret [ "$(stat -c "%u %g %f" /mysecret)" = "100 102 81e1" ]
RUN [ ! -f /mysecret ] # no stub is left
RUN --mount=type=secret,id=mysecret [ "$(stat -c "%u %g %a" /run/secrets/mysecret)" = "0 0 400" ] && [ "$(cat /run/secrets/mysecret)" = pw ]
RUN [ ! -e /run/secrets ]
ENV SECRET_ENV=foo
RUN --mount=type=secret,id=mysecret,env=SECRET_ENV [ "$SECRET_ENV" == "pw" ] && [ ! -f /run/secrets/mysecret ] || false
RUN --mount=type=secret,id=mysecret,target=/run/secrets/secret,env=SECRET_ENV [ "$SECRET_ENV" == "pw" ] && [ -f /run/secrets/secret ] || false
RUN [ "$SECRET_ENV" = foo ]
RUN --mount=type=secret,id=none,env=OTHER --mount=type=secret,id=none [ -z "$OTHER" ] && [ ! -e /run/secrets/none ]
"""
    result = pybuild.build(dockerfile, context, f"--secret=id=mysecret,src={context / 'pw'}")
    assert '[ "****" == "pw" ] && [ ! -f /run/secrets/mysecret ]' in result.stderr
    assert pybuild.build(dockerfile, context, f"--secret=id=mysecret,src={context / 'pw'}").stderr.count("CACHED") >= 9


def test_a_required_secret_that_is_missing_stops_the_build(pybuild: Command, tmp_path: Path) -> None:
    dockerfile = "FROM busybox\n    RUN --mount=type=secret,required,id=mysecret foo\n"
    message = refused(pybuild, dockerfile, tmp_path / "c")
    for text in ("secret mysecret: not found", "Dockerfile:2", ">>>     RUN --mount=type=secret"):
        assert text in message


def test_a_secrets_value_is_nowhere_to_be_found(pybuild: Command, tmp_path: Path) -> None:
    secret = "NeverToBeSeen4711"
    (tmp_path / "s").write_text(secret)
    dockerfile = """
FROM busybox
RUN --mount=type=secret,id=s,env=VALUE --mount=type=secret,id=s,target=/s [ "$VALUE" = "$(cat /s)" ] && echo done
"""
    image = build_image(pybuild, dockerfile, tmp_path / "c", f"--secret=id=s,src={tmp_path / 's'}")
    assert secret not in str(image.document)
    found = subprocess.run(["grep", "-rlaF", secret, str(pybuild.root)], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (1, "")


def test_secrets_come_from_files_and_variables(
    pybuild: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROM_ENV", "one")
    monkeypatch.setenv("OTHER_ENV", "two")
    (tmp_path / "file").write_text("three")
    ids = {"FROM_ENV": "one", "b": "two", "c": "three", "file": "three", "OTHER_ENV": "two"}
    checks = "".join(
        f'RUN --mount=type=secret,id={id},required,target=/s [ "$(cat /s)" = {value} ]\n' for id, value in ids.items()
    )
    pybuild.build(
        f"FROM busybox\n{checks}",
        tmp_path / "c",
        "--secret=id=FROM_ENV",
        "--secret=id=b,env=OTHER_ENV",
        f"--secret=type=file,id=c,src={tmp_path / 'file'}",
        f"--secret=source={tmp_path / 'file'}",
        "--secret=type=env,id=OTHER_ENV",
    )
    for spec, text in [("id=x,src=/nonexistent/file", "/nonexistent/file"), ("src", "src"), ("id=x,foo=bar", "foo")]:
        result = pybuild.run("build", f"--secret={spec}", str(tmp_path / "c"), check=False)
        assert result.returncode != 0
        assert text in result.stderr
