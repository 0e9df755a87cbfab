"""RUN: commands, here-documents, mounts and what the client sets."""

from __future__ import annotations

import pytest
from fakes.lowering import chain, created_by, last_run, lowered, titles

from pybuild.builder.graph import (
    BindMount,
    CacheMount,
    CacheSharing,
    ContextSource,
    Exec,
    ImageSource,
    InlineFile,
    Network,
    SecretMount,
    Security,
    SshMount,
    TmpfsMount,
)
from pybuild.parser.errors import DockerfileError


def run(text: str, before: str = "", **options: object) -> Exec:
    return last_run(lowered(f"FROM busybox\n{before}\nRUN {text}\n", **options))


def mount(text: str, before: str = "", **options: object) -> object:
    (only,) = run(f"--mount={text} x", before, **options).mounts
    return only


def test_shell_and_exec_form():
    assert run("a  && b").args == ("/bin/sh", "-c", "a  && b")
    assert run('["a", "b c"]').args == ("a", "b c")
    assert run("a", before='SHELL ["/bin/bash", "-c"]').args == ("/bin/bash", "-c", "a")
    assert run("a \\\n  # comment\n  && b").args[-1] == "a   && b"


def test_a_run_takes_user_directory_and_environment():
    step = run("x", before="ENV A=1\nARG B=2\nUSER me\nWORKDIR /w/")
    assert (step.user, step.cwd) == ("me", "/w")
    assert dict(step.env) == {"PATH": "/bin", "A": "1", "B": "2"}


def test_variables_are_left_to_the_shell():
    assert run("echo $A ${B} '$C'", before="ENV A=1").args[-1] == "echo $A ${B} '$C'"


def test_titles_show_known_variables_and_keep_quotes():
    image = lowered("FROM busybox\nENV A=1\nRUN echo \"$A\" '$A' $B ${A}\n")
    assert titles(image)[-1] == "[2/2] RUN echo \"1\" '$A' $B 1"


def test_a_title_with_shell_syntax_of_its_own_is_shown_as_written():
    image = lowered("FROM busybox\nENV A=1\nRUN echo ${A@Q} $A\n")
    assert titles(image)[-1] == "[2/2] RUN echo ${A@Q} $A"


def test_the_client_s_settings_reach_every_run():
    step = run(
        "x",
        network=Network.HOST,
        hostname="h",
        extra_hosts=(("a", "1.2.3.4"),),
        shm_size=1 << 20,
        ulimits=(("nofile", 1, 2),),
        cgroup_parent="p",
    )
    assert step.network is Network.HOST
    assert (step.hostname, step.extra_hosts, step.shm_size) == ("h", (("a", "1.2.3.4"),), 1 << 20)
    assert (step.ulimits, step.cgroup_parent) == ((("nofile", 1, 2),), "p")


def test_network_and_security_flags():
    assert run("--network=none x").network is Network.NONE
    assert run("--network=host x").network is Network.HOST
    assert run("--network=default x", network=Network.NONE).network is Network.NONE
    assert run("--security=insecure x").security is Security.INSECURE
    assert run("x").security is Security.SANDBOX


def test_a_device_is_refused_clearly():
    with pytest.raises(DockerfileError, match="RUN --device is not supported"):
        run("--device=vendor.com/gpu=0 x")


def test_a_heredoc_body_is_the_command():
    step = run("<<EOF\necho $A\necho b\nEOF", before="ENV A=1")
    assert step.args == ("/bin/sh", "-c", "echo $A\necho b\n")
    assert step.scripts == ()
    image = lowered("FROM busybox\nRUN <<EOF\n\necho a\necho b\nEOF\n")
    assert titles(image)[-1] == "[2/2] RUN <<EOF (echo a...)"
    assert created_by(image)[-1] == "RUN /bin/sh -c \necho a\necho b\n # buildkit"


def test_a_heredoc_with_an_interpreter_line_is_a_script():
    step = run("<<'PY'\n#!/usr/bin/env python3\nprint()\nPY")
    assert step.args == ("/bin/sh", "-c", "/dev/pipes/PY")
    assert step.scripts == (InlineFile("PY", b"#!/usr/bin/env python3\nprint()\n", 0o755),)


