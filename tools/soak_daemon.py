"""Many builds on one daemon, by hand: tells memory, descriptors, threads, mounts and what is left over, and fails if they grow.

    python tools/soak_daemon.py [--builds 500] [--clients 4] [--base FILE.tar]

Starts a daemon on a store of its own below a temporary directory and ends it. Needs root, or a user with user namespaces.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests"))

from daemons.running_daemon import RunningDaemon, running_daemon  # noqa: E402  # tests are no package

DOCKERFILE = """\
FROM busybox
RUN echo shared > /shared
COPY data /data
RUN --mount=type=cache,target=/cache echo {number} >> /cache/log && echo {number} > /own
RUN test {number} -lt 0 || test $(({number} % 10)) -ne 7
"""


def figures(daemon: RunningDaemon) -> dict[str, int]:
    """What must not grow."""
    process = Path(f"/proc/{daemon.pid}")
    return {
        "MB": daemon.resident_bytes() >> 20,
        "files": daemon.open_files(),
        "threads": len(os.listdir(process / "task")),
        "mounts": sum(str(daemon.root) in line for line in (process / "mountinfo").read_text().splitlines()),
        "processes": len((process / f"task/{daemon.pid}/children").read_text().split()),
        "active": len(os.listdir(daemon.root / "active")),
        "ingest": len(os.listdir(daemon.root / "ingest")),
        "locks": len(os.listdir(daemon.root / "locks")),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--builds", type=int, default=500)
    parser.add_argument("--clients", type=int, default=4, help="how many build at a time")
    parser.add_argument(
        "--base", help="a tar of a root file system with a shell (default: busybox, made by tools/base_image.sh)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        directory = Path(name)
        base = options.base or str(directory / "base.tar")
        if options.base is None:
            subprocess.run([str(REPOSITORY / "tools/base_image.sh"), "busybox", base], check=True)
        with running_daemon(directory, directory / "root") as daemon:
            daemon.request("POST", "/images/create", Path(base).read_bytes(), query={"fromSrc": "-", "repo": "busybox"})

            def one(number: int) -> None:
                files = {"Dockerfile": DOCKERFILE.format(number=number), "data": os.urandom(1000)}
                answer = daemon.build(files, t=f"soak:{number % 20}")
                assert answer.status == 200, answer.body
                if number % 25 == 0:
                    daemon.request("POST", "/images/prune")

            warm = max(20, options.builds // 10)
            with ThreadPoolExecutor(options.clients) as pool:
                list(pool.map(one, range(warm)))
                before = figures(daemon)
                print(f"{warm:>6} builds: {before}", flush=True)
                for start in range(warm, options.builds, max(1, options.builds // 10)):
                    end = min(options.builds, start + max(1, options.builds // 10))
                    list(pool.map(one, range(start, end)))
                    print(f"{end:>6} builds: {figures(daemon)}", flush=True)
            after = figures(daemon)
    # The store grows with every build, and so does what a survey of it needs for a moment.
    limits = {"MB": 16, "files": 8, "threads": 8, "mounts": 0, "processes": 0, "active": 0, "ingest": 0, "locks": 2}
    grown = {key: (before[key], after[key]) for key, more in limits.items() if after[key] > before[key] + more}
    print(f"grown: {grown}" if grown else "nothing grew")
    return 1 if grown else 0


if __name__ == "__main__":
    raise SystemExit(main())
