"""``pybuild build``: reads its options into a BuildRequest, shows the progress, prints the result. Builds nothing itself."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pybuild.errors import PybuildError, UsageError

from .attestation_options import attestations, metadata_provenance, version_control
from .build_values import (
    agent_for,
    given_build_args,
    given_contexts,
    given_platforms,
    given_proxies,
    given_resources,
    given_source_policy,
    parse_annotations,
    parse_entitlements,
    parse_hosts,
    parse_secrets,
    parse_ssh,
    parse_ulimits,
)
from .cancelling import cancelling
from .environment import Environment
from .options import HIDDEN, Parser, as_usage, existing_parent, key_value

if TYPE_CHECKING:
    from argparse import Namespace

    from pybuild.builder.build import BuildResult
    from pybuild.builder.outputs import Output
    from pybuild.builder.protocols import Terminal
    from pybuild.builder.request import BuildRequest

    from .progress import Collecting


def parser() -> Parser:
    """The options of ``pybuild build``."""
    out = Parser(
        "build",
        usage="[OPTIONS] PATH | URL | -",
        description="Build an image from a Dockerfile and a context: a directory, a git repository, a tar archive, or '-' for stdin.",
    )
    add_build_options(out)
    return out


def add_build_options(out: Parser) -> None:
    """Everything that ``build`` takes."""
    many = "append"
    out.add_argument(
        "context", metavar="PATH", help="the build context: a directory, a git or HTTP(S) URL, or - (stdin)"
    )
    out.add_argument("-f", "--file", metavar="FILE", help="the Dockerfile (default: PATH/Dockerfile); - reads stdin")
    out.add_argument(
        "-t", "--tag", action=many, default=[], metavar="NAME", help="name the image NAME[:TAG]; repeatable"
    )
    out.add_argument("--target", metavar="STAGE", help="build this stage instead of the last")
    out.add_argument(
        "--build-arg", action=many, default=[], metavar="K[=V]", help="set an ARG; without =V from the environment"
    )
    out.add_argument("--label", action=many, default=[], metavar="K=V", help="add a label to the image")
    out.add_argument(
        "--annotation",
        action=many,
        default=[],
        metavar="K=V",
        help="add an annotation, [LEVEL[,LEVEL]:]K=V with levels manifest, index, manifest-descriptor, index-descriptor",
    )
    out.add_argument(
        "--platform",
        action=many,
        default=[],
        metavar="LIST",
        help="platforms to build for, such as linux/amd64,linux/arm64",
    )
    out.flag("--no-cache", help="run every step, use no cached result")
    out.add_argument(
        "--no-cache-filter", action=many, default=[], metavar="STAGE", help="run the steps of these stages"
    )
    out.flag("--pull", help="ask the registry for newer base images")
    out.flag("--push", help="push the result to the registry (output type=registry)")
    out.flag("--load", help="keep the result in the local store (the default without --output and --push)")
    out.add_argument(
        "-o",
        "--output",
        action=many,
        default=[],
        metavar="SPEC",
        help="where the result goes: a directory, - (tar on stdout), or type=image|registry|oci|docker|local|tar,dest=,name=,…",
    )
    out.add_argument(
        "--cache-from", action=many, default=[], metavar="SPEC", help="import cache: type=registry|local|s3,…"
    )
    out.add_argument(
        "--cache-to",
        action=many,
        default=[],
        metavar="SPEC",
        help="export cache: type=registry|local|inline|s3,mode=min|max,…",
    )
    out.add_argument(
        "--cache-repo",
        action=many,
        default=[],
        metavar="REPOSITORY",
        help="a repository that gets each step as it ends, and is asked for what is missing here",
    )
    out.add_argument(
        "--cache-mounts-from",
        action=many,
        default=[],
        metavar="REF|DIR",
        help="fill cache mounts that are empty: REF or DIR[,id=ID]",
    )
    out.add_argument(
        "--cache-mounts-to",
        action=many,
        default=[],
        metavar="REF|DIR",
        help="keep the cache mounts of the steps that ran: REF or DIR[,id=ID][,max-size=SIZE]",
    )
    out.add_argument(
        "--secret",
        action=many,
        default=[],
        metavar="SPEC",
        help="a secret for RUN --mount=type=secret: id=ID[,src=FILE|,env=VAR]",
    )
    out.add_argument(
        "--ssh",
        action=many,
        default=[],
        metavar="SPEC",
        help="an SSH agent for RUN --mount=type=ssh: default or ID[=SOCKET|KEY]",
    )
    out.add_argument(
        "--build-context",
        action=many,
        default=[],
        metavar="NAME=VALUE",
        help="another context: a directory, docker-image://, oci-layout://, a git or HTTP URL",
    )
    out.add_argument(
        "--add-host", action=many, default=[], metavar="HOST:IP", help="an entry for /etc/hosts of RUN steps"
    )
    out.add_argument("--network", default="default", metavar="MODE", help="network of RUN steps: default, none or host")
    out.add_argument(
        "--allow", action=many, default=[], metavar="ENTITLEMENT", help="allow network.host or security.insecure"
    )
    out.add_argument("--shm-size", metavar="BYTES", help="size of /dev/shm in RUN steps, such as 128m")
    out.add_argument(
        "--ulimit", action=many, default=[], metavar="NAME=SOFT[:HARD]", help="a resource limit of RUN steps"
    )
    out.add_argument("--cgroup-parent", default="", metavar="PATH", help="the parent cgroup of RUN steps")
    out.add_argument(
        "--resource",
        action=many,
        default=[],
        metavar="NAME=VALUE",
        help="a limit of RUN steps: memory, memory-swap, cpu-shares, cpu-period, cpu-quota, cpuset-cpus, cpuset-mems",
    )
    out.add_argument(
        "--progress", metavar="MODE", help="auto (default), plain, tty, quiet or rawjson (env BUILDKIT_PROGRESS)"
    )
    out.flag("-q", "--quiet", help="print only the image's ID")
    out.add_argument("--iidfile", metavar="FILE", help="write the image's ID to FILE")
    out.add_argument("--metadata-file", metavar="FILE", help="write the result's metadata as JSON to FILE")
    out.add_argument("--provenance", metavar="ATTRS", help="attach SLSA provenance: mode=min|max, or false")
    out.add_argument("--sbom", metavar="ATTRS", help="attach an SBOM: generator=IMAGE, or false")
    out.add_argument(
        "--attest", action=many, default=[], metavar="ATTRS", help="attach an attestation: type=provenance|sbom,…"
    )
    out.flag("--check", help="check the Dockerfile, build nothing (--call=check)")
    out.add_argument(
        "--call",
        default="build",
        metavar="METHOD",
        help="build (default), check, outline or targets, with ,format=json",
    )
    out.add_argument(
        "--source-date-epoch",
        metavar="SECONDS",
        help="the time for reproducible images (env SOURCE_DATE_EPOCH); 'context': the context's own",
    )
    out.flag("--require-cache", help="stop at the first step that is not cached, and say why")
    out.flag("--dry-run", help="tell which steps would run, and why; run nothing")
    out.flag("--squash", help="merge the new layers into one")
    out.add_argument(
        "--on-error",
        choices=["shell", "keep"],
        metavar="shell|keep",
        help="when a RUN fails: open a shell in it, or keep its file system",
    )
    out.add_argument("-m", "--memory", help=HIDDEN)
    out.add_argument("-c", "--cpu-shares", help=HIDDEN)
    for name in ("memory-swap", "cpu-period", "cpu-quota", "cpuset-cpus", "cpuset-mems"):
        out.add_argument(f"--{name}", help=HIDDEN)
    # What docker and buildx take and what has no meaning here: there is one builder, and nothing between the steps to be removed.
    for name in ("builder", "isolation", "security-opt"):
        out.add_argument(f"--{name}", action=many, default=[], help=HIDDEN)
    for name in ("rm", "force-rm", "compress"):
        out.flag(f"--{name}", help=HIDDEN)


def build(arguments: list[str], environment: Environment) -> int:
    """Run ``pybuild build``; the image's ID or what an output asks for goes to stdout, everything else to stderr."""
    options = parser().parse(arguments)
    request = request_from(options, environment.variables)
    call, as_json, ignore_status = _call(options)
    if call != "build":
        from .check import run_call

        status = run_call(request, environment, call=call, as_json=as_json)
        return 0 if ignore_status else status
    if options.dry_run:
        return run_prediction(request, options, environment)
    return run_build(request, options, environment)


