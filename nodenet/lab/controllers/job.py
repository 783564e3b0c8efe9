"""Job -> Pods, until enough have succeeded or too many have failed.

Rules: kubernetes pkg/controller/job, without pod failure policies and deadlines. A lab's stand-in server never exits,
so a job's pods run until a user sets their phase or deletes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nodenet.lab.apiserver.client import LocalClient
from nodenet.lab.controllers.manager import Controller
from nodenet.lab.controllers.objects import (
    Key,
    Obj,
    active,
    claim,
    condition,
    deleting,
    get,
    key_of,
    nonzero,
    owner_keys,
    pod_from,
    ready,
    remove,
    set_status,
)

INDEX = "batch.kubernetes.io/job-completion-index"


class Jobs(Controller):
    kinds = ("Job", "Pod")

    def __init__(self, client: LocalClient, now: Callable[[], str]) -> None:
        self._client = client
        self._now = now

    def keys(self, kind: str, old: Obj | None, new: Obj | None) -> Iterable[Key]:
        return (key_of(new or old or {}),) if kind == "Job" else owner_keys("Job", old, new)

    async def sync(self, key: Key) -> None:
        job = await get(self._client, "Job", key)
        if job is None or deleting(job):
            return
        pods = await claim(self._client, job, "Pod", adopt=False)
        spec, before = job["spec"], job.get("status") or {}
        over = [c["type"] for c in before.get("conditions") or () if c["status"] == "True" and c["type"] != "Suspended"]
        done = sum(1 for pod in pods if _phase(pod) == "Succeeded")
        failed = sum(1 for pod in pods if _phase(pod) == "Failed")
        # Without completions the job is a work queue: it is complete after one success and the end of all other pods.
        complete = done >= spec["completions"] if "completions" in spec else bool(done and not active(pods))
        outcome = over[0] if over else "Complete" if complete else "Failed" if failed > spec["backoffLimit"] else ""
        if outcome or spec["suspend"]:
            for pod in active(pods):
                await remove(self._client, pod)
            running: list[Obj] = []
        else:
            running = await self._run(job, pods, done)
        await self._report(job, running, done, failed, outcome)

    async def _run(self, job: Obj, pods: list[Obj], done: int) -> list[Obj]:
        spec = job["spec"]
        running = active(pods)
        wanted = spec["parallelism"]
        if "completions" in spec:
            wanted = min(wanted, spec["completions"] - done)
        elif done:
            wanted = len(running)
        for pod in running[wanted:]:
            await remove(self._client, pod)
        taken = {_index(pod) for pod in pods if _phase(pod) != "Failed" and not deleting(pod)}
        free = (str(index) for index in range(spec.get("completions", 0)) if str(index) not in taken)
        for _ in range(wanted - len(running)):
            index = next(free, "") if spec["completionMode"] == "Indexed" else ""
            running.append(await self._client.create(_pod(job, index)))
        return running[: max(wanted, 0)]

    async def _report(self, job: Obj, running: list[Obj], done: int, failed: int, outcome: str) -> None:
        before = job.get("status") or {}
        status = {
            **{key: before[key] for key in ("startTime", "completionTime") if key in before},
            **nonzero(active=len(running), ready=ready(running), succeeded=done, failed=failed),
        }
        conditions = []
        if job["spec"]["suspend"]:
            conditions.append(condition(before, "Suspended", True, "JobSuspended", "Job suspended", self._now()))
        else:
            status.setdefault("startTime", self._now())
        if outcome == "Complete":
            status.setdefault("completionTime", self._now())
            message = "Reached expected number of succeeded pods"
            conditions.append(condition(before, "Complete", True, "CompletionsReached", message, self._now()))
        elif outcome == "Failed":
            message = "Job has reached the specified backoff limit"
            conditions.append(condition(before, "Failed", True, "BackoffLimitExceeded", message, self._now()))
        if conditions:
            status["conditions"] = conditions
        await set_status(self._client, job, status)


def _phase(pod: Obj) -> str:
    return str((pod.get("status") or {}).get("phase", ""))


def _index(pod: Obj) -> str:
    return str((pod["metadata"].get("annotations") or {}).get(INDEX, ""))


def _pod(job: Obj, index: str) -> Obj:
    pod = pod_from(job, job["spec"]["template"], {INDEX: index} if index else {})
    if index:
        pod["metadata"]["annotations"][INDEX] = index
        pod["metadata"]["generateName"] = f"{job['metadata']['name']}-{index}-"
        pod["spec"] |= {"hostname": f"{job['metadata']['name']}-{index}"}
    return pod
