"""The health of one kind's watch: its statistics for status, metrics and CNI, and the pauses after failures."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import aiohttp

from nodenet.backoff import Backoff
from nodenet.kinds import ApiKind
from nodenet.kube.absence import FIRST_POLL_SECONDS, LAST_POLL_SECONDS
from nodenet.kube.herd import Herd, window
from nodenet.kube.session import AnswerError
from nodenet.model import ObjectRef
from nodenet.pulse import Pulse

log = logging.getLogger(__name__)

# A watch that has failed for longer than this is reported: the agent's view of the cluster is out of date.
CUT_OFF_SECONDS = 30.0
# A connected watch receives a bookmark about once a minute, and a silent one is started again after IDLE_SECONDS
# (client.py). If the last byte is older than this, the API is unreachable.
STALE_SECONDS = 110.0
# A watch that the server ends sooner than this, without sending anything, counts as a failure.
SHORT_WATCH_SECONDS = 5.0
FIRST_BACKOFF_SECONDS = 0.1
# The longest pause is short, because old policy is enforced while the watch is down, and a refused connection costs the
# server little.
LAST_BACKOFF_SECONDS = 4.0
# Limits of what is reported about one object: its content comes from users.
_SENTENCES = 5
_SENTENCE_LENGTH = 300
# While no server can be reached, one watch asks after these pauses, and wakes the others when it gets an answer. The
# others ask this rarely.
FOLLOWER_SECONDS = 30.0
# The largest number of different errors that are remembered during one outage.
_MOST_LOGGED = 100


@dataclass(slots=True)
class KindStats:
    """Statistics of one kind's watch. `error` is why it is not connected now, or "". `failing_since` is the time of the
    first failure (0: not failing) and `last_byte` the time of the last data from the server (0: none yet), both in
    seconds of the monotonic clock.

    `installed`: False while the API does not serve an optional kind.
    `unread`: for each object in the API, the parts that could not be read. `undecodable` counts object versions with
    such parts; `nameless` counts objects without a readable name.
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
    # The UIDs of these objects, "" if unknown.
    uids: dict[ObjectRef, str] = field(default_factory=dict)

    def cut_off(self, now: float) -> bool:
        """Whether the watch has failed for more than CUT_OFF_SECONDS, or received nothing for more than
        STALE_SECONDS."""
        failing = bool(self.failing_since) and now - self.failing_since > CUT_OFF_SECONDS
        return failing or (bool(self.last_byte) and now - self.last_byte > STALE_SECONDS)

    def age(self, now: float) -> float | None:
        """Seconds since the last byte; None before the first."""
        return now - self.last_byte if self.last_byte else None

    def note(self, kind: ApiKind, ref: ObjectRef, unread: Iterable[str], uid: str = "") -> None:
        """Record the parts of an object's newest version that could not be read. An unchanged list is logged only
        once."""
        found = [text if len(text) <= _SENTENCE_LENGTH else f"{text[: _SENTENCE_LENGTH - 3]}..." for text in unread]
        if not found:
            self.unread.pop(ref, None)
            self.uids.pop(ref, None)
            return
        shown = tuple(found[:_SENTENCES])
        if len(found) > _SENTENCES:
            shown += (f"and {len(found) - _SENTENCES} more",)
        if self.unread.get(ref) != shown:
            self.undecodable += 1
            log.warning("%s %s: could not be read: %s", kind, ref, "; ".join(shown))
        self.unread[ref] = shown
        self.uids[ref] = uid


class Recovery:
    """Wakes the waiting watches when one of them has connected: the server is reachable again. While no server is, one
    of them asks for all."""

    def __init__(self, herd: Herd) -> None:
        self._herd = herd
        self._recovered = Pulse()
        self._asks_for_all: ApiKind | None = None

    def notify(self) -> None:
        self._asks_for_all = None
        self._recovered.fire()

    def limits(self) -> tuple[float, float]:
        """The shortest and the longest pause after a failure: longer in a large cluster, whose agents lose their
        connections at the same moment."""
        spread = window(self._herd.nodes)
        return max(FIRST_BACKOFF_SECONDS, spread / 5), max(LAST_BACKOFF_SECONDS, spread)

    def shared(self, kind: ApiKind, seconds: float) -> float:
        """The pause after a server could not be reached: `seconds` for the watch that asks for all."""
        if self._asks_for_all in (None, kind):
            self._asks_for_all = kind
            return seconds
        return max(seconds, FOLLOWER_SECONDS)

    def answered(self, kind: ApiKind) -> None:
        """A server answered this kind with an error: the others must ask for themselves."""
        if self._asks_for_all is kind:
            self.notify()

    async def wait(self, seconds: float) -> bool:
        """Wait for so many seconds, or until another watch recovers. Returns True in the second case."""
        sleeping = asyncio.ensure_future(self._herd.sleep(seconds))
        woken = asyncio.ensure_future(self._recovered.next().wait())
        try:
            await asyncio.wait((sleeping, woken), return_when=asyncio.FIRST_COMPLETED)
            return woken.done()
        finally:
            sleeping.cancel()
            woken.cancel()


