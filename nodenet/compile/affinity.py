"""Session affinity: the number of a Service port, and the addresses of the clients on this node."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from ipaddress import IPv6Address

from nodenet.abi import ClientEntry, ClientKey
from nodenet.compile.ids import canonical
from nodenet.compile.state import ServicePortName, Table
from nodenet.endpoint import AttachmentKey
from nodenet.model import Endpoint

_NONE = IPv6Address("::")


@lru_cache(maxsize=1 << 12)
def affinity_id(name: ServicePortName) -> int:
    """The same for all addresses of a Service port. Two Service ports with the same number would replace each other's
    entries, and only for a client that calls both: a backend of the other one is never used."""
    return int.from_bytes(blake2b(canonical(name).encode(), digest_size=4).digest(), "big")


def clients(endpoints: Mapping[AttachmentKey, Endpoint]) -> Table:
    """nn_client. If several attachments share a namespace, the first one with an address of a family counts."""
    found: dict[ClientKey, ClientEntry] = {}
    for _, endpoint in sorted(endpoints.items()):
        if not endpoint.netns_cookie:
            continue
        known = found.get(ClientKey(endpoint.netns_cookie), ClientEntry(_NONE, _NONE))
        for address in endpoint.ips:
            if address.version == 4 and known.v4 == _NONE:
                known = known._replace(v4=address)
            elif address.version == 6 and known.v6 == _NONE:
                known = known._replace(v6=address)
        found[ClientKey(endpoint.netns_cookie)] = known
    return found
