"""Finds BCC, which is packaged by distributions but not on PyPI."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from nodenet.errors import CannotRunError

# The module folder of python3-bpfcc in Debian and Ubuntu: pure Python that any Python 3 can load.
DIST_PACKAGES = Path("/usr/lib/python3/dist-packages")
_INSTALL = "apt-get install python3-bpfcc"


def load_bcc(folder: Path = DIST_PACKAGES) -> ModuleType:
    """The BCC module, from this environment or else from the system packages in `folder`, which a virtual
    environment does not search. Raises CannotRunError if it is not installed."""
    try:
        module = import_module("bcc")
    except ModuleNotFoundError:
        module = _from(folder / "bcc")
    except (ImportError, OSError) as error:  # libbcc.so is in a separate package
        raise CannotRunError(f"BCC cannot be loaded: {error}", _INSTALL) from error
    if not hasattr(module, "BPF"):
        raise CannotRunError(
            f"{module.__file__} belongs to another project named bcc, so BCC cannot be loaded", _INSTALL
        )
    return module


def _from(package: Path) -> ModuleType:
    source = package / "__init__.py"
    if not source.is_file():
        raise CannotRunError(f"nodenet trace needs BCC, which is Debian's package and not on PyPI: {_INSTALL}")
    spec = spec_from_file_location("bcc", source, submodule_search_locations=[str(package)])
    if spec is None or spec.loader is None:
        raise CannotRunError(f"{source} cannot be loaded as a module")
    module = module_from_spec(spec)
    sys.modules["bcc"] = module  # its submodules import each other by this name
    try:
        spec.loader.exec_module(module)
    except (ImportError, OSError) as error:
        del sys.modules["bcc"]
        raise CannotRunError(f"BCC of {package} cannot be loaded: {error}", _INSTALL) from error
    return module
