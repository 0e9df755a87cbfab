"""The build checks: what in a Dockerfile is legal but likely wrong, as findings with a rule's name and lines.

Owns the decisions of every rule, from the text and, where they are known, the base images' configurations. Messages are BuildKit's,
since people and tools match them. Changes nothing (``check_fixes.py``) and shows nothing (``check_report.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from pybuild.errors import PybuildError
from pybuild.layers.descriptor import Platform
from pybuild.layers.image import ImageConfig
from pybuild.parser.dockerfile import Dockerfile
from pybuild.parser.dockerignore import IgnoreMatcher
from pybuild.parser.errors import DockerfileError, DockerfileSyntaxError
from pybuild.parser.parse import parse
from pybuild.values import dataclass, field

from .arguments import global_arguments
from .check_file import FileChecks
from .check_findings import Findings
from .check_rules import CheckSettings, CheckViolations
from .check_stages import StageChecks
from .platforms import platform_arguments
from .progress import BuildWarning
from .stage_facts import BaseConfig, StageWalk


def _unknown(name: str, platform: Platform) -> ImageConfig | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """How a Dockerfile is checked.

    ``build_args``: as given for a build; ``target``: the stage to check, with what it needs; ``all_stages``: check every stage when there is
    no target (``--check``), rather than what the last one needs (a build); ``ignore``: the context's ignore rules; ``base_config``:
    what is known of base images; ``lowered``: also decide the rules that lowering decides in a build.
    """

    platform: Platform
    build_platform: Platform | None = None
    build_args: Mapping[str, str] = field(default_factory=dict)
    target: str | None = None
    all_stages: bool = True
    ignore: IgnoreMatcher | None = None
    base_config: BaseConfig = _unknown
    lowered: bool = True


@dataclass(frozen=True, slots=True)
class CheckError:
    """What stopped the checks: the message, and the lines if it has a place."""

    message: str
    lines: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class CheckResult:
    """``warnings`` in the order found; ``error``: what a build would fail with, as far as it was looked for."""

    filename: str
    text: str
    warnings: tuple[BuildWarning, ...]
    error: CheckError | None = None

    @property
    def exit_code(self) -> int:
        """1 if there is anything to report."""
        return 1 if self.warnings or self.error is not None else 0


def check(dockerfile: Dockerfile, *, options: CheckOptions) -> tuple[BuildWarning, ...]:
    """All findings about ``dockerfile``, in the order found. Raises InvalidCheckOptions, and DockerfileError for what a build would fail
    with: ``check_file`` gives what was found until then."""
    report = Findings(CheckSettings.of(dockerfile, options.build_args), lowered=options.lowered)
    _run(dockerfile, options, report)
    return report.warnings


def findings_of_build(dockerfile: Dockerfile, *, options: CheckOptions) -> tuple[BuildWarning, ...]:
    """What a build tells before it lowers ``dockerfile``: as ``check``, but what is wrong with the file is left to lowering to say. Raises
    InvalidCheckOptions."""
    report = Findings(CheckSettings.of(dockerfile, options.build_args), lowered=options.lowered)
    with suppress(DockerfileError):
        _run(dockerfile, options, report)
    return report.warnings


def findings_before(error: DockerfileSyntaxError, *, build_args: Mapping[str, str]) -> tuple[BuildWarning, ...]:
    """What can be told about the part of a file before the error that ended its parsing. Raises InvalidCheckOptions."""
    if error.partial is None:
        return ()
    report = Findings(CheckSettings.of(error.partial, build_args), lowered=True)
    FileChecks(error.partial, report).while_parsing()
    return report.warnings


def check_file(text: str | bytes, *, filename: str, options: CheckOptions) -> CheckResult:
    """Check a file's content; nothing is raised for its sake. Findings before an error are told too."""
    shown = text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else text
    report = Findings(CheckSettings(), lowered=options.lowered)
    try:
        dockerfile = _parse(text, filename, options, report)
        _run(dockerfile, options, report)
        report.settings.enforce(report.warnings)
    except (DockerfileError, CheckViolations) as error:
        return CheckResult(filename, shown, report.warnings, CheckError(error.message, error.lines))
    except PybuildError as error:
        return CheckResult(filename, shown, report.warnings, CheckError(error.message))
    return CheckResult(filename, shown, report.warnings)


def _parse(text: str | bytes, filename: str, options: CheckOptions, report: Findings) -> Dockerfile:
    try:
        dockerfile = parse(text, filename=filename)
    except DockerfileSyntaxError as error:
        if error.partial is not None:
            report.settings = CheckSettings.of(error.partial, options.build_args)
            FileChecks(error.partial, report).while_parsing()
        raise
    report.settings = CheckSettings.of(dockerfile, options.build_args)
    return dockerfile


def _run(dockerfile: Dockerfile, options: CheckOptions, report: Findings) -> None:
    build_platform = options.build_platform or options.platform
    file = FileChecks(dockerfile, report)
    file.while_parsing()
    file.stage_names()
    file.casing()
    predefined = platform_arguments(
        options.platform, build_platform, stage=options.target or dockerfile.stages[-1].name or ""
    )
    file.base_names(predefined)
    file.from_arguments(
        global_arguments(dockerfile.global_args, predefined=predefined, given=options.build_args),
        platform=options.platform,
    )
    walk = StageWalk(
        dockerfile,
        build_args=options.build_args,
        platform=options.platform,
        build_platform=build_platform,
        target=options.target,
        base_config=options.base_config,
    )
    nodes = list(walk.plan.stages)
    target_node = walk.plan.find_target(options.target)
    if options.target is not None or not options.all_stages:
        needed = set(walk.plan.reachable(target_node))
        nodes = [node for node in nodes if node in needed]
    stages = StageChecks(walk, report, ignore=options.ignore)
    for node in nodes:
        stages.stage(node)
