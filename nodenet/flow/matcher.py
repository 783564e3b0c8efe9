"""Compiles the filters of one request into one test with bounded cost. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from nodenet.flow import limits
from nodenet.flow.field_tests import BUILDERS, FieldTest
from nodenet.flow.filter import FilterError, FlowFilter, Origin
from nodenet.flow.types import Flow


@dataclass(frozen=True, slots=True)
class Matcher:
    """The test of a request. Call it with a flow: it returns whether the flow is wanted. `steps`: the largest number of
    comparisons."""

    wanted: tuple[tuple[FieldTest, ...], ...]
    unwanted: tuple[tuple[FieldTest, ...], ...]
    steps: int

    def __call__(self, flow: Flow) -> bool:
        if self.wanted and not any(_holds(one, flow) for one in self.wanted):
            return False
        return not any(_holds(one, flow) for one in self.unwanted)


def _holds(tests: tuple[FieldTest, ...], flow: Flow) -> bool:
    return all(one.test(flow) for one in tests)


def compile_filters(whitelist: Sequence[FlowFilter], blacklist: Sequence[FlowFilter], origin: Origin) -> Matcher | None:
    """Compile both lists. Returns None if there is no filter. Raises FilterError naming the field if a value is invalid
    or a limit is exceeded."""
    steps = 0
    lists: list[tuple[tuple[FieldTest, ...], ...]] = []
    for name, filters in (("whitelist", whitelist), ("blacklist", blacklist)):
        require_filters(name, len(filters))
        compiled, steps = _compile_list(filters, origin, steps)
        lists.append(compiled)
    return Matcher(lists[0], lists[1], steps) if whitelist or blacklist else None


def require_filters(name: str, count: int) -> None:
    """Raises FilterError if a list has too many filters."""
    if count > limits.MAX_FILTERS:
        raise FilterError(name, f"{count} filters, at most {limits.MAX_FILTERS}")


def require_values(field_name: str, count: int) -> None:
    """`count`: values in all filters of a list, including this field. Raises FilterError if there are too many."""
    if count > limits.MAX_VALUES:
        raise FilterError(
            field_name, f"{count} values in this field and those before it, at most {limits.MAX_VALUES} in one list"
        )


def _compile_list(
    filters: Sequence[FlowFilter], origin: Origin, steps: int
) -> tuple[tuple[tuple[FieldTest, ...], ...], int]:
    """The tests of each filter, and `steps` plus the comparisons of these tests."""
    compiled, count = [], 0
    for one in filters:
        tests: list[FieldTest] = []
        for spec in fields(one):
            values = getattr(one, spec.name)
            if not values:
                continue
            count += len(values)
            require_values(spec.name, count)
            tests.append(_field_test(spec.name, values, origin))
            steps += tests[-1].steps
            if steps > limits.MAX_STEPS:
                message = f"a flow would need {steps} comparisons, at most {limits.MAX_STEPS} in one request"
                raise FilterError(spec.name, message)
        compiled.append(tuple(tests))
    return tuple(compiled), steps


def _field_test(name: str, values: tuple[Any, ...], origin: Origin) -> FieldTest:
    for value in values:
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and len(text) > limits.MAX_LENGTH:
                raise FilterError(name, f"a value of {len(text)} characters, at most {limits.MAX_LENGTH}")
    try:
        return BUILDERS[name](values, origin)
    except ValueError as error:
        raise FilterError(name, str(error)) from error
