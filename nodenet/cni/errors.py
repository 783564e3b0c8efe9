"""The error codes of the specification, and the JSON that a failed verb prints (SPEC.md 1.1.0, "Error")."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from os import PathLike

from nodenet.errors import NodenetError


class Code(IntEnum):
    """1-99 are defined by the specification, 100 and up by this plugin."""

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
    """The error of a verb. The runtime receives `code`, the message, and `details` if they are not empty. The code
    is a `Code`, or any number from another plugin."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.details = details

    def to_json(self, version: str) -> str:
        """The error object, in the given version of the specification."""
        body: dict[str, object] = {"cniVersion": version, "code": int(self.code), "msg": str(self)}
        if self.details:
            body["details"] = self.details
        return json.dumps(body)


@contextmanager
def with_filename(path: PathLike[str]) -> Iterator[None]:
    """Add the file's name to the error of a failed write: the kernel's error for a full disk contains none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
