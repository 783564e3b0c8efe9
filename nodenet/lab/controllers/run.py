"""Runs all controllers of a lab."""

from __future__ import annotations

from dataclasses import replace

from nodenet.lab.apiserver.server import ApiServer
from nodenet.lab.controllers.daemonset import DaemonSets
from nodenet.lab.controllers.deployment import Deployments
from nodenet.lab.controllers.endpointslice import EndpointSlices
from nodenet.lab.controllers.garbage import Garbage
from nodenet.lab.controllers.job import Jobs
from nodenet.lab.controllers.kubernetes_service import Endpoint, KubernetesService
from nodenet.lab.controllers.manager import Controller, Manager
from nodenet.lab.controllers.namespaces import Namespaces
from nodenet.lab.controllers.replicaset import ReplicaSets
from nodenet.lab.controllers.scheduler import Scheduler
from nodenet.lab.controllers.statefulset import StatefulSets


async def run(api: ApiServer, endpoint: Endpoint | None = None) -> None:
    """Run until cancelled. `endpoint`: the API's address for the Service default/kubernetes; None: no such Service."""
    client, now = api.client, api.registry.now
    controllers: list[Controller] = [
        Deployments(client, now),
        ReplicaSets(client),
        StatefulSets(client),
        DaemonSets(client),
        Jobs(client, now),
        Scheduler(client, now),
        EndpointSlices(client),
        Namespaces(client),
        Garbage(client),
    ]
    if endpoint is not None:
        addresses = api.registry.addresses
        if not endpoint.cluster_ip:
            endpoint = replace(endpoint, cluster_ip=addresses.first(addresses.families[0]))
        service = KubernetesService(client, endpoint)
        # There is no event for an object that does not exist yet, so do the first sync here.
        await service.sync("service")
        controllers.append(service)
    await Manager(client, controllers).run()
