"""The names of a cluster: the records of every Service, made from the API's objects, and answers to questions. Pure.

Rules: Kubernetes DNS-Based Service Discovery, version 1.1.0 (kubernetes/dns, docs/specification.md). Where it leaves a
choice, this does what CoreDNS does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address

from nodenet.dns.objects import Endpoint, EndpointSlice, Namespace, Service
from nodenet.model import IPAddress, ObjectRef

VERSION = "1.1.0"
DOMAIN = "cluster.local"
_REVERSE = ("in-addr.arpa", "ip6.arpa")
# A chain of ExternalName Services inside of the cluster ends here.
_LONGEST_CHAIN = 8
# SRV: the specification prescribes no values. All endpoints of a Service are equal.
PRIORITY, WEIGHT = 0, 100


class Type(StrEnum):
    A = "A"
    AAAA = "AAAA"
    CNAME = "CNAME"
    NS = "NS"
    PTR = "PTR"
    SOA = "SOA"
    SRV = "SRV"
    TXT = "TXT"
    ANY = "ANY"


class Code(IntEnum):
    """The DNS response codes in use. NOERROR without a record of the asked type is also called NODATA."""

    NOERROR = 0
    NXDOMAIN = 3


@dataclass(frozen=True, slots=True)
class Record:
    """One resource record. `data` is written as in a zone file; names in it are absolute, without the last dot."""

    name: str
    type: Type
    data: str


@dataclass(frozen=True, slots=True)
class Answer:
    """`authoritative`: the name is in the cluster's zone or its reverse zones. `outside`: a name that only a server
    outside of the cluster can resolve; the question's, or the last target of a CNAME; "" if there is none."""

    code: Code = Code.NOERROR
    records: tuple[Record, ...] = ()
    additional: tuple[Record, ...] = ()
    authoritative: bool = True
    outside: str = ""


Names = dict[str, list[Record]]


@dataclass(frozen=True, slots=True)
class Zone:
    """All records by name, in lower case and without the last dot. A name without records is the ancestor of one."""

    domain: str
    names: Mapping[str, list[Record]]
    namespaces: frozenset[str] = field(default_factory=frozenset)

    def ask(self, name: str, kind: Type | None) -> Answer:
        """Answer a question. Names are compared without regard to case. None: a type that no record here has."""
        name = name.lower().rstrip(".")
        if not self._owns(name):
            return Answer(Code.NXDOMAIN, authoritative=False, outside=name)
        found: list[Record] = []
        for _ in range(_LONGEST_CHAIN):
            records = self._records(name)
            if records is None:
                return Answer(Code.NXDOMAIN, tuple(found))
            wanted = [r for r in records if r.type is kind or kind is Type.ANY]
            found += wanted or [r for r in records if r.type is Type.CNAME]
            if wanted or not records or records[0].type is not Type.CNAME:
                break
            name = records[0].data.lower()
            if not self._owns(name):
                return Answer(records=tuple(found), outside=name)
        return Answer(records=tuple(found), additional=tuple(self._targets(found)))

    def _owns(self, name: str) -> bool:
        return any(name == zone or name.endswith(f".{zone}") for zone in (self.domain, *_REVERSE))

    def _records(self, name: str) -> list[Record] | None:
        """None: no such name."""
        found = self.names.get(name)
        return self._pod(name) if found is None else found

    def _pod(self, name: str) -> list[Record] | None:
        """<a>-<b>-<c>-<d>.<ns>.pod.<zone>: the address in the name, whether a pod has it or not."""
        label, _, rest = name.partition(".")
        namespace, _, suffix = rest.partition(".")
        if suffix != f"pod.{self.domain}" or namespace not in self.namespaces:
            return None
        address = _dashed(label)
        return None if address is None else [Record(name, _address_type(address), str(address))]

    def _targets(self, found: Iterable[Record]) -> Iterator[Record]:
        """The addresses of the hosts in SRV records."""
        hosts = dict.fromkeys(record.data.rpartition(" ")[2] for record in found if record.type is Type.SRV)
        for host in hosts:
            yield from (r for r in self.names.get(host, ()) if r.type in (Type.A, Type.AAAA))


