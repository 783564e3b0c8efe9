"""Reads decoded JSON field by field and checks the syntax of values. Every error names the object and the field."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from netpolicy.types import PolicyError, UnknownFieldError

_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Field:
    """A field of an object. `path` is in the notation of kubectl explain, such as spec.ingress[0].ports[1].port."""

    object: str
    path: str
    value: Any

    def error(self, message: str) -> PolicyError:
        return PolicyError(self.object, self.path, message)

    def expected(self, what: str) -> PolicyError:
        """`expected <what>, got <the value>`."""
        return self.error(f"expected {what}, got {shown(self.value)}")

    def child(self, key: str) -> Field:
        """A key of a mapping; its value is None if the key is absent or null, which the API treats as equal."""
        return Field(self.object, f"{self.path}.{key}" if self.path else key, self.mapping().get(key))

    def at(self, key: str) -> Field:
        """A key that may contain dots (a label), written with brackets."""
        return Field(self.object, f"{self.path}[{key}]", self.mapping().get(key))

    @property
    def absent(self) -> bool:
        return self.value is None

    def mapping(self) -> Mapping[str, Any]:
        """The value as a mapping; None is an empty one. Raises PolicyError if it is not a mapping with text keys."""
        if self.value is None:
            return {}
        if not isinstance(self.value, Mapping):
            raise self.expected("a mapping")
        for key in self.value:
            if not isinstance(key, str):
                raise self.error(f"expected text as key, got {shown(key)}")
        return self.value

    def present(self) -> Field:
        """Returns this field. Raises PolicyError if its value is absent or not a mapping: an empty list item has no
        meaning."""
        if self.value is None:
            raise self.expected("a mapping ({} for everything)")
        self.mapping()
        return self

    def items(self) -> Iterator[Field]:
        """The items of a list; none if the field is absent. Raises PolicyError if it is not a list."""
        if self.value is None:
            return
        if not isinstance(self.value, list | tuple):
            raise self.expected("a list")
        for index, value in enumerate(self.value):
            yield Field(self.object, f"{self.path}[{index}]", value)

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self.expected("text")
        return self.value

    def number(self) -> int:
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            raise self.expected("a whole number")
        return self.value

    def one_of(self, words: Collection[str]) -> str:
        if self.value not in words:
            raise self.expected("one of " + ", ".join(words))
        return str(self.value)

    def only(self, known: Collection[str]) -> Field:
        """Returns this field. Raises UnknownFieldError if the mapping has a key that is not in `known`."""
        for key in self.mapping():
            if key not in known:
                field = self.child(key)
                raise UnknownFieldError(field.object, field.path, f"unknown field; expected one of {', '.join(known)}")
        return self


def port_number(field: Field) -> int:
    number = field.number()
    if not 1 <= number <= 65535:
        raise field.expected("1-65535")
    return number


def port_name(field: Field) -> str:
    """IANA_SVC_NAME (RFC 6335), as the API server validates it."""
    name = field.text()
    if len(name) > 15 or not _PORT_NAME.fullmatch(name):
        raise field.expected("a port number, or a port name of at most 15 of a-z 0-9 - with a letter in it")
    return name


def label_key(field: Field, key: str) -> str:
    """A qualified name: [DNS subdomain/]name, the name at most 63 characters."""
    prefix, slash, name = key.rpartition("/")
    if slash and not is_dns_subdomain(prefix):
        raise field.error(f"expected a DNS name before the / of a label key, got {shown(key)}")
    if len(name) > 63 or not _LABEL_NAME.fullmatch(name):
        raise field.error(
            f"expected a label key of at most 63 of A-Z a-z 0-9 - _ . between letters or digits, got {shown(key)}"
        )
    return key


def label_value(field: Field) -> str:
    value = field.text()
    if value and (len(value) > 63 or not _LABEL_NAME.fullmatch(value)):
        raise field.expected("a label value of at most 63 of A-Z a-z 0-9 - _ . between letters or digits")
    return value


def labels(field: Field) -> dict[str, str]:
    """The labels of metadata.labels or matchLabels. Raises PolicyError for an invalid key or value."""
    found: dict[str, str] = {}
    for key in field.mapping():
        value = field.at(label_key(field, key))
        found[key] = label_value(value)
    return found


def is_dns_subdomain(name: str) -> bool:
    return len(name) <= 253 and all(_DNS_LABEL.fullmatch(part) for part in name.split("."))


def is_dns_label(name: str) -> bool:
    return len(name) <= 63 and _DNS_LABEL.fullmatch(name) is not None


def shown(value: object) -> str:
    """A value for a message, shortened: users choose it."""
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
