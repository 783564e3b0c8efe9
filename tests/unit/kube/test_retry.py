"""Which failed writes are tried again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodenet.kube.retry import ATTEMPTS, DEADLINE_SECONDS, LAST_SECONDS, Answer, Outcome, Retry, judge

ANSWERS = st.builds(
    Answer,
    st.sampled_from([0, 400, 401, 403, 404, 408, 409, 410, 413, 415, 422, 429, 500, 502, 503, 504, 507]),
    st.sampled_from([0.0, 1.0, 30.0, 1e9]),
    st.sampled_from(["", "AlreadyExists", "Conflict", "Forbidden"]),
    st.sampled_from([(), ("NamespaceTerminating",)]),
)


@given(ANSWERS, st.integers(1, 50), st.floats(0, 200), st.floats(0, 1))
def test_no_write_goes_on_for_ever(answer: Answer, attempt: int, passed: float, spread: float) -> None:
    verdict = judge(answer, attempt, passed, spread)
    if isinstance(verdict, Retry):
        assert attempt < ATTEMPTS
        assert passed + verdict.seconds <= DEADLINE_SECONDS
        # The server's wish is never cut short, and nothing is sent again at once.
        assert verdict.seconds >= answer.after
        assert 0 < verdict.seconds <= max(LAST_SECONDS, answer.after)
        assert verdict.reread == (answer.code == 409)
    elif answer.code in (0, 401, 408, 409, 429, 500, 502, 503, 504) and "NamespaceTerminating" not in answer.causes:
        assert verdict is Outcome.GAVE_UP or answer.reason == "AlreadyExists"


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (Answer(409, reason="AlreadyExists"), Outcome.DONE),
        (Answer(404), Outcome.GONE),
        (Answer(410), Outcome.GONE),
        (Answer(403, reason="Forbidden"), Outcome.FORBIDDEN),
        (Answer(403, reason="Forbidden", causes=("NamespaceTerminating",)), Outcome.GONE),
        (Answer(422), Outcome.REJECTED),
        (Answer(413), Outcome.REJECTED),
        (Answer(429, after=DEADLINE_SECONDS + 1), Outcome.GAVE_UP),
    ],
)
def test_what_is_not_tried_again(answer: Answer, outcome: Outcome) -> None:
    assert judge(answer, 1, 0.0, 1.0) is outcome


def test_pauses_double() -> None:
    found = [judge(Answer(503), attempt, 0.0, 1.0) for attempt in range(1, ATTEMPTS)]
    assert [verdict.seconds for verdict in found if isinstance(verdict, Retry)] == [0.2, 0.4, 0.8, 1.6, 3.2]
    assert judge(Answer(0), 1, 0.0, 0.0) == Retry(0.1)
