"""typing for the self-contained plugin: names without a meaning at run time. All other names are the library's."""

from collections import namedtuple

TYPE_CHECKING = False


class Any:
    pass


class _Name:
    """A special form or type variable: supports only subscripts and `|`."""

    def __init__(self, *args, **kwargs):
        pass

    def __getitem__(self, item):
        return self

    def __or__(self, other):
        return self

    __ror__ = __or__


class TypeVar(_Name):
    pass


class ParamSpec(_Name):
    args = kwargs = None


Self = Final = ClassVar = Literal = Concatenate = _Name()


def cast(kind, value):
    return value


def overload(function):
    return function


class _NamedTupleMeta(type):
    def __new__(cls, name, bases, body):
        fields = body.get("__annotations__", {})
        defaults = [body[field] for field in fields if field in body]
        made = namedtuple(name, fields, defaults=defaults, module=body["__module__"])
        for key, value in body.items():
            if key not in fields and key not in ("__annotations__", "__module__", "__qualname__"):
                setattr(made, key, value)
        return made


_NAMED_TUPLE = type.__new__(_NamedTupleMeta, "NamedTuple", (), {})


class _NamedTuple:
    def __mro_entries__(self, bases):
        return (_NAMED_TUPLE,)


NamedTuple = _NamedTuple()


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    import _whole_typing

    return getattr(_whole_typing, name)
