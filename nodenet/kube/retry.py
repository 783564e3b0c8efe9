"""Which failed writes are tried again, and when. Pure.

Rules of the API: 429 and 5xx answers may carry Retry-After; 409 on a write that names a resourceVersion means that the
object must be read again (https://kubernetes.io/docs/reference/using-api/api-concepts/).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from nodenet import backoff

FIRST_SECONDS = 0.2
LAST_SECONDS = 5.0
ATTEMPTS = 6
# From the first attempt of a write to the start of its last one. A write that could not be done by then is given up.
DEADLINE_SECONDS = 60.0


class Outcome(StrEnum):
    """How a write ended."""

    DONE = "done"
    # The object or its namespace does not exist, or not any more.
    GONE = "gone"
    # RBAC does not allow it (403), or did not a short time ago.
    FORBIDDEN = "forbidden"
    # The API will not take this body, now or later.
    REJECTED = "rejected"
    # The server could not be reached, or did not want to, for too long.
    GAVE_UP = "gave up"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came instead of success. `code` 0: no answer. `after`: seconds, as the server asked (0: it did not)."""

    code: int
    after: float = 0.0
    reason: str = ""
    causes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Again:
    """Try again in `seconds`; `reread`: from the present state of the object."""

    seconds: float
    reread: bool = False


def judge(answer: Answer, attempt: int, passed: float, spread: float) -> Outcome | Again:
    """What follows from a failed attempt, the `attempt`-th (from 1), `passed` seconds after the first one began.

    `spread`, 0 to 1, moves the pause within its upper half. A pause that the server asks for is never shortened: where
    it does not fit into the deadline, the write is given up.
    """
    if answer.code == 409 and answer.reason == "AlreadyExists":
        # Names of new objects are unique, so it is this one: an earlier answer was lost.
        return Outcome.DONE
    if answer.code in (404, 410) or "NamespaceTerminating" in answer.causes:
        return Outcome.GONE
    if answer.code == 403:
        return Outcome.FORBIDDEN
    if not _passes(answer.code):
        return Outcome.REJECTED
    seconds = max(backoff.pause(FIRST_SECONDS, LAST_SECONDS, attempt - 1) * (0.5 + 0.5 * spread), answer.after)
    if attempt >= ATTEMPTS or passed + seconds > DEADLINE_SECONDS:
        return Outcome.GAVE_UP
    return Again(seconds, reread=answer.code == 409)


def _passes(code: int) -> bool:
    """No answer, too many requests, a conflict, a server that has trouble, or a token that was just replaced."""
    return code in (0, 401, 408, 409, 429) or code >= 500
