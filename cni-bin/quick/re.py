"""re for the self-contained plugin: uses expressions that were compiled at build time. Other expressions load the
library's module."""

import _sre
import sys

from _nodenet_patterns import PATTERNS

A = ASCII = 256
I = IGNORECASE = 2  # noqa: E741 - the library's name
M = MULTILINE = 8
S = DOTALL = 16
X = VERBOSE = 64
U = UNICODE = 32
NOFLAG = 0
_found = {}
# Submodules: the import system looks them up as attributes before it loads them.
_PARTS = ("_whole", "_casefix", "_compiler", "_constants", "_parser")


def compile(pattern, flags=0):  # noqa: A001 - the library's name
    key = (pattern, int(flags))
    if key not in _found:
        if key in PATTERNS:
            number, code, *rest = PATTERNS[key]
            _found[key] = _sre.compile(pattern, number, list(code), *rest)
        else:
            _found[key] = __getattr__("compile")(pattern, int(flags))
    return _found[key]


def match(pattern, text, flags=0):
    return compile(pattern, flags).match(text)


def fullmatch(pattern, text, flags=0):
    return compile(pattern, flags).fullmatch(text)


def search(pattern, text, flags=0):
    return compile(pattern, flags).search(text)


def sub(pattern, by, text, count=0, flags=0):
    return compile(pattern, flags).sub(by, text, count)


def __getattr__(name):
    if name.startswith("__") or name in _PARTS:
        raise AttributeError(name)
    __import__("re._whole")
    return getattr(sys.modules["re._whole"], name)
