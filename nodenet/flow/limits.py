"""Limits of a request for flows. Requests also come over the network, so every size and the work per flow are bounded.

The limits are far above what Hubble's clients send: its CLI sends one or two filters per list. Pure.
"""

from __future__ import annotations

# Filters in a list (whitelist or blacklist).
MAX_FILTERS = 100
# Values in all filters of a list together.
MAX_VALUES = 1024
# Characters of one text: a name, a pattern, a label selector.
MAX_LENGTH = 1024
# Comparisons for one flow: a set counts as one, a list as one per member, a selector as one per requirement.
MAX_STEPS = 4096
# Field masks: paths, and characters of one path.
MAX_PATHS = 256
MAX_PATH_LENGTH = 256
# Comparisons before the event loop gets control again; they take about a millisecond.
STEPS_PER_READ = 8192
# Bytes of one request.
MAX_REQUEST_BYTES = 256 << 10

_SHOWN = 64


def shown(text: str) -> str:
    """The text in quotes and shortened, so that an error message does not grow with the request."""
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}... ({len(text)} characters)"
