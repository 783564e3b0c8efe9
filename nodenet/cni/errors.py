"""The specification's error codes, and the JSON that a failed verb prints (SPEC.md 1.1.0, "Error")."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from os import PathLike

from nodenet.errors import NodenetError


class Code(IntEnum):
    """1-99 are the specification's, 100 and up are this plugin's own."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    BAD_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODE_FAILURE = 6
    BAD_CONFIG = 7
    TRY_AGAIN = 11
    NOT_AVAILABLE = 50
    LIMITED = 51
    # Ours.
    POOL_EXHAUSTED = 101
    ADDRESS_TAKEN = 102
    INTERFACE_EXISTS = 103
    KERNEL_REFUSED = 104
    AGENT_FAILED = 105
    CHECK_FAILED = 106
    DELEGATE_FAILED = 107
    INTERNAL = 199


class CniError(NodenetError):
    """What a verb fails with: `code` and message go to the runtime, `details` too when there are any. The code is one
    of `Code`, or any number that another plugin gave."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.details = details

    def to_json(self, version: str) -> str:
        """The error object, in the version that the configuration asked for."""
        body: dict[str, object] = {"cniVersion": version, "code": int(self.code), "msg": str(self)}
        if self.details:
            body["details"] = self.details
        return json.dumps(body)


@contextmanager
def naming(path: PathLike[str]) -> Iterator[None]:
    """Give a failed write the name of its file: the kernel's error for a full disk has none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