def build(
    services: Iterable[Service],
    slices: Iterable[EndpointSlice],
    namespaces: Iterable[Namespace],
    domain: str = DOMAIN,
) -> Zone:
    """The zone of these objects."""
    records = [*_apex(domain)]
    by_service: dict[ObjectRef, list[EndpointSlice]] = {}
    for found in slices:
        by_service.setdefault(found.service, []).append(found)
    for service in services:
        base = f"{service.ref.name}.{service.ref.namespace}.svc.{domain}".lower()
        records += _service(base, service, by_service.get(service.ref, ()))
    known = frozenset(namespace.name for namespace in namespaces)
    places = [f"{name}.{tree}.{domain}" for name in known for tree in ("svc", "pod")]
    return Zone(domain, _by_name(records, [*places, domain, *_REVERSE]), known)


def _apex(domain: str) -> Iterator[Record]:
    yield Record(f"dns-version.{domain}", Type.TXT, f'"{VERSION}"')
    yield Record(domain, Type.SOA, soa(domain))
    yield Record(domain, Type.NS, f"ns.dns.{domain}")


def soa(domain: str) -> str:
    """The numbers are those of CoreDNS. The last one is how long a client may remember that a name does not exist."""
    return f"ns.dns.{domain} hostmaster.{domain} 1 7200 1800 86400 5"


def _service(base: str, service: Service, slices: Iterable[EndpointSlice]) -> Iterator[Record]:
    if service.external_name:
        yield Record(base, Type.CNAME, service.external_name)
        return
    if service.headless:
        yield from _headless(base, slices)
        return
    for address in service.addresses:
        yield Record(base, _address_type(address), str(address))
        yield Record(address.reverse_pointer, Type.PTR, base)
    for port in service.ports:
        yield Record(f"_{port.name}._{port.protocol}.{base}", Type.SRV, f"{PRIORITY} {WEIGHT} {port.number} {base}")


def _headless(base: str, slices: Iterable[EndpointSlice]) -> Iterator[Record]:
    for part in slices:
        for endpoint in part.endpoints:
            host = f"{_hostname(endpoint)}.{base}"
            kind = _address_type(endpoint.address)
            yield Record(base, kind, str(endpoint.address))
            yield Record(host, kind, str(endpoint.address))
            yield Record(endpoint.address.reverse_pointer, Type.PTR, host)
            for port in part.ports:
                data = f"{PRIORITY} {WEIGHT} {port.number} {host}"
                yield Record(f"_{port.name}._{port.protocol}.{base}", Type.SRV, data)


def _hostname(endpoint: Endpoint) -> str:
    """An endpoint without a host name gets one from its address."""
    return endpoint.hostname or str(endpoint.address).replace(".", "-").replace(":", "-")


def _by_name(records: Iterable[Record], places: Iterable[str]) -> Names:
    """Records by name, without duplicates. All ancestors exist too: a question for one is not answered NXDOMAIN."""
    found: dict[str, dict[Record, None]] = {}
    for record in records:
        found.setdefault(record.name, {})[record] = None
    for name in (*found, *places):
        labels = name.split(".")
        for start in range(len(labels)):
            found.setdefault(".".join(labels[start:]), {})
    return {name: list(owned) for name, owned in found.items()}


def _address_type(address: IPAddress) -> Type:
    return Type.A if address.version == 4 else Type.AAAA


def _dashed(label: str) -> IPAddress | None:
    """An address with dashes: 10-0-0-1, fd00--1."""
    for text, family in ((label.replace("-", "."), IPv4Address), (label.replace("-", ":"), IPv6Address)):
        try:
            found = ip_address(text)
        except ValueError:
            continue
        if isinstance(found, family):
            return found
    return None
