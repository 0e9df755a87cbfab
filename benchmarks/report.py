"""Turns pytest-benchmark's JSON into a table of ratios. Usage: python benchmarks/report.py RESULTS.json"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path


def table(results: dict[str, list[dict[str, object]]]) -> str:
    """A Markdown table: one row a group, medians in seconds, and the peer's time over pybuild's."""
    groups: dict[str, dict[str, float]] = defaultdict(dict)
    for entry in results["benchmarks"]:
        stats, params = entry["stats"], entry["params"]
        assert isinstance(stats, dict)
        assert isinstance(params, dict)
        groups[str(entry["group"])][str(params["tool"])] = float(stats["median"])
    peers = sorted({name for row in groups.values() for name in row} - {"pybuild"})
    lines = ["| work | pybuild, s |" + "".join(f" {peer}, s | {peer} ÷ pybuild |" for peer in peers)]
    lines.append("| --- | ---: |" + " ---: | ---: |" * len(peers))
    for name, row in groups.items():
        ours = row.get("pybuild")
        cells = [f"| {name} | {ours:.3f} |" if ours is not None else f"| {name} | – |"]
        for peer in peers:
            theirs = row.get(peer)
            both = ours is not None and theirs is not None
            cells.append(f" {theirs:.3f} | {theirs / ours:.1f} |" if both else " – | – |")  # type: ignore[operator]  # both are floats
        lines.append("".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
