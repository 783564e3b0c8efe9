"""`lab delete` ends when what it deleted is gone."""

from __future__ import annotations

from typing import Any

import pytest

from nodenet.cli import lab_objects
from nodenet.errors import NodenetError
from nodenet.lab.apiserver.resources import BY_KIND

GOING: dict[str, Any] = {"metadata": {"deletionTimestamp": "now"}}


class Objects:
    def __init__(self, *answers: dict[str, Any] | None) -> None:
        self.answers = list(answers)

    def get(self, *_: object) -> dict[str, Any] | None:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.mark.parametrize("last", [None, {"metadata": {}}])
def test_it_waits_until_the_object_is_gone_or_another_one(monkeypatch: pytest.MonkeyPatch, last: Any) -> None:
    monkeypatch.setattr(lab_objects, "_POLL", 0.0)
    objects: Any = Objects(GOING, GOING, last)
    lab_objects._until_gone(objects, [(BY_KIND["Pod"], "default", "a")], 5)
    assert objects.answers == [last]


def test_one_that_stays_is_named() -> None:
    objects: Any = Objects(GOING)
    with pytest.raises(NodenetError, match="pod/a is still being deleted after 0 s"):
        lab_objects._until_gone(objects, [(BY_KIND["Pod"], "default", "a")], 0)
