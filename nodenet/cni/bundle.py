"""Builds the two files that a node needs: a launcher, and the plugin as one static file that needs no Python on the
node.

    <cache>/cni-<key>/nodenet   cni-bin/launcher.c
    <cache>/cni-<key>/alone     cni-bin/alone.c: libpython, linked statically, with every module that the plugin imports

The key is a digest of all inputs but the compiler, so each version is built once, and a container image, which has both
files in config.PREBUILT, needs no compiler. docs/decisions/0011-static-plugin.md gives the reasons and figures.
"""

from __future__ import annotations

import hashlib
import marshal
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from modulefinder import ModuleFinder
from pathlib import Path

import nodenet
from nodenet.cni import protocol
from nodenet.cni.conf import SUPPORTED_VERSIONS
from nodenet.cni.keys import DEFAULT_SOCKET
from nodenet.cni.patterns import patterns
from nodenet.config import PREBUILT
from nodenet.errors import CannotRunError

LAUNCHER, ALONE = "nodenet", "alone"
# Python imports an encoding when its name is first used, so a search for imports does not find them. Our code uses only
# UTF-8; the library may use the others, which are small, when it detects an encoding.
_CODECS = (
    *("utf_8", "ascii", "latin_1", "utf_8_sig", "unicode_escape", "raw_unicode_escape"),
    *("utf_16", "utf_16_be", "utf_16_le", "utf_32", "utf_32_be", "utf_32_le"),
)
# Entry modules of the plugin's own process; their imports are added.
_ROOTS = ("nodenet.cni.alone", "nodenet.cni.plugin", *(f"encodings.{name}" for name in _CODECS))
# Used only by code that the plugin never runs, or dependent on extension modules that libpython does not contain.
_EXCLUDED = (
    *("_aix_support", "_ctypes", "_hashlib", "asyncio", "bz2", "ctypes", "difflib", "distutils", "doctest", "email"),
    *("http", "lzma", "multiprocessing", "nntplib", "pdb", "pickle", "py_compile", "pydoc", "pyroute2", "readline"),
    *("setuptools", "site", "sitecustomize", "ssl", "tarfile", "test", "tkinter", "tracemalloc", "unittest", "xml"),
    *("zipfile", "zipimport"),
)
# Library modules that cni-bin/quick replaces with faster ones, and the name under which the library's own remains
# available.
_QUICK = {
    **{name: f"_whole_{name}" for name in ("dataclasses", "logging", "signal", "socket", "traceback", "typing")},
    "re": "re._whole",
    "urllib.parse": "_whole_urllib_parse",
}
# Frozen in libpython: these must not be replaced.
_OWN = ("_frozen_importlib", "_frozen_importlib_external")
_FLAGS = ("-O2", "-static", "-s", "-Wall", "-Wextra", "-Werror")
_TIMEOUT = 180


@dataclass(frozen=True, slots=True)
class Bundle:
    """Both files. Builds with equal keys do the same."""

    key: str
    launcher: Path
    alone: Path

    @property
    def folder_name(self) -> str:
        """The folder next to the installed launcher that contains the other file."""
        return folder_name(self.key)


@dataclass(frozen=True, slots=True)
class Source:
    """One module's file, and whether it is a package."""

    path: Path
    package: bool


def folder_name(key: str) -> str:
    return f".nodenet-{key}"


def source_dir() -> Path:
    """The folder with the C sources: inside the package if it was installed from a wheel, else in the checkout."""
    package = Path(nodenet.__file__).parent
    for folder in (package / "cni" / "bin", package.parent / "cni-bin"):
        if (folder / "launcher.c").is_file():
            return folder
    raise CannotRunError(f"{package}: the CNI executable's sources are not part of this installation")


def build(cache_dir: Path, building: Callable[[], None] = lambda: None) -> Bundle:
    """Return both files for this interpreter and these sources. If neither image nor cache contains them, call
    `building` and build them, which takes seconds. Raises CannotRunError."""
    found = _modules()
    key = _key(found)
    for folder in (PREBUILT, cache_dir):
        bundle = Bundle(key, folder / f"cni-{key}" / LAUNCHER, folder / f"cni-{key}" / ALONE)
        if bundle.launcher.exists():
            return bundle
    building()
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        # Build in a temporary folder and rename it: two processes may build at the same time, and a crash must leave no
        # partial folder.
        with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".cni-") as name:
            draft = Path(name) / "out"
            draft.mkdir()
            _compile_launcher(key, draft / LAUNCHER)
            _compile_alone(found, Path(name), draft / ALONE)
            if not bundle.launcher.exists():
                draft.rename(bundle.launcher.parent)
    except OSError as error:
        if not bundle.launcher.exists():
            raise CannotRunError(f"{error.filename or cache_dir}: {error.strerror}") from error
    return bundle


