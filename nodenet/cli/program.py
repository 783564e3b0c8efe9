"""The words that call this program and its pip, for people to paste: names that the shell finds, else paths."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

_WORD = re.compile(r"(?<![\w/.-])nodenet(?= [a-z])")


def program() -> str:
    """`nodenet` when it is on PATH; else the script of this Python, from here when that is shorter."""
    if shutil.which("nodenet"):
        return "nodenet"
    called = Path(sys.argv[0])
    script = called if called.name == "nodenet" else Path(sys.executable).with_name("nodenet")
    if not script.exists():
        return f"{sys.executable} -m nodenet"
    return min(os.path.relpath(script), str(script.absolute()), key=len)


def pasteable(text: str) -> str:
    """`text` with every `nodenet COMMAND` in it as it can be called here."""
    words = program()
    return text if words == "nodenet" else _WORD.sub(lambda _: words, text)


def pip() -> str:
    """The words that call the pip of this Python: `pip` when the shell finds that one."""
    found = shutil.which("pip")
    if found and Path(found).parent == Path(sys.executable).parent:
        return "pip"
    return f"{sys.executable} -m pip"
