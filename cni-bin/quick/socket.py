"""socket for the self-contained plugin: the C module, with support for `with`. All other names are the library's."""

import _socket
from _socket import *  # noqa: F403


class socket(_socket.socket):  # noqa: N801 - the library's name
    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    import _whole_socket

    return getattr(_whole_socket, name)
