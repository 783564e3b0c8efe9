"""traceback for the self-contained plugin: loads the library's module at the first use."""


def print_exc(*args, **kwargs):
    import _whole_traceback

    _whole_traceback.print_exc(*args, **kwargs)


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    import _whole_traceback

    return getattr(_whole_traceback, name)
