"""The one place where the API endpoint asks the policy engine whether a NetworkPolicy is valid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from netpolicy.parse import network_policy
from netpolicy.types import PolicyError
from nodenet.lab.apiserver.status import Cause

Obj = Mapping[str, Any]


def check(obj: Obj) -> list[Cause]:
    """Every problem of a decoded NetworkPolicy. Unknown fields have been judged before."""
    first = _problem(obj)
    if first is None:
        return []
    found = [cause for part in _parts(obj) if (cause := _problem(part)) is not None]
    return list(dict.fromkeys(found)) or [first]


def _problem(obj: Obj) -> Cause | None:
    try:
        network_policy(obj, strict=False)
    except PolicyError as error:
        return Cause(error.field, f"Invalid value: {error.message}")
    return None


_ANY_PEER: Obj = {"podSelector": {}}
_ANY_PORT: Obj = {}
_SECTIONS = (("ingress", "from"), ("egress", "to"))


def _parts(obj: Obj) -> Iterator[Obj]:
    """The engine stops at the first problem: so it is asked about every part alone, the others made harmless.

    What is left in a part keeps its index, and so its field path.
    """
    spec = obj["spec"]
    emptied: dict[str, Any] = {section: [{} for _ in spec[section]] for section, _ in _SECTIONS if spec.get(section)}
    yield {**obj, "spec": {**spec, **emptied}}
    for section, peers in _SECTIONS:
        for index, rule in enumerate(spec.get(section) or ()):
            for field, harmless in ((peers, _ANY_PEER), ("ports", _ANY_PORT)):
                for place, item in enumerate(rule.get(field) or ()):
                    items = [harmless] * place + [item]
                    rules: list[Obj] = [*({} for _ in range(index)), {field: items}]
                    yield {**obj, "spec": {"podSelector": {}, section: rules}}
