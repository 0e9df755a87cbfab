"""Makes ``*_pb2.py`` and ``*_pb2.pyi`` in daemon/buildkit_api/messages from the ``*.proto`` beside them. Run it after every change of one:
``pip install grpcio-tools==1.76.0 && python tools/protocol_messages.py``; ``--check`` only compares.

The compiler's version is fixed: its code works with that and every later protobuf runtime of this and the next major version.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("pybuild/daemon/buildkit_api/messages")


def make(out: Path) -> None:
    """Write the modules below ``out``."""
    sources = sorted(str(FOLDER / file.name) for file in (ROOT / "src" / FOLDER).glob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--python_out={out}", f"--pyi_out={out}", *sources]
    subprocess.run(command, cwd=ROOT / "src", check=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        make(out)
        made = {file.name: file.read_text(encoding="utf-8") for file in (out / FOLDER).iterdir()}
    here = ROOT / "src" / FOLDER
    if "--check" in sys.argv[1:]:
        differing = [name for name, text in made.items() if (here / name).read_text(encoding="utf-8") != text]
        sys.exit(f"made from other sources: {', '.join(differing)}" if differing else os.EX_OK)
    for name, text in made.items():
        (here / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
