"""What a request for flows may cost. Requests come over the network too, so every size and every step is bounded.

The limits are far above what hubble's clients send: its CLI makes one or two filters per list. Pure.
"""

from __future__ import annotations

# Filters in a whitelist or a blacklist.
MAX_FILTERS = 100
# Values in all filters of a list together.
MAX_VALUES = 1024
# Characters of one text: a name, a pattern, a label selector.
MAX_LENGTH = 1024
# Comparisons that one flow may need: a set counts one, a list one for each member, a selector one for each requirement.
MAX_STEPS = 4096
# Field masks: paths, and characters of one path.
MAX_PATHS = 256
MAX_PATH_LENGTH = 256
# Comparisons between two turns of the event loop, about a millisecond.
STEPS_PER_READ = 8192
# Bytes of one request.
MAX_REQUEST_BYTES = 256 << 10

_SHOWN = 64


def shown(text: str) -> str:
    """The text quoted for a message, shortened: an answer must not grow with the request."""
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}... ({len(text)} characters)"
