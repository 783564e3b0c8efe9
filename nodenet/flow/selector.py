"""Parses label selectors of the hubble CLI: Kubernetes' grammar, with an optional source before the key. Pure.

It uses one pass and no regular expressions: selectors come from clients, so the cost must be linear in their length.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from functools import lru_cache

from nodenet.flow.limits import shown

Labels = dict[tuple[str, str], str]

_ALNUM = frozenset(string.ascii_letters + string.digits)
_SOURCE = frozenset(string.ascii_lowercase + string.digits + "-")
_KEY = _ALNUM | frozenset("_./-")
_VALUE = _KEY | {":"}


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on the label `place` (source, key). `values` None: the label must exist (or must not, if `wanted`
    is False)."""

    place: tuple[str, str]
    wanted: bool
    values: frozenset[str] | None = None

    def holds(self, labels: Labels) -> bool:
        if self.values is None:
            return (self.place in labels) is self.wanted
        return (labels.get(self.place) in self.values) is self.wanted


@dataclass(frozen=True, slots=True)
class Selector:
    """Tests a party's labels: every requirement must hold."""

    requirements: tuple[Requirement, ...]

    def __call__(self, labels: tuple[str, ...]) -> bool:
        known = split(labels)
        return all(one.holds(known) for one in self.requirements)


def parse(selector: str) -> Selector:
    """Parse a selector. Raises ValueError with the invalid part.

    `app=web`, `app!=web`, `k8s:tier in (a, b)`, `tier notin (a)`, `app`, `!app`, `reserved:world`. As in Kubernetes,
    `!=` and `notin` also match if the label is absent. Without a source, or with `any:`, every source matches. An empty
    selector matches everything.
    """
    if not selector.strip():
        return Selector(())
    return Selector(tuple(_requirement(part.strip()) for part in _parts(selector)))


@lru_cache(maxsize=4096)
def split(labels: tuple[str, ...]) -> Labels:
    """{(source, key): value}; each label is also included with an empty source. The result is cached: do not modify
    it."""
    found: Labels = {}
    for label in labels:
        source, _, rest = label.partition(":")
        key, _, value = rest.partition("=")
        found[(source, key)] = value
        found[("", key)] = value
    return found


def _parts(selector: str) -> list[str]:
    """Split at commas, except those in parentheses."""
    parts, start, inside = [], 0, False
    for place, character in enumerate(selector):
        if character == "(":
            inside = True
        elif character == ")":
            inside = False
        elif character == "," and not inside:
            parts.append(selector[start:place])
            start = place + 1
    return [*parts, selector[start:]]


def _requirement(text: str) -> Requirement:
    if text.endswith(")"):
        found = _in_set(text)
    elif text.startswith("!"):
        found = _exists(text[1:].lstrip(), False)
    elif "=" in text:
        found = _equals(text)
    else:
        found = _exists(text, True)
    if found is None:
        raise ValueError(f"label selector: cannot read {shown(text)} (expected key, !key, key=value, key in (a, b))")
    return found


def _in_set(text: str) -> Requirement | None:
    head, bracket, rest = text[:-1].partition("(")
    words = head.split()
    if not bracket or len(words) != 2 or words[1] not in ("in", "notin"):
        return None
    place = _place(words[0])
    values = frozenset(value.strip() for value in rest.split(","))
    if place is None or not all(_VALUE.issuperset(value) for value in values):
        return None
    return Requirement(place, words[1] == "in", values)


def _equals(text: str) -> Requirement | None:
    key, _, value = text.partition("=")
    negated = key.endswith("!")
    if negated:
        key = key[:-1]
    elif value.startswith("="):
        value = value[1:]
    place, value = _place(key.rstrip()), value.lstrip()
    if place is None or not _VALUE.issuperset(value):
        return None
    return Requirement(place, not negated, frozenset([value]))


def _exists(key: str, wanted: bool) -> Requirement | None:
    place = _place(key)
    return None if place is None else Requirement(place, wanted)


def _place(text: str) -> tuple[str, str] | None:
    source, colon, key = text.rpartition(":")
    if colon and (not source or not _SOURCE.issuperset(source)):
        return None
    if not key or not _KEY.issuperset(key) or key[0] not in _ALNUM or key[-1] not in _ALNUM:
        return None
    return ("" if source == "any" else source), key
