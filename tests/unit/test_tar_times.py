"""Times in tars are limited, and nothing else changes."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.layers.tar_times import DamagedTar, limit_times

LATEST = 1_600_000_000


def limited(data: bytes) -> bytes:
    out = io.BytesIO()
    limit_times(io.BytesIO(data), out.write, latest=LATEST)
    return out.getvalue()


def members(data: bytes) -> list[tuple[object, ...]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [
            (m.name, m.type, m.mode, m.size, m.linkname, m.mtime, {k: v for k, v in m.pax_headers.items() if "time" not in k},
             (tar.extractfile(m) or io.BytesIO()).read() if m.isreg() else b"")
            for m in tar
        ]  # fmt: skip


def test_a_time_that_stands_for_none_becomes_the_latest() -> None:
    source, out = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=source, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, mtime in (("made", 315_619_200), ("near", 315_619_200.5), ("early", 7)):
            member = tarfile.TarInfo(name)
            member.mtime = mtime
            tar.addfile(member)
    source.seek(0)
    limit_times(source, out.write, latest=LATEST, unknown=315_619_200)
    assert [(row[0], row[5]) for row in members(out.getvalue())] == [
        ("made", LATEST),
        ("near", 315_619_200.5),
        ("early", 7),
    ]


entries = st.lists(
    st.tuples(
        st.text(
            st.characters(min_codepoint=33, exclude_characters="/\\", exclude_categories=["Cs"]),
            min_size=1,
            max_size=130,
        ),
        st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE]),
        st.binary(max_size=1500),
        st.one_of(st.integers(0, 2**34), st.floats(0, 2**33, allow_nan=False).map(lambda f: round(f, 3))),
        st.dictionaries(
            st.sampled_from(["SCHILY.xattr.security.x", "comment"]), st.text("aé", max_size=99), max_size=2
        ),
    ),
    max_size=5,
)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@given(wanted=entries)
@settings(deadline=None, max_examples=60)
def test_only_late_times_change(form: int, wanted: list[tuple[str, bytes, bytes, float, dict[str, str]]]) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, kind, data, mtime, pax in wanted:
            member = tarfile.TarInfo(name)
            member.type, member.mtime = kind, mtime
            if form != tarfile.PAX_FORMAT:
                member.mtime = int(mtime) % 8**11
            if form == tarfile.USTAR_FORMAT:
                member.name = "".join(c if c < "\x7f" else "u" for c in name)[:90]
            elif form == tarfile.PAX_FORMAT:
                member.pax_headers = pax
            if kind == tarfile.SYMTYPE:
                member.linkname = member.name[:90]
            member.size = len(data) if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(data))
    before, after = members(out.getvalue()), members(limited(out.getvalue()))
    assert after == [(*m[:5], min(m[5], LATEST), *m[6:]) for m in before]  # type: ignore[type-var]  # mtimes are numbers
    assert limited(limited(out.getvalue())) == limited(out.getvalue())


def test_a_tar_without_late_times_is_the_same_bytes() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("é" * 200)
        member.mtime = 1.5
        tar.addfile(member)
    assert limited(out.getvalue()) == out.getvalue()


def test_other_times_of_extended_headers_are_limited_too() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("a")
        member.pax_headers = {"atime": "1700000000.25", "ctime": "1500000000.25"}
        tar.addfile(member)
    with tarfile.open(fileobj=io.BytesIO(limited(out.getvalue()))) as tar:
        (member,) = tar.getmembers()
    assert (member.pax_headers["atime"], member.pax_headers["ctime"]) == (str(LATEST), "1500000000.25")


@given(data=st.binary(max_size=2000))
@settings(deadline=None, max_examples=100)
def test_garbage_is_copied_or_refused(data: bytes) -> None:
    try:
        limited(data)
    except DamagedTar:
        pass
