"""Checks policies with the policy engine. No other module of the API endpoint uses it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netpolicy import parse, parse_cluster
from netpolicy.types import PolicyError, UnknownFieldError, UnreadableError
from nodenet.lab.apiserver.status import Cause


def check(obj: Mapping[str, Any]) -> list[Cause]:
    """All problems of a decoded NetworkPolicy, without unknown fields, which the decoder has handled before."""
    try:
        errors = parse.read(obj).errors
    except PolicyError as error:
        errors = (error,)
    known = [error for error in errors if not isinstance(error, UnknownFieldError)]
    return list(dict.fromkeys(Cause(error.field, f"Invalid value: {error.message}") for error in known))


def check_cluster(obj: Mapping[str, Any]) -> list[Cause]:
    """All problems of a ClusterNetworkPolicy that the schema of its definition finds. An unknown field is one: kubectl
    asks the server to refuse it. A selector that has no meaning is none: the schema does not check it."""
    try:
        errors = parse_cluster.read(obj).errors
    except PolicyError as error:
        errors = (error,)
    refused = [error for error in errors if not isinstance(error, UnreadableError)]
    return list(dict.fromkeys(Cause(error.field, f"Invalid value: {error.message}") for error in refused))
