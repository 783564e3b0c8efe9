"""Whether traffic from outside is served, as the last check of the uplinks found it."""

from __future__ import annotations

from collections.abc import Iterable

from nodenet.agent.uplink_programs import Synced, UplinkPrograms
from nodenet.errors import CannotRunError


async def test_why_traffic_from_outside_is_not_served() -> None:
    answers: list[Synced | CannotRunError] = []

    async def check(_before: Iterable[str] | None) -> Synced:
        answer = answers.pop(0)
        if isinstance(answer, CannotRunError):
            raise answer
        return answer

    nowhere = "no interface has the programs for traffic from outside"
    refused = "uplink u1: its programs are not attached: no memory"
    kept = UplinkPrograms(check, enabled=True)
    assert kept.why_not == nowhere, "before the first check"
    for answer, expected in (
        (Synced(("u0",), ("u0",)), ""),
        # A check that failed says nothing about the programs.
        (CannotRunError("netlink: busy"), ""),
        (Synced(("u0",), failed=(refused,)), refused),
        (Synced(), nowhere),
        (Synced(("u0",)), ""),
    ):
        answers.append(answer)
        await kept.refresh()
        assert kept.why_not == expected
    off = UplinkPrograms(check, enabled=False)
    answers.append(Synced(removed=("u0",)))
    await off.refresh()
    assert off.why_not.endswith("uplink_programs is false")
