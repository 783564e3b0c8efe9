"""signal for the self-contained plugin: the C module, with plain numbers instead of enums. All other names are the
library's."""

from _signal import *  # noqa: F403


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    import _whole_signal

    return getattr(_whole_signal, name)
