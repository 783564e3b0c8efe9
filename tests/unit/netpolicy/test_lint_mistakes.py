"""The mistakes that look right: each is found, its message ends with what to do, and what only resembles it is not."""

from __future__ import annotations

from typing import Any

import pytest

from netpolicy.lint import lint
from netpolicy.objects import cluster

Obj = dict[str, Any]


def obj(kind: str, name: str, namespace: str = "shop", labels: Obj | None = None, **more: Any) -> Obj:
    return {"kind": kind, "metadata": {"name": name, "namespace": namespace, "labels": labels or {}}, **more}


def pod(app: str, ip: str, *ports: Any, namespace: str = "shop", **labels: str) -> Obj:
    """A port is a number, or (number, name[, protocol])."""
    listed = []
    for port in ports:
        number, name, protocol = (port, "", "TCP") if isinstance(port, int) else (*port, "TCP")[:3]
        listed.append({"containerPort": number, "protocol": protocol, **({"name": name} if name else {})})
    spec = {"containers": [{"ports": listed}]}
    return obj("Pod", app, namespace, {"app": app, **labels}, spec=spec, status={"podIP": ip})


def service(name: str, port: int, target: Any = None, ip: str = "10.96.0.7", **selector: str) -> Obj:
    entry = {"port": port, **({"targetPort": target} if target is not None else {})}
    return obj("Service", name, spec={"clusterIP": ip, "ports": [entry], "selector": selector})


def policy(name: str = "p", namespace: str = "shop", **spec: Any) -> Obj:
    return obj("NetworkPolicy", name, namespace, apiVersion="networking.k8s.io/v1", spec=spec)


def app(name: str) -> Obj:
    return {"matchLabels": {"app": name}}


def ingress(*rules: Obj, name: str = "p", **selector: Any) -> Obj:
    return policy(name, podSelector=selector.get("to", app("web")), ingress=list(rules))


def ports(*numbers: Any) -> Obj:
    return {"ports": [{"port": number} for number in numbers]}


