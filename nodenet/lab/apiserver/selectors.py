"""Label and field selectors, from query strings of the API and from objects (apimachinery: labels, fields)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nodenet.lab.apiserver.status import bad_request

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Requirement:
    """One term. `operator` is In, NotIn, Exists, DoesNotExist, Gt or Lt."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, labels: Labels) -> bool:
        value = labels.get(self.key)
        if self.operator == "In":
            return value in self.values
        if self.operator == "NotIn":
            return value not in self.values
        if self.operator == "Exists":
            return value is not None
        if self.operator == "DoesNotExist":
            return value is None
        return self._compare(value)

    def _compare(self, value: str | None) -> bool:
        try:
            have, wanted = int(value or ""), int(self.values[0])
        except (ValueError, IndexError):
            return False
        return have > wanted if self.operator == "Gt" else have < wanted


Selector = tuple[Requirement, ...]


def matches(selector: Selector, labels: Labels) -> bool:
    return all(requirement.matches(labels) for requirement in selector)


_KEY = r"[A-Za-z0-9](?:[-A-Za-z0-9_./]*[A-Za-z0-9])?"
_SET = re.compile(rf"^({_KEY})\s+(in|notin)\s*\(([^()]*)\)$")
_EQUAL = re.compile(rf"^({_KEY})\s*(==|=|!=|>|<)\s*([-A-Za-z0-9_.]*)$")
_EXISTS = re.compile(rf"^(!?)\s*({_KEY})$")
_OPERATORS = {"=": "In", "==": "In", "!=": "NotIn", ">": "Gt", "<": "Lt"}


def parse_labels(text: str) -> Selector:
    """`a=b,c!=d,e in (f,g),h,!i`. Raises a 400 ApiError that names the term."""
    terms = [term.strip() for term in re.split(r",(?![^()]*\))", text) if term.strip()]
    return tuple(_term(term) for term in terms)


def _term(term: str) -> Requirement:
    if found := _SET.match(term):
        values = tuple(value.strip() for value in found[3].split(","))
        return Requirement(found[1], "In" if found[2] == "in" else "NotIn", values)
    if found := _EXISTS.match(term):
        return Requirement(found[2], "DoesNotExist" if found[1] else "Exists")
    if found := _EQUAL.match(term):
        return Requirement(found[1], _OPERATORS[found[2]], (found[3],))
    raise bad_request(
        f"unable to parse requirement: {term!r} (expected key=value, key!=value, key in (a,b), key or !key)"
    )


def from_object(selector: Mapping[str, Any] | None) -> Selector | None:
    """The selector of a validated metav1.LabelSelector. None selects nothing; an empty one selects everything."""
    if selector is None:
        return None
    equal = tuple(Requirement(key, "In", (value,)) for key, value in (selector.get("matchLabels") or {}).items())
    expressions = selector.get("matchExpressions") or []
    return equal + tuple(Requirement(e["key"], e["operator"], tuple(e.get("values") or ())) for e in expressions)


FieldTerm = tuple[str, bool, str]


def parse_fields(text: str, known: frozenset[str]) -> tuple[FieldTerm, ...]:
    """`metadata.name=x,status.phase!=Running`. Raises a 400 ApiError for a field that cannot be selected on."""
    terms = []
    for term in filter(None, text.split(",")):
        key, operator, value = re.match(r"^([^=!]*)(!=|==|=|)(.*)$", term, re.S).groups()  # type: ignore[union-attr]
        if not operator:
            raise bad_request(f"invalid field selector: {term!r}; can't understand it (expected field=value)")
        if key not in known:
            raise bad_request(f"field label not supported: {key} (known: {', '.join(sorted(known))})")
        terms.append((key, operator != "!=", value))
    return tuple(terms)


def matches_fields(terms: tuple[FieldTerm, ...], fields: Mapping[str, str]) -> bool:
    return all((fields.get(key, "") == value) is equal for key, equal, value in terms)


Matcher = Callable[[Labels, Mapping[str, str]], bool]
