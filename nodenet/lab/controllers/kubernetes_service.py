"""Creates the Service default/kubernetes, by which pods find the API endpoint, and creates it again after a
deletion."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from nodenet.lab.apiserver.client import LocalClient
from nodenet.lab.controllers.manager import Controller
from nodenet.lab.controllers.objects import Obj, get
from nodenet.lab.controllers.slices_plan import SERVICE_NAME

NAME = "kubernetes"
LABELS = {"component": "apiserver", "provider": "kubernetes"}
_FAMILY = {4: "IPv4", 6: "IPv6"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of the API endpoint for pods: one address per family, and the port."""

    addresses: Sequence[str]
    port: int
    cluster_ip: str = ""
    name: str = "https"


class KubernetesService(Controller):
    kinds = ("Service", "EndpointSlice")

    def __init__(self, client: LocalClient, endpoint: Endpoint) -> None:
        self._client = client
        self._endpoint = endpoint

    def keys(self, kind: str, old: Obj | None, new: Obj | None) -> Iterable[str]:
        own = [o for o in (old, new) if o and o["metadata"]["namespace"] == "default"]
        return ("service",) if any(o["metadata"]["name"].startswith(NAME) for o in own) else ()

    async def sync(self, key: str) -> None:
        if await get(self._client, "Service", ("default", NAME)) is None:
            await self._client.create(self._service())
        for address in self._endpoint.addresses:
            wanted = self._slice(address)
            found = await get(self._client, "EndpointSlice", ("default", wanted["metadata"]["name"]))
            if found is None:
                await self._client.create(wanted)
            elif any(found.get(part) != wanted[part] for part in ("endpoints", "ports")):
                await self._client.update({**found, "endpoints": wanted["endpoints"], "ports": wanted["ports"]})

    def _service(self) -> Obj:
        port = {"name": self._endpoint.name, "port": 443, "protocol": "TCP", "targetPort": self._endpoint.port}
        spec: Obj = {"type": "ClusterIP", "ports": [port]}
        if self._endpoint.cluster_ip:
            spec["clusterIP"] = self._endpoint.cluster_ip
        metadata = {"name": NAME, "namespace": "default", "labels": LABELS}
        return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}

    def _slice(self, address: str) -> Obj:
        family = _FAMILY[ip_address(address).version]
        first = address == self._endpoint.addresses[0]
        name = NAME if first else f"{NAME}-{family.lower()}"
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": "default", "labels": {SERVICE_NAME: NAME}},
            "addressType": family,
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
            "ports": [{"name": self._endpoint.name, "port": self._endpoint.port, "protocol": "TCP"}],
        }