class Failures:
    """Counts consecutive failures of one kind's watch, computes the pause after each, and reports them."""

    def __init__(
        self,
        kind: ApiKind,
        server: str,
        stats: KindStats,
        recovery: Recovery,
        spread: Callable[[], float],
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
        # The errors that were logged since the last connection.
        self._logged: set[str] = set()

    def watch_starts(self) -> None:
        """A watch request is about to be sent."""
        self._since = asyncio.get_running_loop().time()
        self._silent = True

    def connected(self) -> None:
        """The server answered. The backoff is not reset yet, because the server may end the watch at once or answer
        410."""
        if self._stats.error:
            log.info("%s: %s: connected again", self._server, self._kind)
            self._stats.error = ""
            self._logged.clear()
            self._recovery.notify()
        self._stats.failing_since = 0.0

    def listed(self) -> None:
        """A list is complete. The backoff is not reset if the list follows a 410: the watch may be refused with 410
        again."""
        self.connected()
        self._polls.reset()
        if not self._stats.installed:
            log.info("%s: %s: installed", self._server, self._kind)
            self._stats.installed = True
        if not self._relisted:
            self._backoff.reset()

    def absent(self) -> float:
        """The API answered that the kind is not installed. Returns seconds to wait before the next check."""
        self.connected()
        if self._stats.installed:
            log.info("%s: %s: not installed", self._server, self._kind)
            self._stats.installed = False
            self._stats.unread.clear()
            self._stats.uids.clear()
        return self._spread_out(self._polls.next())

    def succeeded(self) -> None:
        """The watch delivered an event or lasted long enough: the failure is over."""
        self.connected()
        self._backoff.reset()
        self._silent = self._relisted = False

    def reset_backoff(self) -> None:
        """The watch of another kind recovered: start again with the shortest pause."""
        self._backoff.reset()
        self._polls.reset()

    def failed(self, error: Exception) -> float:
        """A list or watch failed. Returns seconds to wait. Repetitions of the same error are logged at debug level."""
        self._stats.errors += 1
        text = str(error) or type(error).__name__
        # With several servers the errors alternate: each is logged once until a server answers.
        level = logging.DEBUG if text in self._logged else logging.WARNING
        if len(self._logged) < _MOST_LOGGED:
            self._logged.add(text)
        log.log(level, "%s: %s: %s; trying again", self._server, self._kind, text)
        self._stats.error = text
        self._stats.failing_since = self._stats.failing_since or time.monotonic()
        self._backoff.first, self._backoff.last = self._recovery.limits()
        if isinstance(error, AnswerError):
            self._recovery.answered(self._kind)
            if error.code == 410 and not self._relisted:
                # 410 means that only the resourceVersion is too old: list at once, without a pause.
                self._relisted = True
                return 0.0
            # Never retry before the time that the server asked for.
            return max(self._pause(), error.after)
        # An answer that cannot be read is a matter of this kind.
        unreachable = isinstance(error, aiohttp.ClientError | TimeoutError | OSError)
        return self._recovery.shared(self._kind, self._pause()) if unreachable else self._pause()

    def watch_ended(self) -> float:
        """The server ended a watch, as it does every few minutes. Returns seconds to wait before the next one."""
        # Without this pause a server that ends every watch at once would be called in a tight loop.
        if self._silent and asyncio.get_running_loop().time() - self._since < SHORT_WATCH_SECONDS:
            return self._pause()
        self.succeeded()
        return 0.0

    def _pause(self) -> float:
        """Seconds to wait; doubled with every failure."""
        return self._spread_out(self._backoff.next())

    def _spread_out(self, seconds: float) -> float:
        """A random value between 50 % and 100 % of `seconds`, so that many agents do not retry at the same time."""
        return seconds * (0.5 + 0.5 * self._spread())
