"""Decides which notices become Events, so that no pod can flood etcd. Pure.

The rules are those of client-go's recorder (tools/record, EventCorrelator), which the kubelet uses: a repeated notice
raises the count of its Event; many notices that differ only in the message become one Event; each object has a budget.
The node has a budget too, because a user who can create pods can create any number of objects.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

# Budget of one object: a burst of this many Events, then one per OBJECT_SECONDS.
OBJECT_BURST = 25
OBJECT_SECONDS = 300.0
# Budget of the node: a burst of this many Events, then one per NODE_SECONDS.
NODE_BURST = 100
NODE_SECONDS = 1.0
# If one object, type and reason has more different messages than this within SIMILAR_SECONDS, the others become one
# Event.
SIMILAR_MESSAGES = 10
SIMILAR_SECONDS = 600.0
SIMILAR_PREFIX = "(combined from similar events): "
# The API's limit on the text of an Event, in bytes.
LONGEST_MESSAGE = 1024
# The largest number of objects, groups and Events in memory. The API deletes an Event after an hour.
REMEMBERED = 4096

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class About:
    """The object of an Event. `namespace` is "" for a cluster-scoped object."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """`type` is Normal or Warning; `reason` is one word in CamelCase, for machines."""

    about: About
    type: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Entry:
    """The desired state of an Event. `first` and `last` are UNIX seconds. `count` 1: it does not exist yet."""

    notice: Notice
    name: str
    first: float
    last: float
    count: int = 1


class _Remembered(Generic[K, V]):
    """A bounded dictionary that evicts the least recently used entry."""

    def __init__(self, make: Callable[[], V]) -> None:
        self._make = make
        self._entries: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V:
        if key not in self._entries:
            self._entries[key] = self._make()
            if len(self._entries) > REMEMBERED:
                self._entries.popitem(last=False)
        self._entries.move_to_end(key)
        return self._entries[key]

    def set(self, key: K, value: V) -> None:
        self.get(key)
        self._entries[key] = value


@dataclass(slots=True)
class Budget:
    """A token bucket with `burst` tokens; one is added every `seconds`. `left` -1: not used yet."""

    burst: int
    seconds: float
    left: float = -1.0
    since: float = 0.0

    def has_one(self, now: float) -> bool:
        if self.left < 0:
            self.left, self.since = float(self.burst), now
        self.left = min(float(self.burst), self.left + max(0.0, now - self.since) / self.seconds)
        self.since = now
        return self.left >= 1

    def take(self) -> None:
        self.left -= 1


@dataclass(slots=True)
class _Similar:
    """Different messages of one object, type and reason since `began`."""

    began: float = 0.0
    messages: set[str] = field(default_factory=set)


class Correlator:
    """The correlator of one node. `now` is UNIX seconds; it may go back only by a little."""

    def __init__(self) -> None:
        self._node = Budget(NODE_BURST, NODE_SECONDS)
        self._objects: _Remembered[About, Budget] = _Remembered(lambda: Budget(OBJECT_BURST, OBJECT_SECONDS))
        self._similar: _Remembered[tuple[About, str, str], _Similar] = _Remembered(_Similar)
        self._entries: _Remembered[Notice, Entry | None] = _Remembered(lambda: None)

    def take(self, notice: Notice, now: float) -> Entry | None:
        """The Event to write for a notice. None if a budget is used up."""
        budget = self._objects.get(notice.about)
        # Check both budgets before taking from one: a refused notice must cost nothing.
        if not (budget.has_one(now) and self._node.has_one(now)):
            return None
        budget.take()
        self._node.take()
        notice, text = self._combined(replace(notice, message=shortened(notice.message)), now)
        known = self._entries.get(notice)
        shown = replace(notice, message=text)
        if known is None:
            entry = Entry(shown, _name(notice.about, now), now, now)
        else:
            entry = replace(known, notice=shown, last=now, count=known.count + 1)
        self._entries.set(notice, entry)
        return entry

    def forget(self, entry: Entry) -> None:
        """Forget an Event that the API does not have: the next equal notice creates a new one."""
        # A combined Event is stored under the prefix instead of its message.
        for key in (entry.notice, replace(entry.notice, message=SIMILAR_PREFIX)):
            known = self._entries.get(key)
            if known is not None and known.name == entry.name:
                self._entries.set(key, None)

    def _combined(self, notice: Notice, now: float) -> tuple[Notice, str]:
        """The notice under which this one is counted, and the message to show."""
        similar = self._similar.get((notice.about, notice.type, notice.reason))
        # A new period begins: count the different messages from 0.
        if now - similar.began > SIMILAR_SECONDS:
            similar.began, similar.messages = now, set()
        if notice.message in similar.messages or len(similar.messages) < SIMILAR_MESSAGES:
            similar.messages.add(notice.message)
            return notice, notice.message
        return replace(notice, message=SIMILAR_PREFIX), shortened(SIMILAR_PREFIX + notice.message)


def shortened(message: str) -> str:
    """The message cut to LONGEST_MESSAGE bytes, without control characters, which could change a terminal's state."""
    clean = "".join(letter if letter.isprintable() else " " for letter in message[:LONGEST_MESSAGE])
    data = clean.encode(errors="replace")
    if len(data) <= LONGEST_MESSAGE:
        return data.decode()
    # Cutting bytes may split a character: drop the incomplete one.
    return data[: LONGEST_MESSAGE - 3].decode(errors="ignore") + "..."


def _name(about: About, now: float) -> str:
    """The name of an Event as client-go builds it: the object's name and the time in nanoseconds. The API allows 253
    characters."""
    return f"{about.name[:230]}.{int(now * 1e9):x}"
