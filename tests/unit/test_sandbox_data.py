"""The pure parts of the sandbox: capabilities, the seccomp program, files for names, stubs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.seccomp_kernel import PROFILE, call_number, evaluate
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.daemon import capabilities, sandbox, seccomp
from pybuild.daemon.executor import expand_slice, kernel_version
from pybuild.daemon.resolver import hosts_file, resolv_conf_file
from pybuild.daemon.stubs import remove_stubs

ALLOW = seccomp.RET_ALLOW
EPERM = seccomp.RET_ERRNO | 1
ENOSYS = seccomp.RET_ERRNO | 38
X86_64, I386, AARCH64, ARM = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000028
DEFAULT = seccomp.default_program(capabilities.DEFAULT, machine="x86_64", kernel=(6, 1))


def test_the_default_set_is_dockers_fourteen() -> None:
    assert capabilities.DEFAULT == 0xA80425FB
    assert len(capabilities.names(capabilities.DEFAULT)) == 14


@given(st.integers(0, (1 << len(capabilities.NAMES)) - 1))
def test_names_and_masks_are_inverse(bits: int) -> None:
    assert capabilities.mask(capabilities.names(bits)) == bits


def _expected(number: int, architecture: str, machine: str, bounding: int, arguments: tuple[int, ...]) -> int:
    """What the profile's rules say of a call, read one after the other."""
    names = {call for call, row in PROFILE["numbers"].items() if call_number(call, architecture) == number}
    known = 0
    actions = []
    for rule in PROFILE["rules"]:
        has = {name: bool(bounding & capabilities.mask([name])) for name in capabilities.NAMES}
        if "if_capability" in rule and not has[rule["if_capability"]]:
            continue
        if "unless_capability" in rule and has[rule["unless_capability"]]:
            continue
        if "if_machine" in rule and machine not in rule["if_machine"]:
            continue
        if "unless_machine" in rule and machine in rule["unless_machine"]:
            continue
        numbers = [call_number(call, architecture) for call in rule["calls"]]
        known = max([known, *(value for value in numbers if value is not None and value < 0xF0000)])
        if not names & set(rule["calls"]):
            continue
        if "argument" in rule:
            index, operator, value, *rest = rule["argument"]
            actual = arguments[index]
            holds = {
                "==": actual == value,
                "<": actual < value,
                ">": actual > value,
                "&==": actual & value == (rest or [0])[0],
            }[operator]
            if not holds:
                actions.append(EPERM)
                continue
        actions.append(seccomp.RET_ERRNO | rule["errno"] if "errno" in rule else ALLOW)
    if ALLOW in actions:
        return ALLOW
    if actions:
        return next((action for action in actions if action != EPERM), EPERM)
    return EPERM if number <= known else ENOSYS


SETS = st.sampled_from(
    [capabilities.DEFAULT, 0, capabilities.ALL, capabilities.DEFAULT | capabilities.mask(["CAP_SYS_PTRACE"])]
)
ARGUMENTS = st.tuples(
    *[
        st.one_of(
            st.sampled_from([0, 8, 37, 38, 39, 40, 41, 0x20000, 0xFFFFFFFF, 1 << 32, 38 << 32]),
            st.integers(0, (1 << 64) - 1),
        )
    ]
    * 6
)
TARGETS = st.sampled_from(
    [
        ("x86_64", "x86_64", X86_64),
        ("x86_64", "x86", I386),
        ("x86_64", "x32", X86_64),
        ("aarch64", "aarch64", AARCH64),
        ("aarch64", "arm", ARM),
        ("s390x", "s390x", 0x80000016),
        ("riscv64", "riscv64", 0xC00000F3),
    ]
)
NUMBERS = st.one_of(st.integers(0, 600), st.sampled_from([0xF0001, 0xF0005, 0x3FFFFFFF, 0xFFFF]))


@settings(deadline=None, max_examples=400)
@given(TARGETS, SETS, NUMBERS, ARGUMENTS)
def test_the_program_answers_as_the_rules_say(
    target: tuple[str, str, int], bounding: int, number: int, arguments: tuple[int, ...]
) -> None:
    machine, architecture, audit = target
    program = seccomp.default_program(bounding, machine=machine, kernel=(6, 1))
    actual = evaluate(
        program,
        audit=audit,
        number=number | (seccomp.X32_BIT if architecture == "x32" else 0),
        arguments=arguments,
        big_endian=machine == "s390x",
    )
    assert actual == _expected(number, architecture, machine, bounding, arguments)


