"""Checks NetworkPolicies with the policy engine. No other module of the API endpoint uses it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netpolicy.parse import read
from netpolicy.types import PolicyError, UnknownFieldError
from nodenet.lab.apiserver.status import Cause


def check(obj: Mapping[str, Any]) -> list[Cause]:
    """All problems of a decoded NetworkPolicy, without unknown fields, which the decoder has handled before."""
    try:
        errors = read(obj).errors
    except PolicyError as error:
        errors = (error,)
    known = [error for error in errors if not isinstance(error, UnknownFieldError)]
    return list(dict.fromkeys(Cause(error.field, f"Invalid value: {error.message}") for error in known))
