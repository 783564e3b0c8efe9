"""kube-proxy's IPVS mode: addresses on kube-ipvs0, `ipvsadm -R`, ipsets, and the few iptables rules that use them.

The structure follows pkg/proxy/ipvs/README.md. Every Service address is assigned to a dummy device, so that packets are
delivered locally and IPVS sees them. Sets replace rules per Service. Round robin is the default scheduler.
"""

from __future__ import annotations

from collections.abc import Iterable

from perf.services import CLUSTER_CIDR, Service, ServiceModel

DEVICE = "kube-ipvs0"
MARK = "0x4000"
# (name, type, purpose according to that README)
SETS = (
    ("KUBE-CLUSTER-IP", "hash:ip,port", "all Service cluster IP and port"),
    ("KUBE-LOOP-BACK", "hash:ip,port,ip", "Service IP, port and IP, for hairpin"),
)
_FLAGS = {"tcp": "-t", "udp": "-u"}


def devices(new: ServiceModel, old: ServiceModel | None = None) -> str:
    """Input for `ip -batch -`: the dummy device (once) and the Services' addresses."""
    held = set(_addresses(old)) if old else set()
    wanted = _addresses(new)
    lines = [] if old else [f"link add {DEVICE} type dummy"]
    lines += [f"addr add {address}/32 dev {DEVICE}" for address in wanted if address not in held]
    lines += [f"addr del {address}/32 dev {DEVICE}" for address in held.difference(wanted)]
    return "".join(f"{line}\n" for line in lines)


def sets(new: ServiceModel, old: ServiceModel | None = None) -> str:
    """Input for `ipset restore -exist`."""
    lines = [f"create {name} {kind} family inet maxelem 1048576" for name, kind, _ in SETS] if old is None else []
    held = dict.fromkeys(_members(old)) if old else {}
    wanted = dict.fromkeys(_members(new))
    lines += [f"add {member}" for member in wanted if member not in held]
    lines += [f"del {member}" for member in held if member not in wanted]
    return "".join(f"{line}\n" for line in lines)


def virtual_servers(new: ServiceModel, old: ServiceModel | None = None) -> str:
    """Input for `ipvsadm -R`: Services with the scheduler rr, backends with masquerading (-m) and weight 1."""
    held = {_key(s): s for s in old.services} if old else {}
    lines: list[str] = []
    for service in new.services:
        before = held.pop(_key(service), None)
        if before is None:
            lines.append(f"-A {_key(service)} -s rr")
        old_backends = before.backends if before else ()
        lines += [f"-a {_key(service)} -r {b} -m -w 1" for b in service.backends if b not in old_backends]
        lines += [f"-d {_key(service)} -r {b}" for b in old_backends if b not in service.backends]
    lines += [f"-D {key}" for key in held]
    return "".join(f"{line}\n" for line in lines)


def rules() -> str:
    """Input for `iptables-restore --noflush`: a few rules, independent of the number of Services."""
    return (
        "*nat\n"
        ":KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-POSTROUTING - [0:0]\n"
        '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES\n'
        '-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES\n'
        '-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING\n'
        f"-A KUBE-MARK-MASQ -j MARK --or-mark {MARK}\n"
        '-A KUBE-POSTROUTING -m comment --comment "Kubernetes endpoints dst ip:port, source ip for solving hairpin '
        'purpose" -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE\n'
        f"-A KUBE-POSTROUTING -m mark ! --mark {MARK}/{MARK} -j RETURN\n"
        f"-A KUBE-POSTROUTING -j MARK --xor-mark {MARK}\n"
        '-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" '
        "-j MASQUERADE --random-fully\n"
        '-A KUBE-SERVICES -m comment --comment "Kubernetes service cluster ip + port for masquerade purpose" '
        f"-m set --match-set KUBE-CLUSTER-IP dst,dst ! -s {CLUSTER_CIDR} -j KUBE-MARK-MASQ\n"
        "-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT\n"
        "COMMIT\n"
    )


def _addresses(model: ServiceModel) -> list[str]:
    return list(dict.fromkeys(service.cluster_ip for service in model.services))


def _key(service: Service) -> str:
    return f"{_FLAGS[service.protocol]} {service.cluster_ip}:{service.port}"


def _members(model: ServiceModel) -> Iterable[str]:
    for service in model.services:
        yield f"KUBE-CLUSTER-IP {service.cluster_ip},{service.protocol}:{service.port}"
        for backend in service.backends:
            yield f"KUBE-LOOP-BACK {backend.address},{service.protocol}:{backend.port},{backend.address}"
