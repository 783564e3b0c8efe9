"""The upgrade run's verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodenet.errors import CannotRunError
from perf.upgrade import Result, checkout, failures, text

FINE = {"tcp service": {"ok": 5, "bad": 0, "slow": 0, "notes": []}}
CHANGES = [f"{node} {word}: loaded" for word in ("up", "down") for node in ("node1", "node2")]


def result(**counts: int) -> Result:
    return Result(1, {"friend": {"tcp service": FINE["tcp service"] | counts}}, list(CHANGES))


def test_all_answered() -> None:
    assert failures(result()) == []
    assert text(result(), []).splitlines()[1:] == [
        "friend: 5 calls as policy says, 0 not, 0 slow, to 1 targets",
        "nothing got through, nothing was lost",
    ]


def test_one_wrong_call_fails() -> None:
    assert failures(result(bad=1)) == ["friend: tcp service: 1 wrong: []"]


def test_no_call_proves_nothing() -> None:
    assert failures(result(ok=0)) == ["friend: tcp service: never called"]
    assert failures(Result(1, {"friend": {}}, list(CHANGES))) == ["friend: no counts"]


def test_an_agent_that_was_not_changed_fails() -> None:
    assert failures(Result(1, {"friend": FINE}, CHANGES[:3])) == ["3 changes of an agent, expected 4"]


def test_a_folder_is_its_own_checkout_and_another_word_is_refused(tmp_path: Path) -> None:
    with checkout(str(tmp_path)) as found:
        assert found == tmp_path
    with pytest.raises(CannotRunError, match="neither a folder nor a commit"), checkout("no-such-version"):
        pass
