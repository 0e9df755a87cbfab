"""The import graph is the one in docs/architecture.md: read from the import lines, as a newcomer would."""

from __future__ import annotations

import ast
import functools
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {
    "parser": set(),
    "layers": set(),
    "builder": {"parser", "layers"},
    "registry_client": {"layers"},
    "daemon": {"parser", "layers", "builder", "registry_client"},
}
FOLDERS = sorted(ALLOWED)


@functools.cache
def imported_modules(path: Path) -> set[str]:
    """Absolute dotted names of all that a module imports anywhere, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level > 1:
                pytest.fail(f"{path} imports from outside its own folder relatively")
            if node.level == 0 and node.module:
                found.add(node.module)
                if node.module == "pybuild":
                    found.update(f"pybuild.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_what_the_architecture_allows(folder: str) -> None:
    modules = sorted((ROOT / folder).rglob("*.py"))
    assert modules, f"{folder}/ has no modules"
    for path in modules:
        for name in imported_modules(path):
            if not name.startswith("pybuild") or name in (
                "pybuild",
                "pybuild.errors",
                "pybuild.values",
                "pybuild.__version__",
            ):
                continue
            other = name.split(".")[1]
            assert other == folder or other in ALLOWED[folder], f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_folder_is_imported_under_its_bare_name(folder: str) -> None:
    for base in (*FOLDERS, "src/pybuild"):
        for path in (ROOT / base).rglob("*.py"):
            for name in imported_modules(path):
                assert name.split(".")[0] != folder, (
                    f"{path.relative_to(ROOT)} imports {name} instead of pybuild.{name}"
                )


def test_requests_is_imported_only_by_the_registry_clients_connections() -> None:
    allowed = {ROOT / "registry_client/connections.py"}
    for folder in (*FOLDERS, "src/pybuild"):
        for path in (ROOT / folder).rglob("*.py"):
            if any(name.split(".")[0] in ("requests", "urllib3") for name in imported_modules(path)):
                assert path in allowed, f"{path.relative_to(ROOT)} imports requests"


def test_only_the_sandbox_names_the_system_calls_of_namespaces_mounts_and_privileges() -> None:
    calls = {
        "unshare",
        "setns",
        "pivot_root",
        "mount",
        "umount2",
        "setresuid",
        "setgroups",
        "capset",
        "clone3",
        "chroot",
    }
    allowed = {ROOT / "daemon" / name for name in ("sandbox.py",)}
    for folder in (*FOLDERS, "src/pybuild"):
        for path in (ROOT / folder).rglob("*.py"):
            if path in allowed:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in calls:
                    owner = ast.unparse(node.func.value)
                    assert owner not in ("os", "libc", "_libc", "LIBC"), (
                        f"{path.relative_to(ROOT)}:{node.lineno} calls {owner}.{node.func.attr}"
                    )


def test_ctypes_is_imported_only_where_a_system_call_has_no_python_function() -> None:
    # syncfs and linkat of the blob store; everything about namespaces in the sandbox; the C library's allocator.
    allowed = {ROOT / "daemon/sandbox.py", ROOT / "daemon/memory.py", ROOT / "layers/blobs.py"}
    for folder in (*FOLDERS, "src/pybuild"):
        for path in (ROOT / folder).rglob("*.py"):
            if "ctypes" in imported_modules(path):
                assert path in allowed, f"{path.relative_to(ROOT)} makes system calls of its own"


def test_only_the_command_line_reads_the_environment() -> None:
    # The sandbox's launcher is a program of its own; the doctor hands its environment on to the probes that it starts.
    allowed = {ROOT / "daemon/sandbox.py", ROOT / "daemon/userns.py", ROOT / "daemon/doctor.py"}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            if path in allowed:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
                    pytest.fail(f"{path.relative_to(ROOT)}:{node.lineno} reads the environment")


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = "import sys, pybuild.cli.main; print(' '.join(sys.modules))"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & {"requests", "lark", "tqdm", "zstandard", "aiohttp", "asyncio", "sqlite3", "argparse", "json"}


def test_the_daemon_imports_nothing_of_grpc_before_a_client_speaks_it() -> None:
    import subprocess
    import sys

    code = "import sys, pybuild.daemon.api_run, pybuild.daemon.api_server as s; s.make_application; print(' '.join(sys.modules))"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "pybuild.daemon.api_buildkit" in loaded
    assert not loaded & {"h2", "google.protobuf", "pybuild.daemon.buildkit_api.http2"}


# What a build that runs nothing has no use for: each costs 1 to 100 ms at every start.
HEAVY = {
    *("requests", "urllib3", "lark", "tqdm", "zstandard", "isal", "aiohttp", "asyncio", "ssl", "http.client", "email"),
    *("argparse", "gettext", "csv", "logging", "traceback", "dataclasses", "inspect", "concurrent.futures", "tempfile"),
    *("subprocess", "socket", "shutil", "tarfile", "gzip", "lzma", "bz2", "zlib", "uuid", "platform", "tomllib"),
    *("pybuild.builder.solver_run", "pybuild.builder.copy", "pybuild.builder.execute", "pybuild.layers.snapshots"),
    *("pybuild.layers.tar_write", "pybuild.layers.tar_read", "pybuild.layers.compression", "pybuild.daemon.executor"),
    *("pybuild.daemon.distribution", "pybuild.daemon.remotes", "pybuild.registry_client.client"),
}


def test_a_cached_build_imports_nothing_for_running_steps(tmp_path: Path) -> None:
    import subprocess
    import sys

    (tmp_path / "Dockerfile").write_text("FROM scratch\nENV A=1\nCOPY Dockerfile /d/\nWORKDIR /w\n", encoding="utf-8")
    code = (
        "import sys; from pybuild.__main__ import main; before = set(sys.modules); status = main(sys.argv[1:]);"
        "print(' '.join(set(sys.modules) - before)); sys.exit(status)"
    )
    command = ["--root", str(tmp_path / "store"), "build", "--progress", "quiet", "-t", "t", str(tmp_path)]
    loaded: set[str] = set()
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
        loaded = set(done.stdout.split())
    assert "pybuild.builder.solver" in loaded
    # An ordinary user enters a user namespace first, with the help of a program.
    assert not loaded & (HEAVY if os.geteuid() == 0 else HEAVY - {"subprocess"})


def test_listing_the_images_imports_only_what_reads_the_list(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pybuild.__main__ import main; before = set(sys.modules); status = main(sys.argv[1:]);"
        "print(' '.join(set(sys.modules) - before)); sys.exit(status)"
    )
    command = [sys.executable, "-c", code, "--root", str(tmp_path / "store"), "images", "-q"]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert "pybuild.layers.images" in loaded
    needless = {"hashlib", "pybuild.cli.templates", "pybuild.parser", "pybuild.builder.build", "pybuild.layers.gc"}
    assert not loaded & ((HEAVY if os.geteuid() == 0 else HEAVY - {"subprocess"}) | needless)
