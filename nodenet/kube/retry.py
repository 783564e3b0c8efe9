"""Decides which failed writes are retried, and when. Pure.

Rules of the API: 429 and 5xx answers may carry Retry-After; 409 on a write with a resourceVersion means that the object
must be read again (https://kubernetes.io/docs/reference/using-api/api-concepts/).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from nodenet import backoff

FIRST_SECONDS = 0.2
LAST_SECONDS = 5.0
ATTEMPTS = 6
# The longest time from the start of a write's first attempt to the start of its last one.
DEADLINE_SECONDS = 60.0


class Outcome(StrEnum):
    """The result of a write."""

    DONE = "done"
    # The object or its namespace does not exist, or the namespace is being deleted.
    GONE = "gone"
    # RBAC does not allow it (403), or refused it within the last REFUSED_SECONDS (refusals.py).
    FORBIDDEN = "forbidden"
    # The request is invalid: a retry would fail too.
    REJECTED = "rejected"
    # Too many attempts, or too much time: the server was unreachable, overloaded, or reported conflicts.
    GAVE_UP = "gave up"


@dataclass(frozen=True, slots=True)
class Answer:
    """A failed attempt. `code` is the HTTP status, 0 if there was no answer; `after` is Retry-After in seconds, 0 if
    absent."""

    code: int
    after: float = 0.0
    reason: str = ""
    causes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Retry:
    """Retry in `seconds`. `reread`: read the object again first."""

    seconds: float
    reread: bool = False


def judge(answer: Answer, attempt: int, passed: float, spread: float) -> Outcome | Retry:
    """Decide what to do after a failed attempt. `attempt` counts from 1; `passed` is seconds since the first one began.

    `spread`, 0 to 1, chooses the pause between 50 % and 100 % of the backoff. A pause that the server requests is never
    shortened: if it exceeds the deadline, the write fails.
    """
    if answer.code == 409 and answer.reason == "AlreadyExists":
        # Names of new objects are unique, so an earlier attempt created it and only the answer was lost.
        return Outcome.DONE
    # An object cannot be created in a namespace that is being deleted (403 with this cause): not a matter of RBAC.
    if answer.code in (404, 410) or "NamespaceTerminating" in answer.causes:
        return Outcome.GONE
    if answer.code == 403:
        return Outcome.FORBIDDEN
    if not _is_temporary(answer.code):
        return Outcome.REJECTED
    seconds = max(backoff.pause(FIRST_SECONDS, LAST_SECONDS, attempt - 1) * (0.5 + 0.5 * spread), answer.after)
    if attempt >= ATTEMPTS or passed + seconds > DEADLINE_SECONDS:
        return Outcome.GAVE_UP
    return Retry(seconds, reread=answer.code == 409)


def _is_temporary(code: int) -> bool:
    """Temporary errors: no answer, a timeout, a conflict, too many requests, a server error, or an expired token (401),
    which the next attempt reads again."""
    return code in (0, 401, 408, 409, 429) or code >= 500