def _modules() -> dict[str, Source]:
    """All Python modules that the plugin may import, by name."""
    library = sysconfig.get_path("stdlib")
    finder = ModuleFinder(path=[str(Path(nodenet.__file__).parent.parent), library], excludes=list(_EXCLUDED))
    for root in _ROOTS:
        finder.import_hook(root)
    found = {}
    for name, module in sorted(finder.modules.items()):
        file = getattr(module, "__file__", None)
        if file and file.endswith(".py") and name not in _OWN:
            found[name] = Source(Path(file), getattr(module, "__path__", None) is not None)
    for name in found.keys() & _QUICK.keys():
        found[_QUICK[name]] = Source(found[name].path, package=False)
        found[name] = Source(source_dir() / "quick" / f"{name.replace('.', '_')}.py", found[name].package)
    return dict(sorted(found.items()))


def _key(found: dict[str, Source]) -> str:
    digest = hashlib.sha256()
    for text in (sys.version, sysconfig.get_platform(), *_FLAGS, *_defines("")):
        digest.update(text.encode() + b"\0")
    files = [source.path for source in found.values()]
    for path in [Path(__file__), *sorted(source_dir().rglob("*.[ch]")), *files]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def c_compiler() -> str:
    """The C compiler's path. Raises CannotRunError."""
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not found:
        raise CannotRunError("no C compiler is installed, so C sources cannot be built", "apt-get install gcc")
    return found


def _defines(key: str) -> list[str]:
    """Constants that the launcher shares with the Python code."""
    return [
        f'-DDEFAULT_SOCKET="{DEFAULT_SOCKET}"',
        f'-DNEWEST="{SUPPORTED_VERSIONS[-1]}"',
        f"-DMAX_STDIN={protocol.MAX_STDIN}",
        f'-DALONE="{folder_name(key)}/{ALONE}"',
    ]


def _compile_launcher(key: str, target: Path) -> None:
    _cc([*_FLAGS, *_defines(key), str(source_dir() / "launcher.c"), "-o", str(target)])


def _compile_alone(found: dict[str, Source], folder: Path, target: Path) -> None:
    library = Path(str(sysconfig.get_config_var("LIBPL"))) / str(sysconfig.get_config_var("LIBRARY"))
    headers = str(sysconfig.get_config_var("INCLUDEPY"))
    if not library.is_file() or not (Path(headers) / "Python.h").is_file():
        version = sysconfig.get_python_version()
        message = f"{library} or {headers}/Python.h is missing, so the CNI executable cannot be built"
        raise CannotRunError(message, f"apt-get install libpython{version}-dev")
    table, code = _frozen(found)
    (folder / "frozen.h").write_text(table)
    (folder / "frozen.bin").write_bytes(code)
    (folder / "frozen.S").write_text(
        f'.section .rodata\n.global nn_frozen\nnn_frozen:\n.incbin "{folder}/frozen.bin"\n'
        '.section .note.GNU-stack,"",@progbits\n'
    )
    words = " ".join(str(sysconfig.get_config_var(name) or "") for name in ("MODLIBS", "LIBS", "SYSLIBS")).split()
    libraries = [*dict.fromkeys(word for word in words if word.startswith("-l")), "-lm"]
    sources = [str(source_dir() / "alone.c"), str(folder / "frozen.S")]
    # The linker warns about functions that would load libraries (getaddrinfo for example). The plugin calls none of
    # them.
    _cc([*_FLAGS, f"-I{folder}", f"-I{headers}", *sources, str(library), *libraries, "-o", str(target)])


def _frozen(found: dict[str, Source]) -> tuple[str, bytes]:
    """The C table of modules, and the concatenated code objects, without docstrings and assertions."""
    rows, code = [], bytearray()
    texts = {name: (source.path.read_bytes(), source.package) for name, source in found.items()}
    texts["_nodenet_patterns"] = (
        f"PATTERNS = {patterns({name: source.path for name, source in found.items()})!r}".encode(),
        False,
    )
    for name, (text, is_package) in texts.items():
        compiled = compile(text, f"<{name}>", "exec", dont_inherit=True, optimize=2)
        data = marshal.dumps(compiled)
        package = int(is_package)
        rows.append(
            f'\t{{ .name = "{name}", .code = nn_frozen + {len(code)}, .size = {len(data)}, .is_package = {package} }},'
        )
        code += data
    return "static const struct _frozen modules[] = {\n" + "\n".join(rows) + "\n\t{ .name = NULL },\n};\n", bytes(code)


def _cc(arguments: list[str]) -> None:
    compiler = c_compiler()
    done = subprocess.run([compiler, *arguments], capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    if done.returncode != 0:
        raise CannotRunError(
            f"{compiler} could not build the CNI executable:\n{done.stderr.strip()[-3000:]}",
            "static libraries come from libc6-dev, libexpat1-dev and zlib1g-dev",
        )
