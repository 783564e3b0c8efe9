"""The examples of the Kubernetes DNS specification 1.1, section by section, and what it leaves open."""

from __future__ import annotations

import json

import pytest

from netpolicy.addresses import parse_address
from nodenet.dns.objects import ENDPOINT_SLICE, KINDS, SERVICE, Endpoint, EndpointSlice, Namespace, Port, Service
from nodenet.dns.zone import Answer, Code, Record, Type, Zone, build
from nodenet.kube.decode import decode
from nodenet.model import ObjectRef

HTTPS = Port("https", "tcp", 443)


def ref(name: str, namespace: str = "default") -> ObjectRef:
    return ObjectRef(namespace, name)


def endpoints(*found: tuple[str, str]) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(parse_address(address), hostname) for address, hostname in found)


def part(service: str, *found: tuple[str, str], name: str = "1") -> EndpointSlice:
    return EndpointSlice(ref(f"{service}-{name}"), ref(service), (HTTPS,), endpoints(*found))


ZONE = build(
    [
        Service(ref("kubernetes"), (parse_address("10.3.0.1"), parse_address("fd00::1")), ports=(HTTPS,)),
        Service(ref("headless"), headless=True, ports=(HTTPS,)),
        Service(ref("empty"), headless=True, ports=(HTTPS,)),
        Service(ref("foo"), external_name="www.example.com"),
        Service(ref("alias"), external_name="Kubernetes.default.svc.cluster.local"),
        Service(ref("loop"), external_name="loop.default.svc.cluster.local"),
    ],
    [
        part("headless", ("10.3.0.100", "my-pet"), ("10.3.0.101", "my-pet-2"), ("10.3.0.102", "")),
        part("headless", ("fd00::100", "my-pet"), name="6"),
        part("empty"),
        # A slice of a Service that does not exist (any more).
        part("gone", ("10.3.0.200", "x")),
    ],
    [Namespace("default"), Namespace("quiet")],
)


def data(answer: Answer) -> set[tuple[str, str, str]]:
    return {(record.name, str(record.type), record.data) for record in answer.records}


def ask(name: str, kind: str, zone: Zone = ZONE) -> set[tuple[str, str, str]]:
    found = zone.ask(name, Type(kind))
    assert (found.code, found.authoritative) == (Code.NOERROR, True)
    return data(found)


def is_nodata(name: str, kind: str) -> bool:
    found = ZONE.ask(name, Type(kind))
    return found.code is Code.NOERROR and not found.records


def is_nxdomain(name: str, kind: str = "A") -> bool:
    return ZONE.ask(name, Type(kind)) == Answer(Code.NXDOMAIN)


def test_2_2_schema_version() -> None:
    assert ask("dns-version.cluster.local.", "TXT") == {("dns-version.cluster.local", "TXT", '"1.1.0"')}


def test_2_3_1_addresses_of_a_cluster_ip() -> None:
    name = "kubernetes.default.svc.cluster.local"
    assert ask(f"{name}.", "A") == {(name, "A", "10.3.0.1")}
    assert ask(name, "AAAA") == {(name, "AAAA", "fd00::1")}


def test_2_3_2_srv_of_a_cluster_ip() -> None:
    host = "kubernetes.default.svc.cluster.local"
    found = ZONE.ask(f"_https._tcp.{host}", Type.SRV)
    assert data(found) == {(f"_https._tcp.{host}", "SRV", f"0 100 443 {host}")}
    assert {record.data for record in found.additional} == {"10.3.0.1", "fd00::1"}
    assert is_nxdomain(f"_https._udp.{host}", "SRV")


def test_2_3_3_reverse_names_of_a_cluster_ip() -> None:
    name = "kubernetes.default.svc.cluster.local"
    assert ask("1.0.3.10.in-addr.arpa.", "PTR") == {("1.0.3.10.in-addr.arpa", "PTR", name)}
    reverse = parse_address("fd00::1").reverse_pointer
    assert ask(reverse, "PTR") == {(reverse, "PTR", name)}


def test_2_4_1_addresses_of_a_headless_service() -> None:
    name = "headless.default.svc.cluster.local"
    assert ask(name, "A") == {(name, "A", f"10.3.0.{number}") for number in (100, 101, 102)}
    assert ask(name, "AAAA") == {(name, "AAAA", "fd00::100")}
    assert ask(f"my-pet.{name}", "A") == {(f"my-pet.{name}", "A", "10.3.0.100")}
    assert ask(f"my-pet.{name}", "AAAA") == {(f"my-pet.{name}", "AAAA", "fd00::100")}
    # An endpoint without a host name has a name of its own too.
    assert ask(f"10-3-0-102.{name}", "A") == {(f"10-3-0-102.{name}", "A", "10.3.0.102")}
    assert is_nxdomain("empty.default.svc.cluster.local")


def test_2_4_2_srv_of_a_headless_service() -> None:
    base = "headless.default.svc.cluster.local"
    hosts = ("my-pet", "my-pet-2", "10-3-0-102")
    found = ZONE.ask(f"_https._tcp.{base}", Type.SRV)
    assert data(found) == {(f"_https._tcp.{base}", "SRV", f"0 100 443 {host}.{base}") for host in hosts}
    # Both families of my-pet are one host: one record.
    assert len(found.records) == 3
    assert len(found.additional) == 4


def test_2_4_3_reverse_names_of_a_headless_service() -> None:
    name = "my-pet.headless.default.svc.cluster.local"
    assert ask("100.0.3.10.in-addr.arpa", "PTR") == {("100.0.3.10.in-addr.arpa", "PTR", name)}


