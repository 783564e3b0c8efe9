"""How to call this program and its pip, for commands that users copy: a name on PATH, else a path."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

_WORD = re.compile(r"(?<![\w/.-])nodenet(?= [a-z])")


def program() -> str:
    """`nodenet` if it is on PATH, else the path of this Python's script (relative if that is shorter)."""
    if shutil.which("nodenet"):
        return "nodenet"
    called = Path(sys.argv[0])
    script = called if called.name == "nodenet" else Path(sys.executable).with_name("nodenet")
    if not script.exists():
        return f"{sys.executable} -m nodenet"
    return min(os.path.relpath(script), str(script.absolute()), key=len)


def pasteable(text: str) -> str:
    """Replace `nodenet` in every `nodenet COMMAND` of the text by `program()`."""
    words = program()
    return text if words == "nodenet" else _WORD.sub(lambda _: words, text)


def pip() -> str:
    """The command that calls this Python's pip: `pip` if that is the one on PATH."""
    found = shutil.which("pip")
    if found and Path(found).parent == Path(sys.executable).parent:
        return "pip"
    return f"{sys.executable} -m pip"
