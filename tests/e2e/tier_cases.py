"""Generated cases that mix the three tiers of policy, over nine pods in three namespaces."""

from __future__ import annotations

from random import Random
from typing import Any

Obj = dict[str, Any]

NAMESPACES = {name: {"space": name, "kubernetes.io/metadata.name": name} for name in "xyz"}
# Containers listen on these; a named port has the same name for TCP and UDP of other numbers in other pods.
PORTS = (80, 81)
PROTOCOLS = ("TCP", "UDP")


def pods() -> list[Obj]:
    """Without addresses: the lab gives them."""
    found = []
    for namespace in NAMESPACES:
        for place, name in enumerate("abc"):
            ports = [
                [number, protocol, f"serve-{number if place else 161 - number}-{protocol.lower()}"]
                for number in PORTS
                for protocol in PROTOCOLS
            ]
            found.append(
                {"namespace": namespace, "name": name, "labels": {"pod": name, "row": str(place % 2)}, "ports": ports}
            )
    return found


class Cases:
    """Draws objects. `addresses`: those of the pods. `networks`: the pod networks of the nodes."""

    def __init__(self, seed: int, addresses: list[str], networks: list[str]) -> None:
        self._random = Random(seed)
        self._networks = [*networks, *(f"{address}/32" for address in addresses), "10.244.0.0/16", "0.0.0.0/0"]
        self._addresses = addresses

    def case(self) -> list[Obj]:
        """One to five ClusterNetworkPolicies and up to three NetworkPolicies. At least two tiers have one."""
        while True:
            wide = [self._wide(number) for number in range(self._random.randint(1, 5))]
            own = [self._own(number) for number in range(self._random.randint(0, 3))]
            if len({policy["spec"]["tier"] for policy in wide}) + bool(own) >= 2:
                return wide + own

    def _one(self, *choices: Any) -> Any:
        return self._random.choice(choices)

    def _selector(self, key: str, values: str) -> Obj:
        shape = self._random.randrange(6)
        some = self._random.sample(values, 2)
        if shape == 0:
            return {}
        if shape <= 2:
            return {"matchLabels": {key: some[0]}}
        if shape == 3:
            return {"matchExpressions": [{"key": key, "operator": "In", "values": some}]}
        if shape == 4:
            return {"matchExpressions": [{"key": key, "operator": "NotIn", "values": some[:1]}]}
        return {"matchExpressions": [{"key": self._one(key, "absent"), "operator": "Exists"}]}

    def _pods(self) -> Obj:
        if self._random.random() < 0.4:
            return {"namespaces": self._selector("space", "xyz")}
        selector = self._selector("pod", "abc") if self._random.random() < 0.7 else self._selector("row", "01")
        return {"pods": {"namespaceSelector": self._selector("space", "xyz"), "podSelector": selector}}

    def _wide(self, number: int) -> Obj:
        spec: Obj = {
            "tier": self._one("Admin", "Admin", "Baseline"),
            "priority": self._one(0, 10, 10, 500, 1000),
            "subject": self._pods(),
        }
        for section, side in (("ingress", "from"), ("egress", "to")):
            if self._random.random() < 0.7:
                spec[section] = [self._wide_rule(side) for _ in range(self._random.randint(1, 3))]
        return {
            "apiVersion": "policy.networking.k8s.io/v1alpha2",
            "kind": "ClusterNetworkPolicy",
            "metadata": {"name": f"wide{number}"},
            "spec": spec,
        }

    def _wide_rule(self, side: str) -> Obj:
        peers = [self._wide_peer(side) for _ in range(self._random.randint(1, 2))]
        rule: Obj = {"name": "generated", "action": self._one("Accept", "Deny", "Pass"), side: peers}
        if self._random.random() < 0.5:
            nameless = any("networks" in peer or "domainNames" in peer for peer in peers)
            rule["protocols"] = [self._protocol(nameless) for _ in range(self._random.randint(1, 2))]
        return rule

    def _wide_peer(self, side: str) -> Obj:
        chance = self._random.random()
        if side == "from" or chance < 0.55:
            return self._pods()
        if chance < 0.95:
            return {"networks": self._random.sample(self._networks, self._random.randint(1, 3))}
        return {"domainNames": ["*.example.com"]}

    def _protocol(self, nameless: bool) -> Obj:
        shape = self._random.randrange(2 if nameless else 3)
        if shape == 2:
            return {"destinationNamedPort": f"serve-{self._one(*PORTS)}-{self._one('tcp', 'udp')}"}
        port: Obj = {"number": self._one(*PORTS)}
        if shape == 1:
            port = {"range": self._one({"start": 80, "end": 81}, {"start": 1, "end": 80}, {"start": 81, "end": 9000})}
        return {self._one("tcp", "udp"): {"destinationPort": port}}

    def _own(self, number: int) -> Obj:
        spec: Obj = {
            "podSelector": self._selector("pod", "abc"),
            "policyTypes": self._random.sample(["Ingress", "Egress"], self._random.randint(1, 2)),
        }
        for section, side in (("ingress", "from"), ("egress", "to")):
            if self._random.random() < 0.7:
                spec[section] = [self._own_rule(side) for _ in range(self._random.randint(0, 2))]
        return {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": f"own{number}", "namespace": self._one(*NAMESPACES)},
            "spec": spec,
        }

    def _own_rule(self, side: str) -> Obj:
        rule: Obj = {}
        if self._random.random() < 0.8:
            rule[side] = [self._own_peer() for _ in range(self._random.randint(1, 2))]
        if self._random.random() < 0.5:
            port = self._one(80, 81, "serve-80-tcp", "serve-81-udp")
            protocol = port.rpartition("-")[2].upper() if isinstance(port, str) else self._one(*PROTOCOLS)
            rule["ports"] = [{"port": port, "protocol": protocol}]
        return rule

    def _own_peer(self) -> Obj:
        shape = self._random.randrange(4)
        if shape == 0:
            hole = f"{self._one(*self._addresses)}/32"
            return {"ipBlock": {"cidr": self._one("10.244.0.0/16", "0.0.0.0/0"), "except": [hole]}}
        peer: Obj = {}
        if shape in (1, 3):
            peer["podSelector"] = self._selector("pod", "abc")
        if shape in (2, 3):
            peer["namespaceSelector"] = self._selector("space", "xyz")
        return peer
