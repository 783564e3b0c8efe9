"""Reads an object part by part, for the parsers of the kinds of policies."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from netpolicy.fields import Field, label_key, label_value, shown
from netpolicy.types import Operator, PolicyError, Problem, Requirement, Selector, UnreadableError

T = TypeVar("T")


class Reader:
    """An error in a part is recorded with its effect, and the caller continues without the part."""

    def __init__(self) -> None:
        self.errors: list[PolicyError] = []
        self.problems: list[Problem] = []

    def attempt(self, effect: str, read: Callable[[], T]) -> T | None:
        """Returns the part, or None if it cannot be read."""
        try:
            return read()
        except PolicyError as error:
            self.errors.append(error)
            self.problems.append(Problem(error.field, error.message, effect))
            return None

    def check(self, read: Callable[[], object]) -> None:
        """For values that the API server would reject but that can still be read: records the error and no effect."""
        try:
            read()
        except PolicyError as error:
            self.errors.append(error)

    def selector(self, selector: Field) -> Selector:
        """metav1.LabelSelector; absent and empty both match everything (callers that distinguish them check before).

        Keys and values with a syntax error are recorded and still used: API servers keep such selectors in old objects,
        and compare them with labels as usual.
        """
        selector.only(("matchLabels", "matchExpressions"))
        found = []
        wanted = selector.child("matchLabels")
        for key in sorted(wanted.mapping()):
            value = wanted.at(key)
            self._syntax(partial(label_key, wanted, key))
            found.append(Requirement(key, Operator.IN, (self._value(value),)))
        found += [self._requirement(item) for item in selector.child("matchExpressions").items()]
        return Selector(tuple(found))

    def _syntax(self, read: Callable[[], object]) -> None:
        """As `check`, for syntax that the schema of a custom resource does not check."""
        try:
            read()
        except PolicyError as error:
            self.errors.append(UnreadableError(error.object, error.field, error.message))

    def _value(self, value: Field) -> str:
        text = value.text()
        self._syntax(lambda: label_value(value))
        return text

    def _requirement(self, item: Field) -> Requirement:
        item.present().only(("key", "operator", "values"))
        key = item.child("key")
        text = key.text()
        self._syntax(lambda: label_key(key, text))
        word = item.child("operator")
        if not isinstance(word.value, str):
            raise word.expected("one of " + ", ".join(Operator))
        values = item.child("values")
        found = tuple(sorted({self._value(value) for value in values.items()}))
        try:
            operator = Operator(word.one_of(tuple(Operator)))
            _check_values(operator, values, found)
        except PolicyError as error:
            raise UnreadableError(error.object, error.field, error.message) from None
        return Requirement(text, operator, found)


def _check_values(operator: Operator, values: Field, found: tuple[str, ...]) -> None:
    if operator in (Operator.IN, Operator.NOT_IN) and not found:
        raise values.error(f"operator {operator} needs at least one value")
    if operator in (Operator.EXISTS, Operator.DOES_NOT_EXIST) and found:
        raise values.error(f"operator {operator} must have no values, got {shown(list(found))}")
