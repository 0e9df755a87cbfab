"""``pybuild why``: why each step of a build ran instead of coming from the cache."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pybuild.errors import UsageError

from .environment import Environment
from .options import Parser
from .tables import human_age

if TYPE_CHECKING:
    from pybuild.layers.builds import BuildRecord, BuildStep


def why(arguments: list[str], environment: Environment) -> int:
    """``pybuild why``."""
    parser = Parser(
        "why",
        usage="[OPTIONS] [BUILD|IMAGE] [STEP]",
        description="Tell why the steps of the last build (or of a named one) ran instead of coming from the cache.",
    )
    parser.add_argument(
        "build", nargs="?", metavar="BUILD|IMAGE", help="a build's reference or its beginning, or an image's name"
    )
    parser.add_argument("step", nargs="?", metavar="STEP", help="a step: its number, or a part of its text")
    parser.flag("--all", help="list cached steps, too")
    parser.flag("--list", help="list the builds that are remembered")
    parser.flag("--json", help="print JSON")
    options = parser.parse(arguments)
    import time

    with environment.workbench() as engine:
        if options.list:
            for record in engine.build_records():
                age = human_age(max(0.0, time.time() - record.started))
                print(f"{record.ref[:12]}  {age} ago  {', '.join(record.names) or '-'}  {record.error or 'ok'}")
            return 0
        name, wanted = options.build, options.step
        if name is not None and wanted is None and name.isdecimal():
            name, wanted = None, name
        explained = engine.build_causes(name, with_causes=bool(options.json or wanted))
        if explained is None:
            raise UsageError(
                "no build is remembered here" if name is None else f"no build {name!r} is remembered here",
                hint="'pybuild why --list' shows those that are",
            )
        found = explained.record
        causes = {key: list(reasons) for key, reasons in explained.causes.items()}
    steps = _chosen(found, wanted)
    if options.json:
        print(json.dumps(_json(found, steps, causes), indent=2, ensure_ascii=False))
        return 0
    _print(found, steps, causes, everything=options.all or wanted is not None)
    return 0


def _chosen(record: BuildRecord, wanted: str | None) -> list[tuple[int, BuildStep]]:
    numbered = list(enumerate(record.steps, 1))
    if wanted is None:
        return numbered
    if wanted.isdecimal():
        found = [row for row in numbered if row[0] == int(wanted)]
    else:
        found = [row for row in numbered if wanted.lower() in row[1].title.lower()]
    if not found:
        raise UsageError(f"the build has no step {wanted!r}")
    return found


def _print(
    record: BuildRecord, steps: list[tuple[int, BuildStep]], causes: dict[str, list[str]], *, everything: bool
) -> None:
    ran = [step for _, step in steps if not step.cached]
    print(
        f"build {record.ref[:12]}: {len(ran)} of {len(steps)} steps ran"
        + (f", failed: {record.error}" if record.error else "")
    )
    for number, step in steps:
        if step.cached:
            if everything:
                print(f"{number:>3}. {step.title}: CACHED")
            continue
        print(f"{number:>3}. {step.title} ({step.seconds:.1f}s)")
        shown = causes.get(step.key) or [step.reason or "nothing is known of earlier builds"]
        for cause in shown:
            print(f"       {cause}")


def _json(record: BuildRecord, steps: list[tuple[int, BuildStep]], causes: dict[str, list[str]]) -> dict[str, object]:
    return {
        "ref": record.ref,
        "names": list(record.names),
        "started": record.started,
        "finished": record.finished,
        "error": record.error,
        "steps": [
            {
                "number": number,
                "title": step.title,
                "instruction": step.instruction,
                "stage": step.stage,
                "lines": list(step.lines) if step.lines else None,
                "cached": step.cached,
                "reason": step.reason,
                "causes": causes.get(step.key, []),
                "seconds": round(step.seconds, 3),
                "key": step.key,
            }
            for number, step in steps
        ],
    }
