"""How well one kind's watch does: what people, metrics and CNI are told, and how long to wait after a failure."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from nodenet.backoff import Backoff
from nodenet.kinds import ApiKind
from nodenet.kube.absence import FIRST_POLL_SECONDS, LAST_POLL_SECONDS
from nodenet.kube.session import AnswerError
from nodenet.model import ObjectRef
from nodenet.pulse import Pulse

log = logging.getLogger(__name__)

# A watch that has failed for this long is no passing thing: what the agent knows is getting old.
CUT_OFF_SECONDS = 30.0
# A connected watch brings a bookmark about once a minute, and one that brings nothing is asked for again after
# IDLE_SECONDS (client.py). So bytes that are older than this mean that the API is out of reach.
STALE_SECONDS = 110.0
# A watch that the server ends sooner than this, without a word, is trouble.
SHORT_WATCH_SECONDS = 5.0
FIRST_BACKOFF_SECONDS = 0.1
# While anything is stale, seconds count: policy is enforced as it was. A refused connection costs a server little.
LAST_BACKOFF_SECONDS = 4.0
# What is said of one object at most: objects are other people's input.
_SENTENCES = 5
_SENTENCE_LENGTH = 300


@dataclass(slots=True)
class KindStats:
    """What happened to one kind's watch. `error` is why it is not connected now, or ""; `failing_since` is when that
    began, and `last_byte` when the server last sent anything, in seconds of the monotonic clock; 0: not so, or never.

    `installed`: False while the API does not serve an optional kind.
    `unread`: what could not be read of objects that the API has now. `undecodable` counts such versions.
    """

    lists: int = 0
    watches: int = 0
    events: int = 0
    undecodable: int = 0
    nameless: int = 0
    errors: int = 0
    error: str = ""
    failing_since: float = 0.0
    last_byte: float = 0.0
    installed: bool = True
    unread: dict[ObjectRef, tuple[str, ...]] = field(default_factory=dict)

    def cut_off(self, now: float) -> bool:
        """Whether it has failed for longer than an API server needs to start again, or has been silent for longer than
        a living connection is."""
        failing = bool(self.failing_since) and now - self.failing_since > CUT_OFF_SECONDS
        return failing or (bool(self.last_byte) and now - self.last_byte > STALE_SECONDS)

    def age(self, now: float) -> float | None:
        """Seconds since the last byte; None before the first."""
        return now - self.last_byte if self.last_byte else None

    def note(self, kind: ApiKind, ref: ObjectRef, unread: Iterable[str]) -> None:
        """What could not be read of an object's newest version. The same is logged once."""
        found = [text if len(text) <= _SENTENCE_LENGTH else f"{text[: _SENTENCE_LENGTH - 3]}..." for text in unread]
        if not found:
            self.unread.pop(ref, None)
            return
        shown = tuple(found[:_SENTENCES])
        if len(found) > _SENTENCES:
            shown += (f"and {len(found) - _SENTENCES} more",)
        if self.unread.get(ref) != shown:
            self.undecodable += 1
            log.warning("%s %s: could not be read: %s", kind, ref, "; ".join(shown))
        self.unread[ref] = shown


class Recovery:
    """Tells the watches that wait that another one got through: the server is back."""

    def __init__(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        self._sleep = sleep
        self._recovered = Pulse()

    def happened(self) -> None:
        self._recovered.fire()

    async def wait(self, seconds: float) -> bool:
        """Until then or until a recovery; whether it was one."""
        sleeping = asyncio.ensure_future(self._sleep(seconds))
        woken = asyncio.ensure_future(self._recovered.next().wait())
        try:
            await asyncio.wait((sleeping, woken), return_when=asyncio.FIRST_COMPLETED)
            return woken.done()
        finally:
            sleeping.cancel()
            woken.cancel()


class Trouble:
    """How often in a row one kind's watch failed, how long to wait therefore, and what is reported of it."""

    def __init__(
        self, kind: ApiKind, server: str, stats: KindStats, recovery: Recovery, spread: Callable[[], float]
    ) -> None:
        self._kind = kind
        self._server = server
        self._stats = stats
        self._recovery = recovery
        self._spread = spread
        self._backoff = Backoff(FIRST_BACKOFF_SECONDS, LAST_BACKOFF_SECONDS)
        self._polls = Backoff(FIRST_POLL_SECONDS, LAST_POLL_SECONDS)
        self._since = 0.0
        self._silent = True
        self._relisted = False

    def watching(self) -> None:
        """A watch is asked for."""
        self._since = asyncio.get_running_loop().time()
        self._silent = True

    def connected(self) -> None:
        """The server answers. That is no success yet: it may end the watch at once, or say 410."""
        if self._stats.error:
            log.info("%s: %s: connected again", self._server, self._kind)
            self._stats.error = ""
            self._recovery.happened()
        self._stats.failing_since = 0.0

    def listed(self) -> None:
        """A list is complete. It ends no row of lists whose versions are refused at once."""
        self.connected()
        self._polls.reset()
        if not self._stats.installed:
            log.info("%s: %s: installed", self._server, self._kind)
            self._stats.installed = True
        if not self._relisted:
            self._backoff.reset()

    def absent(self) -> float:
        """The API answers that the kind is not installed. Returns seconds to wait before the next look."""
        self.connected()
        if self._stats.installed:
            log.info("%s: %s: not installed", self._server, self._kind)
            self._stats.installed = False
            self._stats.unread.clear()
        return self._spread_out(self._polls.next())

    def over(self) -> None:
        """Something came."""
        self.connected()
        self._backoff.reset()
        self._silent = self._relisted = False

    def woken(self) -> None:
        """Another kind got through: try again as if nothing had happened before."""
        self._backoff.reset()
        self._polls.reset()

    def began(self, error: Exception) -> float:
        """Returns seconds to wait. The same trouble is reported once."""
        self._stats.errors += 1
        text = str(error) or type(error).__name__
        level = logging.DEBUG if text == self._stats.error else logging.WARNING
        log.log(level, "%s: %s: %s; trying again", self._server, self._kind, text)
        self._stats.error = text
        self._stats.failing_since = self._stats.failing_since or time.monotonic()
        if isinstance(error, AnswerError):
            if error.code == 410 and not self._relisted:
                # The server is well, only the version is too old: a list helps at once.
                self._relisted = True
                return 0.0
            return max(self._pause(), error.after)
        return self._pause()

    def ended(self) -> float:
        """A watch came to its end, as each does every few minutes. Returns seconds to wait before the next."""
        if self._silent and asyncio.get_running_loop().time() - self._since < SHORT_WATCH_SECONDS:
            return self._pause()
        self.over()
        return 0.0

    def _pause(self) -> float:
        """Doubles with every failure."""
        return self._spread_out(self._backoff.next())

    def _spread_out(self, seconds: float) -> float:
        """Somewhere in the upper half, so that many agents do not come at once."""
        return seconds * (0.5 + 0.5 * self._spread())
