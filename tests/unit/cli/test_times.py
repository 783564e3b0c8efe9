"""Times as people write them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from nodenet.cli.times import parse

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5m", "2026-01-31T11:55:00+00:00"),
        ("1h30m", "2026-01-31T10:30:00+00:00"),
        ("1.5s", "2026-01-31T11:59:58.500000+00:00"),
        ("250ms", "2026-01-31T11:59:59.750000+00:00"),
        ("2d", "2026-01-29T12:00:00+00:00"),
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00+00:00"),
        ("2026-01-31T12:00:00+02:00", "2026-01-31T12:00:00+02:00"),
        ("2026-01-31", "2026-01-31T00:00:00+00:00"),
    ],
)
def test_times(text, expected):
    assert parse(text, NOW).isoformat() == expected


@pytest.mark.parametrize("text", ["", "5", "yesterday", "5m ago", "-5m"])
def test_what_is_not_a_time(text):
    with pytest.raises(ValueError, match="expected a duration such as 5m"):
        parse(text, NOW)
