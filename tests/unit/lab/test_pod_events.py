"""Events about pods that do not start, in the lab's own API."""

from __future__ import annotations

from typing import Any

import pytest

from nodenet.lab import pod_events
from nodenet.lab.apiserver.client import LocalClient
from nodenet.lab.apiserver.server import ApiServer
from nodenet.lab.controllers.scheduler import Scheduler
from nodenet.lab.pod_events import PodEvents

TIMES = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:10Z")


@pytest.fixture
def client(api: ApiServer) -> LocalClient:
    return api.client


async def pod(client: LocalClient, name: str = "web", **spec: Any) -> dict[str, Any]:
    body = {"containers": [{"name": "c", "image": "x"}], **spec}
    return await client.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": body})


async def events(client: LocalClient) -> list[dict[str, Any]]:
    return (await client.list("Event", "default")).items


async def test_a_repeated_event_is_counted(client: LocalClient) -> None:
    times = iter(TIMES)
    recorder = PodEvents(client, lambda: next(times))
    made = await pod(client)
    for _ in range(2):
        await recorder.warn(made, "FailedCreatePodSandBox", "no address", "kubelet", "node1")
    (event,) = await events(client)
    assert (event["type"], event["reason"], event["message"]) == ("Warning", "FailedCreatePodSandBox", "no address")
    assert event["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": "default",
        "name": "web",
        "uid": made["metadata"]["uid"],
    }
    assert (event["count"], event["firstTimestamp"], event["lastTimestamp"]) == (2, *TIMES)
    assert event["source"] == {"component": "kubelet", "host": "node1"}
    # As `kubectl describe` and `kubectl events --types` ask.
    for fields, count in (
        (f"involvedObject.name=web,involvedObject.namespace=default,involvedObject.uid={made['metadata']['uid']}", 1),
        ("involvedObject.name=other", 0),
        ("type=Warning,reason=FailedCreatePodSandBox", 1),
        ("type!=Warning", 0),
    ):
        assert len((await client.list("Event", "default", fields=fields)).items) == count


async def test_other_messages_are_other_events_and_the_oldest_go(
    client: LocalClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_events, "_MOST", 2)
    recorder = PodEvents(client, lambda: TIMES[0])
    made = await pod(client)
    for number in range(4):
        await recorder.warn(made, "BackOff", f"attempt {number}", "kubelet", "node1")
    assert sorted(event["message"] for event in await events(client)) == ["attempt 2", "attempt 3"]


async def test_one_that_was_deleted_is_made_again(client: LocalClient) -> None:
    recorder = PodEvents(client, lambda: TIMES[0])
    made = await pod(client)
    await recorder.warn(made, "BackOff", "x", "kubelet", "node1")
    (event,) = await events(client)
    await client.delete("Event", event["metadata"]["name"], "default")
    # The API refuses to count it: the next one is new.
    await recorder.warn(made, "BackOff", "x", "kubelet", "node1")
    assert await events(client) == []
    await recorder.warn(made, "BackOff", "x", "kubelet", "node1")
    assert [event["count"] for event in await events(client)] == [1]


async def test_the_scheduler_says_why(client: LocalClient) -> None:
    await pod(client, nodeSelector={"disk": "fast"})
    scheduler = Scheduler(client, lambda: TIMES[0])
    await scheduler.sync("pods")
    await scheduler.sync("pods")
    (event,) = await events(client)
    assert (event["reason"], event["reportingComponent"]) == ("FailedScheduling", "default-scheduler")
    assert event["message"].startswith("0/0 nodes are available")
    assert event["count"] == 1
