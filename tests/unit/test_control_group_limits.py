"""Limits of steps as the files of control groups want them."""

from __future__ import annotations

import pytest

from pybuild.builder.resources import parse_resources
from pybuild.daemon.control_groups import version_1_limits, version_2_limits
from pybuild.errors import UsageError


def test_limits_are_written_as_each_version_has_them() -> None:
    given = parse_resources(
        ["memory=1k", "memory=64m", "memory-swap=128m", "cpu-shares=1024", "cpu-quota=50000", "cpuset-cpus=0-1", "cpuset-mems=0"]
    )  # fmt: skip
    assert version_1_limits(dict(given)) == [
        ("memory.limit_in_bytes", "67108864"), ("memory.memsw.limit_in_bytes", "134217728"), ("cpu.shares", "1024"),
        ("cpu.cfs_quota_us", "50000"), ("cpuset.cpus", "0-1"), ("cpuset.mems", "0"),
    ]  # fmt: skip
    assert version_2_limits(dict(given)) == [
        ("memory.max", "67108864"), ("memory.swap.max", "67108864"), ("cpu.weight", "39"), ("cpu.max", "50000 100000"),
        ("cpuset.cpus", "0-1"), ("cpuset.mems", "0"),
    ]  # fmt: skip


def test_unlimited_swap_and_a_period_alone() -> None:
    given = dict(parse_resources(["memory-swap=-1", "cpu-period=20000"]))
    assert version_2_limits(given) == [("memory.swap.max", "max"), ("cpu.max", "max 20000")]


@pytest.mark.parametrize(
    "text", ["memory", "memory=", "memory=0", "memory=-1", "cpu-quota=1.5", "x=1", "cpuset-cpus=1-", "cpu-shares=0"]
)
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="invalid"):
        parse_resources([text])
