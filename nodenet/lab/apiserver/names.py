"""Checks names and labels as the API does (apimachinery validation: RFC 1123 and 1035 names, qualified names)."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any

from nodenet.lab.apiserver.status import Cause, invalid, required

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LABEL_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(rf"{_LABEL.pattern}(\.{_LABEL.pattern})*")
_QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_PORT_NAME = re.compile(r"(?=.*[a-z])(?!.*--)[a-z0-9]([-a-z0-9]*[a-z0-9])?")
# The alphabet of generated names, without vowels and without digits that look like letters (apimachinery util/rand).
_RANDOM = "bcdfghjklmnpqrstvwxz2456789"

SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', "
    "and must start and end with an alphanumeric character"
)
LABEL_RULE = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', "
    "and must start and end with an alphanumeric character"
)
LABEL_1035_RULE = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', "
    "start with an alphabetic character, and end with an alphanumeric character"
)
_VALUE_RULE = (
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"
)


def subdomain_problem(value: str) -> str:
    """The problem of a DNS subdomain, or "" if it is valid: up to 253 characters, lower case, digits, '-' and '.'."""
    if len(value) > 253:
        return "must be no more than 253 characters"
    return "" if _SUBDOMAIN.fullmatch(value) else SUBDOMAIN_RULE


def label_problem(value: str, *, letter_first: bool = False) -> str:
    """The problem of a DNS label of up to 63 characters, or "". `letter_first` is RFC 1035's stricter rule."""
    if len(value) > 63:
        return "must be no more than 63 characters"
    if letter_first:
        return "" if _LABEL_1035.fullmatch(value) else LABEL_1035_RULE
    return "" if _LABEL.fullmatch(value) else LABEL_RULE


def port_name_problem(value: str) -> str:
    """The problem of an IANA service name, or "": up to 15 characters with at least one letter (RFC 6335)."""
    if len(value) > 15:
        return "must be no more than 15 characters"
    if _PORT_NAME.fullmatch(value):
        return ""
    return "must contain only lower case letters, digits and single '-', with at least one letter (a-z)"


def key_problem(key: str) -> str:
    """The problem of a label or annotation key, or "": an optional DNS prefix, then up to 63 characters."""
    prefix, slash, name = key.rpartition("/")
    if slash and (not prefix or subdomain_problem(prefix)):
        return "prefix part " + SUBDOMAIN_RULE
    if len(name) > 63:
        return "name part must be no more than 63 characters"
    if not name or not _QUALIFIED.fullmatch(name):
        return f"name part {_VALUE_RULE}"
    return ""


def value_problem(value: str) -> str:
    """The problem of a label value, or "": it may be empty or have up to 63 characters."""
    if len(value) > 63:
        return "must be no more than 63 characters"
    if value and not _QUALIFIED.fullmatch(value):
        return f"a valid label must be empty, or {_VALUE_RULE}"
    return ""


def check_labels(labels: Mapping[str, str], path: str) -> list[Cause]:
    found = [invalid(path, key, problem) for key in labels if (problem := key_problem(key))]
    return found + [invalid(path, value, problem) for value in labels.values() if (problem := value_problem(value))]


_SELECTOR_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")


def check_selector(selector: Mapping[str, Any], path: str) -> list[Cause]:
    """A metav1.LabelSelector."""
    found = check_labels(selector.get("matchLabels") or {}, f"{path}.matchLabels")
    for index, term in enumerate(selector.get("matchExpressions") or ()):
        where = f"{path}.matchExpressions[{index}]"
        operator, values = term.get("operator", ""), term.get("values") or []
        if problem := key_problem(term.get("key", "")):
            found.append(invalid(f"{where}.key", term.get("key", ""), problem))
        if operator not in _SELECTOR_OPERATORS:
            found.append(invalid(f"{where}.operator", operator, "not a valid selector operator"))
        elif operator in ("In", "NotIn") and not values:
            found.append(required(f"{where}.values", "must be specified when `operator` is 'In' or 'NotIn'"))
        elif operator in ("Exists", "DoesNotExist") and values:
            found.append(
                Cause(
                    f"{where}.values",
                    "Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                    "FieldValueForbidden",
                )
            )
        found += [invalid(f"{where}.values", value, problem) for value in values if (problem := value_problem(value))]
    return found


_LETTER_FIRST = ("Service",)
_LABEL_ONLY = ("Namespace",)


def check_name(kind: str, name: str, path: str) -> list[Cause]:
    if not name:
        return [required(path, "name or generateName is required")]
    if kind in _LETTER_FIRST:
        problem = label_problem(name, letter_first=True)
    else:
        problem = label_problem(name) if kind in _LABEL_ONLY else subdomain_problem(name)
    return [invalid(path, name, problem)] if problem else []


def check_metadata(kind: str, metadata: Mapping[str, Any]) -> list[Cause]:
    """All problems with the name, labels, annotations and owners of an object."""
    found = check_name(kind, metadata.get("name", ""), "metadata.name")
    found += check_labels(metadata.get("labels") or {}, "metadata.labels")
    annotations: Mapping[str, str] = metadata.get("annotations") or {}
    found += [
        invalid("metadata.annotations", key, problem) for key in annotations if (problem := key_problem(key.lower()))
    ]
    size = sum(len(key) + len(value) for key, value in annotations.items())
    if size > 256 * 1024:
        found.append(Cause("metadata.annotations", "Too long: may not be more than 262144 bytes", "FieldValueTooLong"))
    for index, owner in enumerate(metadata.get("ownerReferences") or ()):
        where = f"metadata.ownerReferences[{index}]"
        found += [required(f"{where}.{key}") for key in ("apiVersion", "kind", "name", "uid") if not owner.get(key)]
    return found


def random_suffix(length: int = 5) -> str:
    """The random end of a generated name (generateName)."""
    return "".join(secrets.choice(_RANDOM) for _ in range(length))


def safe_text(number: int, length: int) -> str:
    """A number written in the alphabet of generated names, for hashes in names."""
    text = ""
    for _ in range(length):
        number, digit = divmod(number, len(_RANDOM))
        text += _RANDOM[digit]
    return text
