"""What a RUN step may do, and --security=insecure, seen from the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, refused

pytestmark = pytest.mark.integration

# Everything that this process itself may pass on; on a machine without restrictions that is 3fffffffff.
(BOUNDING,) = (
    line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd")
)
DEFAULT = "CapBnd:\t00000000a80425fb"
INSECURE = """
FROM busybox
RUN [ ! -e /dev/fuse ] && [ ! -e /dev/loop-control ]
RUN --security=insecure [ "$(printf '%x' $(( $(cat /proc/self/status | grep CapBnd | cut -f 2 | sed s#^#0x#) & 0x3fffffffff)))" == "ALL" ]
RUN --security=insecure [ -c /dev/fuse ] && [ -c /dev/loop-control ]
RUN --security=insecure dmesg > /dev/null && mkdir -p /mnt && mount -t tmpfs none /mnt && umount /mnt
RUN [ "$(cat /proc/self/status | grep CapBnd)" == "CapBnd:	00000000a80425fb" ]
RUN [ -z "$(ls /dev | grep -v -x -E 'console|core|fd|full|mqueue|null|ptmx|pts|random|shm|stderr|stdin|stdout|tty|urandom|zero')" ]
""".replace("ALL", f"{int(BOUNDING, 16) & 0x3FFFFFFFFF:x}")


def configured(pybuild: Command, tmp_path: Path, setting: str, dockerfile: str, *arguments: str) -> tuple[int, str]:
    """Build with a configuration file; the status and stderr."""
    (tmp_path / "pybuild.toml").write_text(setting)
    (tmp_path / "c").mkdir(exist_ok=True)
    (tmp_path / "c/Dockerfile").write_text(dockerfile)
    result = pybuild.run(
        "--config", str(tmp_path / "pybuild.toml"), "build", *arguments, str(tmp_path / "c"), check=False
    )
    return result.returncode, result.stderr


def test_steps_have_dockers_default_capabilities(pybuild: Command, tmp_path: Path) -> None:
    check = f'[ "$(cat /proc/self/status | grep CapBnd)" == "{DEFAULT}" ]'
    pybuild.build(
        f"""
FROM busybox
RUN {check}
RUN --security=sandbox {check}
RUN ! mount -t tmpfs none /mnt 2>/dev/null && ! dmesg 2>/dev/null && [ "$(grep Seccomp: /proc/self/status | cut -f 2)" = 2 ]
RUN [ "$(head -c 1 /proc/kcore | wc -c)" = 0 ] && ! touch /proc/sys/kernel/hostname 2>/dev/null
USER 1000
RUN [ "$(grep CapEff /proc/self/status)" = "CapEff:	0000000000000000" ] && [ "$(grep CapPrm /proc/self/status)" = "CapPrm:	0000000000000000" ]
""",
        tmp_path / "c",
    )


def test_an_insecure_step_may_do_everything(pybuild: Command, tmp_path: Path) -> None:
    setting = 'insecure-entitlements = ["security.insecure"]\n'
    status, stderr = configured(pybuild, tmp_path, setting, INSECURE, "--allow=security.insecure", "--no-cache")
    assert status == 0, stderr


@pytest.mark.parametrize(
    ("setting", "arguments"),
    [
        ("", ("--allow=security.insecure",)),
        ('[worker]\ninsecure-entitlements = ["network.host"]\n', ("--allow=security.insecure",)),
        ('insecure-entitlements = ["security.insecure"]\n', ()),
        ("", ()),
    ],
)
def test_the_client_and_the_configuration_must_both_allow_it(
    pybuild: Command, tmp_path: Path, setting: str, arguments: tuple[str, ...]
) -> None:
    status, stderr = configured(pybuild, tmp_path, setting, INSECURE, *arguments)
    assert status == 1
    assert "entitlement security.insecure is not allowed" in stderr.splitlines()[-1]


def test_what_is_allowed_must_be_permitted_even_if_nothing_needs_it(pybuild: Command, tmp_path: Path) -> None:
    message = refused(pybuild, "FROM busybox\nRUN true\n", tmp_path / "c", "--allow=security.insecure")
    assert "entitlement security.insecure is not allowed" in message
    unknown = pybuild.run("build", "--allow=security.more", str(tmp_path / "c"), check=False)
    assert "unknown entitlement security.more" in unknown.stderr


def test_devices_are_refused_with_the_line(pybuild: Command, tmp_path: Path) -> None:
    message = refused(pybuild, "FROM busybox\nRUN --device=vendor1.com/device=foo,required env\n", tmp_path / "c")
    assert "vendor1.com/device=foo" in message
    assert ">>> RUN --device=" in message
