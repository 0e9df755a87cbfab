"""Wrong values: refused with the part marked when their stage is built, harmless where it isn't, always told by the checks."""

from __future__ import annotations

import pytest
from fakes.lowering import lowered

from pybuild.builder.checks import CheckOptions, check_file
from pybuild.layers.descriptor import Platform
from pybuild.parser.errors import DockerfileError

REFUSED = [
    (
        "COPY --chmod=64a a b",
        "invalid chmod parameter: '64a'. it should be octal string and between 0 and 07777",
        "64a",
    ),
    (
        "ADD --chmod=10000 a b",
        "invalid chmod parameter: '10000'. it should be octal string and between 0 and 07777",
        "10000",
    ),
    ("COPY --chmod=u=rwQ a b", "invalid syntax", "u=rwQ"),
    ("COPY --chmod=u=rw, a b", "invalid syntax", "u=rw,"),
    ("ADD --checksum=sha256:0 a b c", "checksum can't be specified for multiple sources", "sha256:0"),
    ("ADD --checksum=sha256:0 a b", "checksum requires HTTP(S) or Git sources", "sha256:0"),
    ("RUN --mount=typ=x true", "unexpected key 'typ' in 'typ=x' (did you mean type?)", "x"),
    ("RUN --mount=type=tmp,target=/x true", 'unsupported mount type "tmp" (did you mean tmpfs?)', "tmp"),
    (
        "RUN --mount=type=cache,readony true",
        "invalid field 'readony' must be a key=value pair",
        "--mount=type=cache,readony",
    ),
    (
        "RUN --mount=type=cache,target true",
        "invalid field 'target' must be a key=value pair",
        "--mount=type=cache,target",
    ),
    ("RUN --mount=target=/x,ro=2 true", "invalid value for readonly: 2", "2"),
    (
        "RUN --mount=target=/x,required true",
        "unexpected key 'required' for mount type 'bind'",
        "--mount=target=/x,required",
    ),
    ("RUN --mount=type=cache,target=/x,size=1m true", "unexpected key 'size' for mount type 'cache'", "1m"),
    ("RUN --mount=type=tmpfs,target=/x,size=1q true", "invalid value for size: 1q", "1q"),
    (
        "RUN --mount=type=cache,target=/x,sharing=lock true",
        'unsupported sharing value "lock" (did you mean locked?)',
        "lock",
    ),
    ("RUN --mount=type=tmpfs,target=/x,sharing=shared true", "invalid cache sharing set for tmpfs mount", "shared"),
    ("RUN --mount=type=cache,target=/x,mode=08 true", "invalid value 08 for mode", "08"),
    ("RUN --mount=type=cache,target=/x,uid=-1 true", "invalid value -1 for uid", "-1"),
    ("RUN --mount=type=cache,target=/x,gid=4294967296 true", "invalid value 4294967296 for gid", "4294967296"),
    ("RUN --mount=target=/x,uid=1 true", 'uid not allowed for "bind" type mounts', "1"),
    ("RUN --mount=type=secret true", "invalid secret mount. one of source, target required", "--mount=type=secret"),
    ("RUN --mount=type=secret,id=a,source=b true", "both source and id can't be set", "b"),
    ("RUN --mount=type=secret,id=a,from=busybox true", "secret mount should not have a from", "busybox"),
    ("RUN --mount=type=secret,id=a,sharing=shared true", "secret mount should not define sharing", "shared"),
    ("RUN --mount=type=ssh,source=a true", "ssh does not support source", "a"),
    ("STOPSIGNAL SIGFOO", "invalid signal: SIGFOO", "SIGFOO"),
    ("STOPSIGNAL 0", "invalid signal: 0", "0"),
    ("EXPOSE 80/icmp", 'invalid port: "80/icmp": invalid proto: icmp', "80/icmp"),
    ("EXPOSE 1 65536", "invalid containerPort: 65536", "65536"),
    ("EXPOSE 90-80", "invalid containerPort: 90-80", "90-80"),
    ("EXPOSE x", "invalid containerPort: x", "x"),
    ("EXPOSE /tcp", 'invalid port: "/tcp": no port specified', "/tcp"),
    ("EXPOSE 1.2.3:1:2", "invalid IP address: 1.2.3", "1.2.3:1:2"),
    ("EXPOSE x:80", "invalid hostPort: x", "x:80"),
    ("EXPOSE 1-3:1-2", "invalid ranges specified for container and host Ports: 1-2 and 1-3", "1-3:1-2"),
]


@pytest.mark.parametrize(("instruction", "message", "marked"), REFUSED)
def test_it_is_refused_with_its_part_marked_when_the_stage_is_built(instruction: str, message: str, marked: str):
    text = f"FROM busybox AS wrong\n{instruction}\nFROM wrong\nLABEL a=b\n"
    with pytest.raises(DockerfileError) as caught:
        lowered(text)
    assert caught.value.message == message
    assert caught.value.lines == (2, 2)
    assert caught.value.culprit is not None
    assert text[caught.value.culprit.start.offset : caught.value.culprit.end.offset] == marked


@pytest.mark.parametrize(("instruction", "message", "marked"), REFUSED)
def test_it_does_no_harm_in_a_stage_that_nothing_needs_but_the_checks_tell(instruction: str, message: str, marked: str):
    text = f"FROM busybox AS wrong\n{instruction}\nFROM busybox\nLABEL a=b\n"
    lowered(text)
    options = CheckOptions(platform=Platform("linux", "amd64"))
    result = check_file(text, filename="Dockerfile", options=options)
    assert result.error is not None
    assert (result.error.message, result.error.lines) == (message, (2, 2))


def test_a_value_behind_a_variable_is_judged_expanded():
    with pytest.raises(DockerfileError, match="invalid chmod parameter: '888'"):
        lowered("FROM busybox\nARG M=888\nCOPY --chmod=$M a /b\n")


def test_tabs_of_a_here_document_reach_the_shell_beside_other_words():
    image = lowered("FROM busybox\nRUN cat <<-A <<-B >/x\n\ta\n\tA\n\tb\n\tB\n")
    assert image.history[-1].created_by == "RUN /bin/sh -c cat <<-A <<-B >/x\n\ta\nA\n\tb\nB # buildkit"
