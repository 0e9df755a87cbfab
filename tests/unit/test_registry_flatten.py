"""Layers stacked as tars: whiteouts, opaque directories, links, replaced kinds."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.layers.entries import Kind
from pybuild.layers.tar_write import write_tar
from pybuild.registry_client.flatten import CannotFlatten, MergedLayers

Member = tuple[str, str]
"""(path, what): ``dir``, ``-> target``, ``= hard link``, ``wh``, ``opq`` or a file's content."""


def _tar(path: Path, members: list[Member]) -> str:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, what in members:
            member = tarfile.TarInfo(name)
            member.mode = 0o644
            data = b""
            if what == "dir":
                member.type, member.mode = tarfile.DIRTYPE, 0o755
            elif what.startswith("-> "):
                member.type, member.linkname = tarfile.SYMTYPE, what[3:]
            elif what.startswith("= "):
                member.type, member.linkname = tarfile.LNKTYPE, what[2:]
            elif what == "wh":
                parent, slash, base = name.rpartition("/")
                member.name = f"{parent}{slash}.wh.{base}"
            elif what == "opq":
                member.name = f"{name}/.wh..wh..opq"
            else:
                data = what.encode()
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(path)


def merged(directory: Path, *layers: list[Member]) -> dict[str, str]:
    """What the layers give together, by path: kinds and contents, after a trip through the canonical tar."""
    tree = MergedLayers(str(directory))
    for number, members in enumerate(layers):
        tree.add(_tar(directory / f"{number}.tar", members))
    out = io.BytesIO()
    write_tar(tree.entries(), out.write)
    out.seek(0)
    found: dict[str, str] = {}
    with tarfile.open(fileobj=out) as tar:
        for member in tar:
            if member.isdir():
                found[member.name] = "dir"
            elif member.issym():
                found[member.name] = f"-> {member.linkname}"
            elif member.islnk():
                found[member.name] = f"= {member.linkname}"
            else:
                content = tar.extractfile(member)
                found[member.name] = content.read().decode() if content is not None else ""
    return found


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([[("a", "one")], [("a", "two")]], {"a": "two"}),
        ([[("d", "dir"), ("d/a", "1"), ("d/b", "2")], [("d/a", "wh")]], {"d": "dir", "d/b": "2"}),
        ([[("d", "dir"), ("d/a", "1")], [("d", "wh")]], {}),
        ([[("d", "dir"), ("d/a", "1")], [("d", "dir"), ("d", "opq"), ("d/b", "2")]], {"d": "dir", "d/b": "2"}),
        ([[("d", "dir"), ("d/a", "1")], [("d", "dir"), ("d/b", "2"), ("d", "opq")]], {"d": "dir", "d/b": "2"}),
        ([[("d", "dir"), ("d/a", "1")], [("d", "wh"), ("d", "dir"), ("d/b", "2")]], {"d": "dir", "d/b": "2"}),
        ([[("d", "dir"), ("d/a", "1")], [("d", "file now")]], {"d": "file now"}),
        ([[("d", "file")], [("d", "dir"), ("d/a", "1")]], {"d": "dir", "d/a": "1"}),
        ([[("d", "file")], [("d/a", "1")]], {"d/a": "1"}),
        ([[("a", "x"), ("b", "= a")], []], {"a": "x", "b": "= a"}),
        ([[("a", "x"), ("b", "= a")], [("a", "wh")]], {"b": "x"}),
        ([[("a", "x"), ("b", "= a")], [("a", "new")]], {"a": "new", "b": "x"}),
        ([[("a", "x")], [("b", "= a")]], {"a": "x", "b": "= a"}),
        (
            [[("real", "dir"), ("link", "-> real")], [("link/a", "1")]],
            {"real": "dir", "link": "-> real", "real/a": "1"},
        ),
        ([[("r", "dir"), ("l", "-> /r/../r")], [("l/a", "1")]], {"r": "dir", "l": "-> /r/../r", "r/a": "1"}),
        ([[("l", "-> ../../etc"), ("l/a", "1")]], {"l": "-> ../../etc", "etc/a": "1"}),
        ([[("a", "1")], [("a", "wh"), ("a", "2")]], {"a": "2"}),
        ([[("a", "1")], [("a", "2"), ("a", "wh")]], {"a": "2"}),
        ([[("a", "1")], [("none", "wh")]], {"a": "1"}),
        ([[("e", "")], []], {"e": ""}),
    ],
)
def test_layers_stack_as_the_specification_says(
    tmp_path: Path, layers: list[list[Member]], expected: dict[str, str]
) -> None:
    assert merged(tmp_path, *layers) == expected


def test_links_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotFlatten, match="which is no file"):
        merged(tmp_path, [("a", "= none")])
    with pytest.raises(CannotFlatten, match="too many symlinks"):
        merged(tmp_path, [("a", "-> b"), ("b", "-> a"), ("a/c", "x")])


def test_owners_modes_times_and_attributes_stay(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("bin/tool")
        member.mode, member.uid, member.gid, member.mtime, member.size = 0o4711, 3_000_000, 7, 1_500_000_000, 4
        member.pax_headers = {"SCHILY.xattr.security.capability": "\x01\x00\x00\x02"}
        tar.addfile(member, io.BytesIO(b"tool"))
        node = tarfile.TarInfo("dev/null")
        node.type, node.devmajor, node.devminor = tarfile.CHRTYPE, 1, 3
        tar.addfile(node)
    tree = MergedLayers(str(tmp_path))
    tree.add(str(tmp_path / "0.tar"))
    found = {entry.path: entry for entry in tree.entries()}
    tool = found["bin/tool"]
    assert (tool.mode, tool.uid, tool.gid, tool.mtime_ns) == (0o4711, 3_000_000, 7, 1_500_000_000 * 10**9)
    assert dict(tool.xattrs)["security.capability"] == b"\x01\x00\x00\x02"
    assert (found["dev/null"].kind, found["dev/null"].device) == (Kind.CHARACTER, (1, 3))


_names = st.sampled_from(["a", "b", "d/a", "d/b", "d/e/a", "e"])
_layer = st.lists(st.tuples(_names, st.sampled_from(["wh", "file", "other"])), max_size=5, unique_by=lambda m: m[0])


def _model(layers: list[list[Member]]) -> dict[str, str]:
    files: dict[str, str] = {}
    for members in layers:
        for name, what in members:
            if what == "wh":
                files = {path: text for path, text in files.items() if path != name and not path.startswith(f"{name}/")}
        for name, what in members:
            if what != "wh":
                files[name] = what
    return files


@settings(deadline=None, max_examples=60)
@given(st.lists(_layer, min_size=1, max_size=4))
def test_whiteouts_and_files_in_any_order_agree_with_a_model(layers: list[list[Member]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        assert merged(Path(directory), *layers) == _model(layers)
