"""Turns pytest-benchmark's JSON into tables of ratios. Usage: python benchmarks/report.py RESULTS.json…"""

from __future__ import annotations

import json
import statistics
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
            if "replay" in more:
                continue
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


def replay(results: list[dict[str, Any]]) -> str:  # Any: JSON
    """Markdown: what the replay of a project's history took with each tool and cache, or nothing if it didn't run."""
    ways = [
        entry["extra_info"]["replay"]
        for result in results
        for entry in result["benchmarks"]
        if "replay" in entry["extra_info"]
    ]
    lines = [
        "| commits built with nothing but a cache in a registry | s | median of a commit | CPU s | MB up | MB down | requests |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for way in ways:
        seconds = way["seconds"]
        lines.append(
            f"| {way['way']}, {len(seconds)} commits | {sum(seconds):.1f} | {statistics.median(seconds):.2f} | {way['cpu']:.1f}"
            f" | {sum(way['up']) / 1e6:.1f} | {sum(way['down']) / 1e6:.1f} | {sum(way['requests']):,} |"
        )
    return "\n".join(lines) if ways else ""


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


def main() -> None:
    results = [json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:]]
    groups = rows(results)
    print("\n\n".join(filter(None, (table(groups) if groups else "", replay(results)))))


if __name__ == "__main__":
    main()