def test_2_5_external_names() -> None:
    name = "foo.default.svc.cluster.local"
    found = ZONE.ask(name, Type.A)
    assert data(found) == {(name, "CNAME", "www.example.com")}
    assert (found.code, found.outside, found.authoritative) == (Code.NOERROR, "www.example.com", True)
    assert data(ZONE.ask(name, Type.CNAME)) == {(name, "CNAME", "www.example.com")}


def test_an_external_name_of_the_cluster_is_followed() -> None:
    assert ask("alias.default.svc.cluster.local", "A") == {
        ("alias.default.svc.cluster.local", "CNAME", "Kubernetes.default.svc.cluster.local"),
        ("kubernetes.default.svc.cluster.local", "A", "10.3.0.1"),
    }
    # A loop has an end.
    assert ask("loop.default.svc.cluster.local", "A")


def test_2_6_names_of_pods() -> None:
    name = "10-3-0-9.default.pod.cluster.local"
    assert ask(name, "A") == {(name, "A", "10.3.0.9")}
    assert is_nodata(name, "AAAA")
    six = "fd00--9.default.pod.cluster.local"
    assert ask(six, "AAAA") == {(six, "AAAA", "fd00::9")}
    for wrong in ("10-3-0-256", "a", "10-3-0", "1-2-3-4-5"):
        assert is_nxdomain(f"{wrong}.default.pod.cluster.local")
    assert is_nxdomain("10-3-0-9.missing.pod.cluster.local")


def test_case_does_not_matter() -> None:
    assert len(ask("KUBERNETES.Default.SVC.cluster.LOCAL", "A")) == 1


def test_nxdomain_and_nodata() -> None:
    """NODATA: the name exists, if only above others. NXDOMAIN: it does not."""
    for there in (
        "kubernetes.default.svc.cluster.local",
        "default.svc.cluster.local",
        "quiet.svc.cluster.local",
        "quiet.pod.cluster.local",
        "svc.cluster.local",
        "cluster.local",
        "_tcp.kubernetes.default.svc.cluster.local",
        "in-addr.arpa",
    ):
        assert is_nodata(there, "SRV" if "kubernetes" in there else "A"), there
    for missing in (
        "nope.default.svc.cluster.local",
        "kubernetes.quiet.svc.cluster.local",
        "x.kubernetes.default.svc.cluster.local",
        "gone.default.svc.cluster.local",
        "x.cluster.local",
    ):
        assert is_nxdomain(missing), missing
    assert is_nxdomain("9.9.9.10.in-addr.arpa", "PTR")
    # A type that no name has.
    assert ZONE.ask("kubernetes.default.svc.cluster.local", None).code is Code.NOERROR
    assert ZONE.ask("nope.default.svc.cluster.local", None).code is Code.NXDOMAIN


def test_names_outside_of_the_cluster() -> None:
    for name in ("example.com", "local", "mycluster.local", "com", ""):
        assert ZONE.ask(name, Type.A) == Answer(Code.NXDOMAIN, authoritative=False, outside=name)


def test_the_apex() -> None:
    assert len(ask("cluster.local", "SOA")) == len(ask("cluster.local", "NS")) == 1
    assert {record.type for record in ZONE.ask("cluster.local", Type.ANY).records} == {Type.SOA, Type.NS}


def test_objects_of_the_api() -> None:
    """Ready endpoints only; a condition that is absent means ready; invalid parts are left out."""
    raw = {
        "metadata": {"name": "pg-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "pg"}},
        "addressType": "IPv4",
        "ports": [{"name": "PG", "port": 5432}, {"name": "", "port": 1}, {"name": "all"}],
        "endpoints": [
            {"addresses": ["10.0.0.1"], "hostname": "Pg-0", "conditions": {"ready": True}},
            {"addresses": ["10.0.0.2"], "hostname": "pg-1", "conditions": {"ready": False, "serving": True}},
            {"addresses": ["10.0.0.3"]},
            {"addresses": ["nonsense"]},
        ],
    }
    found = decode(ENDPOINT_SLICE, json.dumps(raw).encode())
    assert found.obj == EndpointSlice(
        ref("pg-1", "shop"),
        ref("pg", "shop"),
        (Port("pg", "tcp", 5432),),
        endpoints(("10.0.0.1", "pg-0"), ("10.0.0.3", "")),
    )
    assert len(found.unread) == 1
    assert decode(ENDPOINT_SLICE, json.dumps({**raw, "addressType": "FQDN"}).encode()).obj is None


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"clusterIP": "10.0.0.1"}, {"addresses": (parse_address("10.0.0.1"),)}),
        ({"clusterIP": "None", "clusterIPs": ["None"]}, {"headless": True}),
        ({"type": "ExternalName", "externalName": "a.example."}, {"external_name": "a.example"}),
        ({}, {}),
    ],
)
def test_services_of_the_api(spec: dict[str, object], expected: dict[str, object]) -> None:
    raw = {"metadata": {"name": "s", "namespace": "shop"}, "spec": spec}
    assert decode(SERVICE, json.dumps(raw).encode()).obj == Service(ref("s", "shop"), **expected)  # type: ignore[arg-type]


def test_a_record_is_hashable_and_the_kinds_are_named() -> None:
    assert len({Record("a", Type.A, "10.0.0.1"), Record("a", Type.A, "10.0.0.1")}) == 1
    assert [kind.name for kind in KINDS] == ["Service", "EndpointSlice", "Namespace"]
