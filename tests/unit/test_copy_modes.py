"""--chmod: octal and symbolic modes, as chmod(1) has them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybuild.builder.copy_modes import InvalidMode, parse_mode


@pytest.mark.parametrize(
    ("text", "before", "after"),
    [
        ("644", 0o777, 0o644),
        ("0413", 0o777, 0o413),
        ("7777", 0, 0o7777),
        ("0", 0o777, 0),
        ("go-w", 0o666, 0o644),
        ("u=rw,g=r,o=r", 0o777, 0o644),
        ("a+X", 0o644, 0o644),
        ("a+X", 0o744, 0o755),
        ("+x", 0o644, 0o755),
        ("u=rwX,go=rX", 0o600, 0o644),
        ("u+s", 0o755, 0o4755),
        ("g+s", 0o755, 0o2755),
        ("+t", 0o755, 0o1755),
        ("o+t", 0o755, 0o755),
        ("g=u", 0o740, 0o770),
        ("o+g", 0o750, 0o755),
        ("go-u", 0o775, 0o700),
        ("u+w-x", 0o555, 0o655),
        ("=", 0o755, 0),
    ],
)
def test_a_files_mode(text: str, before: int, after: int) -> None:
    assert oct(parse_mode(text).apply(before, directory=False)) == oct(after)


def test_capital_x_always_holds_for_directories() -> None:
    assert parse_mode("a+X").apply(0o600, directory=True) == 0o711


@pytest.mark.parametrize(
    "text", ["0", "644", "0644", "000644", "7777", "u=rwX,go=rX", "+x", "a+rwx", "u+r-w", "g=u", "o=", "u=s,+t", "ug+X"]
)
def test_modes_may_be_octal_or_symbolic(text: str) -> None:
    assert (parse_mode(text).octal is None) != text.isdigit()


@pytest.mark.parametrize("text", ["64a", "10000", "8", "", "888", "0x1", "6٤4", "٤"])
def test_bad_numbers_are_refused(text: str) -> None:
    with pytest.raises(InvalidMode, match="it should be octal string and between 0 and 07777"):
        parse_mode(text)


@pytest.mark.parametrize("text", ["u", "u+q", "rwx", "u=rw,", ",u=r", "-1 ", "é+x", "z+x", "u=r\n"])
def test_other_nonsense_is_refused(text: str) -> None:
    with pytest.raises(InvalidMode, match="invalid syntax"):
        parse_mode(text)


def test_only_numbers_reach_directories_made_on_the_way() -> None:
    assert (parse_mode("4770").of_created_directories, parse_mode("u=rwx").of_created_directories) == (0o770, 0o755)


CLAUSES = st.tuples(
    st.sampled_from(["u", "g", "o", "a", "ug", "go", "ugo"]),
    st.sampled_from("+-="),
    st.sampled_from(["", "r", "w", "x", "X", "rw", "rX", "rwx", "s", "t", "u", "g", "o"]),
).map("".join)


@pytest.mark.skipif(shutil.which("chmod") is None, reason="chmod(1) is not installed")
@settings(deadline=None, max_examples=40)
@given(st.lists(CLAUSES, min_size=1, max_size=3).map(",".join), st.integers(0, 0o777), st.booleans())
def test_symbolic_modes_are_those_of_chmod(
    tmp_path_factory: pytest.TempPathFactory, text: str, mode: int, directory: bool
) -> None:
    """GNU chmod keeps the special bits of directories on purpose, and lets "s" and "t" depend on the class in other ways: not compared.
    Its "X" looks at what earlier clauses left; here it looks at the file's own mode, as in BSD and BuildKit."""
    if "s" in text or "t" in text or ("X" in text and "," in text):
        return
    path = tmp_path_factory.mktemp("mode") / "x"
    _make(path, directory)
    os.chmod(path, mode)
    subprocess.run(["chmod", text, os.fspath(path)], check=True)
    assert oct(path.stat().st_mode & 0o777) == oct(parse_mode(text).apply(mode, directory=directory))
    os.chmod(path, 0o700)


def _make(path: Path, directory: bool) -> None:
    if directory:
        path.mkdir()
    else:
        path.touch()
