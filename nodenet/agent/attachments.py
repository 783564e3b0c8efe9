"""The agent's part of the CNI verbs. An ADD ends when its endpoint's policy is in force, a DEL when the kernel has
nothing of the endpoint any more."""

from __future__ import annotations

from collections.abc import Mapping

from nodenet.agent.addresses import OwnAddresses
from nodenet.agent.endpoints import Endpoints, key_of
from nodenet.agent.host import Admitted, admit
from nodenet.agent.waiting import pod_known, policies_known, refuse_removed
from nodenet.agent.watch import ApiWatch
from nodenet.cni.hooks import Wired
from nodenet.cni.request import Request
from nodenet.endpoint import AttachmentKey
from nodenet.engine import Engine
from nodenet.model import Endpoint, IPNetwork, ObjectRef


class Attachments:
    """What nodenet.cni.server.CniServer calls. Methods that are not asynchronous run in its worker threads."""

    def __init__(
        self,
        node_name: str,
        engine: Engine,
        api: ApiWatch,
        endpoints: Endpoints,
        addresses: OwnAddresses,
        programs: Mapping[str, int],
    ) -> None:
        self._node_name = node_name
        self._engine = engine
        self._api = api
        self._endpoints = endpoints
        self._addresses = addresses
        self._programs = programs
        # ADDs after `wired` and before `added`.
        self._admitted: dict[AttachmentKey, Admitted] = {}

    def expected(self, request: Request) -> None:
        """Start of ADD. Raises CniError for a pod that the API has removed."""
        refuse_removed(self._engine, request.pod, request.pod_uid)

    def wired(self, wired: Wired) -> None:
        """First half of ADD: attach the programs to the pod's interface. Raises LinkError, OSError."""
        self._admitted[key_of(wired.endpoint)] = admit(wired, self._programs)

    async def added(self, endpoint: Endpoint) -> None:
        """Second half of ADD. Returns when the endpoint's policy is in force."""
        admitted = self._admitted.pop(key_of(endpoint))
        self._addresses.add(admitted.gateways)
        self._endpoints.added(admitted.endpoint)
        if endpoint.pod.name:
            await pod_known(self._engine, endpoint)
            await policies_known(self._api.stats, endpoint)
        await self._engine.endpoint_in_force(endpoint.ips)

    async def deleted(self, endpoint: Endpoint) -> None:
        """DEL, after the interface is gone. Returns when the maps have nothing of the endpoint any more."""
        self._admitted.pop(key_of(endpoint), None)
        self._endpoints.deleted(key_of(endpoint))
        await self._engine.endpoint_in_force(endpoint.ips)

    def networks(self) -> tuple[IPNetwork, ...]:
        """This node's spec.podCIDRs in order. Empty if the API has not sent them yet."""
        node = self._engine.current.snapshot.nodes.get(ObjectRef("", self._node_name))
        return node.pod_cidrs if node else ()