WEB, DB, PROBE = pod("web", "10.0.0.1", (8080, "http")), pod("db", "10.0.0.2", 5432), pod("probe", "10.0.0.3")
EXPORTER = pod("exporter", "172.30.0.1", 9100)
PODS = [WEB, DB, PROBE]
FRONT = service("web", 80, "http", app="web")
DNS = {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53}]}
ALL = {"ipBlock": {"cidr": "0.0.0.0/0"}}
NOT_METADATA = {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", "169.254.169.254/32"]}}
METADATA = {"ipBlock": {"cidr": "169.254.169.254/32"}}


def egress(*rules: Obj, name: str = "p", of: Obj | None = None) -> Obj:
    return policy(name, podSelector=of if of is not None else app("web"), egress=[DNS, *rules])


MISTAKES = {
    "the Service's port, ingress": (
        [FRONT, ingress(ports(80))],
        "port-of-service",
        "spec.ingress[0].ports[0].port",
        "80/TCP is the port of svc/web.shop, and no pod behind it listens there: policy sees the port of the pod; use "
        "8080",
    ),
    "the Service's port, egress": (
        [FRONT, egress({"to": [{"podSelector": app("web")}], **ports(80)}, of=app("probe"))],
        "port-of-service",
        "spec.egress[1].ports[0].port",
        "use 8080",
    ),
    "the Service's port, target by number": (
        [service("web", 80, 8080, app="web"), ingress(ports(80))],
        "port-of-service",
        "spec.ingress[0].ports[0].port",
        "use 8080",
    ),
    "the address of a Service": (
        [FRONT, egress({"to": [{"ipBlock": {"cidr": "10.96.0.7/32"}}]}, of=app("db"))],
        "block-of-service",
        "spec.egress[1].to[0].ipBlock",
        "is the address of svc/web.shop, and policy sees the address behind a Service: this never matches; select the "
        "pods behind it (app=web in namespace shop)",
    ),
    "the network of Services": (
        [FRONT, egress({"to": [{"ipBlock": {"cidr": "10.96.0.0/12"}}]}, of=app("db"))],
        "block-of-service",
        "spec.egress[1].to[0].ipBlock",
        "this never matches",
    ),
    "the address of the API's Service": (
        [service("kubernetes", 443, 6443, "10.96.0.1"), egress({"to": [{"ipBlock": {"cidr": "10.96.0.1/32"}}]})],
        "block-of-service",
        "spec.egress[1].to[0].ipBlock",
        "kubectl get endpointslices -n shop -l kubernetes.io/service-name=kubernetes",
    ),
    "an except that another policy undoes": (
        [egress({"to": [NOT_METADATA]}), egress({"to": [{"ipBlock": {"cidr": "169.254.0.0/16"}}]}, name="q", of={})],
        "except-without-effect",
        "spec.egress[1].to[0].ipBlock.except[1]",
        "169.254.169.254/32 is excluded here, but shop/q egress[1] allows it for the same pods, and rules only add: "
        "put the except there too",
    ),
    "an except that its own policy undoes": (
        [egress({"to": [NOT_METADATA]}, {"to": [{"ipBlock": {"cidr": "169.254.0.0/16"}}], **ports()})],
        "except-without-effect",
        "spec.egress[1].to[0].ipBlock.except[1]",
        "shop/p egress[2]",
    ),
    "one port of every pod": (
        [WEB, pod("api", "10.0.0.4", (8080, "http")), ingress(ports("http"), to={})],
        "wide-rule",
        "spec.ingress[0]",
        "for all pods of namespace shop this rule allows http/TCP from everywhere, and no other policy can restrict "
        "it: select the pods that need it",
    ),
    "one port of every pod for every pod": (
        [WEB, pod("api", "10.0.0.4", 8080), ingress({"from": [{"namespaceSelector": {}}], **ports(8080)}, to={})],
        "wide-rule",
        "spec.ingress[0].from[0]",
        "allows 8080/TCP from every pod of every namespace",
    ),
    "others are isolated": (
        [ingress({"from": [{"podSelector": {}}], **ports(8080)}, to={})],
        "isolates-others",
        "spec.podSelector",
        "so it isolates db too, and nothing can reach 5432/TCP of them: let podSelector select web only",
    ),
    "a name that is no label": (
        [ingress({"from": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]})],
        "namespace-label-missing",
        "spec.ingress[0].from[0].namespaceSelector",
        "Kubernetes sets only kubernetes.io/metadata.name by itself: to name the namespace monitoring, use "
        "kubernetes.io/metadata.name=monitoring",
    ),
    "a namespace that is not there": (
        [ingress({"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shpo"}}}]})],
        "namespace-label-missing",
        "spec.ingress[0].from[0].namespaceSelector",
        "the namespaces are shop: use one of these names",
    ),
    "pods on the node's network": (
        [policy(podSelector=app("exporter")), WEB, {**EXPORTER, "spec": {**EXPORTER["spec"], "hostNetwork": True}}],
        "selects-nothing",
        "spec.podSelector",
        "selects only pods on the node's network, such as shop/exporter, and no NetworkPolicy applies to them",
    ),
    "a label that no namespace has": (
        [obj("Namespace", "shop"), ingress({"from": [{"namespaceSelector": {"matchLabels": {"team": "ops"}}}]})],
        "namespace-label-missing",
        "spec.ingress[0].from[0].namespaceSelector",
        "no namespace has team=ops; set the label on the namespaces that are meant",
    ),
    "a label that no pod has": (
        [ingress({"from": [{"podSelector": app("prob")}]})],
        "peer-selects-nothing",
        "spec.ingress[0].from[0].podSelector",
        "the values of app there are db, probe, web: use one of them",
    ),
    "a label that no pod of the namespace has": (
        [
            ingress(
                {
                    "from": [
                        {
                            "podSelector": app("prob"),
                            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}},
                        }
                    ]
                }
            )
        ],
        "peer-selects-nothing",
        "spec.ingress[0].from[0].podSelector",
        "no pod anywhere has app=prob",
    ),
    "a key that no pod has": (
        [ingress(to={"matchLabels": {"aap": "web"}})],
        "selects-nothing",
        "spec.podSelector",
        "no pod has the label aap: use a label of the pods",
    ),
}