def run_build(request: BuildRequest, options: Namespace, environment: Environment) -> int:
    """Build, show, report."""
    from .progress import Collecting, renderer_for, report_warnings

    mode = "quiet" if options.quiet else options.progress or environment.variables.get("BUILDKIT_PROGRESS") or "auto"
    renderer = renderer_for(mode, variables=environment.variables)
    progress = Collecting(renderer)
    try:
        with cancelling() as cancel, environment.workbench() as engine:
            result = engine.build(
                request,
                progress=progress,
                cancel=cancel,
                stdout=sys.stdout.buffer,
                around_shell=lambda text: terminal_shared(progress, text, environment),
            )
    finally:
        renderer.close()
        if mode == "quiet":
            # Nothing but what the caller would not learn otherwise: a cache that can't be written makes later builds slow.
            report_warnings(warning for warning in progress.warnings if warning.trouble)
        elif mode != "rawjson":
            report_warnings(progress.warnings)
    _write_results(result, options)
    return 0


@contextmanager
def terminal_shared(progress: Collecting, text: str, environment: Environment) -> Iterator[Terminal]:
    """The terminal, for somebody else than the progress."""
    from pybuild.daemon.terminal import own_terminal

    with progress.suspended(text):
        yield own_terminal(environment.variables)


def run_prediction(request: BuildRequest, options: Namespace, environment: Environment) -> int:
    """``--dry-run``: the steps that would run go to stdout, with the reasons."""
    from .progress import renderer_for

    mode = "quiet" if options.quiet else options.progress or environment.variables.get("BUILDKIT_PROGRESS") or "auto"
    renderer = renderer_for(mode, variables=environment.variables)
    try:
        with cancelling() as cancel, environment.workbench() as engine:
            found = engine.predict(request, progress=renderer, cancel=cancel)
    finally:
        renderer.close()
    for step in found:
        if step.runs:
            print(f"{step.vertex.note.title}: {step.reason or 'not cached'}")
    count = sum(step.runs for step in found)
    print(f"{count} of {len(found)} steps would run")
    return 0


