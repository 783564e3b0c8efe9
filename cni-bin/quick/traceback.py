"""traceback for the self-contained plugin: the library's, loaded when there is something to trace."""


def print_exc(*args, **kwargs):
    import _whole_traceback

    _whole_traceback.print_exc(*args, **kwargs)


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    import _whole_traceback

    return getattr(_whole_traceback, name)