def test_tabs_are_stripped_where_asked():
    assert run("<<-EOF\n\techo a\n\tEOF").args[-1] == "echo a\n"
    assert run("<<-EOF\n\t#!/bin/x\n\tEOF").scripts[0].data == b"#!/bin/x\n"


def test_a_heredoc_of_a_command_goes_to_the_shell():
    assert run("cat <<EOF > /f\nhello\nEOF").args[-1] == "cat <<EOF > /f\nhello\nEOF"
    assert run("<<EOF bash\nhello\nEOF").args[-1] == "<<EOF bash\nhello\nEOF"
    two = run("cat 3<<A <<B\na\nA\nb\nB")
    assert two.args[-1] == "cat 3<<A <<B\na\nA\nb\nB"
    assert two.scripts == ()


def test_a_bind_mount_reads_the_context_or_a_stage():
    image = lowered("FROM alpine AS a\nFROM busybox\nRUN --mount=target=/c --mount=from=a,source=/s,target=/d,rw x\n")
    first, second = last_run(image).mounts
    assert first == BindMount(target="/c", input=1, source="", readonly=True)
    assert second == BindMount(target="/d", input=2, source="s", readonly=False)
    assert image.vertex.inputs[1].op == ContextSource("context")
    assert isinstance(image.vertex.inputs[2].op, ImageSource)


def test_mounts_of_one_tree_share_an_input():
    image = lowered("FROM busybox\nRUN --mount=source=a,target=/a --mount=source=b,target=/b x\n")
    assert len(image.vertex.inputs) == 2
    assert [mount.input for mount in last_run(image).mounts] == [1, 1]


def test_a_relative_target_is_in_the_working_directory():
    assert mount("target=c", before="WORKDIR /w").target == "/w/c"
    assert mount("target=/a/../c/").target == "/c"


def test_mount_options_see_the_stage_s_variables():
    before = "ARG T=cache\nENV D=/d\nARG M=0700"
    assert mount("type=$T,target=$D,id=${D}-x,mode=$M,uid=1", before) == CacheMount(
        target="/d", id="/d-x", mode=0o700, uid=1
    )
    inherited = "FROM busybox AS a\nENV D=/d\nFROM a\nRUN --mount=type=cache,target=$D x\n"
    assert last_run(lowered(inherited)).mounts[0].target == "/d"


def test_a_cache_mount_s_defaults_and_keys():
    assert mount("type=cache,target=/root/.cache/") == CacheMount(target="/root/.cache", id="/root/.cache")
    assert mount("type=cache,target=/c,sharing=locked,ro,gid=5").sharing is CacheSharing.LOCKED
    assert mount("type=cache,target=/c,ro").readonly
    image = lowered("FROM alpine AS a\nFROM busybox\nRUN --mount=type=cache,target=/c,from=a,source=/s x\n")
    assert last_run(image).mounts[0] == CacheMount(target="/c", id="/c", input=1, source="s")
    assert isinstance(image.vertex.inputs[1].op, ImageSource)


def test_a_tmpfs_takes_a_size():
    assert mount("type=tmpfs,target=/t") == TmpfsMount(target="/t", size=0)
    assert mount("type=tmpfs,target=/t,size=10m").size == 10 << 20
    assert mount("type=tmpfs,target=/t,size=1.5GiB").size == 3 << 29
    assert mount("type=tmpfs,target=/t,size=4096").size == 4096


def test_secrets_have_default_names_and_targets():
    assert mount("type=secret,id=s") == SecretMount(id="s", target="/run/secrets/s")
    assert mount("type=secret,target=/etc/key") == SecretMount(id="key", target="/etc/key")
    assert mount("type=secret,source=a/b") == SecretMount(id="a/b", target="/run/secrets/b")
    assert mount("type=secret,id=s,env=TOKEN") == SecretMount(id="s", target=None, env="TOKEN")
    both = SecretMount(id="s", target="/f", env="TOKEN", required=True, mode=0o440, uid=1, gid=2)
    assert mount("type=secret,id=s,env=TOKEN,target=/f,required,mode=0440,uid=1,gid=2") == both
    assert mount("type=secret,id=s,required=false").required is False


