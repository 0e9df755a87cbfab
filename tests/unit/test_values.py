"""``pybuild.values.dataclass`` behaves as the standard decorator does for what the project uses of it."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from pybuild import values

Decorator = Callable[..., Any]


def make(module: Any) -> dict[str, Any]:  # Any: the same code with two implementations
    """The same classes by the standard module and by ours."""
    dataclass, field = module.dataclass, module.field

    @dataclass(frozen=True, slots=True, order=True)
    class Point:
        """A point."""

        x: int
        y: int = 0
        kind: ClassVar[str] = "point"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Base:
        name: str
        tags: dict[str, int] = field(default_factory=dict, hash=False)

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Derived(Base):
        size: int = 3
        secret: str = field(default="s", repr=False, compare=False)

    @dataclass(slots=True)
    class Mutable:
        items: list[int] = field(default_factory=list)
        cached: int = field(default=0, init=False)

        def __post_init__(self) -> None:
            self.cached = len(self.items)

    @dataclass(slots=True, eq=False)
    class Identity:
        x: int

    return {"Point": Point, "Base": Base, "Derived": Derived, "Mutable": Mutable, "Identity": Identity}


OURS, THEIRS = make(values), make(dataclasses)


@pytest.mark.parametrize("classes", [OURS, THEIRS], ids=["ours", "standard"])
def test_values_compare_order_and_hash_by_their_fields(classes: dict[str, Any]) -> None:
    point = classes["Point"]
    assert point(1, 2) == point(1, y=2) != point(1)
    assert hash(point(1, 2)) == hash(point(1, 2))
    assert sorted([point(2), point(1, 5), point(1)]) == [point(1), point(1, 5), point(2)]
    assert point(1) != (1, 0)
    assert point.kind == "point"
    assert point.__match_args__ == ("x", "y")
    match point(3, 4):
        case point(x, y):
            assert (x, y) == (3, 4)


@pytest.mark.parametrize("classes", [OURS, THEIRS], ids=["ours", "standard"])
def test_frozen_values_refuse_assignment(classes: dict[str, Any]) -> None:
    value = classes["Derived"](name="n")
    with pytest.raises(AttributeError):
        value.name = "other"
    with pytest.raises(AttributeError):
        del value.name
    with pytest.raises((AttributeError, TypeError)):
        value.unknown = 1
    with pytest.raises(TypeError):
        classes["Derived"]("positional")
    with pytest.raises(TypeError):
        classes["Derived"]()


@pytest.mark.parametrize(("classes", "module"), [(OURS, values), (THEIRS, dataclasses)], ids=["ours", "standard"])
def test_inheritance_defaults_and_replacement(classes: dict[str, Any], module: Any) -> None:
    value = classes["Derived"](name="n", secret="x")
    assert (value.tags, value.size, value.secret) == ({}, 3, "x")
    assert value == classes["Derived"](name="n")
    assert "secret" not in repr(value)
    changed = module.replace(value, size=4)
    assert (changed.size, changed.secret, value.size) == (4, "x", 3)
    assert [one.name for one in module.fields(value)] == ["name", "tags", "size", "secret"]
    assert module.asdict(value) == {"name": "n", "tags": {}, "size": 3, "secret": "x"}
    assert classes["Base"](name="n") != classes["Derived"](name="n")


@pytest.mark.parametrize("classes", [OURS, THEIRS], ids=["ours", "standard"])
def test_mutable_classes(classes: dict[str, Any]) -> None:
    one, other = classes["Mutable"](), classes["Mutable"]([1])
    one.items.append(2)
    assert (other.items, other.cached) == ([1], 1)
    assert classes["Mutable"]() == classes["Mutable"]()
    with pytest.raises(TypeError):
        hash(one)
    assert classes["Identity"](1) != classes["Identity"](1)
    assert len({classes["Identity"](1), classes["Identity"](1)}) == 2


@values.dataclass(frozen=True, slots=True)
class Picklable:
    """At module level, so that pickle finds it."""

    a: int
    b: tuple[str, ...] = ()


def test_values_can_be_copied_and_pickled() -> None:
    value = Picklable(1, ("x",))
    assert pickle.loads(pickle.dumps(value)) == copy.copy(value) == copy.deepcopy(value) == value
    assert repr(value) == "Picklable(a=1, b=('x',))"


def test_a_mutable_default_is_refused() -> None:
    with pytest.raises(ValueError, match="default_factory"):

        @values.dataclass(slots=True)
        class Wrong:
            items: list[int] = []  # noqa: RUF012  # the mistake that is tested


def test_the_first_objects_may_be_made_by_many_threads_at_once() -> None:
    for _ in range(20):

        @values.dataclass(frozen=True, slots=True)
        class Fresh:
            a: int
            b: int = 2

        made: list[Any] = []
        barrier = threading.Barrier(8)

        def work(cls: Any = Fresh, barrier: threading.Barrier = barrier, made: list[Any] = made) -> None:
            barrier.wait()
            made.append(cls(1))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [value.b for value in made] == [2] * 8


def test_the_standard_module_is_not_imported() -> None:
    code = "import sys, pybuild.values, pybuild.parser.ast; sys.exit('dataclasses' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_patterns_behave_as_compiled_expressions_do() -> None:
    made = values.pattern(r"(a+)(b)?", re.IGNORECASE)
    assert made.match("AAb") is not None
    assert [match[0] for match in made.finditer("a AB")] == ["a", "AB"]
    assert made.sub("-", "xay") == "x-y"
    assert (made.pattern, made.groups) == ("(a+)(b)?", 2)
    assert made.fullmatch("aab!") is None


def test_a_pattern_is_compiled_when_it_is_first_used() -> None:
    wrong = values.pattern("(")
    with pytest.raises(re.error):
        wrong.match("x")


@pytest.mark.parametrize("classes", [OURS, THEIRS], ids=["ours", "standard"])
def test_wrong_arguments_are_named(classes: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"Point\.__init__\(\) missing 1 required positional argument: 'x'"):
        classes["Point"]()
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        classes["Point"](1, z=2)