NEAR_MISSES = {
    "the port is the pod's too": [service("web", 8080, 8080, app="web"), ingress(ports(8080))],
    "another container listens on the Service's port": [
        pod("two", "10.0.0.5", 8080, 80),
        service("two", 80, 8080, app="two"),
        ingress(ports(80), to=app("two")),
    ],
    "another Service leads to this port": [
        FRONT,
        service("raw", 8081, 80, "10.96.0.8", app="web"),
        ingress(ports(80)),
    ],
    "both ports are given": [FRONT, ingress(ports(80, 8080))],
    "a range holds the right port": [FRONT, ingress({"ports": [{"port": 80}, {"port": 8000, "endPort": 9000}]})],
    "the Service of other pods": [service("db", 80, 5432, app="db"), ingress(ports(80))],
    "the Service's port of addresses outside": [
        FRONT,
        egress({"to": [{"ipBlock": {"cidr": "192.0.2.1/32"}}], **ports(80)}),
    ],
    "the Service's port of pods and of addresses outside": [
        FRONT,
        egress({"to": [{"podSelector": app("web")}, {"ipBlock": {"cidr": "192.0.2.1/32"}}], **ports(80)}, of=app("db")),
    ],
    "the Service's port to everywhere": [FRONT, egress(ports(80))],
    "the same number for another protocol": [
        service("web", 8125, 8126, app="web"),
        ingress({"ports": [{"port": 8125, "protocol": "UDP"}]}),
    ],
    "a block beside the Services": [FRONT, egress({"to": [{"ipBlock": {"cidr": "10.97.0.0/16"}}]})],
    "a wide block with Services and more": [
        FRONT,
        egress({"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/24"]}}]}),
    ],
    "a headless Service has no address": [
        service("db", 5432, None, "None", app="db"),
        egress({"to": [{"ipBlock": {"cidr": "10.96.0.0/16"}}]}),
    ],
    "an exception for exactly the address": [egress({"to": [NOT_METADATA]}), egress({"to": [METADATA]}, name="q")],
    "a wider rule for other pods": [
        egress({"to": [NOT_METADATA]}),
        egress({"to": [{"ipBlock": {"cidr": "169.254.0.0/16"}}]}, name="q", of=app("db")),
    ],
    "a wider rule for one port": [
        egress({"to": [NOT_METADATA]}),
        egress({"to": [{"ipBlock": {"cidr": "169.254.0.0/16"}}], **ports(443)}, name="q"),
    ],
    "a wider rule in the other direction": [
        egress({"to": [NOT_METADATA]}),
        ingress({"from": [{"ipBlock": {"cidr": "169.254.0.0/16"}}]}, name="q"),
    ],
    "a wider rule with the same except": [egress({"to": [NOT_METADATA]}), egress({"to": [NOT_METADATA]}, name="q")],
    "ports of the whole namespace, egress": [policy(podSelector={}, egress=[DNS, ports(443)])],
    "a port for one namespace": [
        obj("Namespace", "shop"),
        pod("api", "10.0.0.4", 8080),
        WEB,
        ingress(
            {"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}}], **ports(8080)},
            to=app("web"),
        ),
    ],
    "a default deny isolates the others on purpose": [
        policy("deny", podSelector={}),
        ingress({"from": [{"podSelector": {}}], **ports(8080)}, to={}),
    ],
    "the others are opened too": [ingress({"from": [{"podSelector": {}}], **ports(8080, 5432)}, to={})],
    "the others declare no port": [
        ingress({"from": [{"podSelector": {}}], **ports(8080)}, to={}),
        policy("db", podSelector=app("db")),
    ],
    "pods that an operator gives the labels of its object": [
        obj("Prometheus", "k8s", labels={"app": "prometheus"}, apiVersion="monitoring.coreos.com/v1"),
        ingress({"from": [{"podSelector": app("prometheus")}]}),
        policy("prometheus", podSelector=app("prometheus")),
    ],
    "pods that an operator gives the labels of podMetadata": [
        obj(
            "Prometheus",
            "k8s",
            apiVersion="monitoring.coreos.com/v1",
            spec={"podMetadata": {"labels": {"app": "prometheus"}}},
        ),
        ingress({"from": [{"podSelector": app("prometheus")}]}),
    ],
    "labels of namespaces that the input does not show": [
        ingress({"from": [{"namespaceSelector": {"matchLabels": {"team": "ops"}}}]}),
    ],
    "a namespace that every cluster has": [
        ingress({"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}]}),
    ],
    "pods of a namespace that the input does not show": [
        egress({"to": [{"podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}, "namespaceSelector": {}}]}),
    ],
    "a label that namespaces have": [
        obj("Namespace", "shop", labels={"name": "shop"}),
        ingress({"from": [{"namespaceSelector": {"matchLabels": {"name": "shop"}}}]}),
    ],
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name: str) -> None:
    given, check, field, words = MISTAKES[name]
    own = [] if any(each["kind"] == "Pod" for each in given) else PODS
    (found,) = lint(cluster([*own, *given]))
    assert (found.check, found.field) == (check, field)
    assert words in found.message


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_miss(name: str) -> None:
    names = {each["metadata"]["name"] for each in NEAR_MISSES[name] if each["kind"] == "Pod"}
    own = [each for each in PODS if each["metadata"]["name"] not in names]
    assert lint(cluster([*own, *NEAR_MISSES[name]])) == []


def test_one_workload_may_open_its_port_by_an_empty_selector() -> None:
    assert lint(cluster([WEB, ingress(ports(8080), to={})])) == []


def test_a_block_with_pods_and_services_is_named_for_its_pods() -> None:
    near = service("web", 80, "http", "10.0.0.200", app="web")
    (found,) = lint(cluster([*PODS, near, egress({"to": [{"ipBlock": {"cidr": "10.0.0.0/24"}}]}, of=app("db"))]))
    assert found.check == "block-covers-pods"


class TestPathsOfTheCluster:
    """DNS servers and the kubelet."""

    SERVER = pod("coredns", "10.0.9.1", (53, "dns", "UDP"), (53, "dns-tcp"), namespace="kube-system")
    CLOSED = policy("closed", "kube-system", podSelector={}, policyTypes=["Ingress"])

    def test_an_isolated_dns_server(self) -> None:
        (found,) = lint(cluster([WEB, self.SERVER, self.CLOSED]))
        assert (found.check, found.field) == ("dns-server-isolated", "spec.ingress")
        assert "a pod of another namespace, shop/web cannot reach it on 53/UDP and 53/TCP" in found.message
        assert "add an ingress rule from namespaceSelector {}" in found.message

    def test_a_dns_server_for_some_namespaces_only(self) -> None:
        near = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}}
        some = policy("dns", "kube-system", podSelector=app("coredns"), ingress=[{**DNS, "from": [near]}])
        (found,) = lint(cluster([WEB, self.SERVER, some]))
        assert found.check == "dns-server-isolated"
        assert "and a pod of another namespace cannot reach it" in found.message

    def test_near_misses(self) -> None:
        everyone = {**DNS, "from": [{"namespaceSelector": {}}]}
        opened = policy("dns", "kube-system", podSelector=app("coredns"), ingress=[everyone])
        assert lint(cluster([WEB, self.SERVER, self.CLOSED, opened])) == []
        apart = {"namespaceSelector": {"matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]}}
        system = obj("Namespace", "kube-system", labels={"x": "y"})
        others = policy("dns", "kube-system", podSelector=app("coredns"), ingress=[{**DNS, "from": [apart]}])
        second = {**self.SERVER, "metadata": {**self.SERVER["metadata"], "name": "coredns-2"}, "status": {}}
        for server in (self.SERVER, second):
            server["metadata"]["ownerReferences"] = [{"kind": "DaemonSet", "name": "coredns"}]
        assert lint(cluster([WEB, self.SERVER, second, system, others])) == []
        own = pod("resolver", "10.0.9.2", (53, "dns", "UDP"))
        assert lint(cluster([WEB, own, policy(podSelector=app("resolver"))])) == []

    def test_metrics_server_without_a_way_to_the_kubelets(self) -> None:
        nodes = [
            obj("Node", name, status={"addresses": [{"type": "InternalIP", "address": ip}]})
            for name, ip in (("n1", "172.30.0.1"), ("n2", "172.30.0.2"))
        ]
        server = pod("metrics", "10.0.0.7", 4443, **{"k8s-app": "metrics-server"})
        server["spec"]["nodeName"] = "n1"
        (found,) = lint(cluster([*nodes, server, egress(of=app("metrics"))]))
        assert found.check == "kubelet-out-of-reach"
        assert "no egress rule allows 10250/TCP to the nodes n2" in found.message
        way = {"to": [{"ipBlock": {"cidr": "172.30.0.0/16"}}], **ports(10250)}
        assert lint(cluster([*nodes, server, egress(way, of=app("metrics"))])) == []
        assert lint(cluster([nodes[0], server, egress(of=app("metrics"))])) == []
        assert lint(cluster([*nodes, WEB, egress()])) == []
