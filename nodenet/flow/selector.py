"""Label selectors as the hubble CLI takes them: Kubernetes' grammar, with an optional source before the key. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

Labels = dict[tuple[str, str], str]
LabelTest = Callable[[Labels], bool]

_KEY = r"(?:(?P<source>[a-z0-9-]+):)?(?P<key>[A-Za-z0-9](?:[A-Za-z0-9_./-]*[A-Za-z0-9])?)"
_VALUE = r"[A-Za-z0-9_.:/-]*"
_SET = re.compile(rf"{_KEY}\s+(?P<op>in|notin)\s*\(\s*(?P<values>{_VALUE}(?:\s*,\s*{_VALUE})*)\s*\)")
_EQUAL = re.compile(rf"{_KEY}\s*(?P<op>==|=|!=)\s*(?P<value>{_VALUE})")
_EXISTS = re.compile(rf"(?P<op>!?)\s*{_KEY}")
_COMMA = re.compile(r",(?![^(]*\))")


def parse(selector: str) -> Callable[[tuple[str, ...]], bool]:
    """A test for a party's labels. Every requirement must hold. Raises ValueError naming what is wrong.

    `app=web`, `app!=web`, `k8s:tier in (a, b)`, `tier notin (a)`, `app`, `!app`, `reserved:world`. As in Kubernetes,
    `!=` and `notin` hold for a label that is absent. Without a source, or with `any:`, every source matches.
    """
    tests = [_requirement(part.strip()) for part in _COMMA.split(selector)]

    def matches(labels: tuple[str, ...]) -> bool:
        known = split(labels)
        return all(test(known) for test in tests)

    return matches


@lru_cache(maxsize=4096)
def split(labels: tuple[str, ...]) -> Labels:
    """{(source, key): value}; every label is also there with an empty source. Do not change the result."""
    found: Labels = {}
    for label in labels:
        source, _, rest = label.partition(":")
        key, _, value = rest.partition("=")
        found[(source, key)] = value
        found[("", key)] = value
    return found


def _requirement(text: str) -> LabelTest:
    match = _SET.fullmatch(text)
    if match:
        values = frozenset(value.strip() for value in match["values"].split(","))
        return _compare(_place(match), values, match["op"] == "in")
    match = _EQUAL.fullmatch(text)
    if match:
        return _compare(_place(match), frozenset([match["value"]]), match["op"] != "!=")
    match = _EXISTS.fullmatch(text)
    if match:
        place, wanted = _place(match), not match["op"]
        return lambda labels: (place in labels) is wanted
    raise ValueError(f"label selector: cannot read {text!r} (expected key, !key, key=value, key in (a, b))")


def _place(match: re.Match[str]) -> tuple[str, str]:
    source = match["source"] or ""
    return ("" if source == "any" else source), match["key"]


def _compare(place: tuple[str, str], values: frozenset[str], wanted: bool) -> LabelTest:
    if wanted:
        return lambda labels: labels.get(place) in values
    return lambda labels: labels.get(place) not in values