@pytest.mark.parametrize(
    ("call", "arguments", "answer"),
    [
        ("read", (), ALLOW),
        ("ptrace", (), ALLOW),
        ("mount", (), EPERM),
        ("clone3", (), ENOSYS),
        ("clone", (0x11,), ALLOW),
        ("clone", (0x10000000,), EPERM),
        ("socket", (1,), ALLOW),
        ("socket", (38,), EPERM),
        ("socket", (39,), ALLOW),
        ("socket", (40,), EPERM),
        ("personality", (0xFFFFFFFF,), ALLOW),
        ("personality", (0x40000,), EPERM),
    ],
)
def test_well_known_calls(call: str, arguments: tuple[int, ...], answer: int) -> None:
    number = call_number(call, "x86_64")
    assert number is not None
    assert evaluate(DEFAULT, audit=X86_64, number=number, arguments=arguments) == answer


def test_a_call_newer_than_the_profile_is_unknown_and_an_old_one_refused() -> None:
    assert evaluate(DEFAULT, audit=X86_64, number=467) == ENOSYS
    assert evaluate(DEFAULT, audit=X86_64, number=134) == EPERM


def test_another_architecture_is_killed() -> None:
    assert evaluate(DEFAULT, audit=AARCH64, number=0) == seccomp.RET_KILL_THREAD


def test_ptrace_needs_a_kernel_that_keeps_it_inside_the_filter() -> None:
    number = call_number("ptrace", "x86_64")
    assert number is not None
    old = seccomp.default_program(capabilities.DEFAULT, machine="x86_64", kernel=(4, 7))
    assert evaluate(old, audit=X86_64, number=number) == EPERM


def test_a_program_fits_the_kernels_limit() -> None:
    for machine in ("x86_64", "aarch64", "riscv64", "ppc64le", "s390x", "loongarch64"):
        assert len(seccomp.default_program(capabilities.DEFAULT, machine=machine, kernel=(6, 1))) < 4096 * 8
    with pytest.raises(LookupError):
        seccomp.default_program(0, machine="pdp11", kernel=(6, 1))


def test_hosts_file() -> None:
    assert hosts_file("h", [("db", "10.0.0.1"), ("six", "::5")]) == (
        b"127.0.0.1\tlocalhost h\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.1\tdb\n::5\tsix\n"
    )


def test_resolv_conf_loses_loopback_servers_only_in_a_network_of_its_own() -> None:
    host = b"# by systemd\nnameserver 127.0.0.53\nnameserver ::1\n\nnameserver fe80::1%eth0\nnameserver 192.0.2.7\noptions edns0\nsearch a b\n"
    assert resolv_conf_file(host, own_network=False).count(b"nameserver") == 4
    assert resolv_conf_file(host, own_network=True) == (
        b"nameserver fe80::1%eth0\nnameserver 192.0.2.7\noptions edns0\nsearch a b\n"
    )


@given(st.binary(max_size=200))
def test_resolv_conf_survives_anything(content: bytes) -> None:
    for own_network in (False, True):
        once = resolv_conf_file(content, own_network=own_network)
        assert resolv_conf_file(once, own_network=own_network) == once


@pytest.mark.parametrize(
    ("parent", "path"),
    [("", ""), ("/a/b", "/a/b"), ("a-b.slice", "a.slice/a-b.slice"), ("sys.slice:x:y", "sys.slice"), ("x", "x")],
)
def test_slices_are_paths(parent: str, path: str) -> None:
    assert expand_slice(parent) == path


def test_kernel_version() -> None:
    assert kernel_version("6.1.0-18-amd64") == (6, 1)
    assert kernel_version("odd") == (0, 0)


def test_stubs_are_removed_only_while_empty_and_never_through_links(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    outside = tmp_path / "outside"
    (outside / "sub").mkdir(parents=True)
    (outside / "file").touch()
    (upper / "a/b").mkdir(parents=True)
    (upper / "full").mkdir()
    (upper / "full/kept").touch()
    (upper / "empty").touch()
    (upper / "written").write_text("x")
    (upper / "link").symlink_to(outside)
    os.utime(upper / "a", ns=(5, 5))
    os.utime(upper, ns=(7, 7))
    stubs = [
        (b"full", True),
        (b"a/b", True),
        (b"empty", False),
        (b"written", False),
        (b"link/sub", True),
        (b"link/file", False),
        (b"gone/x", True),
    ]
    remove_stubs(str(upper), stubs)
    assert sorted(path.name for path in upper.iterdir()) == ["a", "full", "link", "written"]
    assert list((upper / "a").iterdir()) == []
    assert (upper / "a").stat().st_mtime_ns == 5
    assert upper.stat().st_mtime_ns == 7
    assert sorted(path.name for path in outside.iterdir()) == ["file", "sub"]


def test_nothing_is_imported_from_a_steps_files(tmp_path: Path) -> None:
    (tmp_path / "anything.py").write_text("raise SystemExit('imported')")
    code = (
        f"{sandbox.import_statement()}; sys.path.insert(0, {str(tmp_path)!r}); sandbox._stop_imports(); import anything"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'anything'\n")
