"""Names the objects that are not up to date in the maps, to find the cause of a fault. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from nodenet.abi import V4_PREFIX_BITS
from nodenet.engine import Compiled
from nodenet.reconcile.plan import Write


def stale(compiled: Compiled, writes: Iterable[Write]) -> list[str]:
    """The sorted names of objects whose writes were not made. Entries to which frontends refer have no
    name of their own, because the writes of their frontends are left out too."""
    return sorted({name for write in writes if (name := _name(compiled, write))})


def _name(compiled: Compiled, write: Write) -> str:
    key, value = write.key, write.value
    if write.table == "nn_frontend":
        number = value.service_id if value is not None else 0
        return compiled.service_name(number) if number else f"Service address {key.addr}, port {key.port}"
    if write.table in ("nn_endpoint", "nn_ipcache"):
        party = compiled.flow_names.addresses.get(key.addr)
        return f"pod {party.namespace}/{party.pod}" if party and party.pod else f"address {key.addr}"
    if write.table == "nn_policy":
        labels = compiled.names.identities.get(key.subject)
        if labels is None:
            return f"policy of identity {key.subject}"
        words = ",".join(f"{name}={found}" for name, found in labels.labels)
        return f"policy of pods in {labels.namespace} with labels {words or 'none'}"
    if write.table == "nn_cidr":
        return f"ipBlock {key.addr}/{key.prefixlen - (V4_PREFIX_BITS if key.addr.version == 4 else 0)}"
    return ""
