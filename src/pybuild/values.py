"""``dataclass`` for classes whose methods are made when they are first needed. Imported by all folders; imports none.

The standard decorator compiles every method of every class at import: with some hundred value classes that was half of the time of
a cached build. This one makes the slots at once and compiles a class's methods together when its first object is made; most
classes never are in one command. A type checker sees the standard decorator: what is written is ordinary dataclass code, with the
options that the project uses (``slots=True`` always; ``frozen``, ``eq``, ``order``, ``kw_only``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import asdict, dataclass, field, fields, replace
else:
    _MISSING = object()
    _MARK = "__dataclass_fields__"  # dataclasses.is_dataclass and dataclasses.replace look for it

    class FrozenInstanceError(AttributeError):
        """A frozen object was assigned to."""

    class _Field:
        """One field: its default or default factory, and what it takes part in."""

        __slots__ = ("compare", "default", "default_factory", "hash", "init", "kw_only", "name", "repr")
        _field_type = "field"  # what dataclasses.replace asks for

        def __init__(
            self,
            *,
            default=_MISSING,
            default_factory=_MISSING,
            init=True,
            repr=True,
            hash=None,
            compare=True,
            kw_only=None,
        ):
            self.name = ""
            self.default = default
            self.default_factory = default_factory
            self.init = init
            self.repr = repr
            self.hash = hash
            self.compare = compare
            self.kw_only = kw_only

    field = _Field

    def dataclass(cls=None, /, *, slots, frozen=False, eq=True, order=False, kw_only=False):
        """As ``dataclasses.dataclass``."""

        def decorate(cls):
            return _process(cls, frozen=frozen, eq=eq, order=order, kw_only=kw_only)

        return decorate if cls is None else decorate(cls)

    def _process(cls, *, frozen, eq, order, kw_only):
        inherited = {}
        for base in reversed(cls.__mro__[1:]):
            inherited.update(base.__dict__.get(_MARK, {}))
        namespace = dict(cls.__dict__)
        own = {}
        for name, annotation in namespace.get("__annotations__", {}).items():
            if annotation.startswith(("ClassVar", "typing.ClassVar")):
                continue
            value = namespace.pop(name, _MISSING)
            one = value if isinstance(value, _Field) else _Field(default=value)
            if isinstance(one.default, (list, dict, set)):
                raise ValueError(f"mutable default {type(one.default)} for field {name}: use default_factory")
            one.name = name
            if one.kw_only is None:
                one.kw_only = kw_only
            own[name] = one
        every = {**inherited, **own}
        namespace.pop("__dict__", None)
        namespace.pop("__weakref__", None)
        namespace["__slots__"] = tuple(name for name in own if name not in inherited)
        namespace[_MARK] = every
        namespace["__match_args__"] = tuple(name for name, one in every.items() if one.init and not one.kw_only)
        namespace.setdefault("__getstate__", _get_state)
        namespace.setdefault("__setstate__", _set_state)
        if frozen:
            namespace["__setattr__"] = _refuse_set
            namespace["__delattr__"] = _refuse_delete
        made = [name for name in ("__init__", "__repr__") if name not in namespace]
        if eq:
            if "__eq__" not in namespace:
                made.append("__eq__")
            if "__hash__" not in namespace:
                if frozen:
                    made.append("__hash__")
                else:
                    namespace["__hash__"] = None
        if order:
            made += ["__lt__", "__le__", "__gt__", "__ge__"]
        for name in made:
            namespace[name] = _stub(name)
        new = type(cls)(cls.__name__, cls.__bases__, namespace)
        new.__qualname__ = cls.__qualname__
        _pending[new] = made
        return new

    _pending = {}

    def _stub(name):
        """The method before the class's methods are made: makes them all, then calls the real one."""

        def stub(self, *arguments, **keywords):
            for base in type(self).__mro__:
                if base.__dict__.get(name) is stub:
                    _materialise(base)
                    return base.__dict__[name](self, *arguments, **keywords)
            # Another thread has made them in between.
            return getattr(type(self), name)(self, *arguments, **keywords)

        return stub

    def _materialise(cls):
        made = _pending.get(cls)
        if made is None:
            return
        every = cls.__dict__[_MARK]
        scope = {"_MISSING": _MISSING, "_cls": cls}
        source = []
        if "__init__" in made:
            source.append(_init_source(cls, every, scope))
        compared = [f"self.{name}" for name, one in every.items() if one.compare]
        others = [f"other.{name}" for name, one in every.items() if one.compare]
        hashed = [f"self.{name}" for name, one in every.items() if (one.compare if one.hash is None else one.hash)]
        for name, operator in (("__eq__", "=="), ("__lt__", "<"), ("__le__", "<="), ("__gt__", ">"), ("__ge__", ">=")):
            if name in made:
                source.append(
                    f"def {name}(self, other):\n"
                    f"    if other.__class__ is not self.__class__: return NotImplemented\n"
                    f"    return {_tuple(compared)} {operator} {_tuple(others)}\n"
                )
        if "__hash__" in made:
            source.append(f"def __hash__(self):\n    return hash({_tuple(hashed)})\n")
        exec("".join(source), scope)
        for name in made:
            function = _represent if name == "__repr__" else scope[name]
            if name != "__repr__":
                function.__qualname__ = f"{cls.__qualname__}.{name}"
                function.__module__ = cls.__module__
            setattr(cls, name, function)
        _pending.pop(cls, None)

    def _tuple(parts):
        return f"({', '.join(parts)}{',' if parts else ''})"

    def _init_source(cls, every, scope):
        positional, keyword, body = [], [], []
        for name, one in every.items():
            slot = f"_set_{name}"
            scope[slot] = next(
                base.__dict__[name]
                for base in cls.__mro__
                if name in base.__dict__ and name in base.__dict__.get("__slots__", ())
            ).__set__
            value = name
            if one.default_factory is not _MISSING:
                scope[f"_make_{name}"] = one.default_factory
                value = f"_make_{name}() if {name} is _MISSING else {name}" if one.init else f"_make_{name}()"
                parameter = f"{name}=_MISSING"
            elif one.default is not _MISSING:
                scope[f"_default_{name}"] = one.default
                parameter = f"{name}=_default_{name}"
                value = name if one.init else f"_default_{name}"
            else:
                parameter = name
            if one.init:
                (keyword if one.kw_only else positional).append(parameter)
            elif value == name:
                continue
            body.append(f"    {slot}(self, {value})\n")
        if hasattr(cls, "__post_init__"):
            body.append("    self.__post_init__()\n")
        parameters = ["self", *positional, *(["*", *keyword] if keyword else [])]
        return f"def __init__({', '.join(parameters)}):\n{''.join(body) or '    pass'}\n"

    def _represent(self):
        shown = (f"{name}={getattr(self, name)!r}" for name, one in getattr(type(self), _MARK).items() if one.repr)
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def _refuse_set(self, name, value):
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def _refuse_delete(self, name):
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def _get_state(self):
        return [getattr(self, name) for name in getattr(type(self), _MARK)]

    def _set_state(self, state):
        for name, value in zip(getattr(type(self), _MARK), state, strict=True):
            object.__setattr__(self, name, value)

    def fields(value):
        """The fields of a class or an object, each with its ``name``."""
        return tuple(getattr(value, _MARK).values())

    def replace(value, /, **changes):
        """A copy with fields replaced."""
        for name, one in getattr(type(value), _MARK).items():
            if one.init and name not in changes:
                changes[name] = getattr(value, name)
        return type(value)(**changes)

    def asdict(value):
        """The fields as a dictionary; values that are dataclasses themselves become dictionaries, too."""
        if hasattr(type(value), _MARK):
            return {name: asdict(getattr(value, name)) for name in getattr(type(value), _MARK)}
        if isinstance(value, (list, tuple)):
            return type(value)(asdict(item) for item in value)
        if isinstance(value, dict):
            return {key: asdict(item) for key, item in value.items()}
        return value


__all__ = ["asdict", "dataclass", "field", "fields", "replace"]
