"""``dataclass`` and ``pattern``: classes whose methods, and regular expressions whose machines, are made when they are first needed. Imported by
all folders; imports none.

The standard decorator compiles every method of every class at import: with some hundred value classes that was half of the time of
a cached build. This one makes the slots at once and a class's methods together when its first object is made; most classes never are in one
command. Nothing but ``__init__`` is compiled, and that once for all classes whose fields are alike. A type checker sees the standard decorator: what is written is ordinary dataclass code, with the
options that the project uses (``slots=True`` always; ``frozen``, ``eq``, ``order``, ``kw_only``).
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import asdict, dataclass, field, fields, replace
    from re import compile as pattern
else:

    class _Pattern:
        """A regular expression that is compiled when it is first used: most are not, in one command, and compiling takes 0.1 ms and more."""

        def __init__(self, text, flags=0):
            self._text = text
            self._flags = flags

        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            import re

            compiled = re.compile(self._text, self._flags)
            for method in ("match", "fullmatch", "search", "sub", "subn", "split", "findall", "finditer"):
                setattr(self, method, getattr(compiled, method))
            return getattr(compiled, name)

    pattern = _Pattern

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
        functions = {"__repr__": _represent}
        if "__init__" in made:
            functions["__init__"] = _initializer(cls, every)
        compared = _getter([name for name, one in every.items() if one.compare])
        for name, operator in _OPERATORS.items():
            if name in made:
                functions[name] = _comparison(operator, compared)
        if "__hash__" in made:
            hashed = [name for name, one in every.items() if (one.compare if one.hash is None else one.hash)]
            functions["__hash__"] = _hashing(_getter(hashed))
        for name in made:
            function = functions[name]
            if name != "__repr__":
                function.__name__ = name
                function.__qualname__ = f"{cls.__qualname__}.{name}"
                function.__module__ = cls.__module__
            setattr(cls, name, function)
        _pending.pop(cls, None)

    _OPERATORS = {
        "__eq__": operator.eq,
        "__lt__": operator.lt,
        "__le__": operator.le,
        "__gt__": operator.gt,
        "__ge__": operator.ge,
    }

    def _getter(names):
        return operator.attrgetter(*names) if names else lambda value: ()

    def _comparison(compare, get):
        def method(self, other):
            if other.__class__ is not self.__class__:
                return NotImplemented
            return compare(get(self), get(other))

        return method

    def _hashing(get):
        def method(self):
            return hash(get(self))

        return method

    def _initializer(cls, every):
        """``__init__``. Its code depends on the sorts of the fields alone, not on their names: it is compiled once for each sequence of sorts."""
        scope = {"missing": _MISSING}
        sorts, names, keywords, defaults, keyword_defaults = [], [], [], [], {}
        for number, (name, one) in enumerate(every.items()):
            scope[f"set{number}"] = next(
                base.__dict__[name]
                for base in cls.__mro__
                if name in base.__dict__ and name in base.__dict__.get("__slots__", ())
            ).__set__
            default = one.default
            if one.default_factory is not _MISSING:
                scope[f"make{number}"] = one.default_factory
            if not one.init:
                if one.default_factory is not _MISSING:
                    sorts.append("made")
                elif default is not _MISSING:
                    scope[f"make{number}"] = lambda default=default: default
                    sorts.append("made")
                else:
                    sorts.append("unset")
                continue
            sort = "keyword" if one.kw_only else "positional"
            sorts.append(f"{sort} or made" if one.default_factory is not _MISSING else sort)
            if one.kw_only:
                keywords.append(name)
                if default is not _MISSING or one.default_factory is not _MISSING:
                    keyword_defaults[name] = default
            else:
                names.append(name)
                if default is not _MISSING or one.default_factory is not _MISSING:
                    defaults.append(default)
                elif defaults:
                    raise TypeError(f"non-default argument {name!r} of {cls.__qualname__} follows default argument")
        if hasattr(cls, "__post_init__"):
            sorts.append("then more")
        shape = tuple(sorts)
        code = _shapes.get(shape)
        if code is None:
            code = _shapes[shape] = _compiled(shape)
        code = code.replace(co_varnames=("self", *names, *keywords))
        function = _FunctionType(code, scope, "__init__", tuple(defaults))
        function.__kwdefaults__ = keyword_defaults
        return function

    _FunctionType = type(_getter)
    _shapes = {}

    def _compiled(shape):
        """The code of an ``__init__`` for fields of these sorts, whose parameters are yet to be named."""
        positional, keyword, body = ["self"], [], []
        for number, sort in enumerate(shape):
            match sort:
                case "positional" | "keyword":
                    body.append(f"    set{number}(self, p{number})\n")
                case "positional or made" | "keyword or made":
                    body.append(f"    set{number}(self, make{number}() if p{number} is missing else p{number})\n")
                case "made":
                    body.append(f"    set{number}(self, make{number}())\n")
                case "then more":
                    body.append("    self.__post_init__()\n")
            if sort.startswith("positional"):
                positional.append(f"p{number}")
            elif sort.startswith("keyword"):
                keyword.append(f"p{number}")
        parameters = [*positional, *(["*", *keyword] if keyword else [])]
        scope = {}
        exec(f"def __init__({', '.join(parameters)}):\n{''.join(body) or '    pass'}\n", scope)
        return scope["__init__"].__code__

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


__all__ = ["asdict", "dataclass", "field", "fields", "pattern", "replace"]
