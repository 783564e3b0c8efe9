"""The one place where the API endpoint asks the policy engine whether a NetworkPolicy is valid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netpolicy.parse import read
from netpolicy.types import PolicyError, UnknownFieldError
from nodenet.lab.apiserver.status import Cause


def check(obj: Mapping[str, Any]) -> list[Cause]:
    """Every problem of a decoded NetworkPolicy. Unknown fields have been judged before."""
    try:
        errors = read(obj).errors
    except PolicyError as error:
        errors = (error,)
    known = [error for error in errors if not isinstance(error, UnknownFieldError)]
    return list(dict.fromkeys(Cause(error.field, f"Invalid value: {error.message}") for error in known))
