"""Removes an attachment, complete or partial after a crash. DEL, GC and the start of an agent use this."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nodenet.cni import ipam, wire
from nodenet.cni.errors import CniError, Code
from nodenet.cni.ipam import Owner, Store
from nodenet.cni.reboot import reclaim
from nodenet.cni.records import Crashed, Record, Records
from nodenet.endpoint import Endpoint, IPAddress
from nodenet.link import netns
from nodenet.link.handle import Link, LinkError

if TYPE_CHECKING:
    from nodenet.cni.delegate import Delegate

log = logging.getLogger("nodenet.cni")
Step = Callable[[str], None]
# The steps of a detachment. Tests kill the process before each of them.
STEPS = ("cut", "forget", "filters", "release", "drop")


@dataclass(frozen=True, slots=True)
class Detacher:
    """The parts that every detachment on this node uses. `forget` is the agent's hook. It is called after the veth
    is removed and before the addresses are released; if it raises, the addresses stay leased."""

    node: Link
    records: Records
    run_dir: Path
    forget: Callable[[Endpoint], None]
    step: Step = lambda name: None

    def detach(
        self,
        owner: Owner,
        network: str,
        data_dir: Path | None,
        netns_path: str = "",
        hints: Iterable[IPAddress] = (),
        crashed: bool = False,
        masqueraded: bool = False,
        delegate: Delegate | None = None,
    ) -> None:
        """Remove veth, rules, agent state, leases and record, in this order. Idempotent. The caller must hold the
        attachment (Records.busy). `hints` are addresses that it may have in addition to the known ones.
        `masqueraded` is ipMasq of the configuration: the reference plugin may have created rules. `delegate`
        assigned the addresses; if it is None, the delegate in the record is called. Raises CniError, OSError,
        LinkError."""
        record, damaged = self._record(owner)
        if record:
            network, data_dir = record.network, record.data_dir
        self.step("cut")
        cut = wire.disconnect(self.node, owner, record.endpoint.host_ifname if record else "")
        # The reference plugin gives the node's end another name.
        if netns_path and not cut:
            wire.disconnect_in(netns_path, owner.ifname)
        self.step("forget")
        if record:
            self.forget(record.endpoint)
        store = Store(data_dir, network, self.run_dir) if data_dir else None
        known = list(record.endpoint.ips) if record else self._held(store, owner, hints)
        self.step("filters")
        wire.unfilter_port(network, owner, known)
        if masqueraded and known and not record:
            remove_reference_rules(network, owner, known)
        self.step("release")
        if store:
            ipam.release(store, owner, known)
        if delegate or (record and record.delegation):
            _give_back(delegate, record)
        self.step("drop")
        traces = crashed or damaged or cut or bool(known)
        self.records.drop(owner, record.endpoint.endpoint_id if record else 0, search=traces)

    def _held(self, store: Store | None, owner: Owner, hints: Iterable[IPAddress]) -> list[IPAddress]:
        """Addresses that are leased to the owner, and the hints."""
        if store is None or not store.folder.is_dir():
            return list(hints)
        with store.locked():
            return list(dict.fromkeys([*store.held_by(owner), *hints]))

    def _record(self, owner: Owner) -> tuple[Record | None, bool]:
        """The record, and True if it exists but cannot be read: the remains are then searched by name."""
        try:
            return self.records.get(owner), False
        except ValueError as error:
            log.warning("endpoint file of container %s: %s", owner.container_id, error)
            return None, True


def _give_back(delegate: Delegate | None, record: Record | None) -> None:
    """Call DEL of the IPAM plugin that assigned the addresses. If it raises CniError, the record stays, so that DEL
    can be retried."""
    from nodenet.cni.delegate import Delegate

    if delegate is None and record is not None:
        try:
            delegate = Delegate.from_json(record.delegation)
        except ValueError as error:
            log.warning("endpoint file of container %s: delegation: %s", record.endpoint.container_id, error)
    if delegate is not None:
        delegate.delete()


def remove_reference_rules(network: str, owner: Owner, known: Iterable[IPAddress]) -> None:
    # Imported here: only nodes that just moved from the reference plugin need it.
    from nodenet.cni.reference import remove_masquerade

    remove_masquerade(network, owner.container_id, known)


def recover(run_dir: Path, forget: Callable[[Endpoint], None] = lambda endpoint: None) -> list[str]:
    """At an agent's start, in the node's namespace: finish the work of killed verbs, and free attachments whose
    namespace and veth are both gone. Returns a sentence for each attachment that could not be freed.

    An attachment with at least one existing end belongs to its runtime and is not touched.
    """
    records = Records(run_dir)
    problems: list[str] = []
    with ExitStack() as stack:
        node = stack.enter_context(Link())
        detacher = Detacher(node, records, run_dir, forget)
        dead = [*records.crashed(), *dead_attachments(node, records)]
        for entry in dead:
            try:
                # Do not wait: another verb that holds the attachment is working on it.
                with records.busy(entry.owner, 0.0) as crashed:
                    detacher.detach(entry.owner, entry.network, entry.data_dir, entry.netns, crashed=crashed)
                log.warning(
                    "network %s: removed %s of container %s, which was left over", entry.network, *entry.owner[::-1]
                )
            except CniError as error:
                if error.code != Code.TRY_AGAIN:
                    problems.append(str(error))
            except (OSError, LinkError) as error:
                problems.append(f"container {entry.owner.container_id}: {error}")
        for network, data_dir in {(r.network, r.data_dir) for r in records.all()[0]} | {
            (entry.network, entry.data_dir) for entry in dead
        }:
            try:
                if data_dir:
                    reclaim(Store(data_dir, network, run_dir))
            except (OSError, CniError) as error:
                problems.append(f"network {network}: {error}")
    return problems


def dead_attachments(node: Link, records: Records) -> list[Crashed]:
    """Attachments whose namespace and veth are both gone."""
    alive = {interface.name for interface in node.all()}
    found = []
    for record in records.all()[0]:
        endpoint = record.endpoint
        if endpoint.host_ifname not in alive and not netns.is_namespace(endpoint.netns):
            found.append(Crashed(record.owner, record.network, record.data_dir, ""))
    return found
