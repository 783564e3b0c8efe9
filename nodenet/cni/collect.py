"""GC (SPEC.md 1.1.0, section 2): free all resources of this network that belong to no attachment on the runtime's
list."""

from __future__ import annotations

import logging

from nodenet.cni.conf import NetConf
from nodenet.cni.detach import Detacher, dead_attachments
from nodenet.cni.errors import CniError, Code
from nodenet.cni.ipam import Owner, Store
from nodenet.cni.reboot import reclaim
from nodenet.cni.records import Records
from nodenet.cni.request import Request
from nodenet.link.everywhere import addresses_everywhere
from nodenet.link.handle import LinkError

log = logging.getLogger("nodenet.cni")


def collect(detacher: Detacher, conf: NetConf, request: Request) -> None:
    """Free every lease, veth, rule, record and agent state of the network that is not on the list. As the specification
    requires, continues after a failure, and at the end raises CniError that names all failures. Another IPAM plugin
    then does the same for its own leases.

    Without a list we do not know which attachments are valid: free only those that are certainly dead, as at an agent's
    start. Skip an attachment on which another verb is working.
    """
    data_dir = conf.ipam.data_dir if conf.ipam else None
    store = Store(data_dir, conf.name, detacher.run_dir) if data_dir else None
    failed = []
    for owner, netns in sorted(_stale(detacher, conf, store).items()):
        try:
            with detacher.records.busy(owner, 0.0, conf.name, data_dir, netns) as crashed:
                detacher.detach(owner, conf.name, data_dir, netns, crashed=crashed, masqueraded=conf.ip_masq)
            log.info("network %s: interface %s of container %s freed", conf.name, owner.ifname, owner.container_id)
        except (CniError, LinkError, OSError) as error:
            # Another verb is working on this attachment: skip it.
            if not (isinstance(error, CniError) and error.code == Code.TRY_AGAIN and "another" in str(error)):
                failed.append(f"container {owner.container_id} {owner.ifname}: {error}")
    if store:
        try:
            reclaim(store)
            if conf.valid is not None:
                _free_damaged(store, detacher.records, conf.valid)
        except (CniError, OSError) as error:
            failed.append(str(error))
    if conf.delegate:
        _delegated(conf, request, failed)
    if failed:
        message = f"network {conf.name}: GC: some resources could not be freed ({len(failed)}): {failed[0]}"
        raise CniError(Code.IO_FAILURE, message, "; ".join(failed[1:]))


def _delegated(conf: NetConf, request: Request, failed: list[str]) -> None:
    from nodenet.cni.delegate import Delegate

    try:
        Delegate.of(conf.delegate, request).collect()
    except CniError as error:
        if not failed:
            raise
        failed.append(f"IPAM plugin {conf.delegate}: {error}")


def _stale(detacher: Detacher, conf: NetConf, store: Store | None) -> dict[Owner, str]:
    """The attachments to free, each with its namespace's path or ""."""
    known = _known(detacher, conf, store)
    if conf.valid is not None:
        return {owner: netns for owner, netns in known.items() if not _is_valid(owner, conf.valid)}
    dead = [*detacher.records.crashed(), *dead_attachments(detacher.node, detacher.records)]
    return {entry.owner: known[entry.owner] for entry in dead if entry.owner in known}


def _known(detacher: Detacher, conf: NetConf, store: Store | None) -> dict[Owner, str]:
    """Every attachment of the network of which any trace exists, with its namespace's path or ""."""
    found: dict[Owner, str] = {}
    if store:
        found.update((owner, "") for owner in store.leases().values() if owner.container_id)
    records, problems = detacher.records.all()
    for problem in problems:
        log.warning("%s", problem)
    data_dir = conf.ipam.data_dir if conf.ipam else None
    recorded = ((entry.owner, entry.network, entry.data_dir, entry.endpoint.netns) for entry in records)
    begun = ((entry.owner, entry.network, entry.data_dir, entry.netns) for entry in detacher.records.crashed())
    found.update(
        (owner, netns)
        for owner, network, folder, netns in (*begun, *recorded)
        if network == conf.name and folder == data_dir
    )
    return found


def _is_valid(owner: Owner, valid: frozenset[Owner]) -> bool:
    if owner.ifname:
        return owner in valid
    # Leases of the reference plugin before 0.8 contain no interface name.
    return any(owner.container_id == entry.container_id for entry in valid)


def _free_damaged(store: Store, records: Records, valid: frozenset[Owner]) -> None:
    """Free leases without an owner, left by a crash of the reference plugin or a damaged disk. Free one only if
    certainly no valid attachment uses the address: compare with the endpoint files if each valid attachment has one,
    else with the addresses of all namespaces."""
    damaged = [address for address, owner in store.leases().items() if not owner.container_id]
    if not damaged:
        return
    known = records.all()[0]
    used = frozenset(address for record in known for address in record.endpoint.ips)
    if not valid <= {record.owner for record in known}:
        living = addresses_everywhere()
        if living is None:
            log.warning("network %s: damaged leases are kept, because not every namespace can be read", store.network)
            return
        used |= living
    with store.locked():
        for address in damaged:
            if address not in used and not store.owner(address).container_id:
                (store.folder / str(address)).unlink(missing_ok=True)
                log.warning("network %s: freed lease %s, which had no owner", store.network, address)