def test_a_secret_in_the_environment_is_masked_in_the_title():
    image = lowered("FROM busybox\nENV T=plain\nRUN --mount=type=secret,id=s,env=T echo $T\n")
    assert titles(image)[-1] == "[stage-0 2/2] RUN --mount=type=secret,id=s,env=T echo ****"


def test_ssh_sockets_are_numbered_and_the_first_is_announced():
    step = run("--mount=type=ssh --mount=type=ssh,id=other,mode=0666,required x")
    assert step.mounts == (
        SshMount(id="default", target="/run/buildkit/ssh_agent.0"),
        SshMount(id="other", target="/run/buildkit/ssh_agent.1", mode=0o666, required=True),
    )
    assert dict(step.env)["SSH_AUTH_SOCK"] == "/run/buildkit/ssh_agent.0"
    assert dict(run("--mount=type=ssh,target=/s x").env)["SSH_AUTH_SOCK"] == "/s"
    assert dict(run("--mount=type=ssh x", before="ENV SSH_AUTH_SOCK=/mine").env)["SSH_AUTH_SOCK"] == "/mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type=chache,target=/c", 'unsupported mount type "chache" (did you mean cache?)'),
        ("type=$T,target=/c", 'unsupported mount type "nope"'),
        ("type=cache,target=/c,sharing=share", 'unsupported sharing value "share" (did you mean shared?)'),
        ("type=cache,target=/", 'invalid mount target "/"'),
        ("target=..", 'invalid mount target "/"'),
        ("type=cache,target=/c,mode=9", "invalid value 9 for mode"),
        ("type=cache,target=/c,uid=x", "invalid value x for uid"),
        ("type=tmpfs,target=/c,size=big", "invalid value for size: big"),
        ("type=bind,target=/c,size=1", "unexpected key 'size' for mount type 'bind'"),
        ("type=bind,target=/c,uid=1", 'uid not allowed for "bind" type mounts'),
        ("type=secret", "invalid secret mount. one of source, target required"),
        ("type=secret,id=a,source=b", "both source and id can't be set"),
        ("type=secret,id=a,from=busybox", "secret mount should not have a from"),
        ("type=cache,target=/c,required", "unexpected key 'required' for mount type 'cache'"),
        ("type=bind,target=/c,sharing=shared", "invalid cache sharing set for bind mount"),
        ("type=ssh,source=x", "ssh does not support source"),
        ("type=cache,target=/c,readonly=maybe", "invalid value for readonly: maybe"),
    ],
)
def test_wrong_mounts_are_refused_with_their_line(text, message):
    with pytest.raises(DockerfileError) as caught:
        mount(text, before="ARG T=nope")
    assert message in str(caught.value)
    assert caught.value.lines == (3, 3)


def test_no_cache_marks_steps_of_all_or_of_named_stages():
    text = "FROM busybox AS a\nRUN 1\nCOPY f /\nWORKDIR /w\nFROM a\nRUN 2\n"
    every = [vertex.op.nonce for vertex in chain(lowered(text, no_cache=True, nonce=lambda: "n"))[1:]]
    assert every == ["n"] * 4
    some = [vertex.op.nonce for vertex in chain(lowered(text, no_cache_stages=frozenset({"A"}), nonce=lambda: "n"))[1:]]
    assert some == ["n", "n", "n", ""]
    assert {vertex.op.nonce for vertex in chain(lowered(text))[1:]} == {""}


def test_flags_before_a_heredoc():
    step = run("--mount=type=tmpfs,target=/t --network=none <<EOF\necho a\nEOF")
    assert step.args[-1] == "echo a\n"
    assert step.mounts == (TmpfsMount(target="/t"),)
    assert step.network is Network.NONE
