"""Turns pytest-benchmark's JSON into tables of ratios. Usage: python benchmarks/report.py RESULTS.json…"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

Row = dict[str, dict[str, float]]  # by tool: wall (median), cpu (least), peak, size


def rows(results: list[dict[str, Any]]) -> dict[str, Row]:  # Any: JSON
    """The figures of every group, by tool."""
    groups: dict[str, Row] = defaultdict(dict)
    for result in results:
        for entry in result["benchmarks"]:
            more = entry["extra_info"]
            name = (entry["params"] or {}).get("tool", "pybuild")
            groups[entry["group"] or entry["name"]][name] = {
                "wall": entry["stats"]["median"],
                "cpu": more.get("cpu", 0.0),
                "peak": more.get("peak", 0) / 1e6,
                "size": more.get("bytes", 0) / 1e6,
            }
    return groups


def table(groups: dict[str, Row]) -> str:
    """Markdown: medians of wall time and the least CPU time in seconds, the peer's over pybuild's, memory of the largest process."""
    peers = sorted({name for row in groups.values() for name in row} - {"pybuild"})
    lines = [
        "| work | pybuild: wall s | CPU s | MB |"
        + "".join(f" {peer}: wall s | CPU s | MB | wall ratio | CPU ratio |" for peer in peers)
    ]
    lines.append("| --- | ---: | ---: | ---: |" + " ---: | ---: | ---: | ---: | ---: |" * len(peers))
    for name, row in groups.items():
        ours = row.get("pybuild")
        cells = [f"| {name} | {_figures(ours)} |"]
        for peer in peers:
            theirs = row.get(peer)
            cells.append(f" {_figures(theirs)} | {_ratio(ours, theirs, 'wall')} | {_ratio(ours, theirs, 'cpu')} |")
        lines.append("".join(cells))
        if ours is not None and ours["size"]:
            sizes = ", ".join(f"{tool} {figures['size']:.0f} MB" for tool, figures in row.items())
            lines.append(f"| … size: {sizes} |" + " |" * (3 + 5 * len(peers)))
    return "\n".join(lines)


def _figures(figures: dict[str, float] | None) -> str:
    if figures is None:
        return "– | – | –"
    cpu = f"{figures['cpu']:.3f}" if figures["cpu"] else "–"
    peak = f"{figures['peak']:.0f}" if figures["peak"] else "–"
    return f"{figures['wall']:.3f} | {cpu} | {peak}"


def _ratio(ours: dict[str, float] | None, theirs: dict[str, float] | None, what: str) -> str:
    if ours is None or theirs is None or not ours[what] or not theirs[what]:
        return "–"
    return f"{theirs[what] / ours[what]:.1f}"


if __name__ == "__main__":
    print(table(rows([json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:]])))
