# ruff: noqa: N807, RUF063
"""dataclasses for the self-contained plugin: only the features that it uses, without generated source code.

The library's own module compiles four functions per class and imports inspect, which takes half of the plugin's start
time. An unsupported feature raises TypeError when the class is defined, so the tests of such a build fail.
"""

MISSING = object()
_set = object.__setattr__


class FrozenInstanceError(AttributeError):
    pass


class Field:
    __slots__ = ("compare", "default", "default_factory")

    def __init__(self, default=MISSING, default_factory=MISSING, compare=True):
        self.default, self.default_factory, self.compare = default, default_factory, compare


def field(*, default=MISSING, default_factory=MISSING, compare=True):
    return Field(default, default_factory, compare)


def dataclass(cls=None, /, *, frozen=False, slots=False):
    return _make(cls, frozen, slots) if cls is not None else lambda cls: _make(cls, frozen, slots)


def replace(instance, /, **changes):
    kept = {name: getattr(instance, name) for name in instance.__dataclass_fields__ if name not in changes}
    return type(instance)(**kept, **changes)


def _make(cls, frozen, slots):
    inherited = {}
    for base in cls.__mro__[:0:-1]:
        inherited.update(getattr(base, "__dataclass_fields__", {}))
    own = {}
    for name in cls.__dict__.get("__annotations__", {}):
        default = cls.__dict__.get(name, MISSING)
        own[name] = default if isinstance(default, Field) else Field(default)
    fields = inherited | own
    body = {name: value for name, value in cls.__dict__.items() if name not in ("__dict__", "__weakref__")}
    for name, found in own.items():
        if slots or found.default is MISSING:
            body.pop(name, None)
        else:
            body[name] = found.default
    names = tuple(fields)
    body["__dataclass_fields__"] = fields
    body.setdefault("__match_args__", names)
    for name, function in _methods(names, fields, frozen).items():
        if name in ("__eq__", "__repr__") and name in cls.__dict__:
            continue
        body[name] = function
    if slots:
        body["__slots__"] = tuple(name for name in own if name not in inherited)
    made = type(cls)(cls.__name__, cls.__bases__, body)
    made.__qualname__ = cls.__qualname__
    return made


def _methods(names, fields, frozen):
    count = len(names)

    def __init__(self, *args, **kwargs):
        if len(args) > count:
            raise TypeError(f"{type(self).__name__}() takes {count} arguments, got {len(args)}")
        for name, value in zip(names, args):  # noqa: B905 - as many as were given
            if name in kwargs:
                raise TypeError(f"{type(self).__name__}() got several values for {name!r}")
            _set(self, name, value)
        for name in names[len(args) :]:
            found = fields[name]
            if name in kwargs:
                value = kwargs.pop(name)
            elif found.default is not MISSING:
                value = found.default
            elif found.default_factory is not MISSING:
                value = found.default_factory()
            else:
                raise TypeError(f"{type(self).__name__}() lacks {name!r}")
            _set(self, name, value)
        if kwargs:
            raise TypeError(f"{type(self).__name__}() has no {next(iter(kwargs))!r}")
        if hasattr(self, "__post_init__"):
            self.__post_init__()

    compared = [name for name in names if fields[name].compare]

    def values(self):
        return tuple([getattr(self, name) for name in compared])

    def __repr__(self):
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def __eq__(self, other):
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    found = {"__init__": __init__, "__repr__": __repr__, "__eq__": __eq__, "__hash__": None}
    if frozen:

        def __hash__(self):
            return hash(values(self))

        def __setattr__(self, name, value):
            raise FrozenInstanceError(f"cannot assign to field {name!r}")

        def __delattr__(self, name):
            raise FrozenInstanceError(f"cannot delete field {name!r}")

        found |= {"__hash__": __hash__, "__setattr__": __setattr__, "__delattr__": __delattr__}
    return found
