"""logging for the self-contained plugin: warnings and errors go to standard error, as in the library without
configuration. All other names are the library's."""

import sys


class Logger:
    def __init__(self, name):
        self.name = name

    def debug(self, message, *args):
        pass

    info = debug

    def warning(self, message, *args):
        sys.stderr.write((message % args if args else message) + "\n")

    error = warning

    def exception(self, message, *args):
        import traceback

        self.warning(message, *args)
        traceback.print_exc()


getLogger = Logger  # noqa: N816 - the library's name


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    import _whole_logging

    return getattr(_whole_logging, name)