def _write_results(result: BuildResult, options: Namespace) -> None:
    if options.iidfile:
        _write_file(options.iidfile, result.image_id or "")
    if options.metadata_file:
        _write_file(options.metadata_file, json.dumps(result.metadata, indent=2) + "\n")
    if options.quiet and result.image_id and not any(output.to_stdout for output in result.outputs):
        print(result.image_id)


def _write_file(path: str, text: str) -> None:
    from pybuild.layers.whole_file import whole_file

    try:
        with whole_file(path) as out:
            out.write(text.encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise PybuildError(f"can't write {path!r}: {error.strerror}") from error


def _call(options: Namespace) -> tuple[str, bool, bool]:
    """``--call=METHOD[,format=FORMAT][,ignorestatus=BOOL]``: the method, whether JSON is wanted, whether findings leave the status 0."""
    method, form, ignore_status = "", "", False
    for field in options.call.split(","):
        key, separator, value = field.partition("=")
        if separator and key == "format":
            form = value
        elif separator and key == "ignorestatus":
            from pybuild.builder.outputs import boolean

            ignore_status = boolean(value, option="--call ignorestatus")
        elif separator or method:
            raise UsageError(f"invalid --call value {options.call!r}", hint="write --call=METHOD,format=json")
        else:
            method = key
    if options.check or method == "lint":
        method = "check"
    if method not in ("build", "check", "outline", "targets", "subrequests.describe"):
        raise UsageError(f"unknown --call method {method!r}", hint="use build, check, outline or targets")
    if form not in ("", "json", "text"):
        raise UsageError(f"unknown --call format {form!r}", hint="use format=json or format=text")
    return method, form == "json", ignore_status


def request_from(options: Namespace, variables: Mapping[str, str]) -> BuildRequest:
    """The request that the options mean. Raises UsageError for what can't be."""
    from pybuild.builder.outputs import Output, OutputType, check_outputs, parse_output
    from pybuild.builder.request import BuildRequest
    from pybuild.daemon.settings import parse_size

    if options.load and options.push:
        raise UsageError("--push and --load can't be used together", hint="use --output twice")
    outputs = [parse_output(text) for text in options.output]
    if options.push:
        outputs = _pushing(outputs)
    if options.load:
        outputs.append(Output(type=OutputType.IMAGE))
    check_outputs(outputs)
    _check_destinations(outputs)
    for tag in options.tag:
        _check_tag(tag)
    if not options.tag and any(output.push and not output.names for output in outputs):
        raise UsageError("tag is needed when pushing to registry", hint="add --tag HOST/NAME:TAG")
    for option, path in (("--iidfile", options.iidfile), ("--metadata-file", options.metadata_file)):
        if path:
            existing_parent(path, option=option)
    if options.network not in ("default", "none", "host"):
        raise UsageError(f"unknown --network mode {options.network!r}", hint="use default, none or host")
    stdin_users = [name for name, value in (("the context", options.context), ("--file", options.file)) if value == "-"]
    if len(stdin_users) > 1:
        raise UsageError("invalid argument: can't use stdin for both build context and dockerfile")
    build_args = given_build_args(options.build_arg, variables)
    _check_caches(options)
    provenance, sbom = attestations(
        options.attest, provenance=options.provenance, sbom=options.sbom, build_args=build_args
    )
    told = metadata_provenance(bool(options.metadata_file), variables)
    return BuildRequest(
        context=options.context,
        directory=os.getcwd(),
        dockerfile=options.file,
        stdin=sys.stdin.buffer,
        tags=tuple(options.tag),
        target=options.target or None,
        build_args=build_args,
        labels=dict(key_value(text, option="--label") for text in options.label),
        annotations=parse_annotations(options.annotation),
        platforms=given_platforms(options.platform),
        no_cache=options.no_cache,
        no_cache_filter=frozenset(name for text in options.no_cache_filter for name in text.split(",") if name),
        pull=options.pull,
        outputs=tuple(outputs),
        named_contexts=given_contexts(options.build_context),
        secrets=parse_secrets(options.secret, variables),
        ssh=parse_ssh(options.ssh or agent_for(options.context, variables), variables),
        extra_hosts=parse_hosts(options.add_host),
        network=options.network,
        entitlements=parse_entitlements(options.allow, network=options.network),
        shm_size=as_usage(parse_size, options.shm_size, option="--shm-size") if options.shm_size else 0,
        ulimits=parse_ulimits(options.ulimit),
        cgroup_parent=options.cgroup_parent,
        resources=given_resources(options),
        source_policy=given_source_policy(variables),
        source_date_epoch=options.source_date_epoch
        or build_args.get("SOURCE_DATE_EPOCH")
        or variables.get("SOURCE_DATE_EPOCH"),
        proxies=given_proxies(build_args),
        cache_from=tuple(options.cache_from),
        cache_to=tuple(options.cache_to),
        cache_repo=tuple(options.cache_repo),
        cache_mounts_from=tuple(options.cache_mounts_from),
        cache_mounts_to=tuple(options.cache_mounts_to),
        provenance=provenance,
        sbom=sbom,
        metadata_provenance=told,
        vcs=version_control(options.context, options.file, variables) if provenance is not None or told else {},
        require_cache=options.require_cache,
        squash=options.squash,
        on_error=options.on_error,
    )


def _check_destinations(outputs: Sequence[Output]) -> None:
    """Refuse what couldn't be written at the end of the build. Raises UsageError."""
    from pybuild.builder.outputs import OutputType

    for output in outputs:
        if output.to_stdout:
            if sys.stdout.isatty():
                raise UsageError(
                    "refusing to write an archive to the terminal",
                    hint=f"add dest=FILE to --output type={output.type.value}, or redirect",
                )
        elif output.dest is not None:
            if output.type is not OutputType.LOCAL and output.tar:
                existing_parent(output.dest, option="--output")
            elif os.path.exists(output.dest) and not os.path.isdir(output.dest):
                raise UsageError(f"--output {output.dest!r} is not a directory")


def _check_tag(tag: str) -> None:
    """Raises UsageError for what is no image name."""
    from pybuild.layers.references import InvalidReference, Reference

    try:
        Reference.parse(tag)
    except InvalidReference as error:
        raise UsageError(f"invalid tag {tag!r}: {error.message}", hint=error.hint) from error


def _check_caches(options: Namespace) -> None:
    """Refuse cache options that can't be understood before anything is done. Raises UsageError."""
    given = (options.cache_from, options.cache_to, options.cache_repo)
    if not any((*given, options.cache_mounts_from, options.cache_mounts_to)):
        return
    from pybuild.builder.cache_specs import parse_cache_from, parse_cache_repo, parse_cache_to, parse_mounts_place

    for parse, texts in zip((parse_cache_from, parse_cache_to, parse_cache_repo), given):
        for text in texts:
            parse(text)
    for option, texts in (
        ("--cache-mounts-from", options.cache_mounts_from),
        ("--cache-mounts-to", options.cache_mounts_to),
    ):
        for text in texts:
            parse_mounts_place(text, option=option)


def _pushing(outputs: list[Output]) -> list[Output]:
    from pybuild.builder.outputs import Output, OutputType
    from pybuild.values import replace

    if not outputs:
        return [Output(type=OutputType.REGISTRY, push=True)]
    images = [output for output in outputs if output.type in (OutputType.IMAGE, OutputType.REGISTRY)]
    if not images:
        raise UsageError("--push needs an image to push", hint="add --output type=registry")
    return [replace(output, push=True) if output in images else output for output in outputs]
